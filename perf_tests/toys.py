"""A made-up project with made-up claims on a simulated clock, to test the gate with.

The claims' behavior is planted through environment variables:

- `TOY_CLAIMS`: names, separated by commas.
- `TOY_SLOW`: factor on the time of the subject of claim `a`.
- `TOY_SLOW_ONCE`: the same, but not in the fresh process that confirms.
- `TOY_NOISE`: noise of every leg, standard deviation of its logarithm.
- `TOY_NOISE_OF_C`: the same for claim `c` alone.
- `TOY_DRIFT`: factor by which the control's first side is slower: a reference unlike itself.
- `TOY_REAL`: set when real work on the real clock is to be done instead.
- `TOY_WRONG`: set when the outputs of the subject are to be wrong.
"""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpnn.regression import gate
from mpnn.regression.process import PINNED
from mpnn.regression.timing import Side, measure

HERE = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "pytest_benchmark.plugin"]
TEST_FILE = """
import pytest
from toys import SimulatedClock, clock_of, names, plant_drift, same_outputs, subject_and_reference

CLOCK = SimulatedClock(0)
plant_drift(CLOCK)

@pytest.fixture(scope="session")
def perf_clock():
    return clock_of(CLOCK)

@pytest.mark.parametrize("name", names())
def test_claim(claim, name, request):
    confirming = request.config.option.confirm is not None
    claim(*subject_and_reference(CLOCK, name, confirming), accuracy=same_outputs)
"""
SETTINGS = "[pytest]\naddopts = -p no:cacheprovider\nfilterwarnings = error\n"


class SimulatedClock:
    """A clock that only work moves: each call takes its seconds times heavy-tailed noise."""

    def __init__(self, seed, noise=None):
        self.now, self.random = 0.0, random.Random(seed)
        self.noise = float(os.environ.get("TOY_NOISE", "0.02")) if noise is None else noise

    def __call__(self):
        """Seconds so far."""
        return self.now

    def side(self, seconds, units=1, noise=None):
        """A side whose calls take about these seconds and return the input's number."""
        noise = self.noise if noise is None else noise

        def work(number):
            interrupted = 5.0 if self.random.random() < 0.02 else 1.0
            self.now += seconds * interrupted * math.exp(self.random.gauss(0, noise))
            return number

        return Side(work, units)


def clock_of(simulated):
    """The clock of the session: the simulated one, unless the work is real."""
    return time.perf_counter if "TOY_REAL" in os.environ else simulated


def real_side(rounds, slow):
    """Small matrix products, and a busy wait in proportion if the side is to be slow."""
    A = np.random.default_rng(0).random((64, 64), np.float32)

    def work(number):
        start = time.perf_counter()
        for _ in range(rounds):
            A @ A
        until = start + slow * (time.perf_counter() - start)
        while time.perf_counter() < until:
            pass
        return number

    return Side(work)


def names():
    """Names of the made-up claims."""
    return [name for name in os.environ.get("TOY_CLAIMS", "a,b,c").split(",") if name]


def subject_and_reference(clock, name, confirming):
    """Two sides, the subject twice as fast unless something is planted."""
    slow = float(os.environ.get("TOY_SLOW", "1")) if name == "a" else 1.0
    if name == "a" and not confirming:
        slow *= float(os.environ.get("TOY_SLOW_ONCE", "1"))
    if "TOY_REAL" in os.environ:
        return real_side(250, slow), real_side(500, 1.0)
    planted = os.environ.get("TOY_NOISE_OF_C") if name == "c" else None
    noise = None if planted is None else float(planted)
    return clock.side(0.02 * slow, noise=noise), clock.side(0.04, noise=noise)


def plant_drift(clock):
    """Makes the reference differ from itself in the control, if that is planted."""
    if "TOY_DRIFT" not in os.environ:
        return
    slower = clock.side(0.04 * float(os.environ["TOY_DRIFT"]))

    def drifting(subject, reference, rule, **options):
        return measure(slower if subject is reference else subject, reference, rule, **options)

    gate.measure = drifting


def same_outputs(timing):
    """Both sides returned the same, unless wrong outputs are planted."""
    subject, reference = timing.outputs
    passed = subject == reference and "TOY_WRONG" not in os.environ
    return gate.Accuracy(passed, "outputs equal" if passed else "outputs differ")


@dataclass(frozen=True)
class Session:
    """What one pytest process said."""

    code: int
    output: str


@dataclass(frozen=True)
class Project:
    """A made-up project under version control."""

    root: Path

    @classmethod
    def make(cls, root):
        """Writes the project and commits it."""
        tests = root / "perf_tests"
        tests.mkdir(parents=True)
        (root / "pytest.ini").write_text(SETTINGS)
        (root / ".gitignore").write_text("__pycache__/\n")
        (tests / "test_toy.py").write_text(TEST_FILE)
        shutil.copy(HERE / "conftest.py", tests)
        project = cls(root)
        project.git("init", "-q")
        project.commit()
        return project

    def copy(self, root):
        """The same project elsewhere."""
        shutil.copytree(self.root, root)
        return Project(root)

    def git(self, *arguments):
        """Runs git in the project, as nobody in particular."""
        who = ["-c", "user.name=toy", "-c", "user.email=toy@example.org"]
        subprocess.run(["git", "-C", str(self.root), *who, *arguments], check=True)

    def commit(self):
        """Commits whatever is there."""
        self.git("add", "-A")
        self.git("commit", "-qm", "toy")

    def plant(self, conftest):
        """Commits a conftest.py that makes the sessions behave otherwise."""
        (self.root / "conftest.py").write_text(conftest)
        self.commit()

    def runs(self):
        """Stored runs, oldest first."""
        return sorted(self.root.glob("baselines/*/*.json"))

    def rows(self):
        """Rows of each stored run by test id, oldest run first."""
        runs = [json.loads(path.read_text())["benchmarks"] for path in self.runs()]
        return [{row["fullname"]: row["extra_info"] for row in run} for run in runs]

    def pytest(self, *arguments, cwd=None, environ=None, **planted):
        """One pytest session in a new process with a pinned environment."""
        path = os.pathsep.join([str(HERE.parent), str(HERE)])
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TOY_", "PYTEST_"))}
        planted = {f"TOY_{key.upper()}": str(value) for key, value in planted.items()}
        done = subprocess.run(
            [*PYTEST, *(arguments or ["perf_tests"])],
            cwd=cwd or self.root,
            env={
                **clean,
                **PINNED,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONPATH": path,
                **planted,
                **(environ or {}),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Session(done.returncode, done.stdout + done.stderr)
