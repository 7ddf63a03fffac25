"""Measures trained weights and ships them, with the card that says what they are.

    python accuracy_tests/ship_checkpoint.py fast.safetensors --status "why it ended"

Of the learning curve that the training measured a dozen points are kept. What the network reads of
chains that it was trained on stands beside what it reads of others: the difference was learnt by
heart. Needs ts50.npz, validation.npz and the training chains in MPNN_DATA.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from mpnn.datasets import ChainSet, find_data
from mpnn.errors import InputError
from mpnn.optimizations import load_engine
from mpnn.recovery import measure, summarize
from mpnn.training.data import TrainingChains
from mpnn.ts50 import ts50
from mpnn.weights import SHIPPED, load_checkpoint, save_checkpoint

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
"""What a file of training chains holds."""


def thinned(curve):
    """A dozen points of a learning curve, the first and the last among them."""
    rows = curve["rows"]
    chosen = np.linspace(0, len(rows) - 1, min(CURVE_ROWS, len(rows))).round().astype(int)
    return {**curve, "rows": [rows[i] for i in chosen]}


def figures(path, backbones):
    """Recovery, perplexity and top-1 on a set of chains, in per cent with intervals."""
    engine = load_engine(load_checkpoint(path)[0])
    found = summarize(measure(engine, backbones, SAMPLES, 0.1, SEED))

    def per_cent(estimate):
        return [round(100 * x, 3) for x in (estimate.mean, estimate.low, estimate.high)]

    return {
        "proteins": found.proteins,
        "recovery": per_cent(found.recovery),
        "expected_recovery": per_cent(found.expected_recovery),
        "top1": per_cent(found.top1),
        "perplexity": round(found.perplexity, 3),
    }


def like_validation(path):
    """Training chains such as the validation chains: 150 of 60 to 400 residues, one a cluster."""
    chains = TrainingChains(path)
    rng = np.random.Generator(np.random.Philox(key=SEED))
    shuffled = [chains.clusters[i] for i in rng.permutation(len(chains.clusters))]
    drawn = (chains[int(rng.choice(cluster))] for cluster in shuffled)
    fitting = (backbone for backbone in drawn if 60 <= len(backbone) <= 400)
    return list(itertools.islice(fitting, 150))


def main():
    """Writes NAME.safetensors beside the other shipped checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--status", required=True, help="why the training ended")
    parser.add_argument("--dtype", choices=("float16", "int8"), default="float16", help="stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, card = load_checkpoint(options.weights)
    if card["training"]["data"] not in DATA:
        raise InputError(f"{options.weights}: say in DATA what {card['training']['data']} holds")
    card["teacher"] = card["training"]["teacher"] or "none: the native letters alone"
    dtype = getattr(torch, options.dtype)
    chains = {
        "ts50": ts50(),
        "validation": list(ChainSet(find_data("validation.npz"))),
        "training": like_validation(find_data(card["training"]["data"])),
    }
    card |= {
        "stored": options.dtype,
        "data": DATA[card["training"]["data"]],
        "license": "MIT",
        "status": options.status,
        "curve": thinned(card["curve"]),
    }
    with tempfile.TemporaryDirectory() as folder:  # what is shipped is replaced once, by the end
        trial = Path(folder) / options.weights.name
        save_checkpoint(trial, model, card, dtype)
        sets = {name: figures(trial, backbones) for name, backbones in chains.items()}
    card["measured"] = {"how": HOW, "sets": sets}
    save_checkpoint(SHIPPED / options.weights.name, model, card, dtype)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
