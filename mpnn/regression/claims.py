"""Every claim that this project tests, as one table.

To add a claim, add a row; its test exists already. Published figures come from two documents of
2026-02-04, `FINAL_RESULTS_WITH_ACCURACY` (F) and `EXPERT_OPTIMIZATIONS_RESULTS` (E): Apple M3 Pro,
PyTorch 2.10 on MPS, 5L33 (106 residues), teacher-forced pass, random weights.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from enum import StrEnum

from mpnn.regression.machine import this_machine
from mpnn.regression.verdict import Rule

STANDARD = Rule()
ANY = "any"
"""Platform of a claim that every machine measures."""


class Compare(StrEnum):
    """How the outputs of subject and reference are compared."""

    EQUAL = "equal"  # same sequences, log-probabilities equal up to rounding
    CLOSE = "close"  # the same network in reduced precision: within the claim's band
    RECOVERY = "recovery"  # another network: its own checkpoint, judged by recovery


@dataclass(frozen=True)
class Published:
    """A figure that somebody printed.

    Attributes:
        speed: in the source's words.
        speedup: the ratio in it, if there is one.
        recovery: in the source's words.
        source: F or E.
        change: of recovery against the reference, in points, if that is what was printed.
        pace: residues per second that are claimed too.
        device: machine and unit that it was measured on. A ratio on another unit says nothing
            about it.
    """

    speed: str = ""
    speedup: float | None = None
    recovery: str = "not measured"
    source: str = "F"
    change: float | None = None
    pace: float | None = None
    device: str = "M3 Pro, MPS"

    @property
    def unit(self) -> str:
        """What computed: MPS, Neural Engine, GPU (Metal)."""
        return self.device.rpartition(", ")[2]


@dataclass(frozen=True)
class Claim:
    """One row: the subject is so many times as fast as the reference at a stated accuracy.

    Attributes:
        id: also the id of the test and of the stored row.
        what: one line for people.
        subject: a name in `mpnn.variants.VARIANTS`, or an engine (a name, or `module:class`) to
            run the published network with.
        workload: a name in `mpnn.regression.workloads.WORKLOADS`.
        published: the figure that is tested.
        target: speed-up that this project aims at; not a published figure.
        reference: as the subject.
        compare: what accuracy means for this row.
        band: of an engine whose results are close and not equal: the largest difference of
            log-probabilities that passes, in nats.
        rule: how it is timed beside the reference, and gated there if `gate` is None.
        gate: how it is gated beside the matmuls of its own job, where the reference takes long;
            the reference is timed in recordings alone.
        platform: "any", or what it needs, such as `MPS`.
        slow: its timed runs take more than a quarter of a second, or its engine long to build;
            timed by recordings and on request.
        timed_as: id of the claim whose timing this one shares. Subject, workload, reference,
            compare and rule are those of that claim.
    """

    id: str
    what: str
    subject: str = ""
    workload: str = ""
    published: Published | None = None
    target: float | None = None
    reference: str = "baseline"
    compare: Compare = Compare.EQUAL
    band: float = 0.0
    rule: Rule = STANDARD
    gate: Rule | None = None
    platform: str = ANY
    slow: bool = False
    timed_as: str = ""


RECOVERY = Compare.RECOVERY
CLOSE = Compare.CLOSE
OTHER_WORK = Rule(margin=0.05)
"""For sides that load the machine differently, another network or matmuls in other arithmetic: with
the other work of the machine, their ratio moves by up to 3 % between sessions, whatever the number
of pairs. The gate's published error rates are those of a claim with the standard margin."""

PLACED = Rule(margin=0.10)
"""For a subject of many small operations, 20 ms in all: where its memory lies moves its time by up
to 7 % from one process to another."""

LIBRARY = Rule(margin=0.05, pairs=12)
"""For another library or compiler, which is another program on every processor."""

EIGHT = Rule(margin=0.10, pairs=10)
"""For eight proteins a call, a second for each timed run: the first bounds are the extremes of ten
pairs."""

