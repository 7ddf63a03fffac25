"""The pytest plugin: a `claim` fixture over pytest-benchmark, and a session that cannot pass idly.

pytest-benchmark times, stores and compares; this plugin adds the paired timing, the verdict as an
ordinary test failure, and a non-zero exit for every way of being green without having gated. It
keeps quiet in sessions without claims.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression import against, baselines
from mpnn.regression.gate import CHANGED, NOT_RECORDED, PORTABLE_MARGIN, Check, Gate, describe
from mpnn.regression.hardware import this_machine
from mpnn.regression.process import disturbances, fresh_verdict, restart_pinned
from mpnn.regression.table import moved, session_markdown, session_table
from mpnn.regression.timing import Clock, PairedTiming, Rule, Side, Verdict

CONFIRMATIONS = 2
"""Fresh processes that may confirm a change, until one is not void."""

VOID = "void"
"""Said of a fresh process whose control was out of its band."""

DEFAULT_STORAGE = "file://./.benchmarks"
GATE = pytest.StashKey[Gate]()
COLLECTED = pytest.StashKey[list[str]]()  # before deselection
SELECTED = pytest.StashKey[list[str]]()
PASSED = pytest.StashKey[set[str]]()
COMMIT = pytest.StashKey[str]()  # that a recording began with
PROBLEMS = pytest.StashKey[list[str]]()
MOVED = pytest.StashKey[list[str]]()  # rows that were stored changed
REPORTED_VERSIONS = (
    *("mpnn", "numpy", "torch", "mlx", "onnxruntime", "scikit-learn", "scipy"),
    "pytest-benchmark",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the gate."""
    group = parser.getgroup("claims")
    group.addoption(
        "--record", action="store_true", help="measure the claims and store the rows as baselines"
    )
    group.addoption(
        "--quick", action="store_true", help="one short look and a margin of 10 %%: local work"
    )
    group.addoption("--summary", metavar="PATH", help="write the table to PATH, as Markdown")
    group.addoption(
        "--confirm", metavar="PATH", help="write a claim's row to PATH for a session that judges it"
    )
    group.addoption(
        "--against", metavar="REV", help="judge the working tree against a commit (-k filters ids)"
    )


def pytest_cmdline_main(config: pytest.Config) -> pytest.ExitCode | None:
    """With --against, compares two trees instead of running tests."""
    revision = config.option.against
    if revision is None:
        return None
    try:
        table, reasons = against.compare(config.rootpath, revision, config.option.keyword)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    lines = [table, *(f"claims: {reason}" for reason in reasons)]
    sys.stdout.write("\n".join(lines) + "\n")  # the terminal reporter does not exist yet
    _write_summary(config, table, reasons)
    return pytest.ExitCode.TESTS_FAILED if reasons else pytest.ExitCode.OK


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark opens its storage
def pytest_configure(config: pytest.Config) -> None:
    """Points pytest-benchmark at this machine's folder and reads what is stored there."""
    if config.pluginmanager.has_plugin("pytest-benchmark"):
        raise pytest.UsageError("the claims were found too late: start with `pytest perf_tests`")
    option = config.option
    if option.benchmark_storage != DEFAULT_STORAGE:
        raise pytest.UsageError("the gate reads baselines/<hardware>: drop --benchmark-storage")
    if option.benchmark_save or option.benchmark_autosave:
        raise pytest.UsageError(
            "a gated run must not become a baseline by itself: drop --benchmark-save and "
            "--benchmark-autosave; `tox -e record` writes baselines"
        )
    if option.record and option.quick:
        raise pytest.UsageError("a recording takes the looks that it needs: drop --quick")
    root = baselines_root(config)
    folder = root / this_machine().id
    if option.benchmark_json and root in Path(option.benchmark_json).resolve().parents:
        raise pytest.UsageError("only `tox -e record` writes into baselines/")
    option.benchmark_storage = f"file://{folder}"
    try:
        stored = baselines.history(folder)
        if option.record:
            refuse_uncommitted(config)
            config.stash[COMMIT] = str(baselines.commit_info(config.rootpath)["id"])
        latest = baselines.latest_runs(root)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    if option.record or (option.benchmark_compare is True and not stored):
        option.benchmark_compare = []  # nothing to show beside the new rows
    elif stored and not option.benchmark_compare:
        option.benchmark_compare = True
    rows = stored[-1].rows if stored else None
    config.stash[GATE] = Gate(
        stored=rows,
        portable=baselines.portable_rows(latest),
        recording=option.record,
        quick=option.quick,
        recoveries=baselines.stated_recoveries(latest),
        common=baselines.common_rows(latest),
    )


