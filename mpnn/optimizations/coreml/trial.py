"""What a compute unit makes of a package; a program, as Core ML may crash or hang in it.

`python -m mpnn.optimizations.coreml.trial PACKAGE UNIT` compiles the package, asks for its plan,
and prints the `Figures` of every bucket as JSON, on the last line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TypedDict, cast

import numpy as np

from mpnn.config import NUM_LETTERS
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations.coreml.engine import CoreMLEngine
from mpnn.optimizations.coreml.network import LAYOUTS
from mpnn.optimizations.coreml.package import CHECKPOINT
from mpnn.optimizations.coreml.plan import placements, share
from mpnn.optimizations.coreml.predictor import CoreMLPredictor, Predictor
from mpnn.optimizations.reference import ReferenceEngine
from mpnn.sampling import Constraints, Key, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import load_weights

REPEATS = 7
"""Timed scores, of which the median counts; one call before each keeps a device's clock up."""


class Measured(TypedDict):
    """What predictions in a bucket show."""

    difference: float  # largest |Δ log p| in nats
    seconds: float  # spent in Core ML by a score of one sequence
    host_seconds: float  # the rest of that score


class Figures(Measured):
    """What a trial tells of a bucket."""

    share: float  # of the score's estimated work planned on the Neural Engine


def tried(model: ProteinMPNN, predictor: Predictor, bucket: int) -> Measured:
    """Difference and seconds of a bucket.

    The synthetic backbone fills seven eighths of its bucket, in two chains. It is scored alone
    (`score_L`) and under two orders (`encode_L`, `decode_L`), in a random order and with nothing
    visible; and an eighth of its residues are sampled (`step_L`).
    """
    engine = CoreMLEngine(model, predictor=predictor, buckets=[bucket])
    reference = ReferenceEngine(model)
    L = bucket - bucket // 8
    rng = np.random.default_rng(bucket)
    flat = Flat.from_backbones([synthetic_backbone(L, chains=2)])
    S = np.tile(rng.integers(NUM_LETTERS, size=L), (2, 1))
    rank = np.stack([rng.permutation(L), np.zeros(L, np.int64)])
    free = Constraints.free(flat.mask)
    free.designed[np.arange(L) % 8 > 0] = False
    job = make_job(flat.S, [free], [Key(0, 0, 0.1)])
    encoding, right = engine.encode(flat), reference.encode(flat)
    expected = reference.log_probs(right, S, rank)
    pairs = [(engine.log_probs(encoding, S[:1], rank[:1]), expected[:1])]
    pairs.append((engine.log_probs(encoding, S, rank), expected))
    samples = engine.sample(encoding, job)
    pairs.append((samples.log_probs, reference.log_probs(right, samples.S, job.rank)))
    # NumPy's maximum, unlike Python's, keeps a NaN.
    difference = float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))
    host, device = seconds(engine, flat, S[:1], rank[:1])
    return Measured(difference=difference, seconds=device, host_seconds=host)


def seconds(
    engine: CoreMLEngine, flat: Flat, S: np.ndarray, rank: np.ndarray
) -> tuple[float, float]:
    """Median seconds of the host and of the device for a score from coordinates."""
    host, device = [], []
    for timed in REPEATS * (False, True):
        start, before = time.perf_counter(), engine.device_seconds
        engine.log_probs(engine.encode(flat), S, rank)
        if timed:
            device.append(engine.device_seconds - before)
            host.append(time.perf_counter() - start - device[-1])
    return median(host), median(device)


def differences(
    model: ProteinMPNN, predictor: Predictor, buckets: Sequence[int]
) -> dict[int, float]:
    """Largest |Δ log p| in nats of each bucket."""
    return {bucket: tried(model, predictor, bucket)["difference"] for bucket in buckets}


def trial(package: Path, unit: str) -> dict[int, Figures]:
    """All figures of a package that lies beside its checkpoint, by bucket."""
    loaded, card = load_weights(package.with_name(CHECKPOINT))
    model = cast(ProteinMPNN, loaded)  # no package is made of anything else
    predictor = CoreMLPredictor(package, unit, LAYOUTS[card["layout"]])
    found = {}
    for bucket in card["buckets"]:
        on_engine = share(placements(package, f"score_{bucket}", unit), "NE")
        found[bucket] = Figures(**tried(model, predictor, bucket), share=on_engine)
    return found


def main(package: str, unit: str) -> None:
    """Prints the figures."""
    sys.stdout.write(json.dumps(trial(Path(package), unit)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
