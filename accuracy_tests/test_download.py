"""Downloads: stored whole and verified, or not at all, with one line of error."""

from __future__ import annotations

import hashlib
import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Server, closed_address, serving

from mpnn import download, weights
from mpnn.download import PublishedFile, fetch
from mpnn.errors import InputError, UnreachableError
from mpnn.weights import find_weights

NAME = "v_48_020"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no other place where weights are found."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(download, "cache_folder", lambda: folder)
    monkeypatch.setattr(weights, "cache_folder", lambda: folder)
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "shipped")
    monkeypatch.delenv("MPNN_WEIGHTS", raising=False)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of `v_48_020`, whose blob id is that of random content."""
    with serving() as running:
        running.content = os.urandom(200_000)
        blob = b"blob %d\0" % len(running.content) + running.content
        file = PublishedFile("folder/v.pt", hashlib.sha1(blob).hexdigest(), download.HYPER_MPNN)
        monkeypatch.setitem(download.PUBLISHED, NAME, file)
        yield running


def stored(cache: Path) -> list[str]:
    """Names of the files in the cache."""
    return [path.name for path in cache.iterdir()] if cache.is_dir() else []


def test_a_file_is_downloaded_once_with_progress(server: Server, cache: Path) -> None:
    """A fetched file is whole, verified, alone in the cache, and not fetched again."""
    seen: list[tuple[int, int]] = []
    path = fetch(NAME, server.address, lambda have, total: seen.append((have, total)))
    assert path.read_bytes() == server.content
    assert stored(cache) == [path.name]
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (200_000, 200_000)
    assert fetch(NAME, server.address) == path
    assert find_weights(NAME) == path
    assert server.paths == ["folder/v.pt"]


def test_an_interrupted_download_starts_again(server: Server, cache: Path) -> None:
    """A connection that ends early leaves nothing behind, and the next attempt is whole."""
    server.stop_after = 70_000
    with pytest.raises(UnreachableError, match=r"the download failed .* run it again"):
        fetch(NAME, server.address)
    assert stored(cache) == []
    server.stop_after = None
    assert fetch(NAME, server.address).read_bytes() == server.content


def test_content_with_another_blob_id_is_refused(server: Server, cache: Path) -> None:
    """Nothing is stored of it."""
    server.content = b"something else"
    with pytest.raises(InputError, match=r"sent v_48_020 with blob id .* instead of") as caught:
        fetch(NAME, server.address)
    assert not isinstance(caught.value, UnreachableError)
    assert stored(cache) == []


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_of_the_server_is_reported(server: Server, cache: Path, status: int) -> None:
    """The message has the server's status, and the server is not called unreachable."""
    server.status = status
    with pytest.raises(InputError, match=f"the server answered {status}") as caught:
        fetch(NAME, server.address)
    assert not isinstance(caught.value, UnreachableError)
    assert stored(cache) == []


def test_a_server_that_cannot_be_reached_is_named(cache: Path) -> None:
    """One line with the address, as offline."""
    address = closed_address()
    with pytest.raises(UnreachableError, match=f"{address}.*the download failed") as caught:
        fetch(NAME, address)
    assert "\n" not in str(caught.value)
    assert stored(cache) == []


def test_a_damaged_file_of_the_cache_is_refused_and_replaced(server: Server) -> None:
    """The error names the command that replaces it."""
    path = fetch(NAME, server.address)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="mpnn weights fetch v_48_020"):
        find_weights(NAME)
    assert fetch(NAME, server.address).read_bytes() == server.content


def test_a_cache_that_cannot_be_created_is_named(server: Server, cache: Path) -> None:
    """A file in place of the folder is an error of the file system, not of the network."""
    cache.write_text("a file")
    with pytest.raises(InputError, match=r"cache.*cannot be written"):
        fetch(NAME, server.address)


def test_a_full_disk_is_told_from_an_unreachable_server(server: Server, cache: Path) -> None:
    """The error names the file and the cause, and nothing partial is left."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        with pytest.raises(InputError, match=r"v_48_020\.pt: cannot be written \(") as caught:
            fetch(NAME, server.address)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert not isinstance(caught.value, UnreachableError)
    assert stored(cache) == []


def test_published_names() -> None:
    """Files of three repositories with ids of forty digits; other names are refused with these."""
    assert len({f.blob_id for f in download.PUBLISHED.values()}) == len(download.PUBLISHED) == 18
    repositories = Counter(f.repository.name for f in download.PUBLISHED.values())
    assert repositories == {
        "dauparas/ProteinMPNN": 8, "meilerlab/HyperMPNN": 4, "KeatingLab/PottsMPNN": 6
    }  # fmt: skip
    hyper = download.PUBLISHED["hyper_v_48_002"]
    assert hyper.path == "retrained_models/v48_002_epoch240_hyper.pt"
    assert hyper.repository.url.startswith("https://raw.githubusercontent.com/meilerlab/HyperMPNN/")
    assert download.PUBLISHED["soluble_v_48_002"].path == "soluble_model_weights/v_48_002.pt"
    assert all(len(f.blob_id) == 40 for f in download.PUBLISHED.values())
    with pytest.raises(InputError, match=r"known are v_48_002, .*soluble_v_48_030"):
        fetch("v_48_040")
