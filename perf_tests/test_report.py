"""The claims table, its tables and pages, and the README that is made from it."""

import importlib
import math
import random
import re
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from mpnn.decoding import Samples
from mpnn.networks import engine_for

from mpnn import weights
from mpnn.config import ARCHITECTURES, ModelConfig, SSMConfig
from mpnn.errors import InputError
from mpnn.regression import baselines, charts, report
from mpnn.regression.claims import BY_ID, CLAIMS, Compare, not_measured_here, not_measured_on
from mpnn.regression.hardware import Hardware
from mpnn.regression.roofline import network_work
from mpnn.regression.table import session_table
from mpnn.regression.workloads import WORKLOADS, about, recovery
from mpnn.variants import Variant, find_variant
from mpnn.weights import formula_weights, save_checkpoint

ROOT = Path(__file__).parents[1]
PUBLISHED_ROWS = [
    "baseline", "fast", "minimal", "minimal-fast", "extreme-v2", "pruning", "neighbours-12",
    "neighbours-16", "neighbours-30", "batching", "pruning+batching", "pruning+k30+batching",
    "mlx-fusion", "metal-fusion", "ane-64", "ane-128", "ane-256", "ane-512", "ane+extreme-v2",
    "cpu-knn", "mixed-precision", "half", "bfloat16", "torch-compile", "int8", "torchscript",
    "onnx", "distillation", "non-autoregressive", "ssm", "target",
]  # fmt: skip
TINY = ModelConfig(1, 1, 8, 4)
TRAINED = {
    "recovery": 42.0, "recovery_low": 40.0, "recovery_high": 44.0, "reference_recovery": 44.5,
    "reference_recovery_low": 43.0, "reference_recovery_high": 46.0,
}  # fmt: skip
HOW = "4 samples at T=0.1"
UNIFORM = [Samples(np.zeros((1, 1, 5), np.int64), np.full((1, 1, 5, 21), -np.log(21)))]


def card(mean):
    stated = {"proteins": 50, "recovery": [mean, mean - 1.5, mean + 1.5]}
    return {"name": "made", "measured": {"how": HOW, "sets": {"ts50": stated}}}


@pytest.fixture
def ship(tmp_path, monkeypatch):
    """Ships a made-up checkpoint of an architecture, in place of those that are there."""
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)

    def ship(name, mean):
        model = formula_weights(ARCHITECTURES[name])
        model.W_out.bias.data[0] = mean
        save_checkpoint(tmp_path / f"{name}.safetensors", model, card(mean))

    return ship


def row(claim, speedup, width=0.02, passed=True, **figures):
    log_ratio = -math.log(speedup)
    peaks = {"flops_per_second": 1e11, "bytes_per_second": 1e10}
    return {
        "log_ratio": log_ratio,
        "log_ratio_low": log_ratio - width / 2,
        "log_ratio_high": log_ratio + width / 2,
        "speedup": speedup,
        "subject_seconds": 0.05 / speedup,
        "margin": 0.03,
        "expected": log_ratio,
        "verdict": "holds",
        "accuracy": {"passed": passed, "text": "equal, |Δ|≤3e-06", "figures": figures},
        **about(claim, peaks),
    }


def stored(root, hardware="intel-xeon-linux6", when="2026-03-01", **changes):
    claims = [claim for claim in CLAIMS if claim.platform == "any"]
    rows = {claim.id: row(claim, 1.5 + i) for i, claim in enumerate(claims)} | changes
    data = {
        "machine_info": {"hardware": hardware, "threads": 2},
        "commit_info": {"id": "0123456789ab"},
        "datetime": f"{when}T10:00:00+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "benchmarks": [{"fullname": name, "extra_info": info} for name, info in rows.items()],
    }
    baselines.write(root / hardware, data)
    return baselines.history(root / hardware)[-1]


def entry(claim, measured):
    return report.Entry(claim, measured, apple=False)


def test_every_published_row_is_a_claim():
    """No row of the published tables is left out, and each names its source."""
    assert set(PUBLISHED_ROWS) <= BY_ID.keys()
    assert all(BY_ID[name].published.source for name in PUBLISHED_ROWS)


