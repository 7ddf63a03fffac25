"""Recovery of the shipped and published weights on TS50: `tox -e recovery`.

TS50 is read from MPNN_DATA, or fetched from the PDB if that is not set; published weights are read
from MPNN_WEIGHTS, or fetched. If TS50 can be neither read nor fetched, nothing is measured and the
stored figures are printed. Each row is paired with its reference on the same proteins, orders and
noise. Stored rows that are not measured again stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from mpnn import download
from mpnn.atomic import write_whole
from mpnn.backbone import Backbone
from mpnn.errors import InputError, UnreachableError
from mpnn.model import ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.recovery import Outcome, compare, measure, summarize
from mpnn.schedule import Order
from mpnn.studies.tables import stored_recovery
from mpnn.ts50 import ts50
from mpnn.weights import Network, load_weights, shipped

BASELINES = Path(__file__).parents[2] / "baselines"
TARGET = BASELINES / "recovery.json"
SAMPLES, SEED = 4, 0
SET = "TS50, 50 chains, 6,861 residues"
FETCHED = BASELINES / "recovery-fetched.json"  # coordinates of today's PDB: not quite the same set
FETCHED_SET = f"{SET}, atoms as fetched from the PDB"


@dataclass(frozen=True)
class Row:
    """One network, run in one way, and the row it is compared with."""

    weights: str
    k: int | None = None  # neighbors at run time; None for those it was trained with
    order: str = "random"  # or "coloured", the spelling of stored rows for graph coloring
    temperature: float = 0.1
    against: str | None = None  # id of the reference row

    @property
    def id(self) -> str:
        """Unique name of the row."""
        parts = [self.weights, f"k={self.k}" if self.k else "", self.order, f"T={self.temperature}"]
        return " ".join(part for part in parts if part and part != "random")


REFERENCE = Row("v_48_020")
FIRST = ("v_48_020", "v_48_002", "v_48_010", "v_48_030", "soluble_v_48_020")
OF_PROTEIN_MPNN = [
    name for name, file in download.PUBLISHED.items() if file.repository is download.PROTEIN_MPNN
]
PUBLISHED = [
    *map(Row, FIRST),
    *(replace(REFERENCE, k=k, against=REFERENCE.id) for k in (30, 16, 12)),
    replace(REFERENCE, order="coloured", against=REFERENCE.id),
    *(replace(REFERENCE, temperature=t, against=REFERENCE.id) for t in (0.2, 0.5, 1.0)),
    *(
        Row(name, against=None if name in OF_PROTEIN_MPNN else REFERENCE.id)
        for name in download.PUBLISHED
        if name not in FIRST
    ),
]

COUNTERPARTS = dict.fromkeys(
    ("minimal-k30", "minimal-fast", "extreme-v2", "minimal-one-shot"), "minimal"
)
"""Networks compared with the k=48 network of the same layers and width; others with `baseline`."""


def shipped_rows() -> Iterator[Row]:
    """The shipped networks, each compared with its k=48 counterpart."""
    for name in shipped():
        other = COUNTERPARTS.get(name, "baseline")
        yield Row(name, against=Row(other).id if name != other and other in shipped() else None)


def with_neighbors(model: Network, k: int) -> ProteinMPNN:
    """The same weights with k neighbors of each residue."""
    assert isinstance(model, ProteinMPNN)
    other = ProteinMPNN(replace(model.config, k_neighbors=k))
    other.load_state_dict(model.state_dict())
    return other


def outcomes(row: Row, backbones: Sequence[Backbone]) -> list[Outcome]:
    """Samples and scores of a row on every backbone."""
    model, _ = load_weights(row.weights)
    engine = load_engine(model if row.k is None else with_neighbors(model, row.k))
    order: Order = "graph-coloring" if row.order == "coloured" else "random"
    return measure(engine, backbones, SAMPLES, row.temperature, SEED, order)


def rows_to_measure(rows: Iterable[Row], only: str) -> dict[str, Row]:
    """Rows by id, references first.

    Chosen are rows whose id contains `only`, rows compared with them, and the references of all.
    """
    rows = list(rows)
    chosen = {row.id for row in rows if only in row.id}
    chosen |= {row.id for row in rows if row.against in chosen}
    references = {row.against for row in rows if row.id in chosen}
    found = {row.id: row for row in rows if row.id in chosen | references}
    return {id_: found[id_] for id_ in sorted(found, key=lambda id_: id_ not in references)}


def main() -> None:
    """Measures rows and stores them; offline and without data, prints the stored ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="rows whose id contains this, and their references")
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
    local = bool(os.environ.get("MPNN_DATA"))
    study(only, backbones, TARGET if local else FETCHED, SET if local else FETCHED_SET)


def study(only: str, backbones: Sequence[Backbone], target: Path, label: str) -> None:
    """Measures rows whose id contains `only`, and stores them in `target` beside those there.

    Args:
        only: "" for all rows.
        backbones: the set.
        target: JSON file of the stored rows.
        label: name of the set in the file.
    """
    torch.set_num_threads(1)
    rows = [*PUBLISHED, *shipped_rows()]
    stored = json.loads(target.read_text()) if target.exists() else {"rows": {}}
    measured: dict[str | None, list[Outcome]] = {}
    for id_, row in rows_to_measure(rows, only).items():
        start = time.monotonic()
        try:
            measured[id_] = outcomes(row, backbones)
        except InputError as error:
            sys.stderr.write(f"{id_}: not measured here: {error}\n")
            continue
        entry = asdict(row) | {"samples": SAMPLES} | asdict(summarize(measured[id_]))
        entry["diversity"] = fmean(o.diversity for o in measured[id_])
        if row.against in measured:
            entry["difference"] = asdict(compare(measured[id_], measured[row.against]))
        stored["rows"][id_] = entry
        stored["set"] = label
        stored["rows"] = {r.id: stored["rows"][r.id] for r in rows if r.id in stored["rows"]}
        write_whole(target, json.dumps(stored, indent=1) + "\n")
        seconds = time.monotonic() - start
        sys.stderr.write(f"{id_}: {entry['recovery']['mean']:.1%} in {seconds:.0f} s\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
