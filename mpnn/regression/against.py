"""A working tree against a commit: each in its own environment, timed in alternating processes.

This gates a pull request where no baseline of the machine exists. A pair is one fresh process of
each, in random order. The figure is the median over pairs of ln(head/base) for every claim, with a
bootstrap interval over the pairs of processes. Before that, the head's outputs are compared once
with those of its references: a head that is fast and wrong fails.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from mpnn.errors import InputError
from mpnn.regression.baselines import retired
from mpnn.regression.machine import PINNED
from mpnn.regression.tables import Change, changes_markdown
from mpnn.regression.timing import subject_first
from mpnn.regression.verdict import Verdict, place

PAIRS = 10
MARGIN = 0.05
CONFIDENCE = 0.99
RESAMPLES = 4000
EXTRAS = ("bench", "coreml", "knn", "mlx", "onnx")
"""Extras installed beside the dependencies, where the tree has them."""
WORKER = Path(__file__).with_name("against_worker.py")

Seconds = Mapping[str, float]
"""Seconds per unit of each claim, in one process."""


@dataclass(frozen=True)
class Tree:
    """One state of the project: its source tree and the Python that has its dependencies."""

    root: Path
    python: Path

    def time(self, word: str) -> Seconds:
        """Times the claims whose id contains `word` in a fresh process.

        Raises:
            InputError: that process failed, or measured another tree.
        """
        seconds: Seconds = self._answer(word)["seconds"]
        return seconds

    def check(self, word: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Why outputs of claims whose id contains `word` are wrong, and why others cannot run.

        Raises:
            InputError: as `time`.
        """
        answer = self._answer(word, "--check")
        return answer["failures"], answer["left_out"]

    def _answer(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [str(self.python), "-P", str(WORKER), *arguments],
            cwd=self.root,
            env={**os.environ, **PINNED, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise InputError(f"the claims of {self.root.name} cannot be timed:\n{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout)
        if Path(answer["package"]) != self.root.resolve():
            raise InputError(f"timed {answer['package']} instead of {self.root}")
        return answer


@dataclass(frozen=True)
class Difference:
    """One claim in both trees: median of ln(head/base) and its interval over processes."""

    name: str
    log_ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """By where the interval lies against the margin."""
        return place(self.low, self.high, math.log1p(MARGIN))

    def change(self) -> Change:
        """The row of the table: change of time in per cent."""
        at, low, high = (100 * math.expm1(v) for v in (self.log_ratio, self.low, self.high))
        what = f"time {at:+.1f} % [{low:+.1f}, {high:+.1f}]"
        return Change(self.name, "speed", what, str(self.verdict))


def check_out(root: Path, revision: str, target: Path) -> Path:
    """Unpacks a commit of the repository at `root` into `target`.

    Raises:
        InputError: there is no such commit.
    """
    target.mkdir(parents=True)
    archive = target.with_suffix(".tar")
    command = ["git", "-C", str(root), "archive", f"--output={archive}", revision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"cannot check out {revision!r}: {done.stderr.strip()}")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True)
    return target


def compiled(tree: Path) -> Path:
    """The tree with its native library, if it has one and a compiler is found.

    Without it the claims of the compiled engine are among those that could not be measured.
    """
    toolchain = tree / "mpnn" / "optimizations" / "native" / "toolchain.py"
    if toolchain.exists():
        subprocess.run([sys.executable, str(toolchain)], capture_output=True, check=False)
    return tree


def python_for(tree: Path, head: Path) -> Path:
    """A Python with the tree's dependencies: this one, or a new one where the two trees differ.

    Raises:
        InputError: they cannot be installed.
    """
    wanted = _dependencies(tree)
    if wanted == _dependencies(head):
        return Path(sys.executable)
    environment = tree.with_name(tree.name + "-venv")
    venv.create(environment, symlinks=True, with_pip=bool(wanted))
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", *wanted]
    if wanted and subprocess.run(install, check=False).returncode:
        raise InputError(f"pip cannot install what {tree.name} needs ({', '.join(wanted)})")
    return python


def alternate(
    base: Callable[[], Seconds], head: Callable[[], Seconds], pairs: int, seed: int = 0
) -> tuple[list[Seconds], list[Seconds]]:
    """Runs both `pairs` times, in random order within each pair."""
    times: tuple[list[Seconds], list[Seconds]] = [], []
    for head_first in islice(subject_first(seed), pairs):
        for which in (1, 0) if head_first else (0, 1):
            times[which].append((base, head)[which]())
    return times


def differences(base: Sequence[Seconds], head: Sequence[Seconds]) -> list[Difference]:
    """Every claim that both trees have."""
    names = [name for name in head[0] if name in base[0]]
    return [_difference(name, base, head) for name in names]


def problems(
    base: Seconds,
    head: Seconds,
    found: Sequence[Difference],
    failures: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Why the head fails; empty if it passes.

    Args:
        base: seconds of the claims of the base.
        head: seconds of the claims of the head.
        found: how they differ.
        failures: claims of the head whose outputs are wrong, with the reason.
    """
    said = [f"{name}: accuracy failed, {text}" for name, text in failures.items()]
    said += [f"{name}: is a claim of the base that the head lacks" for name in base.keys() - head]
    said += [
        f"{d.name}: regressed by {math.expm1(d.log_ratio):.1%}"
        for d in found
        if d.verdict is Verdict.REGRESSED
    ]
    undecided = sum(d.verdict is Verdict.UNDECIDED for d in found)
    if not found:
        said.append("nothing was compared: the two have no claim in common")
    elif undecided == len(found) or undecided > max(1, len(found) / 5):
        said.append(f"{undecided} of {len(found)} claims are undecided: too noisy to judge")
    return said


def compare(root: Path, revision: str, word: str = "", pairs: int = PAIRS) -> tuple[str, list[str]]:
    """Compares the working tree at `root` with a commit.

    Args:
        root: the repository.
        revision: the commit, as git names it.
        word: only claims whose id contains it.
        pairs: processes of each.

    Returns:
        What changed, as Markdown, with what could not be measured; why the head fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = check_out(root, revision, Path(folder) / "base")
        base = Tree(compiled(tree), python_for(tree, root))
        head = Tree(compiled(root), Path(sys.executable))
        failures, left_out = head.check(word)
        times = alternate(lambda: base.time(word), lambda: head.time(word), pairs)
    kept = {name: seconds for name, seconds in times[0][0].items() if name not in _retired(root)}
    found = differences(*times)
    changes = [Change(name, "accuracy", text, "FAILED") for name, text in failures.items()]
    changes += [
        difference.change() for difference in found if difference.verdict is not Verdict.HOLDS
    ]
    table = changes_markdown(changes, f"{len(found)} claims compared with {revision}")
    table += "".join(f"\n\n`{name}` not measured here: {why}" for name, why in left_out.items())
    return table, problems(kept, times[1][0], found, failures)


def _retired(root: Path) -> set[str]:
    """Ids of the claims that a tree has retired with a reason."""
    tests = (row.test for row in retired(root / "baselines"))
    return {test.partition("[")[2].removesuffix("]") for test in tests}


def _difference(name: str, base: Sequence[Seconds], head: Sequence[Seconds]) -> Difference:
    ratios = [math.log(h[name] / b[name]) for b, h in zip(base, head, strict=True)]
    choices = random.Random(0).choices
    medians = sorted(median(choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    tail = round((1 - CONFIDENCE) / 2 * RESAMPLES)
    return Difference(name, median(ratios), medians[tail], medians[-1 - tail])


def _dependencies(tree: Path) -> list[str]:
    """Requirements of a tree and of those timed extras that it has."""
    path = tree / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(need for name in EXTRAS for need in extras.get(name, []))]
