"""The report page: its HTML and charts, and its behavior in a real browser, offline."""

import contextlib
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from stored_runs import TRAINED, row, stored

from mpnn import cli
from mpnn.errors import InputError
from mpnn.regression import baselines, chart, page, report
from mpnn.regression.claims import BY_ID, CLAIMS
from mpnn.regression.report import Status
from mpnn.regression.rows import Row
from mpnn.regression.tables import Change, session_markdown

ROOT = Path(__file__).parents[1]
LIMIT = 2_000_000
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WITHOUT_NAME = """() => [...document.querySelectorAll(
    'button, input, select, table, [role=img], [role=tabpanel], [role=region], section[role]')]
  .filter(e => !(e.ariaLabel || e.textContent.trim() || e.getAttribute('aria-labelledby')))
  .map(e => e.outerHTML.slice(0, 80))"""


def written(root):
    """The page of the runs below `root`, beside them."""
    path = root / "report.html"
    page.write_html(root, path)
    return path


def stored_everything(root):
    """Two machines, one with a history, a moved and a failed claim, counters, bound and parts."""
    exact = {
        "bound": {"multiply_adds": 2.2e9, "seconds": 0.01},
        "parts": {"products": 0.6, "between operations": 0.4},
        "gate_log_ratio": 0.5,
        "gate_log_ratio_low": 0.49,
        "gate_log_ratio_high": 0.51,
        "gate_seconds": 0.05 / 14.0 / math.exp(0.5),
        "gate_reference": "its matmuls",
    }
    changes = {
        "exact-1x106": row(BY_ID["exact-1x106"], 14.0) | exact,
        "minimal": row(BY_ID["minimal"], 2.0, **TRAINED),
        "half": row(BY_ID["half"], 1.0, passed=False),
        "kd-tree": row(BY_ID["kd-tree"], 2.0) | {"verdict": "improved"},
        "metal-fusion": row(BY_ID["metal-fusion"], 2.0),
    }
    stored(root, **changes | {"exact-1x106": row(BY_ID["exact-1x106"], 13.0)})
    stored(root, when="2026-03-02", **changes)
    stored(root, hardware="apple-m3-pro-macos15", kernel=row(BY_ID["half"], 1.0) | {"claim": "old"})
    counted = {"avx512": {"exact-1x106": {"kernel_calls": 1234567, "peak_bytes": 5000}}}
    by_set = {name: {"claims": claims} for name, claims in counted.items()}
    (root / "counters.json").write_text(json.dumps(by_set))
    return written(root)


class Links(HTMLParser):
    """Collects what a page would load, and ids and what refers to them."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.ids, self.references = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):  # noqa: ARG002 (the parser's method)
        """One element."""
        attrs = dict(attrs)
        self.loads += [attrs[k] for k in ("src", "href", "srcset") if attrs.get(k)]
        self.ids += [attrs["id"]] if "id" in attrs else []
        for key in ("aria-controls", "aria-labelledby", "for"):
            self.references += [attrs[key]] if key in attrs else []


def test_the_page_loads_nothing_and_is_small(tmp_path):
    """The page of the stored runs is under 2 MB, refers to itself only, and forbids any request."""
    page.write_html(ROOT / "baselines", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < LIMIT
    links = Links(text)
    assert all(link.startswith(("#", "data:")) for link in links.loads)
    assert "default-src 'none'" in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_every_id_is_unique_and_every_reference_is_met(tmp_path):
    """Buttons and panels name each other by ids that exist once."""
    links = Links(stored_everything(tmp_path).read_text(encoding="utf-8"))
    assert len(set(links.ids)) == len(links.ids)
    assert set(links.references) <= set(links.ids)


def test_the_page_shows_every_claim_of_each_machine(tmp_path):
    """Each claim is a row on each machine, with its verdict as a word."""
    text = stored_everything(tmp_path).read_text(encoding="utf-8")
    for claim in CLAIMS:
        assert text.count(f'data-key="{claim.id}"') == 3  # two machines, and side by side
    assert "Stored here without a claim in this version: kernel." in text


def test_counts_are_of_holding_moved_failing_and_open_claims(tmp_path):
    """A failed accuracy fails, a verdict beyond the margin moved, a missing row is not measured."""
    stored_everything(tmp_path)
    runs = baselines.history(tmp_path / "intel-xeon-linux6")
    machine = page.Machine(runs, {}, None)
    found = {line.entry.claim.id: line.status for line in machine.lines}
    assert found["half"] is Status.FAILS
    assert found["kd-tree"] is Status.MOVED
    assert found["minimal"] is Status.HOLDS
    assert found["pruning"] is Status.FAILS  # "no loss" is refuted by 2.5 points
    assert found["ane-64"] is Status.NOT_MEASURED
    assert sum(machine.counts.values()) == len(CLAIMS)
    missed = machine.lines[list(found).index("exact-8x106")]
    assert (missed.status, missed.verdict) == (Status.HOLDS, "target not reached")


def test_hostile_strings_stay_text(tmp_path):
    """Markup in a stored run is shown, never run."""
    hostile = row(BY_ID["minimal"], 2.0) | {"gate_reference": HOSTILE, "gate_log_ratio": 0.0}
    hostile |= {"gate_log_ratio_low": 0.0, "gate_log_ratio_high": 0.0, "gate_seconds": 0.025}
    hostile["accuracy"]["text"] = HOSTILE
    stored(tmp_path, minimal=hostile)
    text = written(tmp_path).read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "&lt;/script&gt;&lt;script&gt;window.hacked" in text
    assert r"\u003c/script\u003e\u003cscript\u003ewindow.hacked" in text
    assert text.count("</script>") == 3


def test_counters_and_gate_ratio_are_shown_where_stored(tmp_path):
    """A claim's row has its counters, its bound and its ratio to the gate reference."""
    text = stored_everything(tmp_path).read_text(encoding="utf-8")
    assert "1,234,567" in text
    assert "0.61× [0.60, 0.61] its matmuls" in text
    assert "between operations" in text
    (tmp_path / "counters.json").write_text("[1]")
    with pytest.raises(InputError, match=r"counters\.json does not hold counters"):
        written(tmp_path)


