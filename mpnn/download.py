"""Downloads into the user's cache; names and git blob ids of the published weights."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import platformdirs

from mpnn.errors import InputError, UnreachableError

Content = TypeVar("Content")

SOURCE = (
    "https://raw.githubusercontent.com/dauparas/ProteinMPNN/"
    "8907e6671bfbfc92303b5f79c4b5e6ce47cdef57"
)
"""The public repository at the commit whose blob ids are below (MIT license)."""

CHUNK = 1 << 16  # bytes
TIMEOUT = 30.0  # seconds without a byte
Report = Callable[[int, int], None]
"""Called with the bytes received so far and in total."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of the public repository and its git blob id."""

    path: str
    blob_id: str


PUBLISHED: dict[str, PublishedFile] = {
    name: PublishedFile(f"{folder}_model_weights/{name.removeprefix('soluble_')}.pt", blob_id)
    for folder, name, blob_id in (
        ("vanilla", "v_48_002", "ca45322d4e3fa2812dada241202bac3d3b144025"),
        ("vanilla", "v_48_010", "b22f72c6e49a05fc19ffedc1a483392e57c84141"),
        ("vanilla", "v_48_020", "66f81553eea491dfc1307582c679ef029511937b"),
        ("vanilla", "v_48_030", "54548472396a948b8dbbac3745b85b95cc308cb9"),
        ("soluble", "soluble_v_48_002", "f7a4aacf9fbcd7ca77f77e16800d1e248a4fd6db"),
        ("soluble", "soluble_v_48_010", "9b7c4344a6b1167eeef79331e90e8d75d2b73c66"),
        ("soluble", "soluble_v_48_020", "7bdbd0522fae78a889b55b91925183338adeaebf"),
        ("soluble", "soluble_v_48_030", "93b264a7f9b72e0439254d8089c19ef9641e5cd9"),
    )
}
"""Published weights by name; 002 to 030 stand for training noise of 0.02 to 0.30 Å."""


def git_blob_id(path: str | Path) -> str:
    """The id that git gives to the content of a file: SHA-1 of `blob <size>`, NUL and content."""
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def cache_folder() -> Path:
    """Folder of downloaded weights on this machine; other downloads are in folders beside it."""
    return Path(platformdirs.user_cache_dir("mpnn"), "weights")


def cached(name: str) -> Path | None:
    """The downloaded file of a published name if it exists, its id verified.

    Raises:
        InputError: the file has another id.
    """
    path = cache_folder() / f"{name}.pt"
    if not path.is_file():
        return None
    found, expected = git_blob_id(path), PUBLISHED[name].blob_id
    if found != expected:
        raise InputError(
            f"{path}: the file is damaged: its blob id is {found}, that of {name} is {expected}; "
            f"run `mpnn weights fetch {name}` to replace it"
        )
    return path


def fetch(name: str, source: str = SOURCE, progress: Report | None = None) -> Path:
    """Path of published weights in the cache, downloaded from `source` and verified if missing.

    Raises:
        InputError: `name` is not in `PUBLISHED`; or see `fetch_file`.
    """
    if name not in PUBLISHED:
        raise InputError(f"{name}: not a published name; known are {', '.join(PUBLISHED)}")
    path = cache_folder() / f"{name}.pt"
    expected = PUBLISHED[name].blob_id

    def check(file: Path) -> None:
        found = git_blob_id(file)
        if found != expected:
            raise InputError(
                f"{source}: sent {name} with blob id {found} instead of {expected}; nothing was "
                "stored; try again, or give a path to --weights"
            )

    fetch_file(f"{source}/{PUBLISHED[name].path}", path, check, progress)
    return path


def fetch_file(
    url: str, path: Path, read: Callable[[Path], Content], progress: Report | None = None
) -> Content:
    """The result of `read` on a file of the cache, downloaded if it is missing or damaged.

    The file gets its name after `read` has accepted it by not raising InputError. An interrupted
    download starts again.

    Raises:
        UnreachableError: the server cannot be reached, or the connection breaks.
        InputError: the server answers with an error, `read` rejects the content (nothing is stored
            then), or the cache cannot be written.
    """
    if path.is_file():
        with contextlib.suppress(InputError):  # a damaged file is replaced
            return read(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
            partial = Path(folder, path.name)
            partial.write_bytes(_download(url, progress))
            content = read(partial)
            partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return content


class _Progress:
    """The progress bar that pooch expects, which calls a function instead."""

    total = 0  # bytes, set by pooch

    def __init__(self, report: Report) -> None:
        self._report, self._received = report, 0

    def update(self, count: int) -> None:
        """Adds a chunk of bytes; the last one may be shorter than pooch says."""
        self._received = min(self._received + count, self.total)
        self._report(self._received, self.total)

    def reset(self) -> None:
        """Begins again at 0."""
        self._received = 0

    def close(self) -> None:
        """Does nothing."""


def _download(url: str, report: Report | None) -> bytes:
    """The content at `url`; see `fetch_file` for errors."""
    import pooch  # here, because few sessions download anything
    import requests

    download = pooch.HTTPDownloader(
        progressbar=False if report is None else _Progress(report),
        chunk_size=CHUNK,
        timeout=TIMEOUT,
        headers={"Accept-Encoding": "identity"},  # bytes as stored, so that lengths agree
    )
    content = io.BytesIO()  # in memory (a few MB), so that errors of disk and network stay apart
    try:
        download(url, content, None)
    except requests.HTTPError as error:
        answer = error.response
        assert answer is not None  # set where the status is checked
        answer.close()  # pooch leaves its connection open
        raise InputError(
            f"{url}: the server answered {answer.status_code} {answer.reason}; try again later"
        ) from error
    except requests.RequestException as error:
        cause = str(getattr(error.args[0], "reason", error)).rpartition("): ")[2]
        raise UnreachableError(
            f"{url}: the download failed ({cause}); check the connection and run it again"
        ) from error
    return content.getvalue()
