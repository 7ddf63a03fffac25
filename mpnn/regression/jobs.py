"""Jobs as people run them: a command and an import in a cold process, reading, a campaign.

Outputs are arrays of numbers; letters are their ASCII codes.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mpnn
from mpnn import campaign
from mpnn.backbone import ATOMS, Backbone
from mpnn.design_structure import Template, structure_text
from mpnn.regression.rows import Accuracy
from mpnn.results import Target
from mpnn.structure import read_structure

Arrays = list[NDArray[Any]]
Call = Callable[[int], Arrays]

COLD, IMPORT, CAMPAIGN = "cold", "import", "campaign"
READING = ("pdb", "cif")

NO_ENGINE = {IMPORT: "torch imported", "pdb": "regular expression", "cif": "regular expression"}
"""What a job that runs no network is timed beside, in a word."""

COUNT_MODULES = """
import sys
before = len(sys.modules)
{}
sys.stdout.write(f"\\n{{len(sys.modules) - before}}")
"""

PDB_ATOM = re.compile(r"^ATOM  .{7}(?:N  |CA |C  |O  ).{14}(.{8})(.{8})(.{8})", re.MULTILINE)


def call(job: str, engine: str, inputs: Sequence[Sequence[Backbone]], samples: int) -> Call:
    """A function that does a job on the input of a number.

    Args:
        job: `COLD`, `IMPORT`, `CAMPAIGN` or one of `READING`.
        engine: that runs the network; "reference" also stands for what `NO_ENGINE` says.
        inputs: the proteins of each input.
        samples: sequences of each protein.
    """
    if job == IMPORT:
        return _import if engine != "reference" else _import_torch
    if job in READING:
        texts = [_text(backbone, job) for (backbone,) in inputs]
        read = _read if engine != "reference" else _plain_pass
        return lambda number: read(texts[number])
    folder = Path(tempfile.mkdtemp())
    for number, proteins in enumerate(inputs):
        (folder / str(number)).mkdir()
        for i, backbone in enumerate(proteins):
            (folder / str(number) / f"{i:02}.pdb").write_text(_text(backbone, "pdb"))
    # The engine that people get is the one that they need not name.
    asked = None if engine == "exact-native" else engine
    run = partial(_cold if job == COLD else _campaign, folder, asked, samples)
    weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    return run


def plain_python(_: int = 0) -> None:
    """A cold process that imports numpy, which the gate times cold processes against."""
    _python("-c", "import numpy")


def modules(job: str, inputs: Sequence[Sequence[Backbone]]) -> int:
    """How many modules a cold process imports for its job.

    Args:
        job: `COLD` or `IMPORT`.
        inputs: of which `COLD` takes the first.
    """
    if job == IMPORT:
        return _count("import mpnn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "0.pdb")
        path.write_text(_text(inputs[0][0], "pdb"))
        arguments = ["design", str(path), "--out", folder]
        return _count(f"from mpnn.cli import run\nassert run({arguments}) == 0")


def accuracy(job: str, subject: dict[int, Any], reference: dict[int, Any]) -> Accuracy:
    """Whether a job's outputs are the reference's, or for an import the version of this package."""
    if job == IMPORT:
        reference = {number: [_letters(mpnn.__version__)] for number in subject}
    shared = sorted(subject.keys() & reference.keys())
    pairs = [pair for i in shared for pair in zip(subject[i], reference[i], strict=True)]
    different = sum(not np.array_equal(*pair) for pair in pairs)
    if different or not pairs:
        return Accuracy(passed=False, text=f"{different} of {len(pairs)} outputs differ")
    return Accuracy(passed=True, text="equal")


def _python(*arguments: str) -> str:
    """Standard output of a cold process that imports the same `mpnn` as this one."""
    root = str(Path(mpnn.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def _count(code: str) -> int:
    return int(_python("-c", COUNT_MODULES.format(code)).splitlines()[-1])


def _import(_: int) -> Arrays:
    code = "import sys, mpnn; sys.stdout.write(mpnn.__version__)"
    return [_letters(_python("-c", code))]


def _import_torch(_: int) -> Arrays:
    _python("-c", "import torch")
    return []


def _cold(folder: Path, engine: str | None, samples: int, number: int) -> Arrays:
    out = folder / "out"
    named = [] if engine is None else ["--engine", engine]
    path = folder / str(number) / "00.pdb"
    _python(
        *("-m", "mpnn", "design", str(path), "--out", str(out)), f"--num-seqs={samples}", *named
    )
    return _designed(out)


def _campaign(folder: Path, engine: str | None, samples: int, number: int) -> Arrays:
    with (
        tempfile.TemporaryDirectory(dir=folder) as out,
        contextlib.redirect_stderr(io.StringIO()),  # a line for each structure
    ):
        campaign.design([folder / str(number)], out, num_seqs=samples, workers=1, engine=engine)
        return _designed(Path(out))


def _designed(out: Path) -> Arrays:
    """The sequences in a run's files, each file's as one array."""
    texts = [path.read_text() for path in sorted(out.glob("*.fa"))]
    lines = [[line for line in text.splitlines() if line[:1] != ">"] for text in texts]
    return [_letters("/".join(sequences)) for sequences in lines]


def _text(backbone: Backbone, form: str) -> str:
    target = Target(backbone, backbone.mask, backbone.chain_ids, ())
    return structure_text(Template(target).made, form)


def _read(text: str) -> Arrays:
    backbone = read_structure(text)
    return [backbone.coords]


def _plain_pass(text: str) -> Arrays:
    """The coordinates of N, CA, C and O [L, 4, 3], by plain text processing and no checks.

    Reading is timed against it; it is to stay as it is.
    """
    if text.startswith("data_"):
        columns = re.findall(r"^_atom_site\.(\w+)", text, re.MULTILINE)
        name = columns.index("label_atom_id")
        x = columns.index("Cartn_x")
        atoms = (line.split() for line in text.splitlines() if line.startswith("ATOM"))
        found = [fields[x : x + 3] for fields in atoms if fields[name] in ATOMS]
    else:
        found = [list(match.groups()) for match in PDB_ATOM.finditer(text)]
    xyz = [[float(value) for value in values] for values in found]
    return [np.array(xyz, dtype=np.float32).reshape(-1, len(ATOMS), 3)]


def _letters(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)
