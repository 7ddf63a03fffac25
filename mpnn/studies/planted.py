"""Slows an engine down in proportion, as a pytest plugin: what the study of the gate plants.

`PYTEST_PLUGINS=mpnn.studies.planted MPNN_PLANTED=5 pytest …` makes the compiled exact engine 5 %
slower in that session and in the fresh processes that it starts. The engine knows nothing of it.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

METHODS = ("encode", "log_probs", "sample")
VARIABLE = "MPNN_PLANTED"


def slow_down(engine: type, percent: float) -> None:
    """Makes each job of an engine's class wait, busy, for a share of the time that it took."""
    for name in METHODS:
        setattr(engine, name, _slower(getattr(engine, name), percent / 100))


def _slower(method: Callable[..., Any], share: float) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = method(*args, **kwargs)
        end = time.perf_counter()
        until = end + share * (end - start)
        while time.perf_counter() < until:
            pass
        return found

    return run


def pytest_configure() -> None:
    """Plants what the environment names."""
    from mpnn.optimizations.native.engine import NativeEngine

    slow_down(NativeEngine, float(os.environ[VARIABLE]))