def test_claims_have_unique_ids():
    """One id, one claim: it names the test and the stored row."""
    assert len(BY_ID) == len(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_refer_to_what_exists(claim):
    """A claim names a workload and variants that exist."""
    assert claim.workload in WORKLOADS
    for name in (claim.subject, claim.reference):
        variant = find_variant(name)
        tiny = SSMConfig(1, 8, 2, 2, 4) if isinstance(variant.config, SSMConfig) else TINY
        assert engine_for(formula_weights(tiny), variant.engine)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_equal_outputs_are_only_claimed_of_equal_networks(claim):
    """Outputs are held against each other where the network is the same; else recovery judges."""
    subject, reference = find_variant(claim.subject), find_variant(claim.reference)
    same = subject.architecture == reference.architecture
    assert same == (claim.compare is not Compare.RECOVERY)


def test_apple_claims_say_what_they_need():
    """What needs Apple Silicon says so elsewhere, and is measured there."""
    assert not_measured_on(BY_ID["ane-64"], apple=False) == "needs Apple Silicon"
    assert not_measured_on(BY_ID["ane-64"], apple=True) == ""


@pytest.mark.parametrize(("virtual", "reason"), [(True, "that is not virtual"), (False, "")])
def test_a_virtual_mac_measures_no_apple_claim(monkeypatch, virtual, reason):
    """Its GPU is its host's, and it has no Neural Engine; what the CPU does is measured."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    mac = Hardware("Apple M3", virtual, "macos", "15")
    monkeypatch.setattr("mpnn.regression.claims.this_machine", lambda: mac)
    assert not_measured_here(BY_ID["ane-64"]).endswith(reason)
    assert bool(not_measured_here(BY_ID["ane-64"])) == virtual
    assert not_measured_here(BY_ID["minimal"]) == ""


def test_work_is_that_of_the_published_network():
    """Decoding takes 14.6 M multiply-adds a residue, and encoding and decoding twice 84 M."""
    once, twice = (network_work(ARCHITECTURES["baseline"], 500, n).flops / 1000 for n in (1, 2))
    assert twice - once == pytest.approx(14.6e6, rel=0.01)
    assert 2 * once == pytest.approx(84e6, rel=0.01)


def test_session_table_fits_a_terminal():
    """The table of a session has at most 100 columns, whatever the figures."""
    rows = {c.id: row(c, 31.4159 * 3**i) for i, c in enumerate(CLAIMS[:12])}
    text = session_table(rows)
    assert max(map(len, text.splitlines())) <= 100
    assert "extreme-v2" in text
    assert "8.18×" in text


@pytest.mark.parametrize(
    ("claim", "measured", "verdict"),
    [
        ("batching", row(BY_ID["batching"], 3.2), "*holds*"),
        ("batching", row(BY_ID["batching"], 2.0), "*does not hold*"),
        ("batching", row(BY_ID["batching"], 3.2, passed=False), "**void**: accuracy failed"),
        ("minimal", row(BY_ID["minimal"], 2.0), "speed *holds*, accuracy open"),
        ("minimal", row(BY_ID["minimal"], 2.0, **TRAINED), "speed *holds*, recovery -2.5 points"),
        (
            "pruning",
            row(BY_ID["pruning"], 2.0, **TRAINED),
            "speed *holds*, recovery -2.5 points: “no loss” *does not hold*",
        ),
        (
            "pruning",
            row(BY_ID["pruning"], 2.0, **TRAINED | {"recovery": 44.1}),
            "speed *holds*, recovery -0.4 points: “no loss” *holds*",
        ),
        (
            "neighbours-16",
            row(BY_ID["neighbours-16"], 2.0, **TRAINED),
            "speed *holds*, recovery -2.5 points: “5.3 points lost” *does not hold*",
        ),
        ("torch-compile", row(BY_ID["torch-compile"], 0.99), "*holds*"),
        ("torch-compile", row(BY_ID["torch-compile"], 1.1), "*does not hold*: no such loss"),
        ("target", row(BY_ID["target"], 6.0), "speed *holds* (12,720 residues/s), accuracy open"),
        (
            "target",
            row(BY_ID["target"], 4.0),
            "speed *does not hold* (8,480 residues/s), accuracy open",
        ),
        ("ane-64", None, "*not measured here* (needs Apple Silicon)"),
    ],
)
def test_verdicts_on_published_figures(claim, measured, verdict):
    """A published figure holds, does not hold, is void, is half open, or is not measured here."""
    assert entry(BY_ID[claim], measured).verdict == verdict


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("fast", "1.67× (8.82 ms), recovery 0.9 %"),
        ("pruning", "1.93×, no loss"),
        ("half", "runtime errors"),
        ("ane-512", "2.75× on average of the smaller ones"),
        ("exact-1x106", "10.0×, the same sequences"),
        ("mlx-1x106", "–"),
    ],
)
def test_what_was_published_is_shown_whole(claim, said):
    """Ratio, what it was measured as, and recovery, as far as they were printed."""
    assert entry(BY_ID[claim], None).published == said


def test_markdown_has_every_claim(tmp_path):
    """The table has a row for each claim, measured or not, and names machine and versions."""
    stored(tmp_path)
    text = report.claims_markdown(tmp_path)
    assert all(f"| `{claim.id}` |" in text for claim in CLAIMS)
    assert "torch 2.13.0" in text
    assert text.count("not measured here") == sum(claim.platform != "any" for claim in CLAIMS)


def test_machines_stand_side_by_side(tmp_path):
    """Each machine has a column; verdicts are told apart where they differ, accuracy is the last.

    The verdict is that of the machines that have measured it.
    """
    batching, minimal = BY_ID["batching"], BY_ID["minimal"]
    accurate = {"passed": True, "text": "equal, |Δ|≤9e-07", "figures": {}}
    now = {"minimal": row(minimal, 2.1, **TRAINED)}
    stored(tmp_path, batching=row(batching, 3.2) | {"accuracy": accurate}, **now)
    gone = row(BY_ID["half"], 1.0) | {"claim": "gone"}
    earlier = row(minimal, 2.0, **TRAINED | {"recovery": 41.0})
    later = {"batching": row(batching, 2.0), "minimal": earlier, "half": gone}
    stored(tmp_path, hardware="apple-m3-pro-macos15", when="2026-02-01", **later)
    headings, rows = report.joint_table(baselines.latest_runs(tmp_path))
    machines = ["apple-m3-pro-macos15", "intel-xeon-linux6"]
    assert headings == ("claim", "what", "published", *machines, "accuracy", "verdict")
    found = {cells[0].strip("`"): cells for cells in rows}
    assert list(found) == [claim.id for claim in CLAIMS]
    *_, apple, intel, accuracy, verdict = found["batching"]
    assert apple.startswith("2.00×")
    assert intel.startswith("3.20×")
    assert accuracy == accurate["text"]  # recorded later
    assert verdict == f"*does not hold* on {machines[0]}; *holds* on {machines[1]}"
    assert found["minimal"][-1] == "speed *holds*, recovery -2.5 points"  # of the later network
    assert found["half"][3] == "–"
    assert found["half"][-1] == "measured"
    assert found["metal-fusion"][3:] == ("–", "–", "–", found["metal-fusion"][-1])
    assert found["metal-fusion"][-1].startswith("*not measured here*")


def test_exact_jobs_stand_beside_their_bound(tmp_path):
    """A row that stored its products and parts has a line in the tables of these; others none."""
    bound = {"bound": {"multiply_adds": 2.2e9, "seconds": 0.01}}
    bound["parts"] = {"products": 0.6, "between operations": 0.4}
    stored(tmp_path, **{"exact-1x106": row(BY_ID["exact-1x106"], 2.0) | bound})
    (run,) = baselines.latest_runs(tmp_path)
    for table, wanted in (
        (report.bounds_markdown(run), ("2.2 G", "40%", "5.00×")),
        (report.parts_markdown(run), ("60%", "40%")),
    ):
        lines = [line for line in table.splitlines() if line.startswith("| `")]
        assert len(lines) == 1
        assert all(cell in lines[0] for cell in ("exact-1x106", *wanted))


def test_readme_table_is_replaced_between_its_markers():
    """Only what stands between the markers changes, and a second time changes nothing."""
    text = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nEnd.\n"
    once = report.into_readme(text, "new")
    assert once == f"# Title\n\n{report.BEGIN}\nnew\n{report.END}\n\nEnd.\n"
    assert report.into_readme(once, "new") == once
    with pytest.raises(InputError, match="needs the lines"):
        report.into_readme("# Title", "new")


def test_a_stale_readme_is_renewed(tmp_path):
    """Renewing changes a stale README and leaves a current one as it is."""
    stored(tmp_path / "baselines")
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    assert report.renew_readme(tmp_path / "baselines", readme)
    assert "`extreme-v2`" in readme.read_text(encoding="utf-8")
    assert not report.renew_readme(tmp_path / "baselines", readme)


def test_readme_is_current():
    """The table in the README is that of the stored runs: `mpnn report` renews it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == report.into_readme(text, report.claims_markdown(ROOT / "baselines"))


def test_page_is_self_contained(tmp_path):
    """The page loads nothing, and shows every claim, each machine and the three charts."""
    stored(tmp_path)
    stored(tmp_path)
    stored(tmp_path, hardware="apple-m3-pro-macos15")
    path = tmp_path / "report.html"
    report.write_html(tmp_path, path)
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=(?!\"#)|@import|url\((?!#)", page)  # but from within itself
    assert page.count("<h2>") == 2
    for title in ("Speed against recovery", "Roofline", "History"):
        assert page.count(f"<h3>{title}</h3>") == 2
    assert all(claim.id in page for claim in CLAIMS)


def test_the_same_run_makes_the_same_charts(tmp_path):
    """Nothing but the stored rows is in a chart: a second one has the same bytes."""
    found = report.entries(stored(tmp_path, minimal=row(BY_ID["minimal"], 2.0, **TRAINED)))
    for draw in (report.speed_against_recovery, report.roofline):
        assert draw(found) == draw(found)


def test_charts_have_the_color_of_the_text(tmp_path):
    """Nothing is drawn in black, which dark paper would hide."""
    chart = report.roofline(report.entries(stored(tmp_path)))
    assert "stroke: currentColor" in chart
    assert "#000000" not in chart
    assert "fill: currentColor" in report.PAGE  # of text, to which matplotlib gives no color


def test_charts_need_an_extra(monkeypatch):
    """Without matplotlib the error names the extra that installs it."""
    monkeypatch.delitem(sys.modules, charts.__name__)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'mpnn\[bench\]'"):
        importlib.import_module(charts.__name__)


def test_a_page_without_runs_is_refused(tmp_path):
    """Without a stored run there is nothing to show, and the error says how to get one."""
    with pytest.raises(InputError, match="tox -e record"):
        report.write_html(tmp_path, tmp_path / "report.html")


def test_recovery_moves_a_point_into_the_chart(tmp_path):
    """A row with a recovery becomes a measured point with its intervals; without, it has none."""
    run = stored(tmp_path, minimal=row(BY_ID["minimal"], 2.0, **TRAINED))
    found = report.entries(run)
    (point,) = [p for p in report.recovery_points(found)[0] if p.label == "minimal"]
    assert (point.x, point.y) == (2.0, 42.0)
    assert point.x_interval == pytest.approx((2 * math.exp(-0.01), 2 * math.exp(0.01)))
    assert point.y_interval == (40.0, 44.0)
    assert "trained checkpoint" not in report.speed_against_recovery(found)
    untrained = report.entries(stored(tmp_path / "untrained"))
    assert report.recovery_points(untrained)[0] == []
    assert "trained checkpoint" in report.speed_against_recovery(untrained)


def test_the_baseline_is_a_point(tmp_path):
    """The yardstick stands once, at 1× with the recovery that the rows are held against."""
    trained = {name: row(BY_ID[name], 2.0, **TRAINED) for name in ("minimal", "fast")}
    measured, _ = report.recovery_points(report.entries(stored(tmp_path, **trained)))
    yardstick = charts.Point(1.0, 44.5, "baseline", None, (43.0, 46.0))
    assert [p for p in measured if p.label == "baseline"] == [yardstick]


def test_published_recoveries_are_points(tmp_path):
    """A published row with speed-up and recovery is a point, measured here or not."""
    _, published = report.recovery_points(report.entries(stored(tmp_path)))
    assert charts.Point(1.84, 6.6, "minimal") in published


@pytest.mark.parametrize("crowded", [False, True])
def test_recovery_points_have_their_names(crowded):
    """In the chart of the stored runs, and of a crowd, each point has its name, and no two meet."""
    lot = random.Random(0)
    crowd = [
        charts.Point(lot.uniform(1, 9), lot.uniform(30, 40), f"variant-{i}") for i in range(15)
    ]
    for run in baselines.latest_runs(ROOT / "baselines"):
        measured, published = report.recovery_points(report.entries(run))
        measured = crowd if crowded else measured
        figure = charts.recovery_figure(measured, published)
        figure.draw_without_rendering()
        for axes, points in zip(figure.axes, (measured, published), strict=True):
            names = [name for text in axes.texts for name in text.get_text().split(", ")]
            assert sorted(names) == sorted(point.label for point in points)
            boxes = [Text.get_window_extent(text) for text in axes.texts]  # without their leaders
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
            assert all(axes.bbox.count_contains(box.corners()) == 4 for box in boxes)


def test_near_points_of_one_network_share_a_label():
    """Points share a label where their recovery is one and their speeds hardly differ."""
    at = {"a": (2.0, 40.0), "b": (2.02, 40.0), "c": (8.0, 40.0), "d": (2.02, 40.1)}
    figure = charts.recovery_figure([charts.Point(*xy, name) for name, xy in at.items()], [])
    assert {text.get_text() for text in figure.axes[0].texts} == {"a, b", "c", "d"}


def test_the_roofline_names_engines(tmp_path):
    """Each engine stands in the legend once, and no claim has a label."""
    chart = report.roofline(report.entries(stored(tmp_path)))
    words = re.findall(r">([^<>]+)</text>", chart)
    assert all(words.count(engine) == 1 for engine in ("reference", "exact", "onnx", "roof"))
    assert "minimal" not in words


def test_a_variant_runs_its_shipped_checkpoint(ship):
    """Weights come from the checkpoint of the variant's architecture, by formula without one."""
    variant = Variant("minimal-fast")
    assert variant.card is None
    assert variant.load().model.W_out.bias[0] != 40.0
    ship("minimal-fast", 40.0)
    assert variant.card == card(40.0)
    assert variant.load().model.W_out.bias[0] == 40.0


@pytest.mark.parametrize(
    ("cards", "text"),
    [
        ((None, None), "untrained"),
        ((None, card(44.3)), "untrained"),
        ((card(41.0), None), "recovery 41.0 % [39.5, 42.5] against untrained"),
    ],
)
def test_an_untrained_side_leaves_recovery_open(cards, text):
    """While either checkpoint is missing the row says so and carries no figure to judge by."""
    found = recovery(UNIFORM, *cards)
    assert found.passed
    assert found.text == text
    assert "recovery" not in found.figures


def test_two_checkpoints_give_a_row_its_recovery():
    """With both checkpoints the row carries the figures of their cards, as stored."""
    found = recovery(UNIFORM, card(41.0), card(44.3))
    assert found.text == "recovery 41.0 % [39.5, 42.5] against 44.3 %"
    stated = {key: found.figures[key] for key in TRAINED}
    figures = (41.0, 39.5, 42.5, 44.3, 44.3 - 1.5, 44.3 + 1.5)
    assert stated == dict(zip(TRAINED, figures, strict=True))


def test_probabilities_that_do_not_sum_to_one_fail():
    """A recovery claim whose outputs are no distributions fails, trained or not."""
    wrong = [replace(UNIFORM[0], log_probs=UNIFORM[0].log_probs + 0.1)]
    assert not recovery(wrong, None, None).passed
    assert not recovery(wrong, card(41.0), card(44.3)).passed


def test_conditions_of_recovery_are_told(ship, tmp_path):
    """A table with recoveries says how they were measured; one without says nothing of it."""
    assert "Recovery" not in report.claims_markdown(stored(tmp_path / "a").path.parents[1])
    ship("minimal", 41.0)
    assert f"stored with each checkpoint: {HOW}." in report.claims_markdown(
        stored(tmp_path / "b").path.parents[1]
    )


def test_pareto_front_keeps_what_nothing_beats():
    """A point that another beats in both ways is not on the front."""
    points = [charts.Point(x, y, "") for x, y in [(1, 9), (2, 8), (1.5, 7), (4, 3), (3, 3)]]
    assert charts.pareto(points) == [(1, 9), (2, 8), (4, 3)]
