"""Measures trained weights and ships them with a card: `tox -e ship -- fast.safetensors …`.

    python -m mpnn.studies.ship_checkpoint fast.safetensors --status "why the training ended"

The card gets a dozen points of the learning curve, and figures for chains the network was trained
on beside those for others: the difference is overfitting. Needs ts50.npz, validation.npz and the
training chains in MPNN_DATA.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpnn.backbone import Backbone
from mpnn.datasets import ChainSet, find_data
from mpnn.errors import InputError
from mpnn.optimizations import load_engine
from mpnn.recovery import Interval, measure, summarize
from mpnn.training.data import TrainingChains
from mpnn.ts50 import ts50
from mpnn.weights import SHIPPED, digest, load_arrays, load_checkpoint, save_checkpoint

SAMPLES, SEED = 4, 0
CURVE_ROWS = 12
HOW = (
    "4 samples at T=0.1 in random orders; teacher-forced on the native letters in the same orders; "
    "mean over proteins and 95 % bootstrap interval over proteins, in %; perplexity over all "
    "residues"
)
DATA = {
    "train.npz": (
        "6,280 chains of 3,056 clusters at 30 % sequence identity from the wwPDB (CC0), drawn per "
        "cluster; no cluster is shared with the 150 validation chains or TS50"
    )
}
"""Description of each file of training chains."""


def thinned(curve: dict[str, Any]) -> dict[str, Any]:
    """A learning curve with a dozen of its points, the first and the last among them."""
    rows = curve["rows"]
    chosen = np.linspace(0, len(rows) - 1, min(CURVE_ROWS, len(rows))).round().astype(int)
    return {**curve, "rows": [rows[i] for i in chosen]}


def figures(path: Path, backbones: Sequence[Backbone]) -> dict[str, Any]:
    """Recovery and top-1 in % with intervals, and perplexity, on a set of chains."""
    engine = load_engine(load_checkpoint(path)[0])
    summary = summarize(measure(engine, backbones, SAMPLES, 0.1, SEED))

    def percent(interval: Interval) -> list[float]:
        return [round(100 * x, 3) for x in (interval.mean, interval.low, interval.high)]

    return {
        "proteins": summary.proteins,
        "recovery": percent(summary.recovery),
        "expected_recovery": percent(summary.expected_recovery),
        "top1": percent(summary.top1),
        "perplexity": round(summary.perplexity, 3),
    }


def like_validation(path: Path) -> list[Backbone]:
    """Training chains like the validation chains: 150 of 60 to 400 residues, one per cluster."""
    chains = TrainingChains(path)
    rng = np.random.Generator(np.random.Philox(key=SEED))
    shuffled = [chains.clusters[i] for i in rng.permutation(len(chains.clusters))]
    sampled = (chains[int(rng.choice(cluster))] for cluster in shuffled)
    fitting = (backbone for backbone in sampled if 60 <= len(backbone) <= 400)
    return list(itertools.islice(fitting, 150))


def main() -> None:
    """Writes NAME.safetensors to the folder of shipped checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--status", required=True, help="why the training ended")
    parser.add_argument("--dtype", choices=("float16", "int8"), default="float16", help="stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, card = load_checkpoint(options.weights)
    data = card["training"]["data"]
    if data not in DATA:
        raise InputError(f"{options.weights}: trained on {data}; describe that file in DATA first")
    validation = ChainSet(find_data("validation.npz"))
    chains = {
        "ts50": ts50(),
        "validation": [validation[i] for i in range(len(validation))],
        "training": like_validation(find_data(data)),
    }
    card |= {
        "teacher": card["training"]["teacher"] or "none: the native letters alone",
        "stored": options.dtype,
        "data": DATA[data],
        "license": "MIT",
        "status": options.status,
        "curve": thinned(card["curve"]),
    }
    card.pop("measured", None)  # of these weights as they were stored before
    dtype = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as folder:  # measured as stored, before anything is replaced
        trial = Path(folder) / options.weights.name
        save_checkpoint(trial, model, card, dtype)
        sets = {name: figures(trial, backbones) for name, backbones in chains.items()}
        stored = digest(load_arrays(trial).arrays)
    card["measured"] = {"how": HOW, "sets": sets, "digest": stored}
    save_checkpoint(SHIPPED / options.weights.name, model, card, dtype)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
