"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from mpnn.errors import InputError


def write_whole(path: str | Path, data: str | bytes | memoryview) -> None:
    """Writes a file under a temporary name beside it, then renames it into place.

    Creates missing folders. Whatever interrupts the write, `path` holds its old content or the new.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data.encode(errors="surrogateescape") if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from error