def baselines_root(config: pytest.Config) -> Path:
    """The folder of all stored runs, below the root of the project whatever the directory."""
    return config.rootpath / "baselines"


def refuse_uncommitted(config: pytest.Config) -> None:
    """Raises `InputError` if the working tree holds what no commit describes."""
    changed = [
        path
        for path in baselines.uncommitted(config.rootpath)
        if Path(path).parts[0] != "baselines"  # what other recordings wrote
    ]
    if changed:
        raise InputError(
            f"a baseline must name the commit that it measures, and these are not committed: "
            f"{', '.join(changed[:5])}{' …' if len(changed) > 5 else ''}"
        )


def pytest_benchmark_generate_machine_info() -> dict[str, object]:
    """Machine without what changes from day to day (host, kernel, clock rate)."""
    return this_machine().machine_info()


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, object]:
    """The commit of the project, whatever the current directory."""
    return baselines.commit_info(config.rootpath)


def pytest_benchmark_compare_machine_info(
    machine_info: Mapping[str, Any], compared_benchmark: Mapping[str, Any]
) -> None:
    """Refuses to compare with a run of another machine."""
    ours, theirs = machine_info["hardware"], compared_benchmark["machine_info"].get("hardware")
    if ours != theirs:
        raise pytest.UsageError(
            f"the run to compare with is of {theirs}, this is {ours}; ratios hold for one machine"
        )


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Adds the versions that were measured and the control to every stored or written run."""
    output_json["versions"] = {"python": platform.python_version(), **dict(_versions())}
    control = config.stash[GATE].control
    if control is not None:
        low, high = control.interval(0.01)
        output_json["control"] = {
            "log_ratio": control.log_ratio,
            "log_ratio_low": low,
            "log_ratio_high": high,
        }


@pytest.hookimpl(tryfirst=True)  # before anything is deselected or reordered
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the claims first, into a fresh process, and remembers every one that exists."""
    items.sort(key=lambda item: not _is_claim(item))
    claims = [item for item in items if _is_claim(item)]
    config.stash[COLLECTED] = [item.nodeid for item in claims]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Makes the process fit for timing, or refuses, once it is known that there are claims."""
    config = session.config
    selected = [item.nodeid for item in session.items if _is_claim(item)]
    config.stash[SELECTED] = selected
    if not selected:
        return
    collected = config.stash[COLLECTED]
    found = disturbances(config)
    if selected != [name for name in collected if name in set(selected)]:
        found.append("the order of the claims was changed: they run in one order")
    if found:
        raise pytest.UsageError("; ".join(found))
    if not config.option.collectonly:
        restart_pinned(config)


@pytest.fixture(scope="session")
def perf_clock() -> Clock:
    """The clock of all timings, in seconds."""
    return time.perf_counter


@pytest.fixture(scope="session")
def perf_control() -> Side | None:
    """What is timed against itself before the first claim; None for that claim's reference."""
    return None


ClaimFixture = Callable[..., PairedTiming]


@pytest.fixture
def claim(
    benchmark: Any, request: pytest.FixtureRequest, perf_clock: Clock, perf_control: Side | None
) -> ClaimFixture:
    """`claim(subject, reference, accuracy=..., rule=..., about=...)` times, checks and judges."""
    config, name = request.config, request.node.nodeid
    gate = config.stash[GATE]

    def run(
        subject: Side,
        reference: Side,
        *,
        accuracy: Check,
        rule: Rule = Rule(),  # noqa: B008 (frozen)
        about: Mapping[str, Any] | None = None,
    ) -> PairedTiming:
        if benchmark.disabled:
            pytest.fail("benchmarks are disabled (xdist or --benchmark-disable): not timed", False)
        if name in gate.rows:
            pytest.fail("this claim has run in this session before: reruns are not allowed", False)
        seed = zlib.crc32(name.encode())
        gate.time_control(perf_control or reference, seed, perf_clock)
        timing = gate.time(name, subject, reference, rule, seed, perf_clock)
        _fill(benchmark, subject, timing)
        row = gate.row(name, timing, rule, accuracy(timing)) | dict(about or {})
        gate.rows[name] = row
        if row["verdict"] in CHANGED and not config.option.confirm:
            _confirm(config, name, row)
        benchmark.extra_info.update(row)
        _speak(config, name, row)
        return timing

    return run


