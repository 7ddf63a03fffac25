"""Every claim that this project puts to the test, as one table.

To add a claim, add a row; its test is there already. Published figures come from two documents of
2026-02-04, `FINAL_RESULTS_WITH_ACCURACY` (F) and `EXPERT_OPTIMIZATIONS_RESULTS` (E): Apple M3 Pro,
PyTorch 2.10 on MPS, 5L33 (106 residues), teacher-forced pass, random weights.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from enum import StrEnum

from mpnn.regression.hardware import this_machine
from mpnn.regression.timing import Rule

STANDARD = Rule()


class Compare(StrEnum):
    """How the outputs of subject and reference are held against each other."""

    EQUAL = "equal"  # same sequences, log-probabilities equal up to rounding
    CLOSE = "close"  # the same network in fewer bits: log-probabilities within the claim's band
    RECOVERY = "recovery"  # another network: its own checkpoint, judged by recovery


@dataclass(frozen=True)
class Published:
    """A figure that somebody printed.

    Attributes:
        speed: in the source's words.
        speedup: the ratio in it, if there is one.
        recovery: in the source's words.
        source: F or E, or the table of this project that sets the target.
        change: of recovery against the reference, in points, if that is what was printed.
        pace: residues a second that are claimed besides, whatever the machine.
    """

    speed: str
    speedup: float | None = None
    recovery: str = "not measured"
    source: str = "F"
    change: float | None = None
    pace: float | None = None


@dataclass(frozen=True)
class Claim:
    """One row: the subject is so many times as fast as the reference at a stated accuracy.

    Attributes:
        id: also the id of the test and of the stored row.
        what: one line for people.
        subject: a name in `mpnn.variants.VARIANTS`, or an engine (a name, or `module:class`) to
            run the published network with.
        workload: a name in `mpnn.regression.workloads.WORKLOADS`.
        published: the figure that is put to the test.
        reference: as the subject.
        compare: what accuracy means for this row.
        band: of an engine whose results are close and not equal: the largest difference of
            log-probabilities that stands, in nats.
        rule: pairs, looks and margin of the gate.
        platform: "any", or the one that its figure is about.
        slow: minutes, or the same job as another claim; measured by recordings and on request.
    """

    id: str
    what: str
    subject: str
    workload: str
    published: Published | None = None
    reference: str = "baseline"
    compare: Compare = Compare.EQUAL
    band: float = 0.0
    rule: Rule = STANDARD
    platform: str = "any"
    slow: bool = False


RECOVERY = Compare.RECOVERY
CLOSE = Compare.CLOSE
OTHER_WORK = Rule(margin=0.05)
"""For sides that load the machine differently, another network or products in other arithmetic:
with what else the machine does, their ratio moves by up to 3 % between sessions, and no number of
pairs mends that. The gate's own error rates are those of a claim with the standard margin."""

ARITHMETIC = replace(OTHER_WORK, portable=False)
"""For products in fewer bits, for which some processors have instructions and others have none."""

PLACED = Rule(margin=0.10)
"""For a subject of many small operations, 20 ms in all: where its memory happens to lie moves its
time by up to 7 % from one process to another."""

LIBRARY = Rule(margin=0.05, pairs=12, portable=False)
"""For another library or compiler, which is another program on every processor."""

EIGHT = Rule(margin=0.10, pairs=10)
"""For eight proteins a call, a second a leg: the bounds are the extremes of ten pairs, at first."""

SECONDS = Rule(margin=0.10, pairs=10, looks=3)
"""For legs of seconds: the bounds are the extremes of ten pairs, at first."""

SECONDS_HERE = replace(SECONDS, portable=False)
"""The same for other arithmetic and other libraries."""

PASSES = Rule(margin=0.25, pairs=16, looks=3)
"""Where the work depends on what is drawn: the number of passes differs from input to input."""

HALF_MINUTE = Rule(
    margin=0.25, pairs=7, looks=1, alpha_fail=1 / 128, alpha_pass=1 / 128, budget=300
)
"""For legs of half a minute: seven pairs bound the median by their extremes, at 1/128 each."""

_APPLE = "Apple Silicon"

