"""What is timed: whole jobs on synthetic backbones, or on a published structure."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mpnn.backbone import Backbone
from mpnn.config import NUM_LETTERS, ModelConfig
from mpnn.flat import Flat
from mpnn.optimizations import Engine
from mpnn.regression import jobs
from mpnn.regression.claims import Claim, Compare, apple_silicon
from mpnn.regression.matmuls import PlainMatmuls, bound, exact_matmuls, parts
from mpnn.regression.outputs import (
    GraphPair,
    Pair,
    closeness,
    equality,
    recovery,
    same_neighbors,
)
from mpnn.regression.rows import Accuracy
from mpnn.regression.timing import INPUTS, UNSEEN, Gate, PairedTiming, Side
from mpnn.sampling import Constraints, Job, Key, Samples, make_job, with_graph_coloring
from mpnn.schedule import IntArray, Order
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone
from mpnn.variants import Variant, find_variant

TEMPERATURE = 0.1
CONDITIONAL = 16

FLOOR = 0.2
"""Part of the time of a job's matmuls in torch below which nobody can have done the job. The
compiled engine is at 0.5: it multiplies no zeros, and its tiles stay in cache."""

Outputs = dict[int, list[Any]]
"""By number of the input; for each protein `Samples` without padding, or the E_idx [L, K] found."""


@dataclass(frozen=True)
class Workload:
    """One job.

    Attributes:
        proteins: how many, each of another length when more than one.
        length: residues, on average.
        spread: residues from one protein's length to the next.
        chains: of each protein.
        samples: sequences of each protein; 0 scores the given sequence teacher-forced.
        designed: share of residues that are sampled.
        structure: file stem of a real structure in MPNN_DATA, instead of synthetic ones.
        neighbors: the search for neighbors alone, from coordinates to E_idx on the host.
        rules: "tied" (the halves of the chain share their types), "biased" (each residue has a
            bias of its own), or "conditional" (scores, in each of `CONDITIONAL` passes another
            residue sees all others).
        job: "" for the engine's own calls, or a job of `mpnn.regression.jobs`.
    """

    proteins: int = 1
    length: int = 106
    spread: int = 8
    chains: int = 1
    samples: int = 0
    designed: float = 1.0
    structure: str = ""
    neighbors: bool = False
    rules: str = ""
    job: str = ""

    @property
    def lengths(self) -> list[int]:
        """Residues of each synthetic protein."""
        middle = (self.proteins - 1) / 2
        return [self.length + round(self.spread * (i - middle)) for i in range(self.proteins)]


WORKLOADS: dict[str, Workload] = {
    "score-1x106": Workload(),
    "score-8x106": Workload(proteins=8),
    **{f"score-1x{bucket}": Workload(length=bucket) for bucket in (64, 128, 256, 512)},
    "score-955": Workload(length=955, chains=3),
    "score-5L33": Workload(structure="5L33"),
    "sample-1x106": Workload(samples=1),
    "sample-8x106": Workload(samples=8),
    "sample-1x955": Workload(length=955, chains=3, samples=1),
    "sample-8x955": Workload(length=955, chains=3, samples=8),
    "sample-1x500": Workload(length=500, chains=2, samples=1),
    "sample-1x2000": Workload(length=2000, chains=4, samples=1),
    "tied-8x106": Workload(samples=8, rules="tied"),
    "biased-8x106": Workload(samples=8, rules="biased"),
    "conditional-106": Workload(rules="conditional"),
    "redesign-416": Workload(length=416, samples=1, designed=0.1),
    "neighbors-106": Workload(neighbors=True),
    "neighbors-500": Workload(length=500, chains=2, neighbors=True),
    "neighbors-1000": Workload(length=1000, chains=3, neighbors=True),
    "neighbors-2000": Workload(length=2000, chains=4, neighbors=True),
    "design-cold": Workload(samples=1, job=jobs.COLD),
    "import": Workload(job=jobs.IMPORT),
    "read-pdb-955": Workload(length=955, chains=3, job="pdb"),
    "read-mmcif-955": Workload(length=955, chains=3, job="cif"),
    "campaign-20x8": Workload(proteins=20, spread=4, samples=8, job=jobs.CAMPAIGN),
}


@dataclass(frozen=True, eq=False)
class Task:
    """One call's input for one engine: structures and their job."""

    flat: Flat
    job: Job
    native: IntArray  # [N, R]
    numbers: tuple[int, ...]  # of its proteins within the input
    order: Order = "random"

    def run(self, engine: Engine, sample: bool) -> list[Samples]:
        """Encodes and scores or samples; one output for each protein."""
        encoding = engine.encode(self.flat)
        if sample:
            found = engine.sample(encoding, self.ordered(engine, encoding))
        else:
            log_probs = engine.log_probs(encoding, self.native, self.job.rank)
            found = Samples(self.native, log_probs)
        engine.synchronize()
        if not all(isinstance(x, np.ndarray) for x in (found.S, found.log_probs)):
            kind = type(found.log_probs).__name__
            raise TypeError(
                f"the engine returned a {kind}, which may not be computed yet; return numpy arrays"
            )
        return [Samples(found.S[:, rows], found.log_probs[:, rows]) for rows in self.flat.slices]

    def search(self, engine: Engine) -> list[IntArray]:
        """E_idx [L, K] of each protein, by an engine whose `encode` does no more than find it."""
        encoding = engine.encode(self.flat)
        return [engine.neighbors(encoding, b)[0] for b in range(len(self.flat.lengths))]

    def ordered(self, engine: Engine, encoding: Any) -> Job:
        """The job under the task's order, whose computation is part of the work."""
        if self.order == "random":
            return self.job
        graphs = [engine.neighbors(encoding, b) for b in range(len(self.flat.lengths))]
        return with_graph_coloring(self.job, graphs)


