"""The claims, and what is generated of the stored runs: RESULTS.md, the README's rows, the page."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_runs import TRAINED, row, stored

from mpnn import weights
from mpnn.config import ARCHITECTURES, ModelConfig, SSMConfig
from mpnn.errors import InputError
from mpnn.optimizations import ENGINES, EngineSpec, load_engine
from mpnn.regression import baselines, report
from mpnn.regression.claims import (
    BY_ID,
    CLAIMS,
    Compare,
    not_measured_here,
    not_measured_on,
)
from mpnn.regression.machine import Hardware
from mpnn.regression.outputs import recovery
from mpnn.regression.rows import Row
from mpnn.regression.tables import session_table
from mpnn.regression.workloads import WORKLOADS, device_of
from mpnn.sampling import Samples
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
HOW = "4 samples at T=0.1"
UNIFORM = [Samples(np.zeros((1, 5), np.int64), np.full((1, 5, 21), -np.log(21)))]


def card(mean):
    stated = {"proteins": 50, "recovery": [mean, mean - 1.5, mean + 1.5]}
    return {"name": "synthetic", "measured": {"how": HOW, "sets": {"ts50": stated}}}


@pytest.fixture
def ship(tmp_path, monkeypatch):
    """Ships a synthetic checkpoint of an architecture instead of the real ones."""
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)

    def ship(name, mean):
        model = formula_weights(ARCHITECTURES[name])
        model.W_out.bias.data[0] = mean
        save_checkpoint(tmp_path / f"{name}.safetensors", model, card(mean))

    return ship


def entry(claim, measured, apple=False):
    return report.Entry(claim, measured and Row.of(measured), apple)


def on(device, claim):
    """The claim with a figure published for another device."""
    return replace(claim, published=replace(claim.published, device=f"M3 Pro, {device}"))


def test_every_published_row_is_a_claim():
    """No row of the published tables is left out, and each names its source."""
    assert set(PUBLISHED_ROWS) <= BY_ID.keys()
    assert all(BY_ID[name].published.source for name in PUBLISHED_ROWS)


def test_claims_have_unique_ids():
    """One id, one claim: it names the test and the stored row."""
    assert len(BY_ID) == len(CLAIMS)


@pytest.mark.parametrize(
    ("name", "timed_as"),
    [
        ("pruning", "minimal"),
        ("pruning@5L33", "minimal@5L33"),
        ("neighbours-16", "fast"),
        ("target", "extreme-v2"),
        ("distillation", "minimal"),
    ],
)
def test_a_claim_timed_as_another_is_about_the_same_sides(name, timed_as):
    """Subject, reference, workload and accuracy are those of the claim it shares a timing with."""
    claim, timed = BY_ID[name], BY_ID[timed_as]
    assert claim.timed_as == timed_as
    assert not timed.timed_as
    kept = {"id": timed.id, "what": timed.what, "timed_as": "", "published": timed.published}
    assert replace(claim, **kept) == timed


def test_no_two_claims_are_timed_alike():
    """Two claims on the same sides and workload are timed once."""
    timed = [
        (claim.subject, claim.reference, claim.workload) for claim in CLAIMS if not claim.timed_as
    ]
    assert len(set(timed)) == len(timed)


def test_targets_are_not_published_figures():
    """The exact jobs have targets of this project, and no published figure."""
    targets = {claim.id: claim.target for claim in CLAIMS if claim.target is not None}
    assert targets == {
        "exact-1x106": 14,
        "exact-8x106": 58,
        "exact-redesign-416": 16,
        "exact-score-955": 9.5,
        "exact-1x955": 19,
        "exact-8x955": 110,
    }
    assert all(BY_ID[name].published is None for name in targets)
    assert {claim.published.source for claim in CLAIMS if claim.published} == {"F", "E", "F, E"}


@pytest.mark.parametrize(
    ("claim", "apple", "device"),
    [
        ("minimal", False, "CPU"),
        ("minimal", True, "CPU"),
        ("ane-64", True, "Neural Engine"),
        ("mlx-fusion", False, "CPU"),
        ("mlx-fusion", True, "GPU (Metal)"),
    ],
)
def test_devices_are_named(claim, apple, device):
    """A row is of the CPU, MPS, the GPU or the Neural Engine, in the words of published figures."""
    assert device_of(find_variant(BY_ID[claim].subject), apple) == device
    units = {claim.published.unit for claim in CLAIMS if claim.published}
    assert units == {"MPS", "Neural Engine", "GPU (Metal)"}
    assert device_of(Variant(device="mps"), True) == "MPS"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_refer_to_what_exists(claim):
    """A claim names a workload and variants that exist."""
    assert claim.workload in WORKLOADS
    for name in (claim.subject, claim.reference):
        variant = find_variant(name)
        tiny = SSMConfig(1, 8, 2, 2, 4) if isinstance(variant.config, SSMConfig) else TINY
        if ENGINES.get(variant.engine, EngineSpec("")).torch:
            assert load_engine(formula_weights(tiny), variant.engine)
        else:  # compiled, which needs a compiler and a wider network; its own tests load it
            assert variant.engine in ENGINES


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_equal_outputs_are_only_claimed_of_equal_networks(claim):
    """Outputs are compared where the network is the same; otherwise recovery judges."""
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


def test_session_table_fits_a_terminal():
    """The table of a session has at most 100 columns, whatever the figures."""
    claims = [*CLAIMS[:12], BY_ID["exact-redesign-416"]]
    text = session_table({c.id: Row.of(row(c, 31.4159 * 3**i)) for i, c in enumerate(claims)})
    assert max(map(len, text.splitlines())) <= 100
    assert "extreme-v2" in text
    assert "16.0×" in text


ELSEWHERE = "published on MPS, not measured here; here: "
NO_LOSS = "recovery -2.5 points: “no loss” *does not hold*"


@pytest.mark.parametrize(
    ("claim", "measured", "verdict"),
    [
        ("batching", row(BY_ID["batching"], 3.2), f"{ELSEWHERE}3.20×"),
        ("batching", row(BY_ID["batching"], 3.2, passed=False), "**void**: accuracy failed"),
        ("minimal", row(BY_ID["minimal"], 2.0), f"{ELSEWHERE}2.00×; accuracy open"),
        (
            "minimal",
            row(BY_ID["minimal"], 2.0, **TRAINED),
            f"{ELSEWHERE}2.00×; recovery -2.5 points",
        ),
        ("pruning", row(BY_ID["minimal"], 2.0, **TRAINED), f"{ELSEWHERE}2.00×; {NO_LOSS}"),
        (
            "pruning",
            row(BY_ID["minimal"], 2.0, **TRAINED | {"recovery": 44.1}),
            f"{ELSEWHERE}2.00×; recovery -0.4 points: “no loss” *holds*",
        ),
        (
            "neighbours-16",
            row(BY_ID["fast"], 2.0, **TRAINED),
            f"{ELSEWHERE}2.00×; recovery -2.5 points: “5.3 points lost” *does not hold*",
        ),
        (
            "target",
            row(BY_ID["extreme-v2"], 6.0),
            f"{ELSEWHERE}6.00× (12,720 residues/s); accuracy open",
        ),
        ("mixed-precision", row(BY_ID["mixed-precision"], 1.0), f"{ELSEWHERE}1.00×; accuracy in"),
        ("exact-1x106", row(BY_ID["exact-1x106"], 14.1), "target *reached*"),
        ("exact-1x106", row(BY_ID["exact-1x106"], 13.0), "target *not reached*"),
        ("coloured-1x106", row(BY_ID["coloured-1x106"], 13.0), "measured"),
        ("ane-64", None, "*not measured here* (needs Apple Silicon)"),
    ],
)
def test_a_cpu_ratio_gives_no_verdict_on_a_figure_of_another_device(claim, measured, verdict):
    """Speed is judged on the published device alone; recovery and own targets are on any."""
    assert entry(BY_ID[claim], measured).verdict().startswith(verdict)


@pytest.mark.parametrize(
    ("claim", "speedup", "verdict"),
    [
        ("batching", 3.2, "speed *holds*"),
        ("batching", 2.0, "speed *does not hold*"),
        ("torch-compile", 0.99, "speed *holds*"),
        ("torch-compile", 1.1, "speed *does not hold*: no such loss"),
        ("target", 6.0, "speed *holds* (12,720 residues/s); accuracy open"),
        ("target", 4.0, "speed *does not hold* (8,480 residues/s); accuracy open"),
    ],
)
def test_verdicts_on_figures_of_the_same_device(claim, speedup, verdict):
    """There a published speed holds or does not, a loss is one or is not, a pace is met or not."""
    claim = BY_ID[claim]
    assert entry(on("CPU", claim), row(claim, speedup)).verdict() == verdict


def test_the_neural_engine_decides_its_own_figures():
    """On a Mac a Core ML row is of the Neural Engine, and judged there."""
    claim = BY_ID["ane-64"]
    measured = row(claim, 4.0)
    found = entry(claim, measured, apple=True)
    assert found.verdict() == "speed *holds*; accuracy in its band"
    assert found.device == "Neural Engine"


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("fast", "1.67× (8.82 ms), recovery 0.9 %; M3 Pro, MPS"),
        ("pruning", "1.93×, no loss; M3 Pro, MPS"),
        ("half", "runtime errors; M3 Pro, MPS"),
        ("ane-512", "2.75× on average of the smaller ones; M3 Pro, Neural Engine"),
        ("exact-1x106", "–"),
        ("mlx-1x106", "–"),
    ],
)
def test_what_was_published_is_shown_whole(claim, said):
    """Ratio, what was measured, recovery and device, as far as they were printed."""
    assert entry(BY_ID[claim], None).published == said


def test_results_have_every_claim(tmp_path):
    """The table has a row for each claim, measured or not, and names machine and versions."""
    stored(tmp_path)
    text = report.claims_markdown(tmp_path)
    assert all(f"| `{claim.id}` |" in text for claim in CLAIMS if claim.platform != "MPS")
    assert "torch 2.13.0" in text
    apple = sum(claim.platform == "Apple Silicon" for claim in CLAIMS)
    assert text.count("*not measured here*") == apple + 1  # MPS: see test_mps_rows.py


def table(text):
    """Cells of each row of a Markdown table by claim, and the headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines]
    return {row[0].strip("`"): row for row in cells[2:]}, cells[0]


