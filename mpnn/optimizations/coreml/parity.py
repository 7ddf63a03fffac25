"""How far a package's predictions are from the reference; a program of its own for the gate.

`python -m mpnn.optimizations.coreml.parity PACKAGE UNIT` prints the largest difference of
every bucket as JSON, on the last line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from mpnn.config import NUM_LETTERS
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations.coreml.engine import CoreMLEngine
from mpnn.optimizations.coreml.package import CHECKPOINT
from mpnn.optimizations.coreml.predictor import CoreMLPredictor, Predictor
from mpnn.optimizations.reference import ReferenceEngine
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import load_weights


def differences(
    model: ProteinMPNN, predictor: Predictor, buckets: Sequence[int]
) -> dict[int, float]:
    """Largest |Δ log p| in nats of each bucket, in a random order and with nothing visible.

    The synthetic backbone fills seven eighths of its bucket, in two chains.
    """
    engine = CoreMLEngine(model, predictor=predictor, buckets=buckets)
    reference = ReferenceEngine(model)
    found = {}
    for bucket in buckets:
        L = bucket - bucket // 8
        rng = np.random.default_rng(bucket)
        flat = Flat.from_backbones([synthetic_backbone(L, chains=2)])
        S = np.tile(rng.integers(NUM_LETTERS, size=L), (2, 1))
        rank = np.stack([rng.permutation(L), np.zeros(L, np.int64)])
        ours = engine.log_probs(engine.encode(flat), S, rank)
        theirs = reference.log_probs(reference.encode(flat), S, rank)
        found[bucket] = float(np.abs(ours - theirs).max())
    return found


def main(package: str, unit: str) -> None:
    """Measures the package that lies beside its checkpoint."""
    loaded, card = load_weights(Path(package).with_name(CHECKPOINT))
    model = cast(ProteinMPNN, loaded)  # no package is made of anything else
    found = differences(model, CoreMLPredictor(Path(package), unit), card["buckets"])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
