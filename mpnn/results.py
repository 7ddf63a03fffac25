"""What designing and scoring return: frozen records on the host.

Everything is in the order of `backbone` in the result: designed chains first, then fixed ones, each
group in alphabetical order. L residues, V = 21 letters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone

Mode = Literal["ordered", "conditional", "unconditional"]
"""Which letters a residue sees while it is scored: those before it in the order, all other ones, or
none."""


@dataclass(frozen=True, eq=False)
class Score:
    """How well one sequence fits a structure.

    Attributes:
        sequence: L letters.
        seed: keys the random order of decoding.
        log_probs: [L, 21] of every letter; 0 where nothing was computed (conditional mode).
        score: mean −log p in nats over designed residues with coordinates; NaN if there is none.
        global_score: the same over all residues with coordinates; NaN in conditional mode.
    """

    sequence: str
    seed: int
    log_probs: NDArray[np.floating]
    score: float
    global_score: float

    @property
    def perplexity(self) -> float:
        """exp(score): 1 for certainty, 20 for a blind guess."""
        return math.exp(self.score)


@dataclass(frozen=True)
class Design:
    """One designed sequence.

    Attributes:
        sequence: L letters; fixed and masked residues keep theirs.
        seed, sample, temperature: what it was drawn with; the first two key its noise.
        score: mean −log p in nats over designed residues, without temperature and bias.
        global_score: the same over all residues with coordinates.
        recovery: share of designed residues with the native letter.
    """

    sequence: str
    seed: int
    sample: int
    temperature: float
    score: float
    global_score: float
    recovery: float


@dataclass(frozen=True, eq=False)
class Target:
    """The structure that results belong to.

    Attributes:
        backbone: the structure, its chains in the order of all sequences here.
        designed: bool [L], residues that are drawn, or that count in scores.
        designed_chains: chains asked for.
        fixed_chains: the others.
    """

    backbone: Backbone
    designed: NDArray[np.bool_]
    designed_chains: tuple[str, ...]
    fixed_chains: tuple[str, ...]

    def by_chain(self, sequence: str) -> dict[str, str]:
        """A sequence of L letters as one string for each chain."""
        index = self.backbone.chain_index
        ends = np.searchsorted(index, np.arange(len(self.backbone.chain_ids)), side="right")
        starts = [0, *ends[:-1]]
        parts = (sequence[a:b] for a, b in zip(starts, ends, strict=True))
        return dict(zip(self.backbone.chain_ids, parts, strict=True))

    def printed(self, sequence: str) -> str:
        """The designed chains of a sequence of L letters, joined by "/" as in published files."""
        chains = self.by_chain(sequence)
        return "/".join(chains[name] for name in self.designed_chains)


@dataclass(frozen=True, eq=False)
class Designs(Target):
    """The designs for one structure; iterates over them.

    Attributes:
        native: score of the structure's own sequence, one for each seed.
        designs: by seed, then temperature, then sample.
    """

    native: tuple[Score, ...]
    designs: tuple[Design, ...]

    def __len__(self) -> int:
        return len(self.designs)

    def __getitem__(self, index: int) -> Design:
        return self.designs[index]

    def __iter__(self) -> Iterator[Design]:
        return iter(self.designs)


@dataclass(frozen=True, eq=False)
class Scores(Target):
    """Scores of some sequences on one structure.

    Attributes:
        mode: how they were scored.
        scores: by seed, then sequence.
    """

    mode: Mode
    scores: tuple[Score, ...]
