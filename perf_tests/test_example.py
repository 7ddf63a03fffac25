"""Another project's pytest-benchmark suite, gated by `mpnn.regression`."""

import shutil
import subprocess
import sys

import pytest

from mpnn.studies.project import HELPERS, ROOT, Project

CPU_CLOCK = """
import time, pytest

@pytest.fixture(scope="session")
def perf_clock():
    return time.process_time  # other work on this machine does not count

@pytest.fixture(scope="session")
def perf_load():
    return None
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the example under version control, whose claims were recorded."""
    root = tmp_path_factory.mktemp("another") / "project"
    shutil.copytree(HELPERS / "example", root, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n")
    (root / "conftest.py").write_text(CPU_CLOCK)
    project = Project(root)
    project.git("init", "-q")
    project.commit()
    ended = project.pytest("speed", "--record")
    assert ended.code == 0, ended.output
    project.commit()
    return project


def test_the_recording_lies_in_its_own_baselines(project):
    """One run, with both claims, their accuracy and the commit that was measured."""
    (rows,) = project.rows()
    assert list(rows) == [
        "speed/test_sums.py::test_sum_of_squares[by_map]",
        "speed/test_sums.py::test_sum_of_squares[by_loop]",
    ]
    assert all(row["speedup"] > 1 and row["accuracy"]["passed"] for row in rows.values())
    assert all(len(row["commit"]) == 40 for row in rows.values())


def test_the_same_code_is_green(project):
    """Both claims hold against the recording."""
    ended = project.pytest("speed")
    assert ended.code == 0, ended.output
    assert "2 passed" in ended.output
    assert ended.output.count("holds") == 2


def test_a_planted_regression_is_red(project, tmp_path):
    """A claim that takes several times as long fails with its figures; the other holds."""
    slow = project.copy(tmp_path / "slow")
    path = slow.root / "speed" / "test_sums.py"
    text, start = path.read_text(), "    for value in x:\n"
    assert start in text
    path.write_text(text.replace(start, "    for _ in range(4):\n        by_map(x)\n" + start))
    ended = slow.pytest("speed")
    assert ended.code == 1, ended.output
    assert "1 failed, 1 passed" in ended.output, ended.output
    assert "regressed: " in ended.output
    assert "a fresh process said" in ended.output


def test_the_plugin_imports_no_torch():
    """Other projects pay for the timing alone: neither torch nor the networks are imported."""
    code = "import sys, mpnn.regression.plugin; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert "mpnn.regression.plugin" in loaded
    assert not loaded & {"torch", "scipy", "mpnn.model", "mpnn.regression.workloads"}