SECONDS = Rule(margin=0.10, pairs=10, looks=3)
"""For timed runs of seconds: the first bounds are the extremes of ten pairs."""

HALF_MINUTE = Rule(
    margin=0.25, pairs=7, looks=1, alpha_fail=1 / 128, alpha_pass=1 / 128, budget=300
)
"""For timed runs of half a minute: the extremes of seven pairs bound the median, at 1/128 each."""

GATED = Rule()
"""By which exact jobs are gated beside their matmuls alone: timed runs as long as one call."""

GATED_LONG = Rule(pairs=20, budget=90.0)
"""The same for calls of more than a tenth of a second."""

GATED_OTHER = Rule(margin=0.05, pairs=20)
"""The same for subjects that are mostly other work than matmuls in float32."""

PROCESS = Rule(margin=0.10, pairs=20)
"""For cold processes, of which many short ones make a timed run: from one session to the next their
ratio moves by up to 5 %."""

READING = Rule(margin=0.15, pairs=20)
"""For Python code beside regular expressions: their ratio moves by up to 10 % from one process to
another. The lines that reading executes are counted, within 10 %."""

_APPLE = "Apple Silicon"
MPS = "MPS"
"""The GPU of an Apple chip, driven by torch."""

_ANE = "M3 Pro, Neural Engine"
_METAL = "M3 Pro, GPU (Metal)"