def test_machines_are_columns(tmp_path):
    """Each machine has a column; verdicts name theirs where they differ, accuracy is the last.

    The verdict is that of the machines that have measured it.
    """
    exact, minimal = BY_ID["exact-1x106"], BY_ID["minimal"]
    accurate = {"passed": True, "text": "equal, |Δ|≤9e-07", "figures": {}}
    now = {"minimal": row(minimal, 2.1, **TRAINED)}
    stored(tmp_path, **now | {"exact-1x106": row(exact, 15.0) | {"accuracy": accurate}})
    gone = row(BY_ID["half"], 1.0) | {"claim": "gone"}
    earlier = row(minimal, 2.0, **TRAINED | {"recovery": 41.0})
    later = {"exact-1x106": row(exact, 3.0), "minimal": earlier, "half": gone}
    stored(tmp_path, hardware="apple-m3-pro-macos15", when="2026-02-01", **later)
    found, headings = table(report.claims_markdown(tmp_path))
    machines = ["apple-m3-pro-macos15", "intel-xeon-linux6"]
    first = ["claim", "what", "published", "target", "device here"]
    assert headings == [*first, *machines, "accuracy", "verdict"]
    assert list(found) == [claim.id for claim in CLAIMS if claim.platform != "MPS"]
    *_, device, apple, intel, accuracy, verdict = found["exact-1x106"]
    assert device == "CPU"
    assert apple.startswith("3.00×")
    assert intel.startswith("15.0×")
    assert accuracy == accurate["text"].replace("|", "\\|")  # recorded later
    assert verdict == f"target *not reached* on {machines[0]}; target *reached* on {machines[1]}"
    said = f"{ELSEWHERE}2.00×, 2.10×; recovery -2.5 points"  # of the later network
    assert found["minimal"][-1] == said
    assert found["pruning"][5:7] == found["minimal"][5:7]
    assert found["half"][5] == "–"
    assert found["half"][-1] == "accuracy in its band"
    assert found["metal-fusion"][4:7] == ["GPU (Metal)", "–", "–"]
    assert found["metal-fusion"][-1].startswith("*not measured here*")


