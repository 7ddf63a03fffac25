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

CHUNK = 1 << 16  # bytes
TIMEOUT = 30.0  # seconds without a byte
Report = Callable[[int, int], None]
"""Called with the bytes received so far and in total."""


@dataclass(frozen=True)
class Repository:
    """A public repository of weights.

    Attributes:
        name: owner and name on GitHub.
        revision: commit or branch to fetch from; blob ids tell whether it is the right file.
        license: of the repository.
        about: what the weights are for, and who published them.
    """

    name: str
    revision: str
    license: str
    about: str

    @property
    def url(self) -> str:
        """Where its files are fetched from."""
        return f"https://raw.githubusercontent.com/{self.name}/{self.revision}"


@dataclass(frozen=True)
class PublishedFile:
    """A file of a public repository and its git blob id."""

    path: str
    blob_id: str
    repository: Repository

    @property
    def file_name(self) -> str:
        """Its name in the repository, by which it may lie in a folder too."""
        return self.path.rpartition("/")[2]


PROTEIN_MPNN = Repository(
    "dauparas/ProteinMPNN",
    "8907e6671bfbfc92303b5f79c4b5e6ce47cdef57",
    "MIT",
    "the published weights: the PDB of 2021, soluble proteins alone for soluble_…; 002 to 030 "
    "stand for training noise of 0.02 to 0.30 Å (Dauparas et al., Science 2022)",
)
HYPER_MPNN = Repository(
    "meilerlab/HyperMPNN",
    "HEAD",
    "MIT",
    "proteins of hyperthermophiles, for designs that stand heat (Ertelt et al.)",
)
POTTS_MPNN = Repository(
    "KeatingLab/PottsMPNN",
    "HEAD",
    "MIT",
    "the ProteinMPNN part of PottsMPNN, trained with its energies, with alignments for …_msa_…, "
    "on soluble proteins for sol_… (Keating lab)",
)
_HYPER = "retrained_models/v48_{}_epoch{}_hyper.pt"
_POTTS = "proteinmpnn_compatible_model_weights/{}.pt"

PUBLISHED: dict[str, PublishedFile] = {
    name: PublishedFile(path, blob_id, repository)
    for repository, name, path, blob_id in (
        *(
            (PROTEIN_MPNN, name, f"vanilla_model_weights/{name}.pt", blob_id)
            for name, blob_id in (
                ("v_48_002", "ca45322d4e3fa2812dada241202bac3d3b144025"),
                ("v_48_010", "b22f72c6e49a05fc19ffedc1a483392e57c84141"),
                ("v_48_020", "66f81553eea491dfc1307582c679ef029511937b"),
                ("v_48_030", "54548472396a948b8dbbac3745b85b95cc308cb9"),
            )
        ),
        *(
            (PROTEIN_MPNN, f"soluble_{name}", f"soluble_model_weights/{name}.pt", blob_id)
            for name, blob_id in (
                ("v_48_002", "f7a4aacf9fbcd7ca77f77e16800d1e248a4fd6db"),
                ("v_48_010", "9b7c4344a6b1167eeef79331e90e8d75d2b73c66"),
                ("v_48_020", "7bdbd0522fae78a889b55b91925183338adeaebf"),
                ("v_48_030", "93b264a7f9b72e0439254d8089c19ef9641e5cd9"),
            )
        ),
        *(
            (HYPER_MPNN, f"hyper_v_48_{noise}", _HYPER.format(noise, epoch), blob_id)
            for noise, epoch, blob_id in (
                ("002", 240, "e3daa9c556a61bfe3e79bab62b9341a9d9763364"),
                ("010", 300, "8036866da3be5dddc596c31b4ae52fc8ec6550dc"),
                ("020", 300, "d0ac2834151197e4ff5ebfdc66dec1f4668ef07f"),
                ("030", 300, "61d5ab97ac1ba7dc1f89277e40acb12ba2dab24c"),
            )
        ),
        *(
            (POTTS_MPNN, name, _POTTS.format(name), blob_id)
            for name, blob_id in (
                ("pottsmpnn_20", "de011d0f51c826acef88fe01b1c71719e90c25d9"),
                ("pottsmpnn_30", "5504d8dbcd4d74aa865abf88cf444d8036023dac"),
                ("pottsmpnn_msa_20", "f3670ef89a43001e9f3d9f9a59d5cd5ddb8c9c7e"),
                ("sol_pottsmpnn_20", "56a61be61bcfc090481b85fb6218f50b6e443839"),
                ("sol_pottsmpnn_30", "5fafdd1e9d33165c67d134e19dafd1156b617ed5"),
                ("sol_pottsmpnn_msa_20", "3aa943a4eda33eedfad87b1393eba7fa7b722f06"),
            )
        ),
    )
}
"""Published weights of ProteinMPNN's network by name."""


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


def fetch(name: str, source: str | None = None, progress: Report | None = None) -> Path:
    """Path of published weights in the cache, downloaded and verified if missing.

    Args:
        name: in `PUBLISHED`.
        source: address of another copy of the repository; None takes the repository itself.
        progress: called with the bytes received.

    Raises:
        InputError: `name` is not in `PUBLISHED`; or see `fetch_file`.
    """
    if name not in PUBLISHED:
        raise InputError(f"{name}: not a published name; known are {', '.join(PUBLISHED)}")
    path = cache_folder() / f"{name}.pt"
    expected = PUBLISHED[name].blob_id
    source = source or PUBLISHED[name].repository.url

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
