"""Sets of chains in `.npz` files, and the folder of real structures.

Arrays of a file, where chain i is rows offsets[i]:offsets[i + 1] of R residues: `ca` int [R, 3], CA
in 0.001 Å; `nco` int [R, 3, 3], N, C and O minus CA in 0.001 Å; `complete` bool [R], whether all
four atoms are known; `sequence` uint8 [R], one-letter codes; `residue_number` int [R], without
insertion codes; `name` str [chains], such as 1abc_A; `cluster` int [chains], equal within a family.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone, Chain, assemble
from mpnn.errors import InputError

PER_RESIDUE = {
    "ca": ("iu", (3,)),
    "nco": ("iu", (3, 3)),
    "complete": ("b", ()),
    "sequence": ("u", ()),
    "residue_number": ("iu", ()),
}
"""Allowed kinds of dtype, and shape after the first axis, by name of array."""

PER_CHAIN = {"name": "U", "cluster": "iu"}

UNIT = 0.001
"""Å per unit of a stored coordinate."""


def find_data(name: str) -> Path:
    """Path of a file or folder in the folder named by the environment variable MPNN_DATA.

    Raises:
        InputError: the variable is not set, or the path does not exist.
    """
    root = os.environ.get("MPNN_DATA")
    if not root:
        raise InputError(f"{name}: set MPNN_DATA to the folder that contains it")
    path = Path(root, name)
    if not path.exists():
        raise InputError(f"{path}: does not exist; MPNN_DATA is {root} and should contain {name}")
    return path


class ChainSet:
    """The chains of one `.npz` file; `chain_set[i]` builds a `Backbone`.

    Attributes:
        offsets: int64 [chains + 1], first row of each chain.
        names: name of each chain.
        cluster: int64 [chains].
    """

    def __init__(self, path: str | Path) -> None:
        """Reads and checks the file.

        Raises:
            InputError: it cannot be read, or an array is missing or has another dtype or shape.
        """
        self._arrays = _load(Path(path))
        self.offsets: NDArray[np.int64] = self._arrays["offsets"].astype(np.int64)
        self.names: list[str] = self._arrays["name"].tolist()
        self.cluster: NDArray[np.int64] = self._arrays["cluster"].astype(np.int64)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all arrays."""
        digest = hashlib.sha256()
        for name in (*PER_RESIDUE, *PER_CHAIN, "offsets"):
            digest.update(f"{name} {self._arrays[name].dtype.str}".encode())
            digest.update(np.ascontiguousarray(self._arrays[name]).tobytes())
        return digest.digest()

    def __getitem__(self, index: int) -> Backbone:
        """Chain `index` as a backbone with the chain's name, gaps in its numbering filled with X.

        Raises:
            IndexError: the index is out of range.
            InputError: its sequence or numbering is not valid.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"no chain {index} among {len(self)}")
        rows = slice(self.offsets[index], self.offsets[index + 1])
        ca = self._arrays["ca"][rows, None]
        n, c, o = np.moveaxis(self._arrays["nco"][rows], 1, 0)[:, :, None].astype(np.int64)
        numbers = self._arrays["residue_number"][rows].astype(np.int64)
        name = self.names[index]
        chain = Chain(
            name=name.rpartition("_")[2] or "A",
            coords=(np.concatenate([ca + n, ca, ca + c, ca + o], axis=1) * UNIT).astype(np.float32),
            complete=self._arrays["complete"][rows],
            letters=self._arrays["sequence"][rows].tobytes().decode("latin-1"),
            numbers=numbers,
            insertion_codes=np.full(len(numbers), "", dtype="<U1"),
        )
        return assemble(name, [chain])


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Reads and checks the arrays of a file."""
    try:
        # Opened here, because numpy leaves a damaged archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as .npz ({type(error).__name__})") from None
    needed = [*PER_RESIDUE, *PER_CHAIN, "offsets"]
    if missing := [name for name in needed if name not in arrays]:
        raise InputError(
            f"{path}: arrays {', '.join(missing)} are missing; {', '.join(needed)} are needed"
        )
    residues = arrays["complete"].size
    for name, (kinds, shape) in PER_RESIDUE.items():
        _check(path, name, arrays[name], kinds, (residues, *shape))
    chains = arrays["name"].size
    for name, kinds in PER_CHAIN.items():
        _check(path, name, arrays[name], kinds, (chains,))
    offsets = arrays["offsets"]
    _check(path, "offsets", offsets, "iu", (chains + 1,))
    if offsets[0] != 0 or offsets[-1] != residues or (np.diff(offsets.astype(np.int64)) < 1).any():
        raise InputError(f"{path}: offsets must rise from 0 to the {residues} residues")
    return arrays


def _check(path: Path, name: str, array: NDArray[Any], kinds: str, shape: tuple[int, ...]) -> None:
    if array.dtype.kind not in kinds or array.shape != shape:
        raise InputError(
            f"{path}: array {name} must have shape {shape} and a type of kind {kinds!r}, "
            f"not {array.shape} and {array.dtype}"
        )