def test_exact_jobs_have_their_bound(tmp_path):
    """A row that stored its bound and parts has a line in the tables of these; others have none."""
    bound = {"bound": {"multiply_adds": 2.2e9, "seconds": 0.01}}
    bound["parts"] = {"matmuls": 0.6, "between operations": 0.4}
    stored(tmp_path, **{"exact-1x106": row(BY_ID["exact-1x106"], 2.0) | bound})
    (run,) = baselines.latest_runs(tmp_path)
    for table, wanted in (
        (report.bounds_markdown(run), ("2.2 G", "40%", "5.00×")),
        (report.parts_markdown(run), ("60%", "40%")),
    ):
        lines = [line for line in table.splitlines() if line.startswith("| `")]
        assert len(lines) == 1
        assert all(cell in lines[0] for cell in ("exact-1x106", *wanted))


def test_readme_rows_are_replaced_between_their_markers():
    """Only what stands between the markers changes, and a second time changes nothing."""
    text = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nEnd.\n"
    once = report.into_readme(text, "new")
    assert once == f"# Title\n\n{report.BEGIN}\nnew\n{report.END}\n\nEnd.\n"
    assert report.into_readme(once, "new") == once
    with pytest.raises(InputError, match="needs the lines"):
        report.into_readme("# Title", "new")


