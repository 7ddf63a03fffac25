"""The error rates of the gate on this machine: many whole sessions of the real exact claims.

`tox -e gate-study` runs sessions until there are enough of every kind, and each appends a line to
baselines/gate-sessions.jsonl when it ends. It may be interrupted and continued on other days:
`--kind same five` runs those kinds, `--most 20` at most 20 sessions of each. Sessions of another
machine, or under other rules than today's, are not counted. The rates go to gate-study.json.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import binomtest

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression.baselines import commit_info, run_files
from mpnn.regression.claims import CLAIMS, not_measured_here
from mpnn.regression.machine import PINNED, this_machine
from mpnn.regression.usage import other_work
from mpnn.regression.verdict import Rule, Verdict
from mpnn.studies.planted import VARIABLE
from mpnn.studies.tables import GATE

ROOT = Path(__file__).parents[2]
BASELINES = ROOT / "baselines"
SESSIONS = "gate-sessions.jsonl"
PYTEST = [sys.executable, "-m", "pytest", "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"]
TESTS = "perf_tests/test_speed.py"
GATED = "[exact-1x106] or [exact-8x106]"
COMPARED = "exact-8x106"
WORDS = re.compile(r"\b(void|regressed|improved|undecided|not judged|no stored figure)\b")
SHOWS = ("page", "report", "tables")  # modules of the gate that judge nothing
ENGINE = Path("mpnn", "optimizations", "native", "engine.py")
PLANT = "\nfrom mpnn.studies.planted import slow_down\n\nslow_down(NativeEngine, {percent})\n"
INNOCENT = "\n# a comment\n"

Session = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Sessions of one kind.

    Attributes:
        what: for people.
        sessions: how many are wanted.
        percent: what is planted.
        against: "head" or "base", in which of two commits; "" gates against the stored runs.
        least: share of sessions that must be red.
        most: share of sessions that may be red.
    """

    what: str
    sessions: int = 100
    percent: int = 0
    against: str = ""
    least: float = 0.0
    most: float = 1.0


KINDS = {
    "same": Kind("same code", sessions=300, most=0.0),
    "three": Kind("+3 %, the margin", percent=3),
    "five": Kind("+5 %", percent=5, least=0.95),
    "ten": Kind("+10 %", percent=10, least=1.0),
    "against-same": Kind("`--against` an innocent commit", against="head", most=0.0),
    "against-ten": Kind("`--against`, +10 % in the head", percent=10, against="head", least=1.0),
    "against-base": Kind("`--against`, +10 % in the base", percent=10, against="base", most=0.0),
}


def rules() -> str:
    """Digest of the modules that measure and judge: sessions under other rules do not count."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "mpnn" / "regression").glob("*.py")):
        if path.stem not in SHOWS:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def run_session(root: Path, arguments: Sequence[str], **environ: str) -> Session:
    """One whole pytest session in a new process.

    Args:
        root: the project.
        arguments: of pytest.
        environ: more environment.

    Returns:
        Exit code, verdict of each claim, seconds, and how many cores other work kept busy.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    fixed = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": paths}
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        others = other_work()
        used = others.seconds if others else lambda: math.nan
        before, start = used(), time.monotonic()
        done = subprocess.run(
            [*PYTEST, *arguments, f"--junit-xml={junit}"],
            cwd=root,
            env={**clean, **PINNED, **fixed, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - start
        beside = (used() - before) / seconds
        found = verdicts(junit) if junit.exists() else compared(done.stdout)
    if not found:
        raise InputError(f"a session judged nothing:\n{done.stdout}{done.stderr}")
    return {"code": done.returncode, "verdicts": found, "seconds": seconds, "beside": beside}


def verdicts(junit: Path) -> dict[str, str]:
    """Verdict of every claim that a session judged, from pytest's JUnit file."""
    found = {}
    for case in ET.parse(junit).iter("testcase"):
        claim = case.attrib["name"].partition("[")[2].removesuffix("]")
        said = " ".join(child.get("message", "") for child in case)
        word = WORDS.search(said)
        found[claim] = word[0] if word else "other" if said else "holds"
    return found


def compared(output: str) -> dict[str, str]:
    """Verdict of every claim in the table that `--against` prints; one that it leaves out holds."""
    rows = [line.split("|") for line in output.splitlines() if line.startswith("| `")]
    cells = {row[1].strip(" `"): {cell.strip() for cell in row} for row in rows}
    found = {name: word for name, row in cells.items() for word in row & set(Verdict)}
    return found or ({COMPARED: "holds"} if " claims compared with " in output else {})


def two_commits(folder: Path, kind: Kind) -> Path:
    """A clone whose last commit differs from the one before by what is planted, or by nothing."""
    git = ["git", "-C", str(folder), "-c", "user.name=study", "-c", "user.email=study@example.org"]
    subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(folder)], check=True)
    clean = (folder / ENGINE).read_text(encoding="utf-8")
    slow = clean + (PLANT.format(percent=kind.percent) if kind.percent else INNOCENT)
    for text in (clean + INNOCENT, slow) if kind.against == "head" else (slow, clean + INNOCENT):
        (folder / ENGINE).write_text(text, encoding="utf-8")
        subprocess.run([*git, "commit", "-qam", "planted", "--allow-empty"], check=True)
    return folder


