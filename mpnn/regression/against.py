"""A working tree against a commit: outputs and times of the same claims, side by side.

This gates a pull request where no baseline of the machine exists. Each tree has one process that
lives as long as the comparison; timed runs alternate between the two in random order, and d is
ln(head/base). Two processes of the same code may differ by a few per cent, by where their memory
lies, so a change counts only once two pairs of fresh processes agree on it.

Before its times, a claim's outputs are compared: the head's with its own reference's, and with the
base's on the same input.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mpnn.regression.baselines import retired
from mpnn.regression.tables import markdown
from mpnn.regression.timing import subject_first
from mpnn.regression.trees import Tree, Workers, check_out, compiled, python_for
from mpnn.regression.verdict import CHANGED, Rule, Verdict, holds, interval, judge

RULE = Rule(margin=0.05, looks=3, budget=15.0)
RUN_SECONDS = 0.025
"""A timed run of the faster tree lasts at least this long."""
LOOK_SECONDS = 8.0
"""Where runs are so long that a look of 40 pairs takes longer, it has fewer, but never under 10."""
FEWEST_PAIRS = 10
PROCESSES = 3
"""Pairs of processes that may time a claim, until two agree that it changed."""
SAME = 1e-4
"""Log-probabilities of the same network may differ by this much by rounding, in nats."""


@dataclass(frozen=True)
class Difference:
    """One claim in both trees: median of ln(head/base) and its interval.

    Attributes:
        name: id of the claim.
        log_ratio: the median, of the pair of processes that decided.
        low: lower bound.
        high: upper bound.
        verdict: what the pairs of processes agree on.
        processes: pairs of processes that timed it.
        seconds: of the base, for one call.
        outputs: how the outputs differ; "" if they are the same.
    """

    name: str
    log_ratio: float
    low: float
    high: float
    verdict: Verdict
    processes: int = 1
    seconds: float = 0.0
    outputs: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row of the table: change of time in per cent."""
        at, low, high = (100 * math.expm1(v) for v in (self.log_ratio, self.low, self.high))
        time = f"{at:+.1f} % [{low:+.1f}, {high:+.1f}]"
        return f"`{self.name}`", time, str(self.verdict), self.outputs or "the same"


def time_claim(workers: Workers, name: str, seconds: float, rule: Rule) -> tuple[Verdict, Any]:
    """Times one loaded claim in both processes until the rule can decide.

    Args:
        workers: both processes, with the claim loaded.
        name: of the claim, which seeds the order.
        seconds: of one call of the faster one.
        rule: pairs, looks and margin.

    Returns:
        The verdict and ln(head/base) of every run pair.
    """
    repeats = max(1, round(RUN_SECONDS / seconds))
    pairs = round(LOOK_SECONDS / (2 * repeats * seconds))
    rule = replace(rule, pairs=min(rule.pairs, max(FEWEST_PAIRS, pairs)))
    order, ratios, start = subject_first(len(name)), [], time.monotonic()
    verdict = Verdict.UNDECIDED
    for look in range(rule.looks):
        if look and time.monotonic() - start > rule.budget:
            break
        for head_first in islice(order, rule.pairs):
            times = {i: workers.both[i].ask("run", repeats=repeats) for i in _order(head_first)}
            ratios.append(math.log(times[1]["seconds"] / times[0]["seconds"]))
            if len(ratios) % 2 == 0 and holds(ratios, 0.0, rule):
                return Verdict.HOLDS, ratios
        verdict = judge(ratios, 0.0, rule)
        if verdict is not Verdict.UNDECIDED:
            break
    return verdict, ratios


def difference(workers: Workers, name: str, loaded: Sequence[Mapping[str, Any]]) -> Difference:
    """Times a claim in one pair of processes, and in fresh ones where it seems to have changed.

    Args:
        workers: both processes, with the claim loaded; restarted here if need be.
        name: of the claim.
        loaded: what both answered to `load`.
    """
    found: list[Difference] = []
    for processes in range(1, PROCESSES + 1):
        if processes > 1:
            workers.start()
            loaded = workers.ask("load", id_=name)
        seconds = [answer["seconds"] for answer in loaded]
        verdict, ratios = time_claim(workers, name, min(seconds), RULE)
        bounds = interval(ratios, RULE.alpha_pass)
        at = float(np.median(ratios))
        found.append(Difference(name, at, *bounds, verdict, processes, seconds[0]))
        agree = [d.verdict for d in found].count(verdict) > 1
        if verdict is Verdict.HOLDS or (verdict in CHANGED and agree):
            return found[-1]
    return replace(found[-1], verdict=Verdict.UNDECIDED)


def changed_outputs(base: Path, head: Path, band: float) -> str:
    """How the head's outputs differ from the base's; "" if they are the same up to rounding.

    Args:
        base: file that a worker saved.
        head: the same of the other tree.
        band: of a claim whose engine is close to its reference and not equal.
    """
    with np.load(base) as old, np.load(head) as new:
        if {k: old[k].shape for k in old} != {k: new[k].shape for k in new}:
            return "other outputs or shapes"
        said = [_changed(old[key], new[key], max(SAME, band)) for key in old]
    return "; ".join(dict.fromkeys(filter(None, said)))


