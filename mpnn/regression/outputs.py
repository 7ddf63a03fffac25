"""How the outputs of the timed runs are compared: one function for each kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.equality import ROUNDING, flips, largest_difference
from mpnn.graph import CA
from mpnn.recovery import agreement, expected_recovery, kl_divergence
from mpnn.regression.rows import Accuracy
from mpnn.sampling import Job, Samples
from mpnn.schedule import FloatArray, IntArray
from mpnn.weights import Card

RECOVERY_SET = "ts50"
"""The set of proteins, named in checkpoints' cards, whose recovery stands in a row."""

MOST_FLIPPED = 0.1
"""Share of residues whose top-1 letter reduced precision may change: twice what int8 does."""

LEAST_CHANGE = -0.002
"""Change of expected recovery that reduced precision may cost, as a fraction."""

SAME_DISTANCE = 1e-4
"""Å by which a neighbor's distance may differ: of two residues equally far up to rounding, a search
may take either."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One protein's job and the outputs of both sides."""

    name: str
    job: Job
    reference: Samples
    subject: Samples


@dataclass(frozen=True, eq=False)
class GraphPair:
    """One protein and the neighbors E_idx [L, K] that both sides found."""

    protein: Backbone
    reference: IntArray
    subject: IntArray


def equality(pairs: Sequence[Pair]) -> Accuracy:
    """The same sequences, and log-probabilities equal up to rounding.

    Where rounding alone flipped a near-tie, the residue is named and the claim stands; samples
    that differ are left out of the largest difference.
    """
    found = [(p.name, flip) for p in pairs for flip in flips(p.job, p.reference, p.subject)]
    changed = [(name, flip) for name, flip in found if not flip.is_rounding]
    differences = [largest_difference(p.reference, p.subject) for p in pairs]
    largest = max((d for d in differences if not math.isnan(d)), default=math.inf)
    if any(np.isnan(side.log_probs).any() for p in pairs for side in (p.reference, p.subject)):
        return Accuracy(passed=False, text="log-probabilities are NaN")
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


def closeness(pairs: Sequence[Pair], band: float) -> Accuracy:
    """Log-probabilities within `band` nats of the reference's, and what the differences do.

    They may flip the top-1 letter of at most `MOST_FLIPPED` of the residues, and cost at most
    `LEAST_CHANGE` of expected recovery. Residues after the first that differs are conditioned on
    another sequence and say nothing about the engine: they are left out.
    """
    compared = [_compared(pair) for pair in pairs]
    ours, theirs, native = (np.concatenate(x) for x in zip(*compared, strict=True))
    every = np.ones(len(native), bool)
    largest = float(np.abs(ours - theirs).max())
    kl = kl_divergence(ours, theirs, every)
    flipped = 1 - agreement(ours, theirs, every)
    change = expected_recovery(ours, native, every) - expected_recovery(theirs, native, every)
    return Accuracy(
        passed=largest <= band and flipped <= MOST_FLIPPED and change >= LEAST_CHANGE,
        text=f"|Δ|≤{largest:.0e} (band {band:g}), KL {kl:.0e}, top-1 flips {flipped:.1%}, "
        f"expected recovery {100 * change:+.2f} points",
        figures={
            "max_abs_log_prob": largest,
            "kl": kl,
            "letters_flipped": flipped,
            "expected_recovery_change": change,
        },
    )


def _compared(pair: Pair) -> tuple[NDArray[np.floating], NDArray[np.floating], IntArray]:
    """Both sides' log-probabilities [M, 21] and the native residues [M] that are compared.

    Those are the designed ones of each sample up to and including the first that differs.
    """
    job, subject, reference = pair.job, pair.subject, pair.reference
    first = np.where(subject.S != reference.S, job.rank, job.rank.shape[-1]).min(-1, keepdims=True)
    counted = job.designed & (job.rank <= first)  # [N, L]
    native = np.broadcast_to(job.S, counted.shape)[counted]
    return subject.log_probs[counted], reference.log_probs[counted], native


def same_neighbors(pairs: Sequence[GraphPair]) -> Accuracy:
    """Every residue's neighbors are as far away as those of the reference."""
    differences = [
        np.abs(_distances(p.protein, p.subject) - _distances(p.protein, p.reference)) for p in pairs
    ]
    largest = max(float(difference.max()) for difference in differences)
    return Accuracy(
        passed=largest <= SAME_DISTANCE,
        text=f"neighbors as far away, up to {largest:.0e} Å",
        figures={"max_abs_distance": largest},
    )


def _distances(protein: Backbone, E_idx: IntArray) -> FloatArray:
    """CA–CA distances to the neighbors E_idx [L, K] in Å, closest first: [L, K]."""
    ca = protein.coords[:, CA].astype(np.float64)
    distances: FloatArray = np.sort(np.linalg.norm(ca[:, None] - ca[E_idx], axis=-1), axis=-1)
    return distances


def recovery(outputs: Sequence[Samples], card: Card | None, reference: Card | None) -> Accuracy:
    """Probabilities that sum to one, and the recovery that the checkpoints' cards state.

    Args:
        outputs: of the subject, mostly on synthetic backbones, which have no recovery.
        card: of the subject's checkpoint; None without trained weights.
        reference: the same of the reference.
    """
    totals = np.concatenate([np.exp(output.log_probs).sum(-1).ravel() for output in outputs])
    off = float(np.abs(totals - 1).max())
    figures, text = {"max_abs_total_minus_one": off}, "untrained"
    if card is not None:
        ours = _stated_recovery(card)
        theirs = None if reference is None else _stated_recovery(reference)
        text = "recovery {:.1f} % [{:.1f}, {:.1f}] against ".format(*ours)
        text += "untrained" if theirs is None else f"{theirs[0]:.1f} %"
        if theirs is not None:
            keys = ("recovery", "recovery_low", "recovery_high")
            figures |= dict(zip(keys, ours, strict=True))
            figures |= {f"reference_{key}": x for key, x in zip(keys, theirs, strict=True)}
    return Accuracy(off < ROUNDING, text, figures)


def _stated_recovery(card: Card) -> tuple[float, float, float]:
    """Mean and interval in per cent, as measured when the checkpoint was made."""
    mean, low, high = map(float, card["measured"]["sets"][RECOVERY_SET]["recovery"])
    return mean, low, high
