"""What designing and scoring return: frozen records on the host.

Everything is in the order of `backbone` in the result: designed chains first, then fixed ones, each
group in alphabetical order. N designs or scores, L residues, V = 21 residue types.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET

if TYPE_CHECKING:
    import gemmi

Mode = Literal["ordered", "conditional", "pseudo-likelihood", "unconditional"]
"""Which residue types a residue sees while it is scored: those decoded before it, all others (one
exact pass for each residue, or one pass in all; see `mpnn.Model.score`), or none."""


@dataclass(frozen=True, eq=False)
class Score:
    """How well one sequence fits a structure.

    Attributes:
        sequence: L one-letter codes.
        seed: keys the random decoding order.
        log_probs: [L, 21] of every residue type; 0 where nothing was computed (conditional mode).
        score: mean −log p in nats over designed residues with coordinates; NaN if there is none.
        global_score: the same over all residues with coordinates; NaN in conditional mode.
        residue_scores: float [L], −log p of each residue's type in nats; NaN where not computed.
    """

    sequence: str
    seed: int
    log_probs: NDArray[np.floating]
    score: float
    global_score: float
    residue_scores: NDArray[np.floating]

    @property
    def perplexity(self) -> float:
        """exp(score): 1 for certainty, 20 for a uniform guess."""
        return math.exp(self.score)

    @property
    def confidence(self) -> float:
        """exp(−score): geometric mean of the probabilities of the designed residues' types."""
        return math.exp(-self.score)


@dataclass(frozen=True)
class Design:
    """One designed sequence.

    Attributes:
        sequence: L one-letter codes; fixed and masked residues keep theirs.
        seed, sample, temperature: what it was sampled with; the first two key its noise.
        score: mean −log p in nats over designed residues, without temperature and bias.
        global_score: the same over all residues with coordinates.
        recovery: fraction of designed residues with the native residue type.
        residue_scores: float [L], −log p of each residue's type in nats, as sampled; NaN where
            masked.
    """

    sequence: str
    seed: int
    sample: int
    temperature: float
    score: float
    global_score: float
    recovery: float
    residue_scores: NDArray[np.floating] = field(repr=False, compare=False)

    @property
    def confidence(self) -> float:
        """exp(−score): geometric mean of the probabilities of the designed residues' types."""
        return math.exp(-self.score)


@dataclass(frozen=True, eq=False)
class Target:
    """The structure that results belong to.

    Attributes:
        backbone: the structure, its chains in the order of all sequences here.
        designed: bool [L], residues that are sampled, or that count in scores.
        designed_chains: names of the chains to design.
        fixed_chains: the others.
    """

    backbone: Backbone
    designed: NDArray[np.bool_]
    designed_chains: tuple[str, ...]
    fixed_chains: tuple[str, ...]

    def chain_slices(self) -> dict[str, slice]:
        """Residues of each chain."""
        index = self.backbone.chain_index
        ends = np.searchsorted(index, np.arange(len(self.backbone.chain_ids)), side="right")
        starts = [0, *ends[:-1]]
        slices = (slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True))
        return dict(zip(self.backbone.chain_ids, slices, strict=True))

    def by_chain(self, sequence: str) -> dict[str, str]:
        """A sequence of L residues as one string for each chain."""
        return {name: sequence[part] for name, part in self.chain_slices().items()}

    def printed(self, sequence: str) -> str:
        """The designed chains of a sequence of L residues, joined by "/" as in published files."""
        chains = self.by_chain(sequence)
        return "/".join(chains[name] for name in self.designed_chains)

    def about(self) -> dict[str, Any]:
        """The structure, its chains, fixed residues and notes, as JSON can hold them."""
        backbone = self.backbone
        return {
            "name": backbone.name,
            "designed_chains": list(self.designed_chains),
            "fixed_chains": list(self.fixed_chains),
            "fixed_residues": [
                backbone.address(int(i))
                for i in np.flatnonzero(backbone.mask & ~self.designed)
                if backbone.chain_ids[backbone.chain_index[i]] in self.designed_chains
            ],
            "notes": list(backbone.notes),
        }

    def _result(self, record: Score | Design) -> dict[str, Any]:
        """The scores and sequence that a `Score` and a `Design` have in common."""
        scores = rounded(record.residue_scores)
        return {
            "score": rounded(record.score),
            "global_score": rounded(record.global_score),
            "confidence": rounded(record.confidence),
            "chains": self.by_chain(record.sequence),
            "residue_scores": {name: scores[part] for name, part in self.chain_slices().items()},
        }


