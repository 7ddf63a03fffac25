"""Fixtures for tests of the command line; loaded through `pytest_plugins`."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import DIMER
from synthetic_files import write_pdb, write_weights

from mpnn import download, weights


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a small checkpoint."""
    return str(write_weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str) -> Path:
    """A folder to work in with `dimer.pdb`; no weights but the small ones are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPNN_WEIGHTS", raising=False)
    monkeypatch.setattr(weights, "SHIPPED", Path(made).parent)
    monkeypatch.setattr(weights, "PREFERRED", ("made",))
    monkeypatch.setattr(download, "cache_folder", lambda: tmp_path / "cache")
    write_pdb(tmp_path / "dimer.pdb", DIMER)
    return tmp_path
