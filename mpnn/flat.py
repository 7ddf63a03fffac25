"""Structures laid end to end as host arrays: what every engine is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpnn.config import ALPHABET

if TYPE_CHECKING:
    from mpnn.backbone import Backbone


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

    @property
    def slices(self) -> tuple[slice, ...]:
        """Rows of each structure."""
        starts = zip(self.offsets, self.lengths, strict=True)
        return tuple(slice(start, start + length) for start, length in starts)

    @property
    def structure(self) -> NDArray[np.int64]:
        """Number of each row's structure, int64 [R]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def first_row(self) -> NDArray[np.int64]:
        """First row of each row's structure, int64 [R]."""
        return np.repeat(np.array(self.offsets), self.lengths)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Bool [B, L], False for padding where structures are padded to the longest, L."""
        return np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]

    def alone(self, b: int) -> Flat:
        """Returns structure b alone."""
        rows = self.slices[b]
        start, length = rows.start, self.lengths[b]
        return Flat(
            X=self.X[rows],
            mask=self.mask[rows],
            residue_idx=self.residue_idx[rows],
            chain_encoding=self.chain_encoding[rows],
            S=self.S[rows],
            lengths=(length,),
            E_idx=None if self.E_idx is None else self.E_idx[rows, :length] - start,
        )

    def repeat(self, n: int) -> Flat:
        """Returns n copies of all structures, one set after another."""
        E_idx = None
        if self.E_idx is not None:
            first = np.arange(n)[:, None, None] * self.size
            E_idx = (self.E_idx + first).reshape(n * self.size, -1)
        return Flat(
            X=np.tile(self.X, (n, 1, 1)),
            mask=np.tile(self.mask, n),
            residue_idx=np.tile(self.residue_idx, n),
            chain_encoding=np.tile(self.chain_encoding, n),
            S=np.tile(self.S, n),
            lengths=self.lengths * n,
            E_idx=E_idx,
        )

    def with_neighbors(self, E_idx: NDArray[np.int64]) -> Flat:
        """Returns the same structures with neighbors E_idx [R, K] found elsewhere."""
        return replace(self, E_idx=E_idx)

    def padded(self, rows: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """Pads rows [R, ...] to the longest structure: [B, L, ...], `fill` at the padding."""
        if len(self.lengths) == 1:
            return rows[None]
        result = np.full((*self.valid.shape, *rows.shape[1:]), fill, rows.dtype)
        result[self.valid] = rows
        return result

    def unpadded(self, padded: NDArray[Any]) -> NDArray[Any]:
        """Drops the padding: [B, L, ...] -> [R, ...]."""
        rows: NDArray[Any] = padded[self.valid]
        return rows

    def padded_neighbors(self) -> NDArray[np.int64] | None:
        """E_idx as positions in padded structures [B, L, K]; padding where a slot has no neighbor.

        None where neighbors are not given.
        """
        if self.E_idx is None:
            return None
        slot = np.arange(min(self.E_idx.shape[1], max(self.lengths)))
        position = self.E_idx[:, slot] - self.first_row[:, None]
        length = np.repeat(np.array(self.lengths), self.lengths)[:, None]
        result: NDArray[np.int64] = self.padded(np.where(slot < length, position, slot))
        return result
