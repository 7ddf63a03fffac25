"""Arrays of the published implementation, float32, deterministic weights."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.schedule import decoding_order, rank_of
from mpnn.weights import formula_weights

FOLDER = Path(__file__).parent / "parity"
TOLERANCE = 1e-5
INPUTS = ("made_two_chains", "made_short", "made_short_masked")
CONFIGS = {
    "3x128_k48": ModelConfig(3, 3, 128, 48),
    "2x64_k48": ModelConfig(2, 2, 64, 48),
    "2x64_k16": ModelConfig(2, 2, 64, 16),
    "2x64_k12": ModelConfig(2, 2, 64, 12),
}


class Case:
    """One input with the published outputs of one configuration."""

    def __init__(self, name: str, config: str) -> None:
        self.given = np.load(FOLDER / f"{name}.npz")
        self.expected = np.load(FOLDER / f"{name}__{config}.npz")
        self.config = CONFIGS[config]
        self.mask = self.given["mask"] > 0
        self.designed = self.mask & (self.given["chain_M"] > 0)
        self.order = decoding_order(self.designed, self.given["randn"].astype(float))
        self.S = self.given["S"].astype(np.int64)

    @cached_property
    def model(self) -> ProteinMPNN:
        """The network with deterministic weights."""
        model: ProteinMPNN = formula_weights(self.config)
        return model

    @property
    def flat(self) -> Flat:
        """The input as a single structure."""
        return Flat(
            X=self.given["X"],
            mask=self.mask,
            residue_idx=self.given["residue_idx"],
            chain_encoding=self.given["chain_encoding_all"],
            S=self.S,
            lengths=(len(self.S),),
        )

    def conditional_ranks(self) -> np.ndarray:
        """One order for each designed residue, in which it comes last: [N, L]."""
        normal = self.given["randn"].astype(float)
        last = np.eye(len(self.S), dtype=bool)[self.designed]
        return np.stack([rank_of(decoding_order(row, normal)) for row in last])

    def worst(self, actual: np.ndarray, name: str, rows: np.ndarray | None = None) -> float:
        """Largest absolute difference to the published array over rows with a mask of 1."""
        rows = self.mask if rows is None else rows
        return float(np.abs(actual[rows] - self.expected[name][rows]).max())
