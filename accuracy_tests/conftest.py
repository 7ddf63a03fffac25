"""Folders of real structures and published weights; the profile of property tests.

Hypothesis uses the same examples in every session and no deadline, so that results do not depend on
chance or on the load of the machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


def _folder(variable: str, what: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"set {variable} to the folder of {what}")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real structures, from MPNN_DATA."""
    return _folder("MPNN_DATA", "real structures (train.npz, ts50.npz, pdb/, …)")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """The folder of published weights, from MPNN_WEIGHTS."""
    return _folder("MPNN_WEIGHTS", "published weights")