def study(kind: Kind, folder: Path) -> Session:
    """One session of a kind.

    Args:
        kind: what is planted, and where.
        folder: for a clone, made by the first session of the kind.
    """
    if not kind.against:
        planted = {"PYTEST_PLUGINS": "mpnn.studies.planted", VARIABLE: str(kind.percent)}
        return run_session(ROOT, [TESTS, "-k", GATED], **(planted if kind.percent else {}))
    if not folder.exists():
        two_commits(folder, kind)
    return run_session(folder, [TESTS, "--against", "HEAD~1", "-k", COMPARED])


def finished(path: Path) -> list[Session]:
    """Sessions of this machine and today's rules that have ended."""
    if not path.exists():
        return []
    here = {"hardware": this_machine().id, "rules": rules()}
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut short
    return [session for session in found if here.items() <= session.items()]


def missing(kinds: Sequence[str], sessions: Sequence[Session]) -> list[str]:
    """Kinds of which not all wanted sessions have ended."""
    done = Counter(session["kind"] for session in sessions)
    return [name for name in kinds if done[name] < KINDS[name].sessions]


def append(path: Path, kind: str, session: Session) -> None:
    """Adds a session, with what it measured, to the file."""
    signed = {
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": this_machine().id,
        "commit": commit_info(ROOT)["id"],
        "rules": rules(),
    }
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    complete = text[: text.rfind("\n") + 1]
    write_whole(path, complete + json.dumps(signed | session) + "\n")


def rate(count: int, total: int) -> tuple[float, float]:
    """Exact (Clopper–Pearson) 95 % interval of a rate."""
    found = binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def case(kind: Kind, sessions: Sequence[Session]) -> dict[str, Any]:
    """What sessions of one kind say, for the table."""
    n, red = len(sessions), sum(session["code"] != 0 for session in sessions)
    low, high = rate(red, n)
    words = [word for session in sessions for word in session["verdicts"].values()]
    beside = sorted(session["beside"] for session in sessions)
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words)))
    demand = "none red" if not kind.most else f"≥ {kind.least:.0%} red" if kind.least else "–"
    return {
        "what": f"{kind.what} ({', '.join(sessions[0]['verdicts'])})",
        "sessions": n,
        "found": f"{red} red, {red / n:.1%} [{low:.1%}, {high:.1%}]; claims: {counts}; "
        f"{median(s['seconds'] for s in sessions):.0f} s each, "
        f"{beside[0]:.1f}–{beside[-1]:.1f} cores busy beside it",
        "demand": demand,
        "passed": kind.least <= red / n <= kind.most,
        "red": red,
        "interval": [low, high],
        "beside": [beside[0], median(beside), beside[-1]],
        "commits": sorted({session["commit"][:8] for session in sessions}),
        "date": max(session["date"] for session in sessions)[:10],
    }


def chance_red(claims: int, rule: Rule) -> float:
    """Bound on the chance that a clean session calls one of its claims regressed or improved.

    A look calls a claim whose true ratio lies at the margin changed with `alpha_fail` at most, and
    a fresh process must say the same: all looks of both add up. Nearer to the stored ratio the
    chance is smaller; noise that leaves claims undecided is not part of it.
    """
    one: float = (rule.looks * rule.alpha_fail) ** 2
    return 1 - (1 - one) ** claims


def computed(sessions: Sequence[Session]) -> dict[str, Any]:
    """The chance that a clean session with every short claim is red: its bound, and as measured."""
    n = sum(not (c.slow or c.timed_as or not_measured_here(c)) for c in CLAIMS)
    words = [word for session in sessions for word in session["verdicts"].values()]
    _, high = rate(sum(word != "holds" for word in words), len(words))
    bound = chance_red(n, Rule())
    return {
        "what": f"computed: a clean session of {n} claims calls one changed",
        "sessions": len(sessions),
        "found": f"≤ {bound:.2%} if all of them lay at the margin; of {len(words)} measured claims "
        f"{sum(word != 'holds' for word in words)} did not hold (95 % upper limit {high:.2%} each)",
        "demand": "< 1 %",
        "passed": bound < 0.01,
        "date": max(session["date"] for session in sessions)[:10],
    }


def aggregate(sessions: Iterable[Session]) -> dict[str, Any]:
    """Every kind's rates, in the order of the list."""
    by_kind: dict[str, list[Session]] = {}
    for session in sessions:
        by_kind.setdefault(session["kind"], []).append(session)
    cases = {name: case(kind, by_kind[name]) for name, kind in KINDS.items() if name in by_kind}
    if "same" in by_kind:
        cases["computed"] = computed(by_kind["same"])
    return {"hardware": this_machine().id, "cases": cases}


def main() -> int:
    """Runs the sessions that are missing, stores the rates, and exits with 1 if one is too high."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--most", type=int, default=1000, help="sessions of each kind in this run")
    parser.add_argument("--out", type=Path, default=BASELINES, help="folder of both files")
    options = parser.parse_args()
    path = options.out / SESSIONS
    if not run_files(BASELINES / this_machine().id):
        parser.error("this machine has no stored run to gate against: `tox -e record` first")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.most):  # kinds take turns, so that they share the conditions
            for name in missing(options.kind, finished(path)):
                found = study(KINDS[name], Path(folder) / name)
                append(path, name, found)
                sys.stderr.write(f"{name}: {found}\n")
    result = aggregate(finished(path))
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_whole(options.out / GATE, text)
    return 0 if all(found["passed"] for found in result["cases"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
