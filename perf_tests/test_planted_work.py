"""Planted extra work: each is caught by its counter, whatever else the machine does."""

import copy
import dataclasses
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch

from mpnn import design
from mpnn.errors import InputError
from mpnn.optimizations.exact import engine as exact
from mpnn.optimizations.native.engine import NativeEngine
from mpnn.optimizations.native.library import unavailable
from mpnn.optimizations.reference import ReferenceEngine
from mpnn.regression.counted_engines import counting
from mpnn.regression.counter_store import judge, record, software, stored_counters, without_claim
from mpnn.regression.counters import measure
from mpnn.regression.workloads import Workload, backbones, side
from mpnn.synthetic import synthetic_backbone
from mpnn.variants import Variant

HERE, VERSIONS = "x86-64-v4", {"python": "3.11", "torch": "2.13.0", "numpy": "2.3.0"}
NATIVE, TORCH, USUAL = (Variant("minimal", e) for e in ("exact-native", "exact-torch", "reference"))
SAMPLE, LONG = Workload(length=60, samples=1), Workload(length=520)

needs_native = pytest.mark.skipif(bool(unavailable()), reason="needs the compiled engine")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread, as where claims are counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


def work_of(variant, workload):
    with counting(variant.engine) as work:
        return measure(partial(side(variant, workload, [backbones(workload, 0)]).call, 0), work)


def stored(counters, versions=VERSIONS, forced=False, instructions=HERE):
    entry = {"versions": versions, "forced": forced, "claims": {"claim": counters}}
    return {instructions: entry}


def caught(right, wrong):
    """Names of the counters that fail."""
    failures = judge("claim", wrong, stored(right), HERE, VERSIONS).failures
    assert all("record it with" in failure for failure in failures)
    return {failure.split()[1] for failure in failures}


@pytest.fixture(scope="module")
def right():
    """The counters of each variant and workload, without a plant."""
    known = {}

    def of(variant, workload):
        if (variant, workload) not in known:
            known[variant, workload] = work_of(variant, workload)
        return known[variant, workload]

    return of


def deep_copy(monkeypatch):
    """The encoding is copied."""
    encode = ReferenceEngine.encode
    monkeypatch.setattr(ReferenceEngine, "encode", lambda *args: copy.deepcopy(encode(*args)))


def host_array(monkeypatch):
    """2 GiB more of numpy's memory; nothing of it is touched."""
    encode = ReferenceEngine.encode

    def wrong(*args):
        more = np.empty(2**31, np.uint8)
        return encode(*args) if more.size else None

    monkeypatch.setattr(ReferenceEngine, "encode", wrong)


def extra_matmul(monkeypatch):
    """One matmul more in each pass."""
    log_probs = ReferenceEngine.sample

    def wrong(*args):
        torch.ones(8, 8) @ torch.ones(8, 8)
        return log_probs(*args)

    monkeypatch.setattr(ReferenceEngine, "sample", wrong)


def second_thread(monkeypatch):
    """Another thread works beside the job."""
    sample = ReferenceEngine.sample

    def wrong(*args):
        other = threading.Thread(target=lambda: sample(*args))
        other.start()
        try:
            return sample(*args)
        finally:
            other.join()

    monkeypatch.setattr(ReferenceEngine, "sample", wrong)


@pytest.mark.parametrize(
    ("plant", "counters"),
    [
        (deep_copy, {"allocated_bytes"}),
        (host_array, {"host_peak_bytes"}),
        (extra_matmul, {"multiply_adds", "operations"}),
        (second_thread, {"threads"}),
    ],
)
def test_plant_in_a_torch_engine_is_caught(plant, counters, right, monkeypatch):
    """Each plant fails by the counter that it moves."""
    before = right(USUAL, SAMPLE)
    if "threads" in counters and "threads" not in before:
        pytest.skip("the CPU time of threads is shown by Linux alone")
    plant(monkeypatch)
    assert counters <= caught(before, work_of(USUAL, SAMPLE))


def test_quadratic_loop_between_wavefront_steps_is_caught(right, monkeypatch):
    """A Python loop over all pairs of residues shows in the lines executed."""
    steps_of = exact.steps_of

    def wrong(job, graphs):
        for _ in job.S:
            for _ in job.S:
                pass
        return steps_of(job, graphs)

    wrong.__code__ = wrong.__code__.replace(co_filename=exact.__file__)  # as if it stood there
    before = right(TORCH, SAMPLE)
    monkeypatch.setattr(exact, "steps_of", wrong)
    assert caught(before, work_of(TORCH, SAMPLE)) == {"lines"}


def test_one_residue_at_a_time_is_caught_by_steps(right, monkeypatch):
    """Decoding as many steps as residues, where a wavefront needs fewer."""
    before = right(TORCH, SAMPLE)
    monkeypatch.setattr(exact, "steps_of", lambda job, _: job.rank + 1)
    assert {"steps", "operations"} <= caught(before, work_of(TORCH, SAMPLE))