def sides(claim: Claim) -> tuple[Side, Side]:
    """Subject and reference of a claim, loaded and with the same inputs in rotation.

    The subject is called once: some engines convert, and may refuse, at their first call only.

    Raises:
        FileNotFoundError: the structure is missing.
        InputError: a package or a device is missing, or not used.
    """
    workload = WORKLOADS[claim.workload]
    inputs = [backbones(workload, seed) for seed in range(INPUTS + UNSEEN)]
    subject, reference = find_variant(claim.subject), find_variant(claim.reference)
    both = side(subject, workload, inputs), side(reference, workload, inputs)
    both[0].call(0)
    return both


def gate(claim: Claim) -> Gate | None:
    """What a claim is gated beside where that is not its reference; None where it is.

    The matmuls of the subject's own job alone, or for a cold process another one.
    """
    if claim.gate is None:
        return None
    workload, config = WORKLOADS[claim.workload], find_variant(claim.subject).config
    if workload.job in (jobs.COLD, jobs.IMPORT):
        return Gate("numpy imported", Side(jobs.plain_python), claim.gate)
    assert isinstance(config, ModelConfig)  # no claim about another kind of network has a gate
    samples = max(1, workload.samples) if config.autoregressive else 1
    if workload.rules == "conditional":
        samples = CONDITIONAL
    matmuls = exact_matmuls(config, workload.length, samples)
    plain = PlainMatmuls([replace(m, times=m.times * workload.proteins) for m in matmuls])
    return Gate("matmuls", Side(plain, units=workload.proteins), claim.gate, FLOOR)


def side(variant: Variant, workload: Workload, inputs: Sequence[Sequence[Backbone]]) -> Side:
    """One variant on one workload: call(i) finishes input i, in the variant's batches."""
    if workload.job:
        done = jobs.call(workload.job, variant.engine, inputs, workload.samples)
        return Side(done, units=workload.proteins)
    engine: Any = variant.load()
    if variant.engine == "coreml":
        for length in set(workload.lengths):
            engine.require_neural_engine(length)
    tasks = [list(make_tasks(variant, workload, i, proteins)) for i, proteins in enumerate(inputs)]

    def run(task: Task) -> list[Any]:
        return task.search(engine) if workload.neighbors else task.run(engine, workload.samples > 0)

    def call(number: int) -> list[Samples | IntArray]:
        outputs = {
            protein: output
            for task in tasks[number]
            for protein, output in zip(task.numbers, run(task), strict=True)
        }
        return [outputs[protein] for protein in sorted(outputs)]

    idles = device_of(variant, apple_silicon()) != "CPU"
    return Side(call, units=workload.proteins, idles=idles)


