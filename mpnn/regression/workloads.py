"""What is timed: whole jobs on made-up backbones, or on a published structure where it is found."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mpnn.backbone import Backbone
from mpnn.batch import Batch
from mpnn.decoding import (
    Constraints,
    IntArray,
    Job,
    Key,
    Order,
    Samples,
    make_job,
    with_coloured_order,
)
from mpnn.equality import ROUNDING, flips, largest_difference
from mpnn.optimizations import Engine
from mpnn.regression.claims import Claim, Compare
from mpnn.regression.gate import Accuracy
from mpnn.regression.roofline import network_work
from mpnn.regression.timing import INPUTS, PairedTiming, Side
from mpnn.structure import read_structure
from mpnn.synthetic import made_up_backbone
from mpnn.variants import Variant, find_variant
from mpnn.weights import Card

TEMPERATURE = 0.1
RECOVERY_SET = "ts50"
"""The set of proteins, named in checkpoints' cards, whose recovery stands in a row."""

Outputs = dict[int, list[Samples]]
"""By number of the input; one output for each protein, without padding."""


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
    native: IntArray  # [B, N, L]
    lengths: tuple[int, ...]
    order: Order = "random"

    def run(self, engine: Engine, sample: bool) -> list[Samples]:
        """Encodes and scores or samples; one output, of B = 1, for each protein."""
        encoding = engine.encode(self.batch)
        if sample:
            found = engine.sample(encoding, self.ordered(engine, encoding))
        else:
            log_probs = engine.log_probs(encoding, self.native, self.job.rank)
            found = Samples(self.native, log_probs)
        engine.synchronize()
        return [
            Samples(found.S[b : b + 1, :, :length], found.log_probs[b : b + 1, :, :length])
            for b, length in enumerate(self.lengths)
        ]

    def ordered(self, engine: Engine, encoding: Any) -> Job:
        """The job under the task's order; finding it is part of the work."""
        if self.order == "random":
            return self.job
        graphs = [engine.neighbors(encoding, b) for b in range(len(self.lengths))]
        return with_coloured_order(self.job, graphs)


def sides(claim: Claim) -> tuple[Side, Side]:
    """Subject and reference of a claim, loaded and with the same inputs in rotation."""
    workload = WORKLOADS[claim.workload]
    inputs = [backbones(workload, seed) for seed in range(INPUTS)]
    subject, reference = find_variant(claim.subject), find_variant(claim.reference)
    return side(subject, workload, inputs), side(reference, workload, inputs)


def side(variant: Variant, workload: Workload, inputs: Sequence[Sequence[Backbone]]) -> Side:
    """One variant on one workload: call(i) finishes input i, in the variant's batches."""
    engine = variant.load()
    tasks = [list(make_tasks(variant, workload, i, proteins)) for i, proteins in enumerate(inputs)]

    def call(number: int) -> list[Samples]:
        return [
            output for task in tasks[number] for output in task.run(engine, workload.samples > 0)
        ]

    return Side(call, units=workload.proteins)


