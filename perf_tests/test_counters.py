"""The work of every claim, counted: gated before any time is measured (`tox -e counters`)."""

from pathlib import Path

import pytest
import torch

from mpnn.errors import InputError
from mpnn.optimizations.exact.workers import flush_denormals
from mpnn.regression.claims import CLAIMS, not_measured_here
from mpnn.regression.counter_store import (
    forced,
    instruction_set,
    judge,
    record,
    software,
    stored_counters,
    without_claim,
)
from mpnn.regression.counters import count
from mpnn.regression.plugin import COUNTED
from mpnn.regression.tables import Change

ROOT = Path(__file__).parents[1] / "baselines"
TIMED = [claim for claim in CLAIMS if not claim.timed_as]

REDUCED = ("half", "bfloat16", "int8", "exact-bfloat16")
"""Subjects that compute in reduced precision, see `forced`."""

LONG = ("compiled", "onnx", "baseline-batch-8")
"""Subjects that take many seconds to build in each process, or to count."""


QUICKLY_COUNTED = (
    *("exact-score-955", "exact-torch-score-955", "exact-torch-redesign-416", "exact-1x500"),
    *("pruning+batching", "pruning+k30+batching", "campaign-20x8"),
)
"""Claims that are slow to time and not to count."""


def marks(claim):
    slow = claim.slow and claim.id not in QUICKLY_COUNTED
    return [pytest.mark.slow] if slow or claim.subject in LONG else []


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread and flushed denormals, as where claims are timed."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        flush_denormals()
        yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recorded(request):
    """Counters to be stored when all tests of this file are done; None where none shall be."""
    if not request.config.getoption("record_counters"):
        yield None
        return
    counters = {}
    yield counters
    record(ROOT, instruction_set(), counters, {claim.id for claim in TIMED})


@pytest.mark.parametrize("claim", [pytest.param(c, id=c.id, marks=marks(c)) for c in TIMED])
def test_work_is_what_was_recorded(claim, recorded, request):
    """A claim's counters equal the stored ones; memory within 5 %, threads within 10 %."""
    if reason := not_measured_here(claim):
        pytest.skip(f"not counted here: {reason}")
    try:
        found = count(claim)
    except (FileNotFoundError, InputError) as error:  # no such structure, package or device
        pytest.skip(f"not counted here: {error}")
    if recorded is not None:
        if forced() and claim.subject in REDUCED:
            pytest.skip("forced instructions are not those of such a machine for this subject")
        recorded[claim.id] = found
        return
    verdict = judge(claim.id, found, stored_counters(ROOT), instruction_set(), software())
    changes = request.config.stash.setdefault(COUNTED, [])
    changes += [Change(claim.id, "counters", text, "FAILED") for text in verdict.failures]
    assert not verdict.failures, "\n".join(verdict.failures)
    if verdict.notes or verdict.skipped:
        pytest.skip("\n".join([*verdict.notes, verdict.skipped]).strip())


def test_stored_counters_belong_to_claims():
    """Stored counters without a claim are those of a retired one."""
    orphans = without_claim(stored_counters(ROOT), [claim.id for claim in TIMED], ROOT)
    assert not orphans, f"{orphans}: have counters and no claim; retire them, or record again"