CLAIMS: tuple[Claim, ...] = (
    # The published architectures and batches, run in the published way.
    Claim(id="baseline", what="3+3 layers, C=128, k=48, one protein", subject="baseline",
          workload="score-1x106",
          published=Published(speed="14.69 ms; elsewhere 15.35 ± 0.31 ms, 6,903 residues/s",
                              speedup=1.0, recovery="6.2 %", source="F, E")),
    Claim(id="fast", what="baseline with k=16", subject="fast", workload="score-1x106",
          compare=RECOVERY, rule=OTHER_WORK,
          published=Published(speed="8.82 ms", speedup=1.67, recovery="0.9 %")),
    Claim(id="minimal", what="2+2 layers, C=64, k=48", subject="minimal", workload="score-1x106",
          compare=RECOVERY, rule=OTHER_WORK,
          published=Published(speed="7.99 ms", speedup=1.84, recovery="6.6 %")),
    Claim(id="minimal-fast", what="2+2 layers, C=64, k=16", subject="minimal-fast",
          workload="score-1x106", compare=RECOVERY, rule=OTHER_WORK,
          published=Published(speed="6.88 ms", speedup=2.14, recovery="5.9 %")),
    Claim(id="extreme-v2", what="2+2 layers, C=64, k=12, batch 8", subject="extreme-v2",
          workload="score-8x106", compare=RECOVERY, rule=EIGHT, gate=GATED_OTHER,
          published=Published(speed="1.91 ms a protein, 55,613 residues/s", speedup=8.18,
                              recovery="2.7 %", source="F, E")),
    Claim(id="pruning", what="3+3/128 to 2+2/64", timed_as="minimal",
          published=Published(speedup=1.93, recovery="no loss", change=0.0)),
    Claim(id="neighbours-12", what="k 48 to 12", subject="baseline-k12", workload="score-1x106",
          compare=RECOVERY, rule=OTHER_WORK, published=Published(speedup=1.83)),
    Claim(id="neighbours-16", what="k 48 to 16", timed_as="fast",
          published=Published(speedup=1.67, recovery="5.3 points lost", change=-5.3)),
    Claim(id="neighbours-30", what="k 48 to 30", subject="baseline-k30", workload="score-1x106",
          compare=RECOVERY, rule=OTHER_WORK,
          published=Published(speed="about that", speedup=1.3, recovery="low loss")),
    Claim(id="batching", what="eight proteins of different lengths, one by one to one batch",
          subject="baseline-batch-8", workload="score-8x106", rule=EIGHT, gate=GATED_OTHER,
          slow=True,
          published=Published(speedup=3, recovery="no loss")),
    Claim(id="pruning+batching", what="2+2/64, batch 8", subject="minimal-batch-8",
          workload="score-8x106", compare=RECOVERY, rule=EIGHT, gate=GATED_OTHER, slow=True,
          published=Published(speed="elsewhere 5.5×", speedup=5.79, recovery="no loss",
                              change=0.0)),
    Claim(id="pruning+k30+batching", what="2+2/64, k=30, batch 8", subject="minimal-k30-batch-8",
          workload="score-8x106", compare=RECOVERY, rule=EIGHT, gate=GATED_OTHER, slow=True,
          published=Published(speed="about that", speedup=7.5, recovery="minimal loss")),
    Claim(id="target", what="more than 1.5 times the baseline, and 10,000 residues a second",
          timed_as="extreme-v2",
          published=Published(speed="> 10,000 residues/s, met by extreme-v2", speedup=1.5,
                              source="E", pace=10_000)),
    # The exact rewrites against the published way of running the network: whole jobs.
    Claim(id="exact-1x106", what="one sequence, L=106", subject="exact-native",
          workload="sample-1x106", rule=SECONDS, gate=GATED, target=14),
    Claim(id="exact-8x106", what="eight sequences, L=106", subject="exact-native",
          workload="sample-8x106", rule=SECONDS, gate=GATED, target=58),
    Claim(id="exact-redesign-416", what="one sequence, 10 % of L=416 redesigned",
          subject="exact-native", workload="redesign-416", rule=SECONDS, gate=GATED_LONG,
          target=16),
    Claim(id="exact-score-955", what="teacher-forced score, L=955 in three chains",
          subject="exact-native", workload="score-955", rule=SECONDS, gate=GATED_LONG,
          slow=True, target=9.5),
    Claim(id="exact-1x955", what="one sequence, L=955 in three chains", subject="exact-native",
          workload="sample-1x955", rule=HALF_MINUTE, gate=GATED_LONG, slow=True, target=19),
    Claim(id="exact-8x955", what="eight sequences, L=955 in three chains", subject="exact-native",
          workload="sample-8x955", rule=HALF_MINUTE, gate=GATED_LONG, slow=True, target=110),
    Claim(id="exact-tied-8x106", what="eight sequences, the halves of L=106 tied",
          subject="exact-native", workload="tied-8x106", rule=SECONDS, gate=GATED),
    Claim(id="exact-biased-8x106", what="eight sequences, L=106, a bias for each residue",
          subject="exact-native", workload="biased-8x106", rule=SECONDS, gate=GATED),
    Claim(id="exact-conditional-106", what="conditional scores of 16 residues, L=106",
          subject="exact-native", workload="conditional-106", rule=SECONDS, gate=GATED),
    Claim(id="exact-1x500", what="one sequence, L=500 in two chains", subject="exact-native",
          workload="sample-1x500", rule=SECONDS, gate=GATED_LONG, slow=True),
    Claim(id="exact-1x2000", what="one sequence, L=2,000 in four chains", subject="exact-native",
          workload="sample-1x2000", rule=HALF_MINUTE, gate=GATED_LONG, slow=True),
    Claim(id="coloured-1x106", what="one sequence, L=106, graph-coloring order on both sides",
          subject="exact-coloured", workload="sample-1x106", reference="baseline-coloured",
          rule=SECONDS, gate=GATED_OTHER, slow=True),
    Claim(id="coloured-1x955",
          what="one sequence, L=955 in three chains, graph-coloring order on both sides",
          subject="exact-coloured", workload="sample-1x955", reference="baseline-coloured",
          rule=HALF_MINUTE, gate=GATED_OTHER, slow=True),
    # What people run.
    Claim(id="design-cold", what="`mpnn design` from a cold process, one sequence, L=106",
          subject="exact-native", workload="design-cold", rule=SECONDS, gate=PROCESS),
    Claim(id="import", what="`import mpnn` in a cold process, against `import torch`",
          subject="exact-native", workload="import", rule=SECONDS, gate=PROCESS),
    Claim(id="read-pdb-955", what="a PDB file read, L=955, against a regular expression",
          subject="exact-native", workload="read-pdb-955", rule=READING),
    Claim(id="read-mmcif-955", what="an mmCIF file read, L=955, against a split into words",
          subject="exact-native", workload="read-mmcif-955", rule=READING),
    Claim(id="campaign-20x8", what="20 structure files of 68–144 residues, eight sequences each",
          subject="exact-native", workload="campaign-20x8", rule=HALF_MINUTE, gate=GATED_LONG,
          slow=True),
    # Other ways to run the same network, and other networks.
    Claim(id="mlx-fusion",
          what="MLX: mx.compile against single kernel launches, whole pass of 2+2/64, k=12",
          subject="extreme-v2-mlx", workload="score-1x106", reference="extreme-v2-mlx-eager",
          rule=SECONDS,
          published=Published(speed="one layer of messages on the GPU, 0.64 ± 0.16 to "
                                    "0.59 ± 0.23 ms, up to 1.28×; memory traffic 28× less",
                              speedup=1.08, device=_METAL)),
    Claim(id="metal-fusion",
          what="MLX: messages and their sum as one Metal kernel, against mx.compile",
          subject="extreme-v2-mlx-fused", workload="score-1x106", reference="extreme-v2-mlx",
          rule=SECONDS, platform=_APPLE,
          published=Published(speed="not built, 1.2–1.5× expected", recovery="–", source="E",
                              device=_METAL)),
    Claim(id="mlx-1x106", what="MLX with the Metal kernel, one sequence, L=106",
          subject="mlx-fused", workload="sample-1x106", rule=SECONDS, platform=_APPLE),
    Claim(id="ane-64", what="Core ML bucket of 64 residues", subject="coreml",
          workload="score-1x64", reference="baseline@mps", compare=CLOSE, band=0.1,
          platform=_APPLE,
          published=Published(speed="1.16 to 0.33 ms", speedup=3.52, device=_ANE)),
    Claim(id="ane-128", what="Core ML bucket of 128 residues", subject="coreml",
          workload="score-1x128", reference="baseline@mps", compare=CLOSE, band=0.1,
          platform=_APPLE,
          published=Published(speed="1.08 to 0.58 ms", speedup=1.86, device=_ANE)),
    Claim(id="ane-256", what="Core ML bucket of 256 residues", subject="coreml",
          workload="score-1x256", reference="baseline@mps", compare=CLOSE, band=0.1,
          platform=_APPLE,
          published=Published(speed="0.83 to 0.29 ms", speedup=2.87, device=_ANE)),
    Claim(id="ane-512", what="Core ML bucket of 512 residues", subject="coreml",
          workload="score-1x512", reference="baseline@mps", compare=CLOSE, band=0.1,
          platform=_APPLE,
          published=Published(speed="2.75× on average of the smaller ones", recovery="–",
                              device=_ANE)),
    Claim(id="ane+extreme-v2", what="Core ML buckets with 2+2/64, k=12",
          subject="coreml-extreme-v2", workload="score-8x106", reference="baseline@mps",
          compare=RECOVERY, band=0.1, rule=EIGHT, platform=_APPLE,
          published=Published(speed="16–20× expected", recovery="–", device=_ANE)),
    Claim(id="cpu-knn-step", what="neighbors by ball_tree on the CPU: the step alone",
          subject="ball-tree", workload="neighbors-106", rule=OTHER_WORK,
          published=Published(speed="5.19 ± 16.35 to 3.97 ± 11.84 ms", speedup=1.31,
                              recovery="no loss", source="F, E")),
    Claim(id="kd-tree-step", what="neighbors by scipy's k-d tree: the step alone",
          subject="kd-tree", workload="neighbors-106", rule=OTHER_WORK, slow=True),
    *(Claim(id=f"{name}-step-{L}", what=f"neighbors by {tree}: the step alone, L={L:,}",
            subject=tree, workload=f"neighbors-{L}", rule=rule, slow=True)
      for name, tree in (("cpu-knn", "ball-tree"), ("kd-tree", "kd-tree"))
      for L, rule in ((500, OTHER_WORK), (1000, SECONDS), (2000, SECONDS))),
    Claim(id="cpu-knn", what="neighbors by ball_tree, whole model", subject="ball-tree",
          workload="score-1x106",
          published=Published(speed="estimated, never integrated", speedup=1.09,
                              recovery="no loss", source="F, E")),
    Claim(id="kd-tree", what="neighbors by scipy's k-d tree, whole model", subject="kd-tree",
          workload="score-1x106", slow=True),
    Claim(id="mixed-precision", what="Linear weights fp16, biases and activations fp32",
          subject="mixed-formula", workload="score-1x106", reference="baseline-formula",
          compare=CLOSE, band=0.01, rule=STANDARD,
          published=Published(speed="15.35 to 17.09 ± 2.82 ms", speedup=0.9, recovery="–",
                              source="E")),
    Claim(id="half", what="whole model in float16", subject="half", workload="score-1x106",
          compare=CLOSE, band=0.03, rule=SECONDS, slow=True,
          published=Published(speed="runtime errors", recovery="–")),
    Claim(id="bfloat16", what="whole model in bfloat16", subject="bfloat16",
          workload="score-1x106", compare=CLOSE, band=0.3, rule=OTHER_WORK,
          published=Published(speed="runtime errors", recovery="–")),
    Claim(id="exact-bfloat16", what="the exact engine with matmuls in bfloat16",
          subject="exact-bfloat16", workload="score-1x106", compare=CLOSE, band=0.3,
          rule=OTHER_WORK),
    Claim(id="exact-bfloat16-955", what="the same, L=955 in three chains",
          subject="exact-bfloat16", workload="score-955", reference="exact-torch", compare=CLOSE,
          band=0.3, rule=SECONDS, slow=True),
    Claim(id="torch-compile", what="torch.compile against the same code uncompiled",
          subject="compiled", workload="score-1x106", reference="staged", rule=LIBRARY,
          published=Published(speedup=0.99, recovery="–")),
    Claim(id="torchscript", what="TorchScript against the same code uncompiled",
          subject="torchscript", workload="score-1x106", reference="staged", rule=LIBRARY,
          published=Published(speed="1.05–1.15× estimated", speedup=1.05, recovery="–")),
    Claim(id="onnx", what="ONNX Runtime", subject="onnx", workload="score-1x106", rule=LIBRARY,
          published=Published(speed="not tested", recovery="–")),
    Claim(id="onnx-1x106", what="ONNX Runtime, one sequence, L=106", subject="onnx",
          workload="sample-1x106", rule=SECONDS, slow=True),
    Claim(id="int8", what="quantized Linear layers", subject="int8", workload="score-1x106",
          compare=CLOSE, band=1.5, rule=OTHER_WORK,
          published=Published(speed="not supported on MPS", recovery="–")),
    Claim(id="distillation",
          what="2+2/64, student of v_48_002; distillation at equal compute: see below",
          timed_as="minimal", published=Published(speed="training failed", recovery="–")),
    Claim(id="non-autoregressive", what="all residues in one pass, run in the published way",
          subject="one-shot", workload="sample-1x106", compare=RECOVERY, rule=SECONDS,
          gate=GATED_OTHER, published=Published(speed="design only", recovery="–")),
    Claim(id="non-autoregressive+exact", what="all residues in one pass, exact engine",
          subject="one-shot-exact", workload="sample-1x106", compare=RECOVERY, rule=SECONDS,
          gate=GATED_OTHER, slow=True),
    Claim(id="one-shot-exact-8x106",
          what="the exact engine on the one-shot network, eight sequences",
          subject="one-shot-exact", workload="sample-8x106", reference="one-shot", slow=True),
    Claim(id="ssm", what="state-space layers along the chain", subject="ssm",
          workload="score-1x106", compare=RECOVERY, rule=PLACED,
          published=Published(speed="design only", recovery="–")),
    Claim(id="ssm-1x106", what="state-space layers along the chain, one sequence sampled",
          subject="ssm", workload="sample-1x106", compare=RECOVERY, rule=SECONDS, slow=True),
)  # fmt: skip
"""The reviewed table; completed below."""


