"""Every claim of the table: how fast its subject is beside its reference, and how accurate."""

import functools

import pytest
import torch

from mpnn.errors import InputError
from mpnn.optimizations.exact.workers import ask_for_performance_cores, flush_denormals
from mpnn.regression.claims import BY_ID, CLAIMS, not_measured_here
from mpnn.regression.plugin import GATE
from mpnn.regression.workloads import about, accuracy, exact_details, gate, sides


@pytest.fixture(autouse=True)
def flushed_denormals():
    """exp(−z²) makes denormals, which slow some matmuls down twenty times.

    Before each claim, for the packages that a claim before it has loaded may have turned this off.
    """
    ask_for_performance_cores()
    flush_denormals()
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def perf_control():
    """What is timed against itself: a small network run in the published way, 16 ms a call."""
    subject, _ = sides(BY_ID["minimal-fast"])
    return subject


def excuse(request, reason):
    """Skips a claim that this machine cannot measure, so that it does not count as missing."""
    request.config.stash[GATE].excused.add(request.node.nodeid)
    pytest.skip(f"not measured here: {reason}")


@pytest.mark.parametrize(
    "id_",
    [
        pytest.param(c.id, id=c.id, marks=[pytest.mark.slow] if c.slow else [])
        for c in CLAIMS
        if not c.timed_as
    ],
)
def test_claim(claim, id_, request):
    """The subject is as many times as fast as it was when it was recorded, and as accurate."""
    row = BY_ID[id_]
    if reason := not_measured_here(row):
        excuse(request, reason)
    try:
        subject, reference = sides(row)
    except FileNotFoundError as error:  # no such structure
        excuse(request, str(error))
    except InputError as error:  # no such package or device
        pytest.skip(f"not measured here: {error}")
    said = about(row)
    if request.config.getoption("record"):
        said |= exact_details(row)
    check = functools.partial(accuracy, row)
    claim(subject, reference, accuracy=check, rule=row.rule, about=said, gate=gate(row))