def test_history_leaves_out_rows_carried_over(tmp_path):
    """A claim's past is what was measured anew, oldest first."""
    runs = [stored(tmp_path, when=f"2026-03-0{day}") for day in (1, 2)]
    (data,) = [json.loads(runs[1].path.read_text())]
    data["benchmarks"] = [b for b in data["benchmarks"] if b["extra_info"]["claim"] == "minimal"]
    data["datetime"] = "2026-03-03T10:00:00+00:00"
    baselines.write(tmp_path / "intel-xeon-linux6", data)
    history = page.past_rows(baselines.history(tmp_path / "intel-xeon-linux6"))
    past = {claim.id: rows for claim, rows in zip(CLAIMS, history, strict=True)}
    assert [r.recorded[:10] for r in past["minimal"]] == [f"2026-03-0{day}" for day in (1, 2, 3)]
    assert len(past["half"]) == 2


def points_of(tmp_path, baseline=44.5, **changes):
    found = report.entries(stored(tmp_path, **changes))
    measured = chart.measured_points(found, baseline)
    return {point["claim"]: point for point in measured}, chart.published_points(found)


def test_a_network_of_its_own_stands_at_its_recovery(tmp_path):
    """Speed-up, recovery and both intervals are those of the row; the reference stands at 1×."""
    measured, _ = points_of(tmp_path, minimal=row(BY_ID["minimal"], 2.0, **TRAINED))
    point = measured["minimal"]
    assert (point["times"], point["recovery"], point["kind"]) == (
        pytest.approx(2.0),
        42.0,
        chart.OTHER,
    )
    assert (point["recovery_low"], point["recovery_high"]) == (40.0, 44.0)
    assert (measured["baseline"]["times"], measured["baseline"]["recovery"]) == (1.0, 44.5)


def test_equal_sequences_keep_the_recovery_of_the_reference(tmp_path):
    """An exact job stands at the reference's recovery; steps and failed claims do not stand."""
    failed = row(BY_ID["batching"], 3.0, passed=False)
    measured, _ = points_of(tmp_path, batching=failed)
    assert measured["exact-8x106"]["recovery"] == 44.5
    assert measured["exact-8x106"]["kind"] == chart.SAME
    assert not {"batching", "kd-tree-step", "half", "minimal"} & measured.keys()
    assert points_of(tmp_path / "b", baseline=None)[0] == {}


def test_published_ratios_name_their_device(tmp_path):
    """Every published ratio is a mark on its unit, whether it is measured here or not."""
    published = {point["claim"]: point for point in points_of(tmp_path)[1]}
    ratios = [c for c in CLAIMS if c.published and c.published.speedup and "@" not in c.id]
    assert published.keys() == {claim.id for claim in ratios}
    assert published["ane-64"]["unit"] == "Neural Engine"
    assert published["minimal"]["times"] == 1.84
    assert published["minimal"]["recovery"] == "6.6 %"