def _complete(claim: Claim) -> Claim:
    """A claim that shares a timing, with everything that was left out taken from there."""
    if not claim.timed_as:
        return claim
    (timed,) = (other for other in CLAIMS if other.id == claim.timed_as)
    return replace(
        timed,
        id=claim.id,
        what=claim.what,
        published=claim.published,
        target=claim.target,
        timed_as=timed.id,
    )


ON_5L33 = (
    *("baseline", "fast", "minimal", "minimal-fast", "pruning"),
    *("neighbours-12", "neighbours-16", "neighbours-30"),
)
"""The published rows of one protein a call."""


def on_5l33(claim: Claim) -> Claim:
    """The same claim on the published protein, measured where MPNN_DATA has its structure."""
    timed_as = f"{claim.timed_as}@5L33" if claim.timed_as else ""
    return replace(
        claim, id=f"{claim.id}@5L33", workload="score-5L33", slow=True, timed_as=timed_as
    )


CLAIMS = tuple(map(_complete, CLAIMS))


def in_torch(claim: Claim) -> Claim:
    """The same job by the torch form of the exact engine, which MPS, CUDA and float64 run."""
    id_ = claim.id.replace("exact-", "exact-torch-", 1)
    return replace(
        claim,
        id=id_,
        what=f"{claim.what}, in torch",
        subject="exact-torch",
        target=None,
        gate=GATED_OTHER,
        slow=claim.workload not in ("sample-1x106", "sample-8x106"),
    )


