"""Inference on MPS against the reference on the CPU, engine by engine.

On a machine without MPS the same tests run on the CPU, so that a Mac runs nothing untried.
"""

from __future__ import annotations

import functools
import threading
from argparse import Namespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn import optimizations
from mpnn.config import ModelConfig
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import ENGINES, check_device, load_engine
from mpnn.optimizations.exact import workers
from mpnn.regression.outputs import Pair, closeness, equality
from mpnn.sampling import Constraints, Job, Key, Samples, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import load_arrays

HERE = "mps" if torch.backends.mps.is_available() else "cpu"
COMPILE = {"compiled"}  # slow: its programs are compiled
IN_TORCH = [
    pytest.param(name, marks=[pytest.mark.slow] if name in COMPILE else [])
    for name, spec in ENGINES.items()
    if spec.torch and not spec.extra and spec.networks is ModelConfig
    if name != "int8"  # of the CPU alone
]
BAND = 0.2
"""Largest |Δ log p| in nats of an engine in reduced precision; `test_precision` has each one's."""


@functools.cache
def expected() -> tuple[Flat, Job, Samples]:
    """Two proteins, two sequences of each, and what the reference makes of them on the CPU."""
    flat = Flat.from_backbones([synthetic_backbone(40), synthetic_backbone(25, seed=1)])
    constraints = [Constraints.free(flat.mask[rows]) for rows in flat.slices]
    constraints[0].designed[::4] = False
    job = make_job(flat.S, constraints, [Key(0, n, 0.1) for n in range(2)])
    reference = load_engine(load_arrays("minimal"), "reference")
    return flat, job, reference.sample(reference.encode(flat), job)


def outputs(name: str, device: str) -> tuple[Samples, NDArray[np.floating]]:
    """What an engine samples, and its scores of the reference's sequences."""
    flat, job, theirs = expected()
    engine = load_engine(load_arrays("minimal"), name, device)
    encoding = engine.encode(flat)
    return engine.sample(encoding, job), engine.log_probs(encoding, theirs.S, job.rank)


@pytest.mark.parametrize("name", IN_TORCH)
def test_outputs_are_those_of_the_reference_on_the_cpu(name: str) -> None:
    """Sequences are the same and scores equal up to rounding, or within the band of the engine."""
    _, job, theirs = expected()
    samples, scores = outputs(name, HERE)
    scored = Pair(name, job, theirs, Samples(theirs.S, scores))
    if ENGINES[name].close:
        found = closeness([scored], BAND)
    else:
        found = equality([scored, Pair(name, job, theirs, samples)])
    assert found.passed, found.text


def test_planted_matmuls_that_write_nothing_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What macOS 14 does to a matmul whose `out` is a slice does not pass as equal."""
    _, job, theirs = expected()
    addmm, skipped = torch.addmm, []

    def writes_nothing_to_slices(*given: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None or out.storage_offset() == 0:
            return addmm(*given, out=out)
        skipped.append(out)
        return out

    monkeypatch.setattr(torch, "addmm", writes_nothing_to_slices)
    _, scores = outputs("exact-torch", "cpu")
    assert skipped
    assert not equality([Pair("exact", job, theirs, Samples(theirs.S, scores))]).passed


@pytest.mark.parametrize(("version", "works"), [("14.7", False), ("15.0", True), ("26.1", True)])
def test_mps_needs_macos_15(version: str, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older macOS is refused with its version and the way out."""
    made = type("Made", (), {"device": torch.device("mps")})
    monkeypatch.setattr(torch, "empty", lambda *_, **__: made)
    monkeypatch.setattr(optimizations.platform, "mac_ver", lambda: (version, ("", "", ""), ""))
    if works:
        check_device("mps")
        return
    with pytest.raises(InputError, match=r"needs macOS 15 or newer, and this is macOS 14.7.*cpu"):
        check_device("mps")


def test_workers_ask_for_performance_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS each worker thread sets its class before it computes."""
    asked: list[tuple[str, tuple[int, int]]] = []

    def set_class(*given: int) -> int:
        asked.append((threading.current_thread().name, given))
        return 0

    monkeypatch.setattr(workers.sys, "platform", "darwin")
    library = Namespace(pthread_set_qos_class_self_np=set_class)
    monkeypatch.setattr(workers.ctypes, "CDLL", lambda _: library)
    started = workers.Workers(torch.device("cpu"), 2)
    started.run(lambda: started.map(lambda _: None, range(4)))
    assert [given for _, given in asked] == [(0x21, 0)] * 2  # QOS_CLASS_USER_INTERACTIVE
    assert len({thread for thread, _ in asked} - {threading.current_thread().name}) >= 1
