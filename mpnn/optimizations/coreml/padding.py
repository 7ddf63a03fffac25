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
from mpnn.optimizations.coreml.network import SLOT_WEIGHT
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
    """

    E_idx: IntArray
    mask: NDArray[np.bool_]
    bucket: int
    slots: int
    dtype: np.dtype[Any]

    def encoder_inputs(self, E: Array) -> dict[str, Array]:
        """What the encoder takes, from edge vectors E [L, K, C]."""
        return {"E": self.edges(E), **self.graph(self.mask[self.E_idx])}

    def decoder_graph(self) -> dict[str, Array]:
        """The decoder's inputs that depend on the structure alone."""
        return self.graph(np.ones(self.E_idx.shape, bool))

    def decoder_types(self, S: IntArray, rank: IntArray) -> dict[str, Array]:
        """The decoder's other inputs: residue types S [L] visible under `rank` [L]."""
        see = rank[self.E_idx] < rank[:, None]  # [L, K]
        letters = np.zeros((self.slots, NUM_LETTERS, 1, self.bucket), self.dtype)
        i, k = np.nonzero(see)
        letters[k, S[self.E_idx[i, k]], 0, i] = 1
        return {"see": self.edges(see[..., None]), "letters": letters}

    def graph(self, counts: NDArray[np.bool_]) -> dict[str, Array]:
        """Neighbors, weights of the slots that count [L, K], and the mask.

        All slots count where the result is set to 0 anyway, see `network`.
        """
        L = len(self.mask)
        everywhere = np.ones((self.bucket, self.slots), bool)
        everywhere[:L][self.mask] = False
        everywhere[:L, : counts.shape[1]] |= counts
        mask = np.zeros((1, 1, 1, self.bucket), self.dtype)
        mask[..., :L] = self.mask
        return {
            "E_idx": self.edges(self.E_idx[..., None])[:, 0],
            "slot_weight": (SLOT_WEIGHT * everywhere.T[:, None, None]).astype(self.dtype),
            "mask": mask,
        }

    def edges(self, x: Array) -> Array:
        """[L, K, C] -> [K', C, 1, L'], zero where padded."""
        L, K, C = x.shape
        padded = np.zeros((self.slots, C, 1, self.bucket), self.dtype)
        padded[:K, :, 0, :L] = x.transpose(1, 2, 0)
        return padded

    def rows(self, nodes: Array) -> Array:
        """[1, C, 1, L'] -> [L, C]."""
        return nodes[0, :, 0, : len(self.mask)].T