def about(claim: Claim) -> dict[str, object]:
    """What a stored row says besides its measurement."""
    variant = find_variant(claim.subject)
    card = variant.card if claim.compare is Compare.RECOVERY else None
    beside = jobs.NO_ENGINE.get(WORKLOADS[claim.workload].job)
    return {
        "claim": claim.id,
        "workload": claim.workload,
        "engine": "none" if beside else variant.engine,
        "device": device_of(variant, apple_silicon()),
        "reference": beside or claim.reference,
        "temperature": TEMPERATURE,
        "target": claim.target,
        "recovery_how": card["measured"]["how"] if card else "",
    }


def device_of(variant: Variant, apple: bool) -> str:
    """What computes a variant, in the words of `Published.unit`.

    Args:
        variant: the variant.
        apple: whether the machine has an Apple chip.
    """
    if variant.engine.startswith("coreml"):
        return "Neural Engine"
    if variant.engine.startswith("mlx"):
        return "GPU (Metal)" if apple else "CPU"
    return variant.device.upper()


def exact_details(claim: Claim) -> dict[str, object]:
    """Bound and parts of a job of the exact engine on the CPU, see `matmuls`; {} for others."""
    workload, variant = WORKLOADS[claim.workload], find_variant(claim.subject)
    forms = ("exact-native", "exact-torch")
    on_cpu = variant.device == "cpu" and variant.engine in forms
    if workload.job or not on_cpu or not isinstance(variant.config, ModelConfig):
        return {}
    samples = max(1, workload.samples) if variant.config.autoregressive else 1
    if workload.rules == "conditional":
        samples = CONDITIONAL
    found = bound(variant.config, workload.length, samples, torch.get_num_threads())
    if variant.engine == "exact-native":  # a profiler of torch sees one call
        return {"bound": found}
    call = side(variant, workload, [backbones(workload, 0)]).call
    return {"bound": found, "parts": parts(lambda: call(0))}


def make_tasks(
    variant: Variant, workload: Workload, seed: int, proteins: Sequence[Backbone]
) -> list[Task]:
    """Cuts the proteins of one input into batches; the noise does not depend on the cut."""
    passes = CONDITIONAL if workload.rules == "conditional" else max(1, workload.samples)
    keys = [Key(seed, sample, TEMPERATURE) for sample in range(passes)]
    tasks = []
    for numbers in cut(variant, len(proteins)):
        group = [proteins[i] for i in numbers]
        flat = Flat.from_backbones(group)
        constraints = [constraint(workload, seed, backbone) for backbone in group]
        job = make_job(flat.S, constraints, keys)
        if workload.rules == "conditional":
            job = replace(job, rank=_each_last(job.rank))
        native = np.tile(flat.S, (len(keys), 1))
        tasks.append(Task(flat, job, native, tuple(numbers), variant.order))
    return tasks


def cut(variant: Variant, proteins: int) -> list[list[int]]:
    """The variant's batches: numbers of their proteins."""
    numbers = list(range(proteins))
    return [numbers[first : first + variant.batch] for first in numbers[:: variant.batch]]


def _each_last(rank: IntArray) -> IntArray:
    """Ranks [N, R] with residue n decoded last in pass n."""
    rank = rank.copy()
    np.fill_diagonal(rank, rank.max() + 1)
    return rank


