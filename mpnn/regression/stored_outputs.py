"""Sequences and scores of a few jobs, stored: a defect that subject and reference share shows.

Claims compare two engines of today, which run much of the same code: making a job, decoding
orders, temperatures, constraints, modes of scoring. These jobs are compared with what was recorded:
`python -m mpnn.regression.stored_outputs` writes `baselines/outputs.json` anew, if none of the
sequences hangs on a near-tie.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpnn.atomic import write_whole
from mpnn.design import Model, load
from mpnn.errors import InputError
from mpnn.optimizations import load_engine
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import Checkpoint, load_arrays, shipped

FILE = Path(__file__).parents[2] / "baselines" / "outputs.json"

SCORE_TOLERANCE = 1e-3
"""Nats by which a mean −log p may differ from the stored one: engines differ by 1e-5."""

DISTURBANCE, TRIALS = 3e-5, 2
"""Relative noise on all weights that must flip no residue of a recorded sequence, and how often it
is tried. It moves log-probabilities by some ten times as much as rounding does."""

Outputs = dict[str, Any]
"""`sequences`, and `scores`, mean −log p in nats of the quarters of each, if both exist."""


@dataclass(frozen=True)
class StoredJob:
    """A job whose outputs are stored.

    Attributes:
        weights: name of shipped weights.
        run: the job, on a model.
        engines: that must give the stored outputs.
    """

    weights: str
    run: Callable[[Model], Outputs]
    engines: tuple[str, ...] = ("exact", "reference")


def _designed(model: Model, length: int = 50, chains: int = 2, **how: Any) -> Outputs:
    """Sequences designed for a synthetic backbone, and their scores."""
    found = model.design(synthetic_backbone(length, chains, seed=11), **how).designs
    return {
        "sequences": [design.sequence for design in found],
        "scores": [_quarters(design.residue_scores) for design in found],
    }


def _scored(model: Model, length: int, **how: Any) -> Outputs:
    """Scores of a synthetic backbone's own sequence."""
    score = model.score(synthetic_backbone(length, 2, seed=12), **how)
    return {"scores": [_quarters(score.residue_scores)]}


def _quarters(residue_scores: Any) -> list[float]:
    """Mean −log p of each quarter of a sequence, so that reversed outputs differ too."""
    return [round(float(part.mean()), 5) for part in np.array_split(residue_scores, 4)]


JOBS: dict[str, StoredJob] = {
    "sample": StoredJob("baseline", partial(_designed, num_seqs=2, temperature=[0.1, 0.3])),
    "sample-tied": StoredJob("baseline", partial(_designed, homo_oligomer=True)),
    "sample-biased": StoredJob(
        "minimal", partial(_designed, bias="A:-1,G:0.5", omit="CW", fixed="A3-6")
    ),
    "sample-520": StoredJob("minimal", partial(_designed, length=520, chains=2), ("exact",)),
    "sample-graph-coloring": StoredJob("minimal", partial(_designed, order="graph-coloring")),
    "sample-one-shot": StoredJob("one-shot", _designed),
    "sample-ssm": StoredJob("ssm", _designed, ("ssm",)),
    "conditional": StoredJob("minimal", partial(_scored, length=20, mode="conditional")),
    "pseudo-likelihood": StoredJob(
        "minimal", partial(_scored, length=20, mode="pseudo-likelihood")
    ),
    "unconditional": StoredJob("minimal", partial(_scored, length=20, mode="unconditional")),
    **{
        f"score-{name}": StoredJob(
            name, partial(_scored, length=60), ("ssm",) if name == "ssm" else ("exact",)
        )
        for name in shipped()
    },
}
"""Every stored job; the last ones measure each shipped checkpoint."""


def outputs(name: str, engine: str) -> Outputs:
    """Runs one of `JOBS` by an engine."""
    return JOBS[name].run(load(JOBS[name].weights, engine))


def differences(found: Outputs, stored: Outputs) -> list[str]:
    """What differs between two outputs of one job, in words; empty if nothing does."""
    said = []
    pairs = zip(found.get("sequences", []), stored.get("sequences", []), strict=True)
    for n, (ours, theirs) in enumerate(pairs, 1):
        count = sum(a != b for a, b in zip(ours, theirs, strict=True))
        if count:
            said.append(f"sequence {n} differs at {count} of {len(theirs)} residues")
    moved = np.abs(np.array(found["scores"]) - np.array(stored["scores"]))
    if not (moved <= SCORE_TOLERANCE).all():
        said.append(
            f"mean −log p of a quarter differs by {moved.max():.1e} nats, "
            f"allowed {SCORE_TOLERANCE:.0e}"
        )
    return said


def stored_outputs() -> dict[str, Outputs]:
    """What is stored, by name of the job.

    Raises:
        InputError: the file is unreadable.
    """
    try:
        return dict(json.loads(FILE.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{FILE}: {error}; restore it from version control") from error


def record() -> None:
    """Stores the outputs of all jobs.

    Raises:
        InputError: engines differ, or a sequence hangs on a near-tie.
    """
    found = {}
    for name, job in JOBS.items():
        found[name] = outputs(name, job.engines[0])
        others = [(engine, outputs(name, engine)) for engine in job.engines[1:]]
        others += [(f"disturbed weights {n}", _disturbed(job, n)) for n in range(TRIALS)]
        for what, other in others:
            if said := differences(other, found[name]):
                raise InputError(f"{name}: with {what}, {'; '.join(said)}: choose another seed")
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    write_whole(FILE, "{\n" + ",\n".join(lines) + "\n}\n")


def _disturbed(job: StoredJob, seed: int) -> Outputs:
    """The outputs with noise on the weights, which clear margins survive."""
    rng = np.random.default_rng(seed)
    arrays, config, card = load_arrays(job.weights)
    noisy = {
        name: (x * (1 + DISTURBANCE * rng.standard_normal(x.shape))).astype(np.float32)
        for name, x in arrays.items()
    }
    engine = load_engine(Checkpoint(noisy, config, card), job.engines[0])
    return job.run(Model(engine, config, card))


if __name__ == "__main__":
    try:
        record()
    except InputError as error:
        sys.exit(f"error: {error}")
