"""Stored and gated runs in the tools that users of pytest-benchmark know."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from mpnn.studies.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project that was recorded twice, with one claim 10 % slower in the second run."""
    project = Project.make(tmp_path_factory.mktemp("toy") / "project")
    for slow in ({}, {"b": 1.1}):
        ended = project.pytest("perf_tests", "--record", "--accept", "b", slow=slow)
        assert ended.code == 0, ended.output
        project.commit()
    return project


def compare(project, *arguments):
    """What `pytest-benchmark compare` prints about the stored runs."""
    storage = f"--storage=file://{project.runs()[0].parent}"
    command = [sys.executable, "-m", "pytest_benchmark", storage, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project.root, check=True)
    return done.stdout


def test_benchmark_compare_shows_both_runs(project):
    """`pytest perf_tests --benchmark-compare`: the newest run stands beside this one, gated."""
    ended = project.pytest("perf_tests", "--benchmark-compare", slow={"b": 1.1})
    assert ended.code == 0, ended.output
    for name in "abc":
        assert f"test_claim[{name}] (NOW)" in ended.output
        assert f"test_claim[{name}] (0002_" in ended.output


def test_pytest_benchmark_compare_shows_a_change(project):
    """`pytest-benchmark compare`: medians of stored runs, whose ratio is what was planted."""
    columns = ["--columns=median", "--group-by=name", "--sort=name"]
    lines = compare(project, "compare", *columns).splitlines()
    rows = [line.split() for line in lines if line.startswith("test_claim[b]")]
    assert [row[1][:5] for row in rows] == ["(0001", "(0002"]
    first, second = (float(row[2]) for row in rows)
    assert second / first == pytest.approx(1.1, rel=0.03)


def test_benchmark_json_holds_what_github_action_benchmark_reads(project, tmp_path):
    """Its reader for `tool: 'pytest'` takes six fields of each claim; seconds are per protein."""
    path = tmp_path / "out.json"
    ended = project.pytest("perf_tests", f"--benchmark-json={path}", slow={"b": 1.1})
    assert ended.code == 0, ended.output
    rows = json.loads(path.read_text())["benchmarks"]
    assert [row["fullname"] for row in rows] == [
        f"perf_tests/test_toy.py::test_claim[{name}]" for name in "abc"
    ]
    for row in rows:
        stats = row["stats"]
        assert stats["ops"] == pytest.approx(1 / stats["mean"])
        assert stats["median"] == pytest.approx(0.022 if "[b]" in row["name"] else 0.02, rel=0.03)
        assert stats["stddev"] >= 0
        assert stats["rounds"] == row["extra_info"]["pairs"]


def test_benchmark_histogram_draws_the_claims(project, tmp_path):
    """`--benchmark-histogram` (extra `histogram`) draws a box for each run and claim."""
    if not (find_spec("pygal") and find_spec("pygaljs")):  # pygal changes how others are imported
        pytest.skip("needs mpnn[histogram]")
    ended = project.pytest(
        "perf_tests", f"--benchmark-histogram={tmp_path / 'claims'}", slow={"b": 1.1}
    )
    assert ended.code == 0, ended.output
    (drawn,) = tmp_path.glob("claims*.svg")
    assert "test_claim[b]" in drawn.read_text()
