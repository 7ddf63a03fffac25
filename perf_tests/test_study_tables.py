"""The stored studies as tables: recovery, distillation, scaling."""

import json

from mpnn.studies.tables import (
    CAMPAIGN,
    DISTILLATION,
    OTHERS,
    RECOVERY,
    SCALING,
    campaign_markdown,
    distillation_markdown,
    recovery_markdown,
    scaling_markdown,
    stored_recovery,
)

HALF = {"mean": 0.5, "low": 0.45, "high": 0.55}
ROW = {
    "weights": "v_48_020",
    "k": None,
    "order": "random",
    "temperature": 0.1,
    "samples": 4,
    "recovery": HALF,
    "perplexity": 5.126,
    "top1": HALF,
    "overconfidence": {"mean": 0.02, "low": 0.01, "high": 0.03},
    "calibration_error": 0.031,
    "diversity": 0.3,
}


def test_rows_say_how_a_network_was_run_and_against_what(tmp_path):
    """Each row names weights and way, recovery with its interval, and the paired difference."""
    loss = {"recovery": {"mean": -0.07, "low": -0.08, "high": -0.06}}
    fewer = {**ROW, "k": 16, "order": "coloured", "against": "v_48_020 T=0.1", "difference": loss}
    study = {"set": "TS50", "rows": {"a": ROW, "b": fewer}}
    (tmp_path / RECOVERY).write_text(json.dumps(study))
    lines = recovery_markdown(tmp_path).split("\n\n")[1].splitlines()
    calibration = "+2.0 [+1.0, +3.0] | 3.1"
    figures = f"50.0 [45.0, 55.0] | – | 5.13 | 50.0 | {calibration} | 30.0"
    assert lines[-2] == f"| `v_48_020` | T=0.1 | {figures} |"
    assert "| k=16, graph-coloring order, T=0.1 |" in lines[-1]
    assert "| -7.0 [-8.0, -6.0] `v_48_020` |" in lines[-1]


def test_networks_are_listed_with_published_ones(tmp_path):
    """Every network is listed once, below the published figures, the best one first."""
    ours = {**ROW, "weights": "fast", "recovery": {"mean": 0.6, "low": 0.55, "high": 0.65}}
    study = {"set": "TS50", "rows": {"a": ROW, "b": {**ROW, "k": 16}, "c": ours}}
    (tmp_path / RECOVERY).write_text(json.dumps(study))
    lines = recovery_markdown(tmp_path).split("\n\n")[3].splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| `fast`", "| `v_48_020`"]
    assert [line.split(" | ")[3] for line in lines[:-2]] == [f"{o[3]} |" for o in OTHERS]
    assert "trained here" in lines[-2]
    assert "PDB" in lines[-1]


def test_arms_show_their_cost_and_the_gain_of_a_teacher(tmp_path):
    """Each arm has its CPU seconds with the teacher's share, distilled ones a paired difference."""
    arm = ROW | {"answers_seconds": 0.0, "training_seconds": 1200.4, "steps": 9_000}
    arm |= {"residues": 8_123_456, "mutations": 0.0}
    worth = {"difference": {"recovery": {"mean": 0.012, "low": 0.004, "high": 0.02}}}
    kept = arm | {"answers_seconds": 300.0, "training_seconds": 900.0, "perplexity": 4.9} | worth
    study = {
        "set": "TS50",
        "architecture": "fast",
        "teacher": "v_48_002",
        "precision": "bfloat16",
        "seconds": 1200.0,
        "hardware": "synthetic-linux6",
        "date": "2026-03-01",
        "optimizer": "muon",
        "orders": 2,
        "arms": {"plain": arm, "kept": kept, "hidden": arm | worth | {"mutations": 0.3}},
    }
    (tmp_path / DISTILLATION).write_text(json.dumps(study))
    caption, *_, plain, with_answers, asked = distillation_markdown(tmp_path).splitlines()
    assert "`fast` from the same random weights, 1,200 CPU seconds" in caption
    assert caption.endswith("synthetic-linux6, 2026-03-01.")
    assert "trained by Muon" in caption
    assert "replaces 30% of the residues" in caption
    figures = "50.0 [45.0, 55.0]"
    assert plain == (
        f"| native sequences alone | 1,200 | 0% | 9,000 | 8.12 | 6,767 | {figures} "
        "| – | 5.13 | 50.0 |"
    )
    assert with_answers == (
        f"| cached teacher outputs too | 1,200 | 25% | 9,000 | 8.12 | 9,026 | {figures} "
        "| +1.2 [+0.4, +2.0] | 4.90 | 50.0 |"
    )
    assert "| 1,200 | within training | 9,000 |" in asked


def test_stored_figures_are_marked_as_stored(tmp_path):
    """A sentence says where the rows come from, in at most 100 columns."""
    (tmp_path / RECOVERY).write_text(json.dumps({"set": "TS50", "rows": {"a": {**ROW, "k": 16}}}))
    lines = stored_recovery(tmp_path).rstrip().splitlines()
    assert lines[0].startswith(f"Stored in {tmp_path.name}/{RECOVERY}, not measured here")
    assert " ".join(lines[-1].split()) == "v_48_020 k=16, T=0.1 50.0 [45.0, 55.0] 5.13 50.0"
    assert all(len(line) <= 100 for line in lines)


def test_nothing_measured_gives_no_table(tmp_path):
    """Without the stored studies there is no table at all."""
    tables = (recovery_markdown, distillation_markdown, stored_recovery, scaling_markdown)
    assert [table(tmp_path) for table in tables] == [""] * 4


def test_scaling_has_a_row_for_each_length_and_number_of_sequences(tmp_path):
    """Each row has the multiply-adds, the fraction of the bound and the memory of its point."""
    point = {"samples": 8, "threads": 1, "seconds": 0.25, "products_seconds": 0.1}
    point |= {"multiply_adds": 4_000_000_000, "peak_bytes": 500_000_000}
    points = [{**point, "length": length} for length in (106, 200)]
    study = {"commit": "0123456789ab", "date": "2026-03-01", "torch": "2.13.0", "points": points}
    (tmp_path / SCALING).write_text(json.dumps(study))
    table = scaling_markdown(tmp_path)
    assert "| 106 | 8 | 4.0 G |" in table
    assert "| 40% | 0.50 GB |" in table


def test_a_million_backbones_are_computed_from_one(tmp_path):
    """The work is shared by all cores; a single coordinator is not, and its limit is named."""
    seconds = {"worker_seconds": 0.05, "coordinator_seconds": 0.001, "dask_seconds": 0.01}
    about = {"commit": "0123456789", "length": 106, "samples": 8, "manifest_bytes": 2000}
    study = {**about, **seconds}
    (tmp_path / CAMPAIGN).write_text(json.dumps(study))
    text = campaign_markdown(tmp_path)
    assert "| the work, shared by all cores | 50 ms | 50 s |" in text
    assert "send, receive, write | 1 ms | 17 min |" in text
    assert "keeps about 50 cores busy" in text
    assert "manifests of 2.0 GB" in text
    assert campaign_markdown(tmp_path / "none") == ""
