"""The gate's error rates on this machine: many whole sessions with real work, stored as JSON.

`tox -e gate-study` runs it (two to three hours); `--scale 0.1` takes a tenth of the sessions,
`--case five bias` those cases alone. The others stay as they were stored.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binomtest

from mpnn.atomic import write_whole
from mpnn.regression.machine import this_machine
from mpnn.regression.timing import measure
from mpnn.regression.verdict import Rule
from mpnn.studies.project import ROOT, Project, real_side
from mpnn.studies.tables import GATE

OUT = ROOT / "baselines" / GATE
ROW = "test_claim[a]"
MARGIN = Rule().margin
CLAIMS = "a,b"
Case = dict[str, Any]


def upper_limit(k: int, n: int) -> float:
    """Exact (Clopper–Pearson) 95 % upper limit of a rate of which k cases were seen in n."""
    test = binomtest(k, n, alternative="less")
    return float(test.proportion_ci(0.95, method="exact").high)


def recorded(folder: Path) -> Project:
    """A project with a baseline of real work, recorded once the machine is quiet enough."""
    project = Project.make(folder / "project")
    for _ in range(10):
        if project.pytest("perf_tests", "--record", real=1, claims=CLAIMS).code == 0:
            return project
    raise SystemExit("this machine was too noisy to record a baseline ten times")


def verdicts(project: Project, sessions: int, **planted: Any) -> list[tuple[int, str]]:
    """Exit code of whole sessions, and the verdict on claim `a` in each."""
    found = []
    for _ in range(sessions):
        ended = project.pytest("perf_tests", real=1, claims=CLAIMS, **planted)
        lines = [line.split() for line in ended.output.splitlines()]
        row = next((words for words in lines if words[:1] == [ROW]), ["void"])
        found.append((ended.code, "void" if "void:" in ended.output else row[-1]))
        sys.stderr.write(f"{planted} {found[-1]}\n")
    return found


def same_code(project: Project, sessions: int) -> Case:
    """Whole sessions of the same code: none may fail."""
    found = verdicts(project, sessions)
    failed = sum(code != 0 for code, _ in found)
    return {
        "what": "same code, whole sessions that fail",
        "sessions": sessions,
        "found": f"{failed} (95 % upper limit {upper_limit(failed, sessions):.1%})",
        "demand": "none",
        "passed": failed == 0,
    }


def planted(project: Project, sessions: int, percent: int, least: float) -> Case:
    """A busy wait in proportion: caught in `least` of the sessions, and *holds* in none."""
    slow = {"a": 1 + percent / 100}
    found = [verdict for _, verdict in verdicts(project, sessions, slow=slow)]
    caught, held = found.count("regressed") / sessions, found.count("holds")
    return {
        "what": f"planted {percent:+d} %, caught at a margin of {MARGIN:.0%}",
        "sessions": sessions,
        "found": f"{caught:.0%}, {held} *hold*",
        "demand": f"≥ {least:.0%}, none",
        "passed": caught >= least and held == 0,
    }


def at_the_margin(project: Project, sessions: int) -> Case:
    """A slow-down of exactly the margin hardly ever fails."""
    slow = {"a": 1 + MARGIN}
    found = [verdict for _, verdict in verdicts(project, sessions, slow=slow)]
    failed = found.count("regressed")
    return {
        "what": f"planted {MARGIN:+.0%}, the margin, called regressed",
        "sessions": sessions,
        "found": f"{failed} (95 % upper limit {upper_limit(failed, sessions):.1%})",
        "demand": "≤ 1 %",
        "passed": failed <= 0.01 * sessions,
    }


def bias_at_two(times: int) -> Case:
    """Twice the work against once, while every core is busy: the ratio must still be two."""
    spin = [sys.executable, "-c", "while True: pass"]
    load = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        timings = [measure(real_side(250, 1.0), real_side(500, 1.0), Rule()) for _ in range(times)]
    finally:
        for process in load:
            process.kill()
            process.wait()
    bias = math.expm1(abs(median([t.log_ratio for t in timings]) + math.log(2)))
    return {
        "what": "bias of a true 2× on a machine with all cores busy",
        "sessions": times,
        "found": f"{bias:.2%}",
        "demand": f"< {MARGIN / 3:.0%}",
        "passed": bias < MARGIN / 3,
    }


def alone_and_together(project: Project, sessions: int) -> Case:
    """The same claim by itself and after another one: ratios within half the margin."""
    ratios = [
        median(_ratio_of_b(project, *arguments) for _ in range(sessions))
        for arguments in (["-k", "[b]"], [])
    ]
    apart = math.expm1(abs(ratios[0] - ratios[1]))
    return {
        "what": "one claim alone and in the suite, difference of its ratio",
        "sessions": 2 * sessions,
        "found": f"{apart:.2%}",
        "demand": f"< {MARGIN / 2:.1%}",
        "passed": apart < MARGIN / 2,
    }


def _ratio_of_b(project: Project, *arguments: str) -> float:
    """Log-ratio of claim `b` in one session."""
    path = project.root.parent / "out.json"
    project.pytest("perf_tests", *arguments, f"--benchmark-json={path}", real=1, claims=CLAIMS)
    rows = json.loads(path.read_text())["benchmarks"]
    (found,) = (r["extra_info"]["log_ratio"] for r in rows if r["name"] == "test_claim[b]")
    return float(found)


CASES: dict[str, Callable[[Project, Callable[[int], int]], Case]] = {
    "same": lambda project, n: same_code(project, n(300)),
    "ten": lambda project, n: planted(project, n(100), 10, 0.95),
    "five": lambda project, n: planted(project, n(100), 5, 0.80),
    "margin": lambda project, n: at_the_margin(project, n(100)),
    "bias": lambda _, n: bias_at_two(n(20)),
    "alone": lambda project, n: alone_and_together(project, n(20)),
}


def store(path: Path, name: str, case: Case) -> None:
    """Replaces a stored case; cases of another machine are dropped."""
    machine, today = this_machine().id, datetime.datetime.now(datetime.UTC).date().isoformat()
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = before["cases"] if before.get("hardware") == machine else {}
    found = {**kept, name: case | {"date": today}}
    cases = {name: found[name] for name in CASES if name in found}
    result = {"hardware": machine, "cases": cases}
    write_whole(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    """Runs the study, stores every case when it is done, and exits with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sessions to run")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="which cases")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        project = recorded(Path(folder))
        for name in options.case:
            case = CASES[name](project, lambda sessions: max(2, round(sessions * options.scale)))
            store(options.out, name, case)
            passed &= bool(case["passed"])
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