def _fill(benchmark: Any, subject: Side, timing: PairedTiming) -> None:
    """Gives pytest-benchmark the legs of the subject, in seconds per unit."""
    iterations = timing.repeats[0] * subject.units
    benchmark.pedantic(subject.call, args=(0,), rounds=1)  # makes the row
    benchmark.stats.stats.data.clear()  # that one call stood outside the pairs
    benchmark.stats.iterations = iterations
    for seconds in timing.subject_seconds:
        benchmark.stats.update(seconds * iterations)


def _confirm(config: pytest.Config, name: str, row: dict[str, Any]) -> None:
    """A change counts only if a fresh process sees it too, one whose own control is in its band.

    A gate asks for the same verdict, a recording for the same figure, within the margin.
    """
    row["first_verdict"] = row["verdict"]
    for _ in range(CONFIRMATIONS):
        again = fresh_verdict(config, name)
        if not again["void"]:
            break
    row["second_log_ratio"] = again["log_ratio"]
    row["second_verdict"] = VOID if again["void"] else again["verdict"]
    if not again["accuracy"]["passed"]:
        row["accuracy"] = again["accuracy"]
    if config.stash[GATE].recording:
        same = abs(again["log_ratio"] - row["log_ratio"]) <= math.log1p(row["margin"])
    else:
        same = again["verdict"] == row["verdict"]
    if again["void"] or not same:
        row["verdict"] = Verdict.UNDECIDED


