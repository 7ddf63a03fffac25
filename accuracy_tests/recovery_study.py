"""Recovery of networks, run in several ways, on one declared set: `tox -e accuracy`.

TS50 comes from MPNN_DATA or, where that is not set, from the PDB; published weights come from
MPNN_WEIGHTS or are fetched too. Where TS50 is neither here nor to be reached, nothing is measured
and the stored figures are shown. Rows are paired with their yardstick on the same proteins, orders
and noise. Rows already stored and not measured again stay as they are.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mpnn.errors import InputError, UnreachableError
from mpnn.model import ProteinMPNN
from mpnn.networks import engine_for
from mpnn.output import write_whole
from mpnn.recovery import compare, measure, summarize
from mpnn.studies.tables import stored_recovery
from mpnn.ts50 import ts50
from mpnn.weights import load_weights, shipped

TARGET = Path(__file__).parents[1] / "baselines" / "recovery.json"
SAMPLES, SEED = 4, 0
SET = "TS50, 50 chains, 6,861 residues"
FETCHED = TARGET.with_name("recovery-fetched.json")  # atoms of today's PDB: not quite the same set
FETCHED_SET = f"{SET}, atoms as fetched from the PDB"


@dataclass(frozen=True)
class Row:
    """One network, run in one way, and the row it is held against."""

    weights: str
    k: int | None = None  # neighbors at run time; None for those it was trained with
    order: str = "random"
    temperature: float = 0.1
    against: str | None = None

    @property
    def id(self) -> str:
        """Unique name of the row."""
        parts = [self.weights, f"k={self.k}" if self.k else "", self.order, f"T={self.temperature}"]
        return " ".join(part for part in parts if part and part != "random")


YARDSTICK = Row("v_48_020")
PUBLISHED = [
    YARDSTICK,
    *(Row(name) for name in ("v_48_002", "v_48_010", "v_48_030", "soluble_v_48_020")),
    *(replace(YARDSTICK, k=k, against=YARDSTICK.id) for k in (30, 16, 12)),
    replace(YARDSTICK, order="coloured", against=YARDSTICK.id),
    *(replace(YARDSTICK, temperature=t, against=YARDSTICK.id) for t in (0.2, 0.5, 1.0)),
]

TWINS = dict.fromkeys(["minimal-k30", "minimal-fast", "extreme-v2", "minimal-one-shot"], "minimal")
"""Networks of the layers and width of another, which see less; the others have `baseline`."""


def shipped_rows():
    """The shipped networks, each held against its twin."""
    for name in shipped():
        twin = TWINS.get(name, "baseline")
        yield Row(name, against=Row(twin).id if name != twin and twin in shipped() else None)


def with_neighbors(model, k):
    """The same weights reading k neighbors of each residue."""
    other = ProteinMPNN(replace(model.config, k_neighbors=k))
    other.load_state_dict(model.state_dict())
    return other


def outcomes(row, backbones):
    """Samples and scores of a row on every backbone."""
    model, _ = load_weights(row.weights)
    engine = engine_for(model if row.k is None else with_neighbors(model, row.k))
    return measure(engine, backbones, SAMPLES, row.temperature, SEED, row.order)


def chosen_of(rows, only):
    """Rows by id: those whose id contains `only`, their yardsticks, and what is held against them.

    Yardsticks come first.
    """
    asked = {row.id for row in rows if only in row.id}
    asked |= {row.id for row in rows if row.against in asked}
    needed = {row.against for row in rows if row.id in asked}
    every = {row.id: row for row in rows if row.id in asked | needed}
    return {id_: every[id_] for id_ in sorted(every, key=lambda id_: id_ not in needed)}


def main():
    """Measures the rows asked for and stores them; offline and without data, shows those stored."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="rows whose id contains this, and what goes with them")
    only = parser.parse_args().only or ""
    try:
        backbones = ts50()
    except UnreachableError as error:
        figures = stored_recovery(TARGET.parent)
        if not figures:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.stdout.write(figures)
        return
    handed_down = bool(os.environ.get("MPNN_DATA"))
    study(only, backbones, TARGET if handed_down else FETCHED, SET if handed_down else FETCHED_SET)


def study(only, backbones, target, label):
    """Measures rows whose id contains `only`, and stores them beside those that stand in `target`.

    The set is called `label` there.
    """
    torch.set_num_threads(1)
    rows = [*PUBLISHED, *shipped_rows()]
    chosen = chosen_of(rows, only)
    stored = json.loads(target.read_text()) if target.exists() else {"rows": {}}
    found = {}
    for id_, row in chosen.items():
        start = time.monotonic()
        try:
            found[id_] = outcomes(row, backbones)
        except InputError as error:
            sys.stderr.write(f"{id_}: not measured here: {error}\n")
            continue
        entry = asdict(row) | {"samples": SAMPLES} | asdict(summarize(found[id_]))
        entry["diversity"] = float(np.mean([o.diversity for o in found[id_]]))
        if row.against in found:
            entry["difference"] = asdict(compare(found[id_], found[row.against]))
        stored["rows"][id_] = entry
        stored["set"] = label
        stored["rows"] = {r.id: stored["rows"][r.id] for r in rows if r.id in stored["rows"]}
        write_whole(target, json.dumps(stored, indent=1) + "\n")
        recovery = entry["recovery"]["mean"]
        sys.stderr.write(f"{id_}: {recovery:.1%} in {time.monotonic() - start:.0f} s\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