def test_stale_files_are_renewed(tmp_path):
    """Renewing changes a stale README or RESULTS.md and leaves a current one as it is."""
    stored(tmp_path / "baselines")
    readme, results = tmp_path / "README.md", tmp_path / "RESULTS.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    for path, renew in ((readme, report.renew_readme), (results, report.renew_results)):
        assert renew(tmp_path / "baselines", path)
        assert "`extreme-v2`" in path.read_text(encoding="utf-8")
        assert not renew(tmp_path / "baselines", path)


def test_the_readme_has_ten_rows(tmp_path):
    """Four exact jobs, five others, and how many more there are."""
    stored(tmp_path)
    lines = report.readme_markdown(tmp_path).splitlines()[2:]
    names = [line.split("`")[1] for line in lines[:-1]]
    assert names == list(report.SHOWN)
    assert len(lines) == 10
    assert f"{len(CLAIMS) - 9} others" in lines[-1]


def test_readme_rows_are_current():
    """The rows in the README are those of the stored runs: `mpnn report --readme` renews them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == report.into_readme(text, report.readme_markdown(ROOT / "baselines"))


def test_results_are_current():
    """RESULTS.md is that of the stored runs: `mpnn report --results` renews it."""
    text = (ROOT / "baselines" / "RESULTS.md").read_text(encoding="utf-8")
    assert text == report.results_markdown(ROOT / "baselines")


def test_retired_rows_keep_their_figures():
    """What is retired is in RESULTS.md with its reason and last figures, and is no claim."""
    text = report.results_markdown(ROOT / "baselines").partition("## Retired")[2]
    for item in baselines.retired(ROOT / "baselines"):
        assert item.why in text
        assert all(figure.replace("|", "\\|") in text for figure in item.figures.values())
        claim = BY_ID.get(item.test.partition("[")[2].removesuffix("]"))
        assert claim is None or claim.timed_as


def test_a_variant_runs_its_shipped_checkpoint(ship):
    """Weights are those of the architecture's checkpoint, deterministic ones without it."""
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


def test_conditions_of_recovery_are_stated(ship, tmp_path):
    """A table with recoveries says how they were measured."""
    assert "Recovery" not in report.claims_markdown(stored(tmp_path / "a").path.parents[1])
    ship("minimal", 41.0)
    assert f"stored with each checkpoint: {HOW}." in report.claims_markdown(
        stored(tmp_path / "b").path.parents[1]
    )
