"""Which engines a test runs over; those that compile for many seconds are slow ones."""

import pytest

from mpnn.optimizations import ENGINES, ROUNDED

HERE = [name for name in ENGINES if not name.startswith("coreml")]
"""Engines that run on every platform, given their packages."""

EQUAL = [name for name in HERE if name not in ROUNDED]
"""Engines that equal the reference but for the rounding of their type."""


def cases(names):
    """Parameters of a test, one for each engine."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("compiled", "onnx") else [])
        for name in names
    ]
