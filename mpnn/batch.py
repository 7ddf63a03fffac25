"""Backbones of different lengths side by side as tensors, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mpnn.config import ALPHABET, UNKNOWN
from mpnn.structure import Backbone


@dataclass(frozen=True, eq=False)
class Batch:
    """B structures padded to L residues.

    `mask` and `valid` differ: a masked residue belongs to the structure but lacks atoms and, as in
    the published network, still takes part as a decoder neighbor; padding takes part in nothing.
    """

    X: Tensor  # [B, L, 4, 3] N, CA, C, O in Å; zeros where mask is 0
    mask: Tensor  # [B, L] float, 1 where all four atoms are present
    residue_idx: Tensor  # [B, L] int64, position + 100 per chain before
    chain_encoding: Tensor  # [B, L] int64, 1, 2, … per chain
    S: Tensor  # [B, L] int64, native letters
    valid: Tensor  # [B, L] bool, False for padding
    E_idx: Tensor | None = None  # [B, L, K] int64, neighbors found elsewhere (k-NN on the CPU)

    @classmethod
    def from_backbones(
        cls,
        backbones: Sequence[Backbone],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """Pads `backbones` to the longest; the order is kept."""
        if not backbones:
            raise ValueError("a batch needs at least one backbone")

        def padded(arrays: list[np.ndarray], fill: float) -> Tensor:
            tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
            return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)

        letters = [np.array([ALPHABET.index(c) for c in b.sequence], np.int64) for b in backbones]
        return cls(
            X=padded([b.coords for b in backbones], 0.0).to(device, dtype),
            mask=padded([b.mask.astype(np.float32) for b in backbones], 0.0).to(device, dtype),
            residue_idx=padded([b.residue_idx for b in backbones], 0).to(device),
            chain_encoding=padded([b.chain_encoding for b in backbones], 0).to(device),
            S=padded(letters, UNKNOWN).to(device),
            valid=padded([np.ones(len(b), bool) for b in backbones], False).to(device),
        )

    @property
    def lengths(self) -> Tensor:
        """Residues of each structure, [B] int64."""
        return self.valid.sum(1)

    def repeat(self, n: int) -> Batch:
        """Every structure `n` times in a row, as the published command line batches samples."""

        def copies(x: Tensor) -> Tensor:
            return x.repeat_interleave(n, 0)

        return Batch(
            copies(self.X),
            copies(self.mask),
            copies(self.residue_idx),
            copies(self.chain_encoding),
            copies(self.S),
            copies(self.valid),
            None if self.E_idx is None else copies(self.E_idx),
        )