CLAIMS += tuple(in_torch(claim) for claim in CLAIMS if claim.target is not None)
CLAIMS += tuple(on_5l33(claim) for claim in CLAIMS if claim.id in ON_5L33)


def on_mps(claim: Claim) -> Claim:
    """The same claim with both sides on MPS, without a gate reference: that runs on the CPU."""
    return replace(
        claim,
        id=f"{claim.id}@mps",
        subject=f"{claim.subject}@mps",
        reference=f"{claim.reference}@mps",
        platform=MPS,
        gate=None,
        timed_as=f"{claim.timed_as}@mps" if claim.timed_as else "",
    )


def published_on_mps(claim: Claim) -> bool:
    """Whether a published figure is of MPS; `int8` does not run there."""
    figure = claim.published
    return figure is not None and figure.unit == MPS and claim.subject != "int8"


_STAGED = Claim(id="staged", what="the network in stages, each structure encoded once",
                subject="staged", workload="score-1x106", rule=LIBRARY)  # fmt: skip
CLAIMS += (
    *(on_mps(claim) for claim in CLAIMS if published_on_mps(claim) and "@" not in claim.id),
    *(on_mps(claim) for claim in CLAIMS if claim.id.startswith("exact-torch-")),
    on_mps(_STAGED),
)

BY_ID = {claim.id: claim for claim in CLAIMS}


def apple_silicon() -> bool:
    """Whether this machine is a Mac with an Apple chip."""
    return (platform.system(), platform.machine()) == ("Darwin", "arm64")


def not_measured_here(claim: Claim) -> str:
    """Why this machine cannot measure a claim; '' if it can."""
    if claim.platform != ANY and apple_silicon() and this_machine().virtual:
        return f"needs {claim.platform} that is not virtual"
    return not_measured_on(claim, apple_silicon())


def not_measured_on(claim: Claim, apple: bool) -> str:
    """Why a machine cannot measure a claim; '' if it can.

    Args:
        claim: the claim.
        apple: whether the machine has an Apple chip.
    """
    return "" if apple or claim.platform == ANY else f"needs {claim.platform}"
