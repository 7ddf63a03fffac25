"""A small project with synthetic claims, to test the gate with whole pytest sessions.

Its claims come from `perf_tests/toys.py`, which also says what can be planted in them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpnn.regression.machine import PINNED

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "perf_tests"
PYTEST = [sys.executable, "-m", "pytest", "-p", "pytest_benchmark.plugin"]
TEST_FILE = """
import pytest
from toys import SimulatedClock, gate_of, names, other_work, plant_drift, same_outputs
from toys import subject_and_reference

CLOCK = SimulatedClock(0)
plant_drift(CLOCK)

@pytest.fixture(scope="session")
def perf_clock():
    return CLOCK

@pytest.fixture(scope="session")
def perf_load():
    return other_work(CLOCK)

@pytest.mark.parametrize("name", names())
def test_claim(claim, name, request):
    confirming = request.config.option.confirm is not None
    sides = subject_and_reference(CLOCK, name, confirming)
    claim(*sides, accuracy=same_outputs(name), gate=gate_of(CLOCK, name))
"""
SETTINGS = "[pytest]\naddopts = -p no:cacheprovider\nfilterwarnings = error\n"


@dataclass(frozen=True)
class Ended:
    """One pytest session: its exit code and what it printed."""

    code: int
    output: str


@dataclass(frozen=True)
class Project:
    """A project with synthetic claims under version control."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> Project:
        """Writes the project and commits it."""
        tests = root / "perf_tests"
        tests.mkdir(parents=True)
        (root / "pytest.ini").write_text(SETTINGS)
        (root / ".gitignore").write_text("__pycache__/\n")
        (tests / "test_toy.py").write_text(TEST_FILE)
        shutil.copy(HELPERS / "conftest.py", tests)
        project = cls(root)
        project.git("init", "-q")
        project.commit()
        return project

    def copy(self, root: Path) -> Project:
        """The same project elsewhere."""
        shutil.copytree(self.root, root)
        return Project(root)

    def git(self, *arguments: str) -> None:
        """Runs git in the project, under a name of its own."""
        who = ["-c", "user.name=toy", "-c", "user.email=toy@example.org"]
        subprocess.run(["git", "-C", str(self.root), *who, *arguments], check=True)

    def commit(self) -> None:
        """Commits the working tree."""
        self.git("add", "-A")
        self.git("commit", "-qm", "toy")

    def plant(self, conftest: str) -> None:
        """Commits a conftest.py that changes how sessions behave."""
        (self.root / "conftest.py").write_text(conftest)
        self.commit()

    def runs(self) -> list[Path]:
        """Stored runs, oldest first."""
        return sorted(self.root.glob("baselines/*/*.json"))

    def rows(self) -> list[dict[str, Any]]:
        """Rows of each stored run by test id, oldest run first."""
        runs = [json.loads(path.read_text())["benchmarks"] for path in self.runs()]
        return [{row["fullname"]: row["extra_info"] for row in run} for run in runs]

    def pytest(
        self,
        *arguments: str,
        cwd: Path | None = None,
        environ: dict[str, str] | None = None,
        **planted: Any,
    ) -> Ended:
        """One pytest session in a new process with a pinned environment.

        Args:
            arguments: of pytest; the claims by default.
            cwd: working directory; the root by default.
            environ: more environment.
            planted: set as TOY_NAME, see `perf_tests/toys.py`.
        """
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TOY_", "PYTEST_"))}
        fixed = {
            "COLUMNS": "400",  # no message is cut off
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)]),
        }
        toys = {
            f"TOY_{key.upper()}": value if isinstance(value, str) else json.dumps(value)
            for key, value in planted.items()
        }
        done = subprocess.run(
            [*PYTEST, *(arguments or ["perf_tests"])],
            cwd=cwd or self.root,
            env={**clean, **PINNED, **fixed, **toys, **(environ or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(done.returncode, done.stdout + done.stderr)