@dataclass(frozen=True, eq=False)
class Designs(Target):
    """The designs for one structure; iterates over them.

    Attributes:
        native: score of the structure's own sequence, one for each seed.
        designs: by seed, then temperature, then sample.
        log_probs: [N, L, 21] of every residue type when the residue was sampled, without
            temperature and bias; None unless `Model.design` was to keep them.
    """

    native: tuple[Score, ...]
    designs: tuple[Design, ...]
    log_probs: NDArray[np.floating] | None = None

    def __len__(self) -> int:
        return len(self.designs)

    def __getitem__(self, index: int) -> Design:
        return self.designs[index]

    def __iter__(self) -> Iterator[Design]:
        return iter(self.designs)

    def to_dict(self) -> dict[str, Any]:
        """All designs as plain dicts, lists, numbers and text; None in place of NaN."""
        return {
            **self.about(),
            "native": [{"seed": native.seed, **self._result(native)} for native in self.native],
            "designs": [
                {
                    "seed": design.seed,
                    "temperature": design.temperature,
                    "sample": design.sample,
                    "seq_recovery": rounded(design.recovery),
                    **self._result(design),
                }
                for design in self
            ],
        }

    def to_gemmi(
        self, index: int, source: str | os.PathLike[str] | gemmi.Structure | None = None
    ) -> gemmi.Structure:
        """One design as a gemmi structure, with −log p of each residue in the B-factors.

        Args:
            index: which design.
            source: the structure that the backbone was read from: its hetero atoms, remarks and
                the side chains of fixed residues are kept. None gives N, CA, C and O alone.

        Raises:
            InputError: the source cannot be read, or is another structure.
        """
        from mpnn.design_structure import Template, read_source

        given = read_source(source) if isinstance(source, str | os.PathLike) else source
        return Template(self, given).with_design(self[index])


@dataclass(frozen=True, eq=False)
class Scores(Target):
    """Scores of some sequences on one structure.

    Attributes:
        mode: how they were scored.
        scores: by seed, then sequence.
    """

    mode: Mode
    scores: tuple[Score, ...]

    @property
    def computed(self) -> NDArray[np.bool_]:
        """Residues whose log-probabilities were computed, bool [L]."""
        return self.designed if self.mode == "conditional" else self.backbone.mask

    def to_dict(self, labels: Sequence[str] | None = None) -> dict[str, Any]:
        """All scores as plain dicts, lists, numbers and text; None in place of NaN.

        Args:
            labels: names of the sequences, "sequence 1" and so on if None.
        """
        per_seed = len(self.scores) // len({score.seed for score in self.scores})
        names = labels or [f"sequence {n}" for n in range(1, per_seed + 1)]
        backbone, computed = self.backbone, self.computed.tolist()
        return {
            **self.about(),
            "mode": self.mode,
            "alphabet": ALPHABET,
            "residues": [backbone.address(i) for i in range(len(backbone))],
            "scores": [
                {
                    "record": names[n % len(names)],
                    "seed": score.seed,
                    **self._result(score),
                    "perplexity": rounded(score.perplexity),
                    "log_probs": [
                        row if known else None
                        for row, known in zip(rounded(score.log_probs), computed, strict=True)
                    ],
                }
                for n, score in enumerate(self.scores)
            ],
        }


def rounded(value: Any) -> Any:
    """A number or an array to six decimals as Python's own; None in place of NaN."""
    array = np.round(np.asarray(value, np.float64), 6)
    if not np.isnan(array).any():
        return array.tolist()
    return np.where(np.isnan(array), np.array(None), array.astype(object)).tolist()