@needs_native
def test_one_neighbor_less_above_500_residues_is_caught(right, monkeypatch):
    """K−1 for long structures alone: fewer multiply-adds there, the same elsewhere."""
    before = [right(NATIVE, workload) for workload in (SAMPLE, LONG)]
    encode = NativeEngine.encode

    def wrong(self, flat):
        config = self.config
        k = config.k_neighbors - (flat.size > 500)
        self.config = dataclasses.replace(config, k_neighbors=k)
        try:
            return encode(self, flat)
        finally:
            self.config = config

    monkeypatch.setattr(NativeEngine, "encode", wrong)
    after = [work_of(NATIVE, workload) for workload in (SAMPLE, LONG)]
    assert caught(before[0], after[0]) == set()
    assert {"multiply_adds", "peak_bytes"} & caught(before[1], after[1])


@needs_native
def test_second_encoding_is_caught_in_the_compiled_engine(right, monkeypatch):
    """Encoding twice is seen where no torch operation runs."""
    before = right(NATIVE, SAMPLE)
    encode = NativeEngine.encode
    monkeypatch.setattr(NativeEngine, "encode", lambda *a: (encode(*a), encode(*a))[1])
    assert {"multiply_adds", "matmuls"} <= caught(before, work_of(NATIVE, SAMPLE))


def test_conditional_rows_one_by_one_are_caught(monkeypatch):
    """Conditional passes of one residue each take many times the operations."""
    backbone = synthetic_backbone(16, 1, seed=0)

    def conditional():
        with counting("exact-torch") as work:
            model = design.load("minimal", "exact-torch")
            return measure(partial(model.score, backbone, mode="conditional"), work)

    before = conditional()
    monkeypatch.setattr(design, "CONDITIONAL_ROWS", 1)
    assert {"operations", "lines"} <= caught(before, conditional())


COUNTERS = {"multiply_adds": 100, "operations": 7, "peak_bytes": 2**20, "threads": 1.0}


def test_unknown_instruction_set_gates_what_is_the_same_everywhere():
    """Without stored counters, operations are skipped by name and a doubling of work is red."""
    wrong = {**COUNTERS, "operations": 8}
    verdict = judge("claim", wrong, stored(COUNTERS), "riscv64", VERSIONS)
    assert (verdict.failures, "riscv64" in verdict.skipped) == ([], True)
    twice = {**COUNTERS, "multiply_adds": 200}
    (failure,) = judge("claim", twice, stored(COUNTERS), "riscv64", VERSIONS).failures
    assert "multiply_adds 200, stored 100 for x86-64-v4 (2×)" in failure


def test_other_versions_are_named_and_excuse_no_doubling():
    """Another torch may dispatch other operations; twice the multiply-adds fail all the same."""
    newer = {**VERSIONS, "torch": "2.14.0"}
    verdict = judge("claim", {**COUNTERS, "operations": 8}, stored(COUNTERS), HERE, newer)
    assert verdict.failures == []
    assert "torch 2.13.0, here 2.14.0" in verdict.notes[0]
    twice = {**COUNTERS, "multiply_adds": 200}
    assert judge("claim", twice, stored(COUNTERS), HERE, newer).failures


def test_claim_without_counters_is_red_and_forced_sets_excuse_it():
    """On a known instruction set a claim must be recorded, unless forcing cannot show it."""
    (failure,) = judge("new", COUNTERS, stored(COUNTERS), HERE, VERSIONS).failures
    assert "no counters are stored for x86-64-v4" in failure
    assert not judge("new", COUNTERS, stored(COUNTERS, forced=True), HERE, VERSIONS).failures


def test_counters_without_a_claim_are_named(tmp_path):
    """Stored counters of a claim that is gone fail, unless it is retired."""
    assert without_claim(stored(COUNTERS), ["other"], tmp_path) == ["claim"]
    row = {"test": "t.py::test_claim[claim]", "what": "", "why": "", "figures": {}}
    (tmp_path / "retired.json").write_text(f'{{"retired": [{str(row).replace(chr(39), chr(34))}]}}')
    assert without_claim(stored(COUNTERS), ["other"], tmp_path) == []


def test_recording_merges_by_instruction_set_and_refuses_mixed_versions(tmp_path):
    """Recording some claims keeps the others, if they were counted by the same libraries."""
    record(tmp_path, HERE, {"a": {"operations": 1}}, {"a", "b"})
    record(tmp_path, HERE, {"b": {"operations": 2}}, {"a", "b"})
    record(tmp_path, "arm64", {"a": {"operations": 3}}, {"a", "b"})
    found = stored_counters(tmp_path)
    assert found[HERE]["claims"] == {"a": {"operations": 1}, "b": {"operations": 2}}
    assert found["arm64"]["versions"] == software()
    text = (tmp_path / "counters.json").read_text()
    (tmp_path / "counters.json").write_text(text.replace(f'"{software()["numpy"]}"', '"0.1"'))
    with pytest.raises(InputError, match=r"a: counted with .*record all claims"):
        record(tmp_path, HERE, {"b": {"operations": 2}}, {"a", "b"})
    (tmp_path / "counters.json").write_text("[]")
    with pytest.raises(InputError, match="restore it from version control"):
        stored_counters(tmp_path)


def test_tracing_is_left_as_it_was():
    """A debugger or coverage that traces goes on after lines were counted."""
    before = sys.gettrace()
    measure(lambda: None)
    assert sys.gettrace() is before