def about(claim: Claim, peaks: Mapping[str, float]) -> dict[str, object]:
    """What a stored row says besides its measurement."""
    workload, variant = WORKLOADS[claim.workload], find_variant(claim.subject)
    work = network_work(variant.config, workload.length, max(1, workload.samples))
    card = variant.card if claim.compare is Compare.RECOVERY else None
    return {
        "claim": claim.id,
        "workload": claim.workload,
        "engine": variant.engine,
        "published_speedup": claim.published.speedup if claim.published else None,
        "work": asdict(work),
        "peaks": dict(peaks),
        "recovery_how": card["measured"]["how"] if card else "",
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
        lengths = tuple(len(backbone) for backbone in group)
        tasks.append(Task(batch, job, native, lengths, variant.order))
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


@dataclass(frozen=True, eq=False)
class Pair:
    """One protein's job and what both sides made of it."""

    name: str
    job: Job
    reference: Samples
    subject: Samples


def accuracy(claim: Claim, timing: PairedTiming) -> Accuracy:
    """Judges the outputs of the timed legs of a claim."""
    subject, reference = cast("tuple[Outputs, Outputs]", timing.outputs)
    shared = sorted(subject.keys() & reference.keys())
    if claim.compare is Compare.EQUAL:
        workload = WORKLOADS[claim.workload]
        return equality(
            [pair for i in shared for pair in pairs_of(workload, i, reference[i], subject[i])]
        )
    cards = [find_variant(name).card for name in (claim.subject, claim.reference)]
    return recovery([output for i in shared for output in subject[i]], *cards)


def pairs_of(
    workload: Workload, number: int, reference: Sequence[Samples], subject: Sequence[Samples]
) -> list[Pair]:
    """The outputs of both sides for one input, protein by protein, however each was batched."""
    proteins = backbones(workload, number)
    tasks = make_tasks(Variant(), workload, number, proteins)
    return [
        Pair(backbone.name, task.job, theirs, ours)
        for backbone, task, theirs, ours in zip(proteins, tasks, reference, subject, strict=True)
    ]


def equality(pairs: Sequence[Pair]) -> Accuracy:
    """The same letters, and log-probabilities equal up to rounding.

    Where rounding alone flipped a near-tie, the residue is named and the claim stands; samples
    that differ are left out of the largest difference.
    """
    found = [(p.name, flip) for p in pairs for flip in flips(p.job, p.reference, p.subject)]
    changed = [(name, flip) for name, flip in found if not flip.is_rounding]
    differences = [largest_difference(p.reference, p.subject) for p in pairs]
    largest = max((d for d in differences if not math.isnan(d)), default=math.inf)
    text = "equal"
    if found:
        name, flip = (changed or found)[0]
        what = f"changed sequences: {len(changed)}" if changed else f"near-ties: {len(found)}"
        text = (
            f"{what}, first at residue {flip.residue} of sample {flip.sample} of {name} "
            f"(margin {flip.margin:.0e})"
        )
    return Accuracy(
        passed=not changed and largest <= ROUNDING,
        text=f"{text}, |Δ|≤{largest:.0e}",
        figures={
            "sequences_changed": len(changed),
            "near_ties": len(found) - len(changed),
            "max_abs_log_prob": largest,
        },
    )


def recovery(outputs: Sequence[Samples], card: Card | None, reference: Card | None) -> Accuracy:
    """Probabilities that sum to one, and the recovery that the checkpoints' cards state.

    Args:
        outputs: of the subject, on backbones that are mostly made up: they have no recovery.
        card: of the subject's checkpoint, None while it is untrained.
        reference: the same of the reference.
    """
    totals = np.concatenate([np.exp(output.log_probs).sum(-1).ravel() for output in outputs])
    off = float(np.abs(totals - 1).max())
    figures, text = {"max_abs_total_minus_one": off}, "untrained"
    if card is not None:
        ours = _stated_recovery(card)
        theirs = None if reference is None else _stated_recovery(reference)
        text = f"recovery {_per_cent(ours)}, reference {_per_cent(theirs)}, {RECOVERY_SET}, stored"
        if theirs is not None:
            keys = ("recovery", "recovery_low", "recovery_high", "reference_recovery")
            figures |= dict(zip(keys, (*ours, theirs[0]), strict=True))
    return Accuracy(off < ROUNDING, text, figures)


def _stated_recovery(card: Card) -> tuple[float, float, float]:
    """Mean and interval in per cent, as measured when the checkpoint was made."""
    mean, low, high = map(float, card["measured"]["sets"][RECOVERY_SET]["recovery"])
    return mean, low, high


def _per_cent(stated: tuple[float, float, float] | None) -> str:
    return "untrained" if stated is None else "{:.1f} % [{:.1f}, {:.1f}]".format(*stated)