def test_labels_do_not_cover_each_other():
    """Of two marks side by side only one has a label."""
    points = [
        {"times": 2.0, "recovery": 40.0, "label": "minimal"},
        {"times": 2.01, "recovery": 40.1, "label": "minimal-fast"},
        {"times": 2.0, "recovery": 45.0, "label": "fast"},
    ]
    chart._without_overlap(points)
    assert sorted(point["label"] for point in points if point["label"]) == ["fast", "minimal-fast"]


def test_the_page_needs_an_extra(monkeypatch):
    """Without the charting library the error names the extra that installs it."""
    monkeypatch.delitem(sys.modules, page.__name__)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(InputError, match=r"pip install 'mpnn\[bench\]'"):
        importlib.import_module(page.__name__)


def test_a_page_without_runs_is_refused(tmp_path):
    """Without a stored run there is nothing to show, and the error says how to get one."""
    with pytest.raises(InputError, match="--record"):
        written(tmp_path)


def of_newer_version(run):
    run.path.write_text(run.path.read_text().replace('"python"', '"mpnn": "99.0", "python"'))
    run.path.write_text(run.path.read_text().replace('"log_ratio"', '"log_ratio_of_tomorrow"'))


def unreadable(run):
    run.path.unlink()
    run.path.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: run.path.write_text("{"), "restore it from version control"),
        (lambda run: run.path.write_bytes(b"\xff\xfe"), "restore it from version control"),
        (lambda run: run.path.write_text('{"benchmarks": []}'), "record anew"),
        (unreadable, "restore it from version control"),
        (of_newer_version, "install the newer version"),
        (lambda run: shutil.copytree(run.path.parent, run.path.parents[1] / "other"), "move it"),
    ],
    ids=["cut", "binary", "foreign", "unreadable", "newer", "moved"],
)
def test_a_bad_run_is_named_with_the_way_out(tmp_path, damage, said):
    """An unreadable, foreign or newer run stops the page with its path and what to do."""
    run = stored(tmp_path)
    damage(run)
    with pytest.raises(InputError, match=said) as caught:
        written(tmp_path)
    assert "0001_01234567.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", '{"rows": 3}'])
def test_a_bad_study_is_named(tmp_path, text):
    """A study that cannot be read is an error of one line too."""
    stored(tmp_path)
    (tmp_path / "recovery.json").write_text(text)
    with pytest.raises(InputError, match=r"recovery.*restore it from version control"):
        written(tmp_path)


def test_report_opens_the_page(tmp_path, monkeypatch, capsys):
    """`mpnn report --open` opens the file it wrote, and says so where no browser starts."""
    stored(tmp_path)
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)
    out = str(tmp_path / "page.html")
    assert cli.run(["report", str(tmp_path), "--out", out, "--open"]) in (0, None)
    assert opened == [Path(out).resolve().as_uri()]
    assert cli.run(["report", str(tmp_path), "--out", out, "--open"]) == 2
    assert f"open {out} yourself" in capsys.readouterr().err


# The comment under a pull request


def session(**changes):
    rows = {"minimal": row(BY_ID["minimal"], 2.0), "fast": row(BY_ID["fast"], 2.0)} | changes
    return {name: Row.of(info) for name, info in rows.items()}


def test_nothing_changed_is_one_line():
    """Claims that hold are counted, not listed; those without a stored figure are named as such."""
    assert session_markdown(session()) == "Nothing changed: 2 claims."
    new = row(BY_ID["half"], 1.0) | {"verdict": "not recorded"}
    said = session_markdown(session(half=new))
    assert said == "Nothing changed: 3 claims; 1 without a stored figure."


def test_what_changed_names_the_tier_that_saw_it():
    """Only changed claims are listed, counters before accuracy before speed."""
    slow = row(BY_ID["half"], 0.5) | {"verdict": "regressed", "expected": 0.0}
    wrong = row(BY_ID["int8"], 1.0, passed=False)
    counted = [Change("fast", "counters", "kernel calls 100 → 200", "regressed")]
    text = session_markdown(session(half=slow, int8=wrong), counted)
    assert text.startswith("Changed, 3 of 4 claims:\n\n")
    lines = text.splitlines()[4:]
    assert [re.split(r" ?\| ?", line)[1:3] for line in lines] == [
        ["`fast`", "counters"],
        ["`int8`", "accuracy"],
        ["`half`", "speed"],
    ]
    assert "1.00× → 0.50×" in lines[2]
    assert "minimal" not in text


