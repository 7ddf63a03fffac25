"""Between the package's arrays and a bucket's: a fixed length, channels before residues.

Shapes: L residues of a structure, K its neighbors, K' and L' those of the bucket (K ≤ K', L ≤ L').
Everything here is on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpnn.config import NUM_LETTERS
from mpnn.optimizations.coreml.network import BATCH, SLOT_WEIGHT, Layout
from mpnn.schedule import IntArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Padded:
    """One structure's graph, and how it lies in its bucket.

    Attributes:
        E_idx: [L, K] neighbors.
        mask: [L], True where all atoms are present.
        bucket: L'.
        slots: K'.
        dtype: of all inputs.
        layout: of the edge arrays.
    """

    E_idx: IntArray
    mask: NDArray[np.bool_]
    bucket: int
    slots: int
    dtype: np.dtype[Any]
    layout: Layout = BATCH

    def graph(self) -> dict[str, Array]:
        """Neighbors, weights of the slots that count for encoder and decoder, and the mask."""
        mask = np.zeros((1, 1, 1, self.bucket), self.dtype)
        mask[..., : len(self.mask)] = self.mask
        return {
            "E_idx": self.edges(self.E_idx[..., None], self.bucket),
            "encoder_weight": self.weights(self.mask[self.E_idx]),
            "decoder_weight": self.weights(np.ones(self.E_idx.shape, bool)),
            "mask": mask,
        }

    def weights(self, counts: NDArray[np.bool_]) -> Array:
        """Weights of the slots that count [L, K]; all do where the result is set to 0 anyway."""
        L = len(self.mask)
        everywhere = np.ones((self.bucket, self.slots, 1), bool)
        everywhere[:L][self.mask] = False
        everywhere[:L, : counts.shape[1], 0] |= counts
        return self.edges(SLOT_WEIGHT * everywhere, self.bucket)

    def types(self, S: IntArray, rank: IntArray) -> dict[str, Array]:
        """The decoder's other inputs: residue types S [L] visible under `rank` [L]."""
        return self.types_at(S, rank, np.arange(len(S)), self.bucket)

    def types_at(self, S: IntArray, rank: IntArray, rows: IntArray, width: int) -> dict[str, Array]:
        """The same of some residues `rows` [M], padded to `width`."""
        E_idx = self.E_idx[rows]
        see = rank[E_idx] < rank[rows, None]  # [M, K]
        types = np.zeros(self.layout.shape(self.slots, NUM_LETTERS, width), self.dtype)
        i, k = np.nonzero(see)
        self.layout.slots_first(types)[k, S[E_idx[i, k]], 0, i] = 1
        return {"see": self.edges(see[..., None], width), "types": types}

    def edges(self, x: Array, width: int) -> Array:
        """[M, K, C] -> [K', C, 1, width] or as the layout wants it, zero where padded."""
        M, K, C = x.shape
        padded = np.zeros(self.layout.shape(self.slots, C, width), self.dtype)
        self.layout.slots_first(padded)[:K, :, 0, :M] = x.transpose(1, 2, 0)
        return padded

    def rows(self, nodes: Array) -> Array:
        """[1, C, 1, L'] -> [L, C]."""
        return nodes[0, :, 0, : len(self.mask)].T
