"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpnn.atomic import write_whole
from mpnn.errors import InputError


def test_file_is_written_with_its_folders(tmp_path: Path) -> None:
    """Missing folders are made, an older file is replaced, and nothing else is left there."""
    path = tmp_path / "a" / "b.txt"
    write_whole(path, "old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while writing leaves the old content and no partial file."""
    path = tmp_path / "b.txt"
    write_whole(path, "old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_place(tmp_path: Path) -> None:
    """A folder that cannot be made, or a name taken by a folder, is an error that names it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x.fa", tmp_path / "folder"):
        with pytest.raises(InputError, match=path.name):
            write_whole(path, "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