def problems(
    names: Sequence[Sequence[str]],
    found: Sequence[Difference],
    failures: Mapping[str, str],
    may_change: bool,
) -> list[str]:
    """Why the head fails; empty if it passes.

    Args:
        names: claims of the base that it must not lack, and those of the head.
        found: how the common ones differ.
        failures: claims of the head whose outputs are wrong, with the reason.
        may_change: whether outputs may differ from the base's.
    """
    said = [f"{name}: {text}" for name, text in failures.items()]
    lost = [name for name in names[0] if name not in names[1]]
    said += [f"{name}: is a claim of the base that the head lacks" for name in lost]
    for d in found:
        if d.outputs and not may_change:
            said.append(
                f"{d.name}: outputs changed, {d.outputs}; if that is meant, --outputs-may-change"
            )
        if d.verdict is Verdict.REGRESSED:
            said.append(
                f"{d.name}: regressed by {math.expm1(d.log_ratio):.1%}, in two pairs of processes"
            )
    undecided = sum(d.verdict is Verdict.UNDECIDED for d in found)
    if not found:
        said.append("nothing was compared: the two have no claim in common")
    elif undecided == len(found) or undecided > max(1, len(found) / 5):
        said.append(f"{undecided} of {len(found)} claims are undecided: too noisy to judge")
    return said


def compare(
    root: Path, revision: str, word: str = "", may_change: bool = False
) -> tuple[str, list[str]]:
    """Compares the working tree at `root` with a commit.

    Args:
        root: the repository.
        revision: the commit, as git names it.
        word: only claims whose id contains it.
        may_change: whether outputs may differ.

    Returns:
        A Markdown table with what could not be measured, and the reasons why the head fails.

    Raises:
        InputError: there is no such commit, or one of the two cannot be timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = check_out(root, revision, Path(folder) / "base")
        head = Tree(compiled(root), Path(sys.executable))
        base = Tree(compiled(tree, built=root), python_for(tree, root))
        with Workers(base, head) as workers:
            names = [[n for n in answer["ids"] if word in n] for answer in workers.ask("package")]
            comparison = Comparison(workers, Path(folder))
            for name in names[1]:
                if name in names[0]:
                    comparison.add(name)
    expected = [name for name in names[0] if name not in _retired(root)]
    found = comparison.found
    headings = ("claim", f"change of time against {revision}", "verdict", "outputs")
    table = markdown(headings, [d.cells() for d in found])
    table += "".join(f"\n\n`{n}` not measured here: {w}" for n, w in comparison.left_out.items())
    return table, problems((expected, names[1]), found, comparison.failures, may_change)


class Comparison:
    """What was seen of the claims so far.

    Attributes:
        found: differences of those that both trees can run.
        failures: claims of the head whose outputs are wrong, with the reason.
        left_out: claims that the head, or else the base, cannot run here, with the reason.
    """

    def __init__(self, workers: Workers, folder: Path) -> None:
        self.workers, self.folder = workers, folder
        self.found: list[Difference] = []
        self.failures: dict[str, str] = {}
        self.left_out: dict[str, str] = {}

    def add(self, name: str) -> None:
        """Loads a claim in both processes, compares its outputs and times it."""
        loaded = self.workers.ask("load", id_=name)
        base, head = (answer.get("left_out") for answer in loaded)
        if head and not base:
            self.failures[name] = f"the base can run it and the head cannot: {head}"
        if head or base:
            self.left_out[name] = str(head or base)
            return
        if failure := self.workers.both[1].ask("check")["failure"]:
            self.failures[name] = f"accuracy failed, {failure}"
        paths = self.folder / "base.npz", self.folder / "head.npz"
        band = min(
            worker.ask("save", path=str(path))["band"]
            for worker, path in zip(self.workers.both, paths, strict=True)
        )
        outputs = changed_outputs(*paths, band)
        self.found.append(replace(difference(self.workers, name, loaded), outputs=outputs))


def _order(head_first: bool) -> tuple[int, int]:
    return (1, 0) if head_first else (0, 1)


def _changed(old: Any, new: Any, allowed: float) -> str:
    """How one array differs; "" if it is the same."""
    if not np.issubdtype(old.dtype, np.floating):
        share = float((old != new).mean())
        return f"{share:.1%} of the residues or neighbors" if share else ""
    largest = float(np.abs(old - new).max(initial=0))
    return "" if largest <= allowed else f"|Δ| {largest:.0e}, allowed {allowed:.0e}"


def _retired(root: Path) -> set[str]:
    """Ids of the claims that a tree has retired with a reason."""
    tests = (row.test for row in retired(root / "baselines"))
    return {test.partition("[")[2].removesuffix("]") for test in tests}
