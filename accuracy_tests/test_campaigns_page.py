"""The page on many backbones: its scripts are run as far as they can be without a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_files import write_pdb

import mpnn
from mpnn.synthetic import synthetic_backbone

pytest_plugins = ["cli_fixtures"]

PAGE = (Path(mpnn.__file__).parent / "campaigns.md").read_text()


def block(language: str, word: str) -> str:
    """The code block in a language that holds a word."""
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in b]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def folder(here: Path, made: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`backbones`, and an `mpnn` on the path that uses the small weights and one thread."""
    (here / "backbones").mkdir()
    for n in range(5):
        write_pdb(here / "backbones" / f"s{n}.pdb", synthetic_backbone(20 + n, seed=n))
    script = here / "bin" / "mpnn"
    script.parent.mkdir()
    weights = f'if [ "$1" = design ]; then set -- "$@" --weights {made}; fi'
    script.write_text(f'#!/bin/sh\n{weights}\nexec {sys.executable} -m mpnn "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return here


def sh(text: str, **environ: str) -> str:
    """Output of a script that must succeed."""
    done = subprocess.run(
        ["bash", "-eu", "-c", text], env=os.environ | environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.glob("*.fa")}


def test_one_machine(folder: Path) -> None:
    """The two commands at the top: designs and a table of them."""
    assert "5 structures, 40 rows" in sh(block("sh", "mpnn collect"))
    assert len(results(folder / "seqs")) == 5
    assert (folder / "seqs" / "designs.csv").exists()


def test_slurm_array(folder: Path) -> None:
    """The array as a loop over its tasks gives the files of one run, and `collect` finds all."""
    whole = "mpnn design backbones --out whole --num-seqs 8"
    sh(whole)
    for task in (2, 3, 1):
        sh(block("sh", "SBATCH"), SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_TASK_COUNT="3")
    assert results(folder / "seqs") == results(folder / "whole")
    assert sh("mpnn collect seqs") == "5 structures, 40 rows\n"


def test_nextflow_script(folder: Path) -> None:
    """The process's command, with its variables filled in as Nextflow does."""
    command = re.search(r'"""\n(.*?)"""', block("nextflow", "process"), re.DOTALL)
    assert command is not None
    text = command[1]
    for name, value in (
        ("${backbones}", "backbones"), ("${shard}", "1"), ("${params.shards}", "2"),
        ("${task.cpus}", "1"),
    ):  # fmt: skip
        assert name in text
        text = text.replace(name, value)
    assert "$" not in text
    sh(text)
    assert results(folder / "seqs").keys() == {"s0.fa", "s2.fa", "s4.fa"}


@pytest.mark.slow
def test_dask_commands(folder: Path) -> None:
    """A scheduler and workers started as on the page do the run."""
    pytest.importorskip("distributed")
    text = block("sh", "dask scheduler").replace("dask ", f"{sys.executable} -m dask ", 2)
    sh(f"trap 'kill $(jobs -p)' EXIT\n{text}")
    assert len(results(folder / "seqs")) == 5
