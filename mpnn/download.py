"""Files fetched into the user's cache; published weights, what they are called and known by."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

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
"""Published weights by name; 002 to 030 are the 0.02 to 0.30 Å of noise in training."""


def git_blob_id(path: str | Path) -> str:
    """SHA-1 of `blob <size>` + NUL + content: how git names a file's content."""
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def cache_folder() -> Path:
    """Where downloaded weights are kept on this machine; other downloads lie beside it."""
    return Path(platformdirs.user_cache_dir("mpnn"), "weights")


def cached(name: str) -> Path | None:
    """The download of a published name if it is here, its id verified.

    Raises:
        InputError: the file here has another id.
    """
    path = cache_folder() / f"{name}.pt"
    if not path.is_file():
        return None
    found, expected = git_blob_id(path), PUBLISHED[name].blob_id
    if found != expected:
        raise InputError(
            f"{path}: has blob id {found}, but {name} has {expected}: the file is damaged; "
            f"run `mpnn weights fetch {name}` to replace it"
        )
    return path


def fetch(
    name: str, source: str = SOURCE, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Downloads published weights into the cache, going on where a broken download ended.

    The file gets its name only after its blob id is found right.

    Args:
        name: a name in `PUBLISHED`.
        source: where the folders of the repository are served.
        progress: called with bytes here and bytes in all.

    Raises:
        InputError: the name is unknown, the server cannot be reached or refuses, the connection
            ends early, or the content has another id.
    """
    if name not in PUBLISHED:
        raise InputError(f"{name}: not a published name; there are {', '.join(PUBLISHED)}")
    path = cache_folder() / f"{name}.pt"
    expected = PUBLISHED[name].blob_id

    def check(file: Path) -> None:
        found = git_blob_id(file)
        if found != expected:
            raise InputError(
                f"{source}: sent {name} with blob id {found} instead of {expected}; nothing "
                "was kept; try again, and if it stays so give a path to --weights"
            )

    fetch_file(f"{source}/{PUBLISHED[name].path}", path, check, progress)
    return path


def fetch_file(
    url: str,
    path: Path,
    read: Callable[[Path], Content],
    progress: Callable[[int, int], None] | None = None,
) -> Content:
    """Reads a file of the cache, downloaded first where it is not there or cannot be read.

    The file gets its name only after it was read; a broken download is gone on with.

    Args:
        url: where it is served.
        path: where it is kept.
        read: what is wanted of the file; its `InputError` refuses the content.
        progress: called with bytes here and bytes in all.

    Returns:
        What `read` returned.

    Raises:
        UnreachableError: the server cannot be reached, or falls silent.
        InputError: the server refuses, the connection ends early, `read` refuses what was sent
            (then nothing is kept), or the cache cannot be written.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a second process waits, then finds the file done
            if path.is_file():
                with contextlib.suppress(InputError):  # a damaged file is replaced
                    content = read(path)
                    partial.unlink(missing_ok=True)
                    return content
            _download(url, file, progress)
            try:
                content = read(partial)
            except InputError:
                file.truncate(0)
                raise
            os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return content


def _download(url: str, file: BinaryIO, progress: Callable[[int, int], None] | None) -> None:
    """Appends to `file`, open for appending, what it still lacks of `url`."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                have = file.truncate(0)  # the server sends the whole file
            total = have + int(response.headers.get("Content-Length", 0))
            while chunk := response.read(CHUNK):
                have += _written(file, chunk)
                if progress is not None:
                    progress(have, total)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left to send; what is here decides
        raise InputError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"{url}: the download failed ({error}); {have} bytes are kept, run it again to go on"
        ) from error
    file.flush()
    if have < total:
        raise InputError(
            f"{url}: the connection ended after {have} of {total} bytes; run it again to go on"
        )


def _written(file: BinaryIO, chunk: bytes) -> int:
    """Bytes written; a disk that refuses them is not taken for a server that does."""
    try:
        return file.write(chunk)
    except OSError as error:
        raise InputError(f"{file.name}: cannot be written ({error.strerror})") from error