def steps(name):
    """Steps of the only or the last job of a workflow."""
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    *_, job = yaml.safe_load(path.read_text())["jobs"].values()
    return job["steps"]


def test_the_comment_links_the_page_as_an_artifact():
    """The page is uploaded, its address goes into the summary, and that into the comment."""
    found = steps("perf")
    draw, upload, show, keep, _ = found[-5:]
    assert draw["run"].endswith("mpnn report --out report.html")
    assert upload["with"]["path"] == "report.html"
    assert show["env"]["PAGE"] == f"${{{{ steps.{upload['id']}.outputs.artifact-url }}}}"
    assert "comment/summary-" in keep["run"]


@pytest.mark.parametrize("measured", [True, False])
def test_the_summary_ends_with_the_link(tmp_path, measured):
    """What a session wrote, or that it wrote nothing, and then the address of the page."""
    (show,) = [step for step in steps("perf") if step.get("name") == "Show what changed"]
    summary = tmp_path / "summary.md"
    if measured:
        summary.write_text("Nothing changed: 2 claims.\n")
    names = {
        "SUMMARY": summary,
        "PAGE": "https://host/1",
        "GITHUB_STEP_SUMMARY": tmp_path / "shown",
    }
    environment = {**os.environ, **{key: str(value) for key, value in names.items()}}
    subprocess.run(["bash", "-e", "-c", show["run"]], env=environment, check=True)
    text = (tmp_path / "shown").read_text()
    assert text.startswith("Nothing changed" if measured else "Nothing was timed")
    assert text.endswith("\n[Report page](https://host/1)\n")


@pytest.mark.parametrize(("number", "posted"), [("12", True), ("12; rm -rf /", False)])
def test_the_comment_trusts_no_number(tmp_path, number, posted):
    """The summaries are posted under the pull request, whose number must be one."""
    (tmp_path / "gh").write_text('#!/bin/bash\necho "$@" >> calls\ncat comment.md >> calls\n')
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "number").write_text(number)
    (tmp_path / "summary-a.md").write_text("### a\nNothing changed: 2 claims.\n")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-c", steps("comment")[-1]["run"]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode == 0) == posted
    assert (tmp_path / "calls").exists() == posted
    if posted:
        assert "Nothing changed: 2 claims." in (tmp_path / "calls").read_text()


