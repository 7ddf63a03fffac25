"""The gate's error rates on this machine: many whole sessions with real work, stored as JSON.

`tox -e gate-study` runs it (two to three hours); `--scale 0.1` takes a tenth of the sessions,
`--case five bias` those cases alone. The others stay as they were stored.
"""

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from toys import Project, real_side

from mpnn.atomic import write_whole
from mpnn.regression.hardware import this_machine
from mpnn.regression.timing import Rule, measure, median

OUT = Path(__file__).parents[1] / "baselines" / "gate-study.json"
ROW = "test_claim[a]"
MARGIN = Rule().margin


def upper_limit(k, n, confidence=0.95):
    """Exact (Clopper–Pearson) upper limit of a rate of which k cases were seen in n."""
    low, high = k / n, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        seen = sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))
        low, high = (rate, high) if seen > 1 - confidence else (low, rate)
    return high


def recorded(folder):
    """A project with a baseline of real work; a noisy moment is waited for to pass."""
    project = Project.make(folder / "project")
    for _ in range(10):
        if project.pytest("perf_tests", "--record", real=1, claims="a,b").code == 0:
            return project
    raise SystemExit("this machine was too noisy to record a baseline ten times")


def verdicts(project, sessions, **planted):
    """Exit status of whole sessions, and the verdict on claim `a` in each."""
    found = []
    for _ in range(sessions):
        session = project.pytest("perf_tests", real=1, claims="a,b", **planted)
        lines = session.output.splitlines()
        row = next((line.split() for line in lines if line.strip().startswith(ROW)), ["void"])
        found.append((session.code, "void" if "void:" in session.output else row[-1]))
        sys.stderr.write(f"{planted} {found[-1]}\n")
    return found


def same_code(project, sessions):
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


def planted(project, sessions, percent, least):
    """A busy wait in proportion: caught in `least` of the sessions, and never said to hold."""
    found = [verdict for _, verdict in verdicts(project, sessions, slow=1 + percent / 100)]
    caught, held = found.count("regressed") / sessions, found.count("holds")
    return {
        "what": f"planted {percent:+d} %, caught at a margin of {MARGIN:.0%}",
        "sessions": sessions,
        "found": f"{caught:.0%}, {held} said to hold",
        "demand": f"≥ {least:.0%}, none",
        "passed": caught >= least and held == 0,
    }


def at_the_margin(project, sessions):
    """A slow-down of exactly the margin may hardly ever fail."""
    found = [verdict for _, verdict in verdicts(project, sessions, slow=1 + MARGIN)]
    failed = found.count("regressed")
    return {
        "what": f"planted {MARGIN:+.0%}, the margin, called regressed",
        "sessions": sessions,
        "found": f"{failed} (95 % upper limit {upper_limit(failed, sessions):.1%})",
        "demand": "≤ 1 %",
        "passed": failed <= 0.01 * sessions,
    }


def bias_at_two(times):
    """Twice the work against once, while every core is kept busy: the ratio must still be two."""
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


def alone_and_together(project, sessions):
    """The same claim by itself and after another one: ratios within half the margin."""
    ratios = {}
    for arguments in (["-k", "[b]"], []):
        found = []
        for _ in range(sessions):
            path = project.root.parent / "out.json"
            project.pytest(
                "perf_tests", *arguments, f"--benchmark-json={path}", real=1, claims="a,b"
            )
            rows = json.loads(path.read_text())["benchmarks"]
            found += [r["extra_info"]["log_ratio"] for r in rows if r["name"] == "test_claim[b]"]
        ratios[len(arguments)] = median(found)
    apart = math.expm1(abs(ratios[0] - ratios[2]))
    return {
        "what": "one claim alone and in the suite, difference of its ratio",
        "sessions": 2 * sessions,
        "found": f"{apart:.2%}",
        "demand": f"< {MARGIN / 2:.1%}",
        "passed": apart < MARGIN / 2,
    }


CASES = {
    "same": lambda project, n: same_code(project, n(300)),
    "ten": lambda project, n: planted(project, n(100), 10, 0.95),
    "five": lambda project, n: planted(project, n(100), 5, 0.80),
    "margin": lambda project, n: at_the_margin(project, n(100)),
    "bias": lambda _, n: bias_at_two(n(20)),
    "alone": lambda project, n: alone_and_together(project, n(20)),
}


def store(path, name, case):
    """Puts a case in the place of the one stored before, if it was studied on this machine."""
    machine, today = this_machine().id, datetime.datetime.now(datetime.UTC).date().isoformat()
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = before["cases"] if before.get("hardware") == machine else {}
    found = {**kept, name: case | {"date": today}}
    cases = {name: found[name] for name in CASES if name in found}
    result = {"hardware": machine, "cases": cases}
    write_whole(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def main():
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
            passed &= case["passed"]
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