def constraint(workload: Workload, seed: int, backbone: Backbone) -> Constraints:
    """Everything designed, or a random share of the residues; ties and biases of the rules."""
    generator = np.random.default_rng(seed)
    x = generator.random(len(backbone))
    found = Constraints.free(backbone.mask & (x <= np.quantile(x, workload.designed)))
    if workload.rules == "tied":
        half = len(backbone) // 2
        found.tie_group[half : 2 * half] = np.arange(half)
    if workload.rules == "biased":
        found.bias[:, :-1] += generator.normal(0, 0.5, (len(backbone), NUM_LETTERS - 1))
    return found


def backbones(workload: Workload, seed: int) -> list[Backbone]:
    """The proteins of one input; several spread their lengths around the average.

    Raises:
        FileNotFoundError: the workload needs a real structure that MPNN_DATA lacks.
    """
    if workload.structure:
        return [read_structure(real_structure(workload.structure))]
    return list(_synthetic(workload, seed))


@functools.lru_cache(maxsize=64)
def _synthetic(workload: Workload, seed: int) -> list[Backbone]:
    """The same proteins are of many claims, and are looked at again when outputs are compared."""
    return [
        synthetic_backbone(length, workload.chains, seed * workload.proteins + i)
        for i, length in enumerate(workload.lengths)
    ]


def real_structure(stem: str) -> Path:
    """Path of a structure in the folder that MPNN_DATA names.

    Raises:
        FileNotFoundError: the folder or the file does not exist; the message says what to set.
    """
    path = Path(os.environ.get("MPNN_DATA", "."), "pdb", f"{stem}.pdb")
    if "MPNN_DATA" not in os.environ or not path.is_file():
        raise FileNotFoundError(f"needs {stem}: set MPNN_DATA to a folder with pdb/{stem}.pdb")
    return path


def accuracy(claim: Claim, timing: PairedTiming) -> Accuracy:
    """Judges the outputs of the timed runs of a claim.

    Where neither side runs its network in the published way, the outputs of one side are compared
    with that too: those of the subject where the networks differ, otherwise the reference's.
    """
    workload = WORKLOADS[claim.workload]
    subject, reference = cast("tuple[Outputs, Outputs]", timing.outputs)
    if workload.job:
        return jobs.accuracy(workload.job, subject, reference)
    shared = sorted(subject.keys() & reference.keys())
    if workload.neighbors:
        return same_neighbors(
            [
                GraphPair(*found)
                for i in shared
                for found in zip(backbones(workload, i), reference[i], subject[i], strict=True)
            ]
        )
    if claim.compare is Compare.RECOVERY:
        cards = [find_variant(name).card for name in (claim.subject, claim.reference)]
        found = recovery([output for i in shared for output in subject[i]], *cards)
        way = published_way(claim.subject, workload, shared[0], subject[shared[0]], claim.band)
        return found if way.passed else way
    way = published_way(claim.reference, workload, shared[0], reference[shared[0]])
    if not way.passed:
        return way
    pairs = [pair for i in shared for pair in pairs_of(workload, i, reference[i], subject[i])]
    return closeness(pairs, claim.band) if claim.compare is Compare.CLOSE else equality(pairs)


def published_way(
    name: str, workload: Workload, number: int, outputs: Sequence[Samples], band: float = 0.0
) -> Accuracy:
    """Compares the outputs of a variant with its network run in the published way.

    That is one protein at a time by the reference engine on the CPU. A variant that is run so
    passes at once, and so does a network that no engine but its own can run.

    Args:
        name: of the variant.
        workload: its input.
        number: of the input.
        outputs: of each protein.
        band: for an engine that is close and not equal, see `closeness`; 0 for equal ones.
    """
    variant = find_variant(name)
    usual = replace(variant, engine="reference", device="cpu", batch=1)
    if usual == variant or not isinstance(variant.config, ModelConfig):
        return Accuracy(passed=True, text="run in the published way")
    engine = usual.load()
    tasks = make_tasks(usual, workload, number, backbones(workload, number))
    expected = [output for task in tasks for output in task.run(engine, workload.samples > 0)]
    pairs = pairs_of(workload, number, expected, outputs)
    found = closeness(pairs, band) if band else equality(pairs)
    return replace(found, text=f"{name} against its network in the published way: {found.text}")


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