def _speak(config: pytest.Config, name: str, row: Mapping[str, Any]) -> None:
    """Turns a row into the outcome of its test."""
    gate, option = config.stash[GATE], config.option
    if option.confirm:
        Path(option.confirm).write_text(json.dumps({**row, "void": gate.void}))
        return
    if gate.void:
        pytest.fail(gate.void, False)
    if not row["accuracy"]["passed"]:
        pytest.fail(f"void: accuracy failed, {row['accuracy']['text']}; {describe(row)}", False)
    if gate.recording:
        reasons = baselines.refusals({name: row})
        if reasons:
            pytest.fail(reasons[0], False)
        return
    figures = describe(row)
    if row["verdict"] == NOT_RECORDED:
        message = f"no stored figure ({figures}): `tox -e record` stores it"
        pytest.fail(message, False) if gate.stored is not None else pytest.skip(message)
    failures = {
        Verdict.REGRESSED: f"regressed: {figures}; confirmed in a fresh process",
        Verdict.IMPROVED: f"improved: {figures}; `tox -e record` keeps the gain",
    }
    if row["verdict"] in failures:
        pytest.fail(failures[row["verdict"]], False)
    if row.get("second_verdict") == VOID:
        pytest.fail(
            f"{row['first_verdict']}, but none of {CONFIRMATIONS} fresh processes could tell: "
            f"there the reference differed from itself; {figures}",
            False,
        )
    if row["verdict"] == Verdict.UNDECIDED:
        pytest.skip(f"undecided: {figures}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keeps the times of a failed test out of every file, and remembers which tests passed."""
    report = yield
    if call.when == "call" and report.failed and isinstance(item, pytest.Function):
        fixture: Any = item.funcargs.get("benchmark")
        if fixture is not None:
            fixture.has_error = True
    passed = item.config.stash.setdefault(PASSED, set())
    if call.when == "call" and report.passed:
        passed.add(item.nodeid)
    elif not report.passed:
        passed.discard(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Looks for claims that went missing; stores those rows of a recording that may be stored."""
    config = session.config
    gate, option = config.stash.get(GATE, None), config.option
    if gate is None or option.collectonly or SELECTED not in config.stash:
        return
    selected: list[str] = config.stash[SELECTED]
    if selected and option.confirm:  # whoever asked for the row reads it, and judges
        config.stash[PROBLEMS] = [f"--confirm judges nothing: the row goes to {option.confirm}"]
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return
    vanished = _vanished(config, gate)
    problems = gate.problems(selected, () if option.record else vanished)
    config.stash[PROBLEMS] = problems
    if option.record:
        problems += baselines.refusals(gate.rows)
        ended = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if not ended or session.shouldfail or session.shouldstop:
            problems.append("nothing was recorded: the session did not come to its end")
        elif not gate.void:
            problems += _record(config, vanished)
    if problems and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _vanished(config: pytest.Config, gate: Gate) -> list[str]:
    """Stored rows that belong to the files of this session, but to no test in them."""
    paths = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args]
    left_out = [path.resolve() for path in map(Path, config.getoption("ignore", None) or ())]
    collected: list[str] = config.stash[COLLECTED]

    def asked_for(name: str) -> bool:
        file = (config.rootpath / name.split("::")[0]).resolve()
        if file in left_out and file.exists():
            return False
        return any(path == file or path in file.parents for path in paths)

    return [name for name in gate.expected_rows if name not in collected and asked_for(name)]


def _record(config: pytest.Config, vanished: Iterable[str]) -> list[str]:
    """Stores the rows of the tests that passed; the others stay as the run before had them.

    Returns:
        Why nothing was stored, where that was not for want of rows.
    """
    passed = config.stash.get(PASSED, set())
    if not passed:
        return []
    try:  # again: the run took minutes
        refuse_uncommitted(config)
    except InputError as error:
        return [f"nothing was recorded: {error}"]
    if baselines.commit_info(config.rootpath)["id"] != config.stash[COMMIT]:
        return ["nothing was recorded: another commit was checked out while claims were measured"]
    session: Any = config.pluginmanager.get_plugin("pytest-benchmark")
    data = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=session.benchmarks,
        include_data=False,
        machine_info=session.get_machine_info(),
        commit_info=config.hook.pytest_benchmark_generate_commit_info(config=config),
    )
    config.hook.pytest_benchmark_update_json(
        config=config, benchmarks=session.benchmarks, output_json=data
    )
    data["benchmarks"] = [row for row in data["benchmarks"] if row["fullname"] in passed]
    try:
        baselines.write(baselines_root(config) / this_machine().id, data, vanished)
    except InputError as error:
        return [f"nothing was recorded: {error}"]
    measured = config.stash[GATE].rows.items()
    config.stash[MOVED] = [
        moved(name, row) for name, row in measured if name in passed and row["verdict"] in CHANGED
    ]
    return []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The verdicts as a table, the machine, and what is wrong with the session."""
    gate = config.stash.get(GATE, None)
    if gate is None:
        return
    problems: list[str] = config.stash.get(PROBLEMS, [])
    if gate.rows:
        terminalreporter.section(f"claims on {this_machine().id}")
        terminalreporter.write_line(session_table(gate.rows, terminalreporter.hasmarkup))
        _write_summary(config, session_markdown(gate.rows), problems)
    if gate.rows and not gate.recording:
        collected: list[str] = config.stash[COLLECTED]
        unjudged = set(gate.stored or {}) & set(collected) - set(gate.rows)
        if unjudged:
            terminalreporter.write_line(
                f"{len(unjudged)} stored claims were not judged; `-m ''` adds the slow ones"
            )
        if gate.stored is None:
            terminalreporter.write_line(_welcome(bool(gate.portable)), yellow=True)
    found = config.stash.get(MOVED, [])
    for line in found:
        terminalreporter.write_line(f"{line}, confirmed in a fresh process: stored", yellow=True)
    if found:
        terminalreporter.write_line("say why in baselines/README.md", yellow=True)
    for problem in problems:
        terminalreporter.write_line(f"claims: {problem}", red=True)


def _write_summary(config: pytest.Config, table: str, problems: list[str]) -> None:
    """Writes what a session found to the file that was asked for."""
    if config.option.summary and not config.option.confirm:
        said = "".join(f"- {problem}\n" for problem in problems)
        write_whole(config.option.summary, f"{table}\n\n{said}")


def _welcome(others: bool) -> str:
    """What a first run on a machine means; `others` is whether any machine has a stored run."""
    machine = this_machine().id
    held = (
        f"its claims were held against the ratios of the recorded machines, with a margin of "
        f"{PORTABLE_MARGIN:.0%}"
        if others
        else "no other machine has one either, so its claims were held against nothing"
    )
    return (
        f"{machine} has no stored run yet: {held}. To gate at each claim's own margin, "
        f"close other work, run `tox -e record` in a clean clone, renew the table by "
        f"`mpnn report --readme README.md`, and commit it with baselines/{machine}/."
    )


def _is_claim(item: pytest.Item) -> bool:
    return {"claim", "benchmark"} <= set(getattr(item, "fixturenames", ()))


def _versions() -> Iterator[tuple[str, str]]:
    for name in REPORTED_VERSIONS:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
