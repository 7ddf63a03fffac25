"""Fixtures for tests of training; loaded through `pytest_plugins`."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import TINY, write_chains

from mpnn.config import ARCHITECTURES
from mpnn.training import TrainConfig
from mpnn.training.data import TrainingChains
from mpnn.weights import formula_weights, save_checkpoint


@pytest.fixture(scope="session")
def chain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of five training chains in three clusters."""
    return write_chains(tmp_path_factory.mktemp("chains") / "train.npz")


@pytest.fixture(scope="session")
def chains(chain_file: Path) -> TrainingChains:
    """The chains of that file."""
    return TrainingChains(chain_file)


@pytest.fixture
def config(chain_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A run of six steps with a tiny network, saved after every second one."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    return TrainConfig(
        data=str(chain_file),
        weights=str(tmp_path / "tiny.safetensors"),
        state=str(tmp_path / "state.pt"),
        architecture="tiny",
        steps=6,
        warmup_steps=2,
        decay_steps=2,
        tokens=120,
        micro_tokens=60,
        max_length=50,
        save_every=2,
        report_every=1,
    )


@pytest.fixture
def teacher_file(tmp_path: Path) -> str:
    """A checkpoint of a tiny teacher."""
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, formula_weights(TINY), {})
    return str(path)
