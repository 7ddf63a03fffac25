"""The command line's structures, probabilities and modes of scoring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runs import DIMER, run, sequences
from synthetic_files import pdb_text

from mpnn.structure import read_structure

pytest_plugins = ["cli_fixtures"]


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        (("dimer.pdb", "--structures"), "pdb"),
        (("--structures", "dimer.pdb"), "pdb"),
        (("--structures", "cif", "dimer.pdb"), "cif"),
        (("dimer.pdb", "--structures=input"), "pdb"),
        (("dimer.pdb", "--structures", "--num-seqs", "1"), "pdb"),
    ],
    ids=str,
)
def test_structures(here: Path, arguments: tuple[str, ...], ending: str) -> None:
    """--structures writes each design as a structure in the input's format or the one it names."""
    options = ("--temperature", "0.1,2", "--seed", "3,4")
    assert run("design", *arguments, *options).exit_code == 0
    found = sorted(path.name for path in (here / "seqs" / "structures").iterdir())
    assert found == [
        f"dimer_T{t}_seed{seed}_sample1.{ending}" for t in ("0.1", "2.0") for seed in (3, 4)
    ]
    backs = [read_structure(here / "seqs" / "structures" / name) for name in found]
    written = [s.replace("/", "") for s in sequences(here / "seqs" / "dimer.fa")]
    native, *rest = written
    assert sorted(back.sequence for back in backs) == sorted(s for s in rest if s != native)
    np.testing.assert_array_equal(backs[0].coords, read_structure(here / "dimer.pdb").coords)


def test_a_folder_of_structures_is_an_input(here: Path) -> None:
    """The folder of written structures can be scored as it is."""
    assert run("design", "dimer.pdb", "--structures", "--num-seqs", 2).exit_code == 0
    result = run("score", "seqs/structures", "--format", "fasta")
    assert result.exit_code == 0
    scored = {sequences(path)[0] for path in (here / "scores").glob("*.fa")}
    assert scored == set(sequences(here / "seqs" / "dimer.fa")[1:])


def test_probabilities(here: Path) -> None:
    """--probs writes an npz beside the results of design and of score."""
    assert run("design", "dimer.pdb", "--probs", "--num-seqs", 3, "--format", "json").exit_code == 0
    content = np.load(here / "seqs" / "dimer.npz")
    designs = json.loads((here / "seqs" / "dimer.json").read_text())["designs"]
    of_types = np.take_along_axis(content["log_probs"], content["S"][..., None], -1)[..., 0]
    np.testing.assert_allclose(-of_types.mean(1), [d["score"] for d in designs], atol=1e-5)
    assert content["log_probs"].shape == (3, len(DIMER), 21)
    assert run("score", "dimer.pdb", "--probs", "--seed", "1,2").exit_code == 0
    assert np.load(here / "scores" / "dimer.npz")["log_probs"].shape == (2, len(DIMER), 21)
    assert sorted(p.name for p in (here / "scores").iterdir()) == ["dimer.csv", "dimer.npz"]


@pytest.mark.parametrize("options", [("--probs",), ("--structures", "--probs")], ids=str)
@pytest.mark.usefixtures("here")
def test_files_are_not_printed(options: tuple[str, ...]) -> None:
    """What is written as files needs a folder; this is said before any work."""
    result = run("design", "missing.pdb", "--out", "-", *options)
    assert result.exit_code == 2
    assert f"{' and '.join(options)} cannot be printed" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_structure_that_pdb_cannot_hold_is_one_failure(here: Path) -> None:
    """A name too long for PDB fails its file with the way out, and the others are done."""
    text = pdb_text(DIMER)
    (here / "dimer.pdb").write_text(text)
    assert run("design", "dimer.pdb", "--structures", "cif").exit_code == 0
    cif = (here / "seqs/structures/dimer_T0.1_seed0_sample1.cif").read_text()
    (here / "long.cif").write_text(cif.replace(" A 1\n", " LONG 1\n"))
    result = run("design", "long.cif", "dimer.pdb", "--structures", "pdb", "--out", "out")
    assert result.exit_code == 1
    assert "chain name LONG is too long for PDB; write mmCIF instead" in result.stderr
    assert [p.name for p in (here / "out").glob("*.fa")] == ["dimer.fa"]


def test_pseudo_likelihood(here: Path) -> None:
    """--pseudo-likelihood names its mode in the output and scores all residues at once."""
    assert run("score", "dimer.pdb", "--pseudo-likelihood", "--format", "json").exit_code == 0
    record = json.loads((here / "scores" / "dimer.json").read_text())
    assert record["mode"] == "pseudo-likelihood"
    assert record["scores"][0]["global_score"] is not None
    for other in ("--conditional", "--unconditional"):
        both = run("score", "dimer.pdb", "--pseudo-likelihood", other)
        assert both.exit_code == 2
        assert f"{other}" in both.stderr
        assert "exclude each other" in both.stderr