# In a browser


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, Debian's or the one that playwright installs."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=installed)
        except sync_api.Error as error:
            pytest.skip(f"needs Chromium: {error.message.splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A page with all that it can show."""
    return stored_everything(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def opened(browser, everything):
    """Opens a page from its file; afterwards nothing else was requested and nothing reported."""
    with contextlib.ExitStack() as stack:
        said, requested = [], []

        def opened(path=everything, width=1280, **options):
            tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
            stack.callback(tab.close)
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("request", lambda request: requested.append(request.url))
            tab.set_default_timeout(5000)
            tab.goto(path.as_uri())
            tab.wait_for_selector("#machine-1 .chart svg")
            return tab

        yield opened
        assert said == []
        assert all(url.startswith(("file:", "data:")) for url in requested)
        assert len(requested) == len(set(requested)) == 1


def rows_of(tab, panel="#machine-1"):
    """Ids of the claims that a panel shows, in order."""
    shown = tab.locator(f"{panel} tbody.claim:not([hidden]) > tr:first-child > th")
    return shown.evaluate_all("rows => rows.map(row => row.dataset.key)")


def test_filters_and_search_narrow_the_table(opened):
    """Verdicts and words narrow the table together, and a live region counts."""
    tab = opened()
    assert rows_of(tab) == [claim.id for claim in CLAIMS]
    tab.click("#machine-1 .filters [data-status=fails]")
    assert "half" in rows_of(tab)
    assert "minimal" not in rows_of(tab)
    tab.fill("#machine-1 input[type=search]", "HALF")
    assert rows_of(tab) == ["half"]
    assert tab.locator("#machine-1 .shown").inner_text() == f"1 of {len(CLAIMS)} claims"
    tab.fill("#machine-1 input[type=search]", "no such claim")
    assert tab.locator("#machine-1 .none").is_visible()


def test_columns_sort_both_ways(opened):
    """Speed-ups sort as numbers, and the heading says which way."""
    tab = opened()
    heading = tab.locator("#machine-1 thead th", has_text="speed-up").first
    for way in ("ascending", "descending"):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == way
        keys = tab.locator("#machine-1 tbody.claim > tr:first-child > td:nth-child(2)")
        speeds = [float(key) for key in keys.evaluate_all("c => c.map(x => x.dataset.key)")]
        assert speeds == sorted(speeds, reverse=way == "descending")


def test_tabs_switch_machines_by_keyboard(opened):
    """Arrow keys move between machines, and each panel draws its chart when it is first seen."""
    tab = opened()
    tab.focus("#tab-1")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.id") == "tab-2"
    assert tab.locator("#tab-2").get_attribute("aria-selected") == "true"
    assert tab.locator("#machine-1").is_hidden()
    tab.wait_for_selector("#machine-2 .chart svg")
    tab.keyboard.press("End")
    assert tab.locator("#both").is_visible()
    tab.keyboard.press("Home")
    assert tab.locator("#machine-1").is_visible()


def test_a_row_opens_by_keyboard(opened):
    """Enter opens a claim's history, counters, accuracy and bound, and closes it again."""
    tab = opened()
    button = tab.locator("#machine-1").get_by_role("button", name="exact-1x106", exact=True)
    details = tab.locator(f"#{button.get_attribute('aria-controls')}")
    assert details.is_hidden()
    button.focus()
    tab.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    details.locator(".chart svg").wait_for()
    text = details.inner_text()
    for said in ("14.0×", "13.0×", "1,234,567", "of the bound", "equal, |Δ|≤3e-06", "its matmuls"):
        assert said in text
    tab.keyboard.press("Enter")
    assert details.is_hidden()


def test_two_machines_stand_side_by_side(opened):
    """Both columns are the machines chosen, with the ratio of their speed-ups."""
    tab = opened()
    tab.click("#tab-both")
    ratios = tab.locator("#both .ratio")
    assert ratios.nth(1).inner_text() == "1.00×"
    tab.select_option("#both [data-side='1']", "0")
    shown = tab.locator("#both thead th:not([hidden])").all_inner_texts()
    assert len(shown) == 3


def test_marks_tell_their_figures(opened):
    """Hovering over a mark shows its claim and its speed-up, published ones their device."""
    tab = opened()
    tab.locator("#machine-1 .chart").nth(1).locator("path[aria-roledescription=point]").last.hover()
    tooltip = tab.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    assert "M3 Pro" in tooltip.inner_text()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_layout_fits_and_is_readable(opened, width, scheme):
    """No panel is wider than the page, everything has a name, and text stands out by 4.5 to 1."""
    tab = opened(width=width, color_scheme=scheme)
    for button in tab.get_by_role("tab").all():
        button.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(WITHOUT_NAME) == []
    for chosen in (".lead", ".chip.holds", ".chip.moved", ".chip.fails", ".chip.not-measured"):
        assert contrast(tab, chosen) >= 4.5, chosen


def contrast(tab, selector):
    """Contrast of an element's text with what is behind it, as WCAG computes it."""
    colors = tab.evaluate(
        """selector => {
          let e = document.querySelector(selector);
          const color = getComputedStyle(e).color;
          while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
          return [color, getComputedStyle(e).backgroundColor];
        }""",
        selector,
    )
    values = [[int(x) / 255 for x in re.findall(r"\d+", color)[:3]] for color in colors]
    linear = [[x / 12.92 if x <= 0.04 else ((x + 0.055) / 1.055) ** 2.4 for x in v] for v in values]
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (light + 0.05) / (dark + 0.05)


def test_hostile_strings_run_nowhere(opened, tmp_path):
    """Markup in a stored run is text in the table and in the chart's tooltip."""
    hostile = row(BY_ID["minimal"], 2.0, **TRAINED)
    hostile["accuracy"]["text"] = HOSTILE
    stored(tmp_path, minimal=hostile)
    tab = opened(written(tmp_path))
    marks = tab.locator("#machine-1 .chart").first.locator("path[aria-label*='minimal']")
    marks.first.hover()
    tab.locator("#vg-tooltip-element").wait_for(state="visible")
    assert tab.evaluate("window.hacked") is None
    assert HOSTILE in tab.locator("#machine-1 table").first.inner_text()
