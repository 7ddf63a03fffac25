"""Accuracy of a network: recovery, perplexity, agreement, divergence, calibration, intervals.

Measures of one protein are pure functions on arrays. A set of proteins is summarized by the mean
over proteins with a bootstrap interval over proteins; two networks on the same proteins and noise
by the interval of the paired difference. Shapes: P proteins, N samples, L residues, V = 21 residue
types. `counted` [L] marks the residues that count: complete ones of known type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpnn.backbone import Backbone
from mpnn.config import UNKNOWN
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import Engine
from mpnn.sampling import Constraints, Key, make_job, with_graph_coloring
from mpnn.schedule import IntArray, Order

LogProbs = NDArray[np.floating]  # [N, L, 21]
Mask = NDArray[np.bool_]  # [L]
Measure = Callable[[LogProbs, IntArray, Mask], float]
RESAMPLES = 10_000
CONFIDENCE = 0.95
CALIBRATION_BINS = 10


def recovery(S: IntArray, native: IntArray, counted: Mask) -> float:
    """Share of counted residues with the native type, mean over samples: [N, L], [L], [L]."""
    return float((native == S)[..., counted].mean())


def diversity(S: IntArray, counted: Mask) -> float:
    """Share of counted residues at which two samples differ, mean over pairs; NaN for one."""
    a, b = np.triu_indices(len(S), 1)
    return float((S[a] != S[b])[:, counted].mean()) if len(a) else float("nan")


def negative_log_likelihood(log_probs: LogProbs, native: IntArray, counted: Mask) -> float:
    """Mean −log p of the native residues in nats; its exponential is the perplexity."""
    return -float(_at_native(log_probs, native)[..., counted].mean(dtype=np.float64))


def top1(log_probs: LogProbs, native: IntArray, counted: Mask) -> float:
    """Share of counted residues whose most likely type is the native one."""
    return float((log_probs.argmax(-1) == native)[..., counted].mean())


def expected_recovery(log_probs: LogProbs, native: IntArray, counted: Mask) -> float:
    """Mean probability of the native type, teacher-forced: recovery without sampling."""
    return float(np.exp(_at_native(log_probs, native))[..., counted].mean(dtype=np.float64))


def agreement(log_probs: LogProbs, reference: LogProbs, counted: Mask) -> float:
    """Share of counted residues with the same most likely type under both networks."""
    return float((log_probs.argmax(-1) == reference.argmax(-1))[..., counted].mean())


def kl_divergence(log_probs: LogProbs, reference: LogProbs, counted: Mask) -> float:
    """Mean over counted residues of Σ p_reference · (log p_reference − log p), in nats."""
    p = reference.astype(np.float64)
    return float((np.exp(p) * (p - log_probs)).sum(-1)[..., counted].mean())


def overconfidence(log_probs: LogProbs, native: IntArray, counted: Mask) -> float:
    """Mean probability of the most likely type, minus top-1: 0 for a calibrated network."""
    sure = np.exp(log_probs.max(-1))[..., counted].mean(dtype=np.float64)
    return float(sure) - top1(log_probs, native, counted)


def calibration_error(outcomes: Sequence[Outcome]) -> float:
    """Expected calibration error: |confidence − top-1| in ten bins of confidence, weighted by size.

    Over all counted residues and samples. Source: Guo et al., ICML 2017.
    """
    sure = np.concatenate([np.exp(o.log_probs.max(-1))[:, o.counted].ravel() for o in outcomes])
    right = np.concatenate(
        [(o.log_probs.argmax(-1) == o.native)[:, o.counted].ravel() for o in outcomes]
    )
    bins = np.minimum((sure * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return float(np.abs(np.bincount(bins, sure - right)).sum() / len(sure))


def _at_native(log_probs: LogProbs, native: IntArray) -> LogProbs:
    index = np.broadcast_to(native[:, None], (*log_probs.shape[:-1], 1))
    return np.take_along_axis(log_probs, index, -1)[..., 0]


@dataclass(frozen=True)
class Interval:
    """A mean over proteins and its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean of `values` [P] and its 95 % percentile interval over resampled proteins.

    The same values and seed give the same interval. Differences of two networks on the same
    proteins give the paired interval.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError("an interval needs at least two finite values, one per protein")
    rng = np.random.Generator(np.random.Philox(key=seed))
    means = x[rng.integers(len(x), size=(RESAMPLES, len(x)))].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail]).tolist()
    return Interval(float(x.mean()), low, high)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Samples and scores of one network for one protein."""

    name: str
    native: IntArray  # [L]
    counted: Mask  # [L]
    S: IntArray  # [N, L] samples
    log_probs: LogProbs  # [N, L, 21] teacher-forced on the native residues, in each sample's order

    @property
    def recovery(self) -> float:
        """See `recovery`."""
        return recovery(self.S, self.native, self.counted)

    @property
    def diversity(self) -> float:
        """See `diversity`."""
        return diversity(self.S, self.counted)

    def forced(self, measure: Measure) -> float:
        """A measure of the teacher-forced log-probabilities, such as `top1`."""
        return measure(self.log_probs, self.native, self.counted)


@dataclass(frozen=True)
class Summary:
    """The measures of one network on P proteins: means over proteins with intervals."""

    proteins: int
    recovery: Interval
    expected_recovery: Interval
    top1: Interval
    nll: Interval  # nats; exp of it is the perplexity
    perplexity: float  # exp of the mean over all residues of −log p
    overconfidence: Interval  # mean probability of the most likely type − top-1
    calibration_error: float  # see `calibration_error`


def measure(
    engine: Engine,
    backbones: Sequence[Backbone],
    num_samples: int = 4,
    temperature: float = 0.1,
    seed: int = 0,
    order: Order = "random",
) -> list[Outcome]:
    """Samples and scores every backbone: free design, one backbone at a time.

    The noise is keyed by (seed, sample, residue), so two engines or two networks measured with the
    same seed are compared under the same noise and orders.

    Raises:
        InputError: a backbone has no complete residue of known type.
    """
    keys = [Key(seed, sample, temperature) for sample in range(num_samples)]
    return [_outcome(engine, backbone, keys, order) for backbone in backbones]


def _outcome(engine: Engine, backbone: Backbone, keys: list[Key], order: Order) -> Outcome:
    flat = Flat.from_backbones([backbone])
    native = flat.S
    counted = backbone.mask & (native != UNKNOWN)
    if not counted.any():
        raise InputError(
            f"{backbone.name}: no residue has all four atoms and a known type; leave it out"
        )
    encoding = engine.encode(flat)
    job = make_job(native, [Constraints.free(backbone.mask)], keys)
    if order == "graph-coloring":
        job = with_graph_coloring(job, [engine.neighbors(encoding, 0)])
    log_probs = engine.log_probs(encoding, np.tile(native, (len(keys), 1)), job.rank)
    return Outcome(backbone.name, native, counted, engine.sample(encoding, job).S, log_probs)


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    """Means over proteins with intervals; see `Summary`."""

    def mean(measure: Measure) -> Interval:
        return bootstrap_interval([o.forced(measure) for o in outcomes])

    nll = [o.forced(negative_log_likelihood) for o in outcomes]
    counts = [int(o.counted.sum()) for o in outcomes]
    return Summary(
        proteins=len(outcomes),
        recovery=bootstrap_interval([o.recovery for o in outcomes]),
        expected_recovery=mean(expected_recovery),
        top1=mean(top1),
        nll=bootstrap_interval(nll),
        perplexity=float(np.exp(np.average(nll, weights=counts))),
        overconfidence=mean(overconfidence),
        calibration_error=calibration_error(outcomes),
    )


@dataclass(frozen=True)
class Comparison:
    """A subject against a reference on the same proteins: paired differences, subject − reference.

    `agreement` and `kl` are teacher-forced on the native residues under the same orders.
    """

    recovery: Interval
    expected_recovery: Interval
    nll: Interval  # nats
    agreement: Interval  # share of residues with the same most likely type
    kl: Interval  # nats, of the subject from the reference


def compare(subject: Sequence[Outcome], reference: Sequence[Outcome]) -> Comparison:
    """Pairs the outcomes protein by protein.

    Raises:
        ValueError: the two do not hold the same proteins in the same order.
    """
    if [o.name for o in subject] != [o.name for o in reference]:
        raise ValueError("subject and reference must be measured on the same proteins, in order")
    pairs = list(zip(subject, reference, strict=True))

    def mean(difference: Callable[[Outcome, Outcome], float]) -> Interval:
        return bootstrap_interval([difference(s, r) for s, r in pairs])

    def change(measure: Measure) -> Interval:
        return mean(lambda s, r: s.forced(measure) - r.forced(measure))

    return Comparison(
        recovery=mean(lambda s, r: s.recovery - r.recovery),
        expected_recovery=change(expected_recovery),
        nll=change(negative_log_likelihood),
        agreement=mean(lambda s, r: agreement(s.log_probs, r.log_probs, s.counted)),
        kl=mean(lambda s, r: kl_divergence(s.log_probs, r.log_probs, s.counted)),
    )
