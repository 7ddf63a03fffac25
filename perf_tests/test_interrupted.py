"""A recording that is interrupted, wherever that is, leaves the stored runs as they were."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mpnn.regression import baselines
from mpnn.studies.project import Project

STOP = """
import os, signal
from pathlib import Path

def stop(*_):
    os.kill(os.getpid(), signal.{signal})

"""
POINTS = {
    "collection": "def pytest_collection_finish():\n    stop()\n",
    "claim": "def pytest_runtest_call(item):\n    item.name.endswith('[b]') and stop()\n",
    "confirmation": (
        "import sys\n"
        "from mpnn.regression import plugin\n"
        "'--confirm' in sys.argv or setattr(plugin, '_confirm', stop)\n"
    ),
    "writing": "os.fsync = stop\n",
    "renaming": "Path.replace = stop\n",
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project whose claims were recorded once."""
    project = Project.make(tmp_path_factory.mktemp("toy") / "project")
    ended = project.pytest("perf_tests", "--record")
    assert ended.code == 0, ended.output
    project.commit()
    return project


def stored(project):
    """Every stored run by name, byte for byte."""
    return {path.name: path.read_bytes() for path in project.runs()}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_the_stored_runs_stay(recorded, tmp_path, point, name):
    """Killed or interrupted by Ctrl-C: the same bytes, and the next sessions work as before."""
    project = recorded.copy(tmp_path / "project")
    before = stored(project)
    project.plant(STOP.format(signal=name) + POINTS[point])
    ended = project.pytest("perf_tests", "--record", slow={"a": 1.1})
    assert ended.code != 0, ended.output
    assert stored(project) == before
    project.plant("")
    ended = project.pytest("perf_tests", "--record", "-k", "[a]")
    assert ended.code == 0, ended.output
    assert len(stored(project)) == len(before) + 1
    assert stored(project).items() > before.items()


@pytest.mark.slow
def test_the_stored_runs_stay_at_any_moment(recorded, tmp_path):
    """Killed at 20 random moments: the runs before stay, and a new one is whole or not there."""
    project = recorded.copy(tmp_path / "project")
    before, moments = stored(project), random.Random(0)
    start = time.monotonic()
    assert project.pytest("perf_tests", "--record").code == 0
    duration = time.monotonic() - start
    project.runs()[-1].unlink()
    for number in range(20):
        code = (
            f"from pathlib import Path; from mpnn.studies.project import Project; "
            f"Project(Path({str(project.root)!r})).pytest('perf_tests', '--record')"
        )
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        time.sleep(duration * moments.random())
        os.killpg(process.pid, (signal.SIGKILL, signal.SIGINT)[number % 2])
        process.wait()
        after = stored(project)
        assert after.items() >= before.items()
        for path in project.runs():
            assert baselines.load(path).rows
            if path.name not in before:
                path.unlink()
