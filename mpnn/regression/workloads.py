"""What is timed: whole jobs on made-up backbones, or on a published structure where it is found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.batch import Batch
from mpnn.decoding import Constraints, Job, Key, make_job
from mpnn.optimizations import Engine
from mpnn.regression.claims import Claim, Compare
from mpnn.regression.gate import Accuracy
from mpnn.regression.roofline import network_work
from mpnn.regression.timing import INPUTS, PairedTiming, Side
from mpnn.structure import read_structure
from mpnn.synthetic import made_up_backbone
from mpnn.variants import VARIANTS, Variant

TEMPERATURE = 0.1
ROUNDING = 1e-4
"""Largest difference of log-probabilities that float32 in another order may make, in nats."""

Output = tuple[NDArray[np.int64], NDArray[np.floating]]
"""Letters [N, L] and log-probabilities [N, L, 21] of one protein."""

Outputs = dict[int, list[Output]]
"""By number of the input; one output for each protein."""


@dataclass(frozen=True)
class Workload:
    """One job.

    Attributes:
        proteins: how many, each of another length when more than one.
        length: residues, on average.
        chains: of each protein.
        samples: sequences of each protein; 0 scores the given sequence teacher-forced.
        designed: share of residues that are drawn.
        structure: file stem of a real structure in MPNN_DATA, instead of made-up ones.
    """

    proteins: int = 1
    length: int = 106
    chains: int = 1
    samples: int = 0
    designed: float = 1.0
    structure: str = ""


WORKLOADS: dict[str, Workload] = {
    "score-1x106": Workload(),
    "score-8x106": Workload(proteins=8),
    "score-955": Workload(length=955, chains=3),
    "score-5L33": Workload(structure="5L33"),
    "sample-1x106": Workload(samples=1),
    "sample-8x106": Workload(samples=8),
    "sample-1x955": Workload(length=955, chains=3, samples=1),
    "sample-8x955": Workload(length=955, chains=3, samples=8),
    "redesign-416": Workload(length=416, samples=1, designed=0.1),
}


@dataclass(frozen=True, eq=False)
class Task:
    """One call's input for one engine: a batch and its job."""

    batch: Batch
    job: Job
    native: NDArray[np.int64]  # [B, N, L]
    lengths: tuple[int, ...]

    def run(self, engine: Engine, sample: bool) -> list[Output]:
        """Encodes and scores or samples; one output for each protein."""
        encoding = engine.encode(self.batch)
        if sample:
            samples = engine.sample(encoding, self.job)
            S, log_probs = samples.S, samples.log_probs
        else:
            S = self.native
            log_probs = engine.log_probs(encoding, S, self.job.rank)
        engine.synchronize()
        return [
            (S[b, :, :length], log_probs[b, :, :length]) for b, length in enumerate(self.lengths)
        ]


def sides(claim: Claim) -> tuple[Side, Side]:
    """Subject and reference of a claim, loaded and with the same inputs in rotation."""
    workload = WORKLOADS[claim.workload]
    inputs = [backbones(workload, seed) for seed in range(INPUTS)]
    subject, reference = VARIANTS[claim.subject], VARIANTS[claim.reference]
    return side(subject, workload, inputs), side(reference, workload, inputs)


def side(variant: Variant, workload: Workload, inputs: Sequence[Sequence[Backbone]]) -> Side:
    """One variant on one workload: call(i) finishes input i, in the variant's batches."""
    engine = variant.load()
    tasks = [list(make_tasks(variant, workload, i, proteins)) for i, proteins in enumerate(inputs)]

    def call(number: int) -> list[Output]:
        return [
            output for task in tasks[number] for output in task.run(engine, workload.samples > 0)
        ]

    return Side(call, units=workload.proteins)


def about(claim: Claim, peaks: Mapping[str, float]) -> dict[str, object]:
    """What a stored row says besides its measurement."""
    workload, variant = WORKLOADS[claim.workload], VARIANTS[claim.subject]
    work = network_work(variant.config, workload.length, max(1, workload.samples))
    return {
        "claim": claim.id,
        "workload": claim.workload,
        "engine": variant.engine,
        "published_speedup": claim.published.speedup if claim.published else None,
        "work": asdict(work),
        "peaks": dict(peaks),
    }


