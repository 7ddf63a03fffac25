"""The bound is what the exact engine really multiplies; the parts are shares of its time."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpnn.config import ARCHITECTURES
from mpnn.flat import Flat
from mpnn.optimizations import load_engine
from mpnn.optimizations.exact import blocks
from mpnn.regression.matmuls import MatmulsAlone, exact_matmuls, multiply_adds, parts
from mpnn.sampling import Constraints, Key, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

BASELINE = ARCHITECTURES["baseline"]


def test_the_bound_is_what_the_engine_multiplies(monkeypatch):
    """Counted by torch, the matmuls of a whole job are those of the bound within 4 %."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the counter sees one thread
    monkeypatch.setattr(blocks, "fuses", lambda: False)  # and does not know oneDNN's matmuls
    samples, backbone = 3, synthetic_backbone(80)
    engine = load_engine(formula_weights(BASELINE), "exact-torch")
    batch = Flat.from_backbones([backbone])
    keys = [Key(0, n, 0.1) for n in range(samples)]
    job = make_job(batch.S, [Constraints.free(backbone.mask)], keys)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})
    run = engine.workers.run
    engine.workers.run = lambda work: run(lambda: counted(counter, work))
    engine.sample(engine.encode(batch), job)
    expected = multiply_adds(exact_matmuls(BASELINE, len(backbone), samples))
    assert counter.total == pytest.approx(2 * expected, rel=0.04)


def test_the_parts_of_a_job_are_shares_of_its_time(monkeypatch):
    """Shares of all kinds of operations add up to one, matmuls are seen, results are the same."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    engine, backbone = load_engine(formula_weights(BASELINE), "exact-torch"), synthetic_backbone(40)
    batch = Flat.from_backbones([backbone])
    job = make_job(batch.S, [Constraints.free(backbone.mask)], [Key(0, 0, 0.1)])
    sequences = []
    found = parts(lambda: sequences.append(engine.sample(engine.encode(batch), job).S))
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= 0
    assert all(found[part] > 0 for part in ("matmuls", "LayerNorm", "GELU", "gathers", "exp"))
    assert all((sequences[0] == S).all() for S in sequences)


def in_place(total, a, b, **_):  # noqa: ARG001 (called with three shapes)
    """Operations of `addmm_`, which torch's counter leaves out; total is [M, N], a @ b added."""
    return 2 * a[0] * a[1] * total[1]


def counted(counter, work):
    """Runs `work` on this thread under the counter, and adds to its total."""
    with counter:
        result = work()
    counter.total = getattr(counter, "total", 0) + counter.get_total_flops()
    return result


def test_a_further_sample_costs_its_decoding_alone():
    """One more sequence takes 2.9 million multiply-adds a residue: 3·(48 + 11)·128² + 128·21."""
    one, two = (multiply_adds(exact_matmuls(BASELINE, 200, n)) for n in (1, 2))
    assert (two - one) / 200 == 3 * (48 + 11) * 128**2 + 128 * 21


def test_matmuls_run_on_every_thread_count():
    """The matmuls alone run with one thread and with two, and take time."""
    matmuls = exact_matmuls(ARCHITECTURES["extreme-v2"], 40, 1)
    for threads in (1, 2):
        assert MatmulsAlone(matmuls, 12, threads).seconds() > 0