CLAIMS: tuple[Claim, ...] = (
    # The published architectures and batches, run in the published way.
    Claim("baseline", "3+3 layers, C=128, k=48, one protein", "baseline", "score-1x106",
          Published("14.69 ms; elsewhere 15.35 ± 0.31 ms, 6,903 residues/s", 1.0, "6.2 %", "F, E")),
    Claim("fast", "baseline with k=16", "fast", "score-1x106", Published("8.82 ms", 1.67, "0.9 %"),
          compare=RECOVERY, rule=OTHER_WORK),
    Claim("minimal", "2+2 layers, C=64, k=48", "minimal", "score-1x106",
          Published("7.99 ms", 1.84, "6.6 %"), compare=RECOVERY, rule=OTHER_WORK),
    Claim("minimal-fast", "2+2 layers, C=64, k=16", "minimal-fast", "score-1x106",
          Published("6.88 ms", 2.14, "5.9 %"), compare=RECOVERY, rule=OTHER_WORK),
    Claim("extreme-v2", "2+2 layers, C=64, k=12, batch 8", "extreme-v2", "score-8x106",
          Published("1.91 ms a protein, 55,613 residues/s", 8.18, "2.7 %", "F, E"),
          compare=RECOVERY, rule=EIGHT),
    Claim("pruning", "3+3/128 to 2+2/64", "minimal", "score-1x106",
          Published("", 1.93, "no loss", change=0.0), compare=RECOVERY, rule=OTHER_WORK,
          slow=True),  # timed as `minimal`
    Claim("neighbours-12", "k 48 to 12", "baseline-k12", "score-1x106", Published("", 1.83),
          compare=RECOVERY, rule=OTHER_WORK),
    Claim("neighbours-16", "k 48 to 16", "fast", "score-1x106",
          Published("", 1.67, "5.3 points lost", change=-5.3), compare=RECOVERY, rule=OTHER_WORK,
          slow=True),  # as `fast`
    Claim("neighbours-30", "k 48 to 30", "baseline-k30", "score-1x106",
          Published("about that", 1.3, "low loss"), compare=RECOVERY, rule=OTHER_WORK),
    Claim("batching", "eight proteins of different lengths, one by one to one batch",
          "baseline-batch-8", "score-8x106", Published("", 3.0, "no loss"), rule=EIGHT),
    Claim("pruning+batching", "2+2/64, batch 8", "minimal-batch-8", "score-8x106",
          Published("elsewhere 5.5×", 5.79, "no loss", change=0.0), compare=RECOVERY, rule=EIGHT),
    Claim("pruning+k30+batching", "2+2/64, k=30, batch 8", "minimal-k30-batch-8", "score-8x106",
          Published("about that", 7.5, "minimal loss"), compare=RECOVERY, rule=EIGHT),
    Claim("target", "more than 1.5 times the baseline, and 10,000 residues a second", "extreme-v2",
          "score-8x106",
          Published("> 10,000 residues/s, met by extreme-v2", 1.5, source="E", pace=10_000),
          compare=RECOVERY, rule=EIGHT, slow=True),  # as `extreme-v2`
    # The exact rewrites against the reference's way of working: whole jobs.
    Claim("exact-1x106", "one sequence, L=106", "exact", "sample-1x106",
          Published("", 10, "the same sequences", "design"), rule=SECONDS),
    Claim("exact-8x106", "eight sequences, L=106", "exact", "sample-8x106",
          Published("", 25, "the same sequences", "design"), rule=SECONDS),
    Claim("exact-redesign-416", "one sequence, 10 % of L=416 redesigned", "exact", "redesign-416",
          Published("", 100, "the same sequences", "design"), rule=SECONDS),
    Claim("exact-score-955", "teacher-forced score, L=955 in three chains", "exact", "score-955",
          Published("", 6, "the same scores", "design"), rule=SECONDS),
    Claim("exact-1x955", "one sequence, L=955 in three chains", "exact", "sample-1x955",
          Published("", 20, "the same sequences", "design"), rule=HALF_MINUTE, slow=True),
    Claim("exact-8x955", "eight sequences, L=955 in three chains", "exact", "sample-8x955",
          Published("", 60, "the same sequences", "design"), rule=HALF_MINUTE, slow=True),
    Claim(
        "coloured-1x106",
        "one sequence, L=106, color-class order on both sides",
        "exact-coloured",
        "sample-1x106",
        reference="baseline-coloured",
        rule=SECONDS,
        slow=True,
    ),
    Claim(
        "coloured-1x955",
        "one sequence, L=955 in three chains, color-class order on both sides",
        "exact-coloured",
        "sample-1x955",
        reference="baseline-coloured",
        rule=HALF_MINUTE,
        slow=True,
    ),
    # Other ways to run the same network.
    Claim("mlx-fusion", "MLX: mx.compile against single launches, whole pass of 2+2/64, k=12",
          "extreme-v2-mlx", "score-1x106",
          Published("one layer of messages on the GPU, 0.64 ± 0.16 to 0.59 ± 0.23 ms, up to 1.28×; "
                    "memory traffic 28× less", 1.08),
          reference="extreme-v2-mlx-eager", rule=SECONDS_HERE),
    Claim("metal-fusion", "MLX: messages and their sum as one Metal kernel, against mx.compile",
          "extreme-v2-mlx-fused", "score-1x106",
          Published("not built, 1.2–1.5× expected", None, "–", "E"), reference="extreme-v2-mlx",
          platform=_APPLE, rule=SECONDS),
    Claim("mlx-1x106", "MLX with the Metal kernel, one sequence, L=106", "mlx-fused",
          "sample-1x106", platform=_APPLE, rule=SECONDS),
    Claim("ane-64", "Core ML bucket of 64 residues", "coreml", "score-1x64",
          Published("1.16 to 0.33 ms", 3.52), reference="baseline-mps", compare=CLOSE, band=0.1,
          platform=_APPLE),
    Claim("ane-128", "Core ML bucket of 128 residues", "coreml", "score-1x128",
          Published("1.08 to 0.58 ms", 1.86), reference="baseline-mps", compare=CLOSE, band=0.1,
          platform=_APPLE),
    Claim("ane-256", "Core ML bucket of 256 residues", "coreml", "score-1x256",
          Published("0.83 to 0.29 ms", 2.87), reference="baseline-mps", compare=CLOSE, band=0.1,
          platform=_APPLE),
    Claim("ane-512", "Core ML bucket of 512 residues", "coreml", "score-1x512",
          Published("2.75× on average of the smaller ones", None, "–"), reference="baseline-mps",
          compare=CLOSE, band=0.1, platform=_APPLE),
    Claim("ane+extreme-v2", "Core ML buckets with 2+2/64, k=12", "coreml-extreme-v2",
          "score-8x106", Published("16–20× expected", None, "–"), reference="baseline-mps",
          compare=RECOVERY, band=0.1, platform=_APPLE, rule=EIGHT),
    Claim("cpu-knn-step", "neighbors by ball_tree on the CPU: the step alone", "ball-tree",
          "neighbors-106", Published("5.19 ± 16.35 to 3.97 ± 11.84 ms", 1.31, "no loss", "F, E"),
          rule=OTHER_WORK),
    Claim("cpu-knn-step-500", "the same at L=500", "ball-tree", "neighbors-500",
          rule=OTHER_WORK, slow=True),
    Claim("cpu-knn-step-1000", "the same at L=1,000", "ball-tree", "neighbors-1000",
          rule=SECONDS, slow=True),
    Claim("cpu-knn-step-2000", "the same at L=2,000", "ball-tree", "neighbors-2000",
          rule=SECONDS, slow=True),
    Claim("kd-tree-step", "neighbors by scipy's k-d tree: the step alone", "kd-tree",
          "neighbors-106", rule=OTHER_WORK, slow=True),
    Claim("kd-tree-step-500", "the same at L=500", "kd-tree", "neighbors-500",
          rule=OTHER_WORK, slow=True),
    Claim("kd-tree-step-1000", "the same at L=1,000", "kd-tree", "neighbors-1000",
          rule=SECONDS, slow=True),
    Claim("kd-tree-step-2000", "the same at L=2,000", "kd-tree", "neighbors-2000",
          rule=SECONDS, slow=True),
    Claim("cpu-knn", "neighbors by ball_tree, whole model", "ball-tree", "score-1x106",
          Published("estimated, never integrated", 1.09, "no loss", "F, E")),
    Claim("kd-tree", "neighbors by scipy's k-d tree, whole model", "kd-tree", "score-1x106",
          slow=True),
    Claim("mixed-precision", "Linear weights fp16, biases and activations fp32", "mixed-formula",
          "score-1x106", Published("15.35 to 17.09 ± 2.82 ms", 0.9, "–", "E"),
          reference="baseline-formula", compare=CLOSE, band=0.01,
          rule=replace(STANDARD, portable=False)),
    Claim("half", "whole model in float16", "half", "score-1x106",
          Published("runtime errors", None, "–"), compare=CLOSE, band=0.03,
          rule=SECONDS_HERE),
    Claim("bfloat16", "whole model in bfloat16", "bfloat16", "score-1x106",
          Published("runtime errors", None, "–"), compare=CLOSE, band=0.3, rule=ARITHMETIC),
    Claim("exact-bfloat16", "the exact engine with products in bfloat16", "exact-bfloat16",
          "score-1x106", compare=CLOSE, band=0.3, rule=ARITHMETIC),
    Claim("exact-bfloat16-955", "the same, L=955 in three chains", "exact-bfloat16", "score-955",
          reference="exact", compare=CLOSE, band=0.3, rule=SECONDS_HERE,
          slow=True),
    Claim("torch-compile", "torch.compile against the same code uncompiled", "compiled",
          "score-1x106", Published("", 0.99, "–"), reference="staged", rule=LIBRARY),
    Claim("torchscript", "TorchScript against the same code uncompiled", "torchscript",
          "score-1x106", Published("1.05–1.15× estimated", 1.05, "–"), reference="staged",
          rule=LIBRARY),
    Claim("onnx", "ONNX Runtime", "onnx", "score-1x106", Published("not tested", None, "–"),
          rule=LIBRARY),
    Claim("onnx-1x106", "ONNX Runtime, one sequence, L=106", "onnx", "sample-1x106",
          rule=SECONDS_HERE, slow=True),
    Claim("int8", "quantized Linear layers", "int8", "score-1x106",
          Published("not supported on MPS", None, "–"), compare=CLOSE, band=1.5, rule=ARITHMETIC),
    Claim("distillation", "2+2/64, student of v_48_002; what a teacher is worth stands below",
          "minimal", "score-1x106", Published("training failed", None, "–"),
          compare=RECOVERY, rule=OTHER_WORK, slow=True),  # as `minimal`
    Claim("non-autoregressive", "all residues in one pass, run in the published way", "one-shot",
          "sample-1x106", Published("design only", None, "–"), compare=RECOVERY, rule=SECONDS),
    Claim("non-autoregressive+exact", "all residues in one pass, exact engine", "one-shot-exact",
          "sample-1x106", compare=RECOVERY, rule=SECONDS, slow=True),
    Claim("one-shot-exact-8x106", "the exact engine on the one-shot network, eight sequences",
          "one-shot-exact", "sample-8x106", reference="one-shot", slow=True),
    Claim("ssm", "state-space layers along the chain", "ssm", "score-1x106",
          Published("design only", None, "–"), compare=RECOVERY, rule=PLACED),
    Claim("ssm-1x106", "state-space layers along the chain, one sequence drawn", "ssm",
          "sample-1x106", compare=RECOVERY, rule=SECONDS, slow=True),
)  # fmt: skip
"""The reviewed table."""


ON_5L33 = (
    *("baseline", "fast", "minimal", "minimal-fast", "pruning"),
    *("neighbours-12", "neighbours-16", "neighbours-30"),
)
"""The published rows of one protein a call."""


def on_5l33(claim: Claim) -> Claim:
    """The same claim on the published protein, measured where its structure is found."""
    return replace(claim, id=f"{claim.id}@5L33", workload="score-5L33", slow=True)


CLAIMS += tuple(on_5l33(claim) for claim in CLAIMS if claim.id in ON_5L33)

BY_ID = {claim.id: claim for claim in CLAIMS}


def not_measured_here(claim: Claim) -> str:
    """Why this machine cannot measure a claim; '' if it can."""
    apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    if claim.platform == _APPLE and apple and this_machine().virtual:
        return f"needs {_APPLE} that is not virtual"
    return not_measured_on(claim, apple)


def not_measured_on(claim: Claim, apple: bool) -> str:
    """Why a machine cannot measure a claim; '' if it can.

    Args:
        claim: the claim.
        apple: whether the machine is of Apple Silicon.
    """
    if claim.platform == _APPLE and not apple:
        return f"needs {_APPLE}"
    return ""