def make_tasks(
    variant: Variant, workload: Workload, seed: int, proteins: Sequence[Backbone]
) -> list[Task]:
    """Cuts the proteins of one input into batches; the noise does not depend on the cut."""
    keys = [Key(seed, sample, TEMPERATURE) for sample in range(max(1, workload.samples))]
    tasks = []
    for first in range(0, len(proteins), variant.batch):
        group = proteins[first : first + variant.batch]
        batch = Batch.from_backbones(group, variant.device)
        constraints = [constraint(workload, seed, backbone) for backbone in group]
        job = make_job(batch.S.cpu().numpy(), constraints, keys)
        native = np.repeat(job.S[:, None], len(keys), axis=1)
        tasks.append(Task(batch, job, native, tuple(len(backbone) for backbone in group)))
    return tasks


def constraint(workload: Workload, seed: int, backbone: Backbone) -> Constraints:
    """Everything designed, or a random share of the residues."""
    lot = np.random.default_rng(seed).random(len(backbone))
    cut = np.quantile(lot, workload.designed)
    return Constraints.free(backbone.mask & (lot <= cut))


def backbones(workload: Workload, seed: int) -> list[Backbone]:
    """The proteins of one input; several spread their lengths by 8 around the average.

    Raises:
        FileNotFoundError: the workload wants a real structure that MPNN_DATA does not hold.
    """
    if workload.structure:
        return [read_structure(real_structure(workload.structure))]
    spread = [8 * i - 4 * (workload.proteins - 1) for i in range(workload.proteins)]
    return [
        made_up_backbone(workload.length + extra, workload.chains, seed * workload.proteins + i)
        for i, extra in enumerate(spread)
    ]


def real_structure(stem: str) -> Path:
    """Path of a structure in the folder that MPNN_DATA names.

    Raises:
        FileNotFoundError: there is no such folder or file; the message says what to set.
    """
    path = Path(os.environ.get("MPNN_DATA", "."), "pdb", f"{stem}.pdb")
    if "MPNN_DATA" not in os.environ or not path.is_file():
        raise FileNotFoundError(f"needs {stem}: set MPNN_DATA to a folder with pdb/{stem}.pdb")
    return path


def accuracy(claim: Claim, timing: PairedTiming) -> Accuracy:
    """Judges the outputs of the timed legs of a claim."""
    subject, reference = cast("tuple[Outputs, Outputs]", timing.outputs)
    shared = sorted(subject.keys() & reference.keys())
    if claim.compare is Compare.EQUAL:
        return equality([subject[i] for i in shared], [reference[i] for i in shared])
    return normalised([subject[i] for i in shared])


def equality(subject: Sequence[list[Output]], reference: Sequence[list[Output]]) -> Accuracy:
    """The same letters everywhere, and log-probabilities equal up to rounding."""
    pairs = [
        pair for ours, theirs in zip(subject, reference, strict=True)
        for pair in zip(ours, theirs, strict=True)
    ]  # fmt: skip
    letters = sum(int((a[0] != b[0]).sum()) for a, b in pairs)
    largest = max(float(np.abs(a[1] - b[1]).max()) for a, b in pairs)
    text = f"{letters} letters differ" if letters else "equal"
    return Accuracy(
        passed=letters == 0 and largest <= ROUNDING,
        text=f"{text}, |Δ|≤{largest:.0e}",
        figures={"letters_changed": letters, "max_abs_log_prob": largest},
    )


def normalised(subject: Sequence[list[Output]]) -> Accuracy:
    """Probabilities that sum to one: all that can be said of weights that nobody trained."""
    totals = np.concatenate([np.exp(p).sum(-1).ravel() for outputs in subject for _, p in outputs])
    off = float(np.abs(totals - 1).max())
    return Accuracy(off < ROUNDING, "untrained", {"max_abs_total_minus_one": off})
