"""Structures laid end to end as host arrays: what every engine is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET


@dataclass(frozen=True, eq=False)
class Flat:
    """B structures end to end, R residues in all, without padding.

    A masked residue belongs to its structure but lacks atoms and, as in the published network,
    still takes part as a decoder neighbor.

    Attributes:
        X: float32 [R, 4, 3], atoms N, CA, C, O in Å; 0 where masked.
        mask: bool [R], True where all four atoms are known.
        residue_idx: int64 [R], position in its structure + 100 for every chain before it.
        chain_encoding: int64 [R], 1, 2, … per chain.
        S: int64 [R], native residue types.
        lengths: residues of each structure.
        E_idx: int64 [R, K], rows of neighbors found elsewhere, closest first; a structure of fewer
            than K residues repeats the residue itself in the slots beyond its length. None lets the
            engine search.
    """

    X: NDArray[np.float32]
    mask: NDArray[np.bool_]
    residue_idx: NDArray[np.int64]
    chain_encoding: NDArray[np.int64]
    S: NDArray[np.int64]
    lengths: tuple[int, ...]
    E_idx: NDArray[np.int64] | None = None

    @classmethod
    def from_backbones(cls, backbones: Sequence[Backbone]) -> Flat:
        """Lays `backbones` end to end, in their order."""
        if not backbones:
            raise ValueError("a batch needs at least one backbone")
        sequence = "".join(b.sequence for b in backbones)
        return cls(
            X=np.concatenate([b.coords for b in backbones]),
            mask=np.concatenate([b.mask for b in backbones]),
            residue_idx=np.concatenate([b.residue_idx for b in backbones]),
            chain_encoding=np.concatenate([b.chain_encoding for b in backbones]),
            S=np.array([ALPHABET.index(letter) for letter in sequence], np.int64),
            lengths=tuple(len(b) for b in backbones),
        )

    @property
    def size(self) -> int:
        """R."""
        return len(self.mask)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First row of each structure."""
        return tuple(int(x) for x in np.cumsum((0, *self.lengths[:-1])))
