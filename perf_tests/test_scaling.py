"""The bound counts what the exact engine really multiplies; the study's table and figures."""

import json
from pathlib import Path

import pytest
import torch
from mpnn.batch import Batch
from mpnn.decoding import Constraints, Key, make_job
from torch.utils.flop_counter import FlopCounterMode

from mpnn.config import ARCHITECTURES
from mpnn.optimizations import load_engine
from mpnn.optimizations.exact import blocks
from mpnn.regression import scaling
from mpnn.regression.products import ProductsAlone, exact_products, multiply_adds, parts
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights

BASELINE = ARCHITECTURES["baseline"]
POINT = {
    "length": 106,
    "samples": 8,
    "threads": 1,
    "seconds": 0.25,
    "products_seconds": 0.1,
    "multiply_adds": 4_000_000_000,
    "peak_bytes": 500_000_000,
}
FROM = {"commit": "0123456789ab", "date": "2026-03-01", "torch": "2.13.0"}


def test_the_bound_is_what_the_engine_multiplies(monkeypatch):
    """Counted by torch, the matrix products of a whole job are those of the bound within 4 %."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the counter sees one thread
    monkeypatch.setattr(blocks, "fuses", lambda: False)  # and does not know oneDNN's products
    samples, backbone = 3, made_up_backbone(80)
    engine = load_engine("exact", formula_weights(BASELINE))
    batch = Batch.from_backbones([backbone])
    keys = [Key(0, n, 0.1) for n in range(samples)]
    job = make_job(batch.S.numpy(), [Constraints.free(backbone.mask)], keys)
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})
    run = engine.workers.run
    engine.workers.run = lambda work: run(lambda: counted(counter, work))
    engine.sample(engine.encode(batch), job)
    expected = multiply_adds(exact_products(BASELINE, len(backbone), samples))
    assert counter.total == pytest.approx(2 * expected, rel=0.04)


def test_the_parts_of_a_job_are_shares_of_its_time(monkeypatch):
    """Shares of all kinds of operations add up to one, products are seen, results are the same."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    engine, backbone = load_engine("exact", formula_weights(BASELINE)), made_up_backbone(80)
    batch = Batch.from_backbones([backbone])
    job = make_job(batch.S.numpy(), [Constraints.free(backbone.mask)], [Key(0, 0, 0.1)])
    letters = []
    found = parts(
        lambda: letters.append(engine.sample(engine.encode(batch), job).S), engine.workers
    )
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= 0
    assert all(found[part] > 0 for part in ("products", "LayerNorm", "GELU", "gathers", "exp"))
    assert all((letters[0] == S).all() for S in letters)


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
    one, two = (multiply_adds(exact_products(BASELINE, 200, n)) for n in (1, 2))
    assert (two - one) / 200 == 3 * (48 + 11) * 128**2 + 128 * 21


def test_products_run_on_every_thread_count():
    """The products alone run with one thread and with two, and take time."""
    products = exact_products(ARCHITECTURES["extreme-v2"], 40, 1)
    for threads in (1, 2):
        assert ProductsAlone(products, 12, threads).seconds() > 0


def test_the_study_as_table_and_figures(tmp_path: Path):
    """A stored study becomes rows with fractions of the bound, and two figures with legends."""
    study = [{**POINT, "samples": n, "length": length} for n in (1, 8) for length in (106, 200)]
    (tmp_path / scaling.STUDY).write_text(json.dumps({**FROM, "points": study}))
    table = scaling.scaling_markdown(tmp_path)
    assert "| 106 | 8 | 4.0 G |" in table
    assert "| 40% | 0.50 GB |" in table
    figures = scaling.figures(tmp_path)
    assert figures.count("<svg") == 2
    assert figures.count(">1 sequence</text>") == figures.count(">8 sequences</text>") == 2


def test_a_machine_without_a_study_says_so(tmp_path: Path):
    """No table, and a sentence that names the command, where nothing was studied."""
    assert scaling.scaling_markdown(tmp_path) == ""
    assert "tox -e scaling" in scaling.figures(tmp_path)
