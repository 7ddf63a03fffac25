"""The pytest plugin: a `claim` fixture, and a session that fails unless it really gated something.

pytest-benchmark times, stores and compares; this plugin adds paired timing, the verdict as an
ordinary test failure, and a non-zero exit code for every way of passing without having gated. Each
hook only calls the other modules. Sessions without claims are left alone.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.regression import against, baselines, machine
from mpnn.regression.rows import Row
from mpnn.regression.session import Check, Session, require_committed
from mpnn.regression.tables import moved, only_changed, session_markdown, session_table
from mpnn.regression.timing import Clock, Gate, PairedTiming, Side
from mpnn.regression.verdict import (
    CHANGED,
    Outcome,
    Rule,
    confirmed,
    outcome,
    refusals,
)

CONFIRMATIONS = 2
"""Fresh processes that may confirm a change, until one is not void."""

DEFAULT_STORAGE = "file://./.benchmarks"
GATE = pytest.StashKey[Session]()
COLLECTED = pytest.StashKey[list[str]]()  # before deselection
SELECTED = pytest.StashKey[list[str]]()
PASSED = pytest.StashKey[set[str]]()
COMMIT = pytest.StashKey[str]()  # at the start of a recording
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
    group.addoption(
        "--accept",
        metavar="IDS",
        default="",
        help="with --record: store these claims (ids, separated by commas) although they are "
        "slower than the last, the best or the first stored row",
    )
    group.addoption("--summary", metavar="PATH", help="write the table to PATH, as Markdown")
    group.addoption(
        "--confirm", metavar="PATH", help="write a claim's row to PATH for a session that judges it"
    )
    group.addoption(
        "--against", metavar="REV", help="judge the working tree against a commit (-k filters ids)"
    )
    group.addoption(
        "--outputs-may-change", action="store_true", help="with --against: outputs may differ"
    )


def pytest_cmdline_main(config: pytest.Config) -> pytest.ExitCode | None:
    """With --against, compares two trees instead of running tests."""
    revision = config.option.against
    if revision is None:
        return None
    option = config.option
    try:
        table, reasons = against.compare(
            config.rootpath, revision, option.keyword, option.outputs_may_change
        )
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    lines = [table, *(f"claims: {reason}" for reason in reasons)]
    sys.stdout.write("\n".join(lines) + "\n")  # the terminal reporter does not exist yet
    _write_summary(config, only_changed(table), reasons)
    return pytest.ExitCode.TESTS_FAILED if reasons else pytest.ExitCode.OK


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark opens its storage
def pytest_configure(config: pytest.Config) -> None:
    """Points pytest-benchmark at this machine's folder and reads what is stored there."""
    root, option = baselines_root(config), config.option
    if reason := _unusable(config, root):
        raise pytest.UsageError(reason)
    hardware = machine.this_machine().id
    option.benchmark_storage = f"file://{root / hardware}"
    try:
        session = Session.of(root, hardware, option.record, option.quick, option.accept)
        if option.record:
            config.stash[COMMIT] = require_committed(config.rootpath)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
    if option.record or (option.benchmark_compare is True and session.stored is None):
        option.benchmark_compare = []  # nothing to show beside the new rows
    elif session.stored is not None and not option.benchmark_compare:
        option.benchmark_compare = True
    config.stash[GATE] = session


def _unusable(config: pytest.Config, root: Path) -> str:
    """Which option or plugin would keep the session from gating; '' if none does."""
    option = config.option
    if config.pluginmanager.has_plugin("pytest-benchmark"):
        return "the claims were found too late: start with `pytest perf_tests`"
    if option.benchmark_storage != DEFAULT_STORAGE:
        return "the gate reads baselines/<hardware>: drop --benchmark-storage"
    if option.benchmark_save or option.benchmark_autosave:
        return (
            "a gated run must not become a baseline by itself: drop --benchmark-save and "
            "--benchmark-autosave; `tox -e record` writes baselines"
        )
    if option.record and option.quick:
        return "a recording takes the looks that it needs: drop --quick"
    if option.benchmark_json and root in Path(option.benchmark_json).resolve().parents:
        return "only `tox -e record` writes into baselines/"
    return ""


def baselines_root(config: pytest.Config) -> Path:
    """The folder of all stored runs, below the root of the project whatever the directory."""
    return config.rootpath / "baselines"


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark's own, however this was loaded
def pytest_benchmark_generate_machine_info() -> dict[str, object]:
    """Machine without what changes from day to day (host, kernel, clock rate)."""
    return machine.this_machine().machine_info()


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark's own, however this was loaded
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
    if control := config.stash[GATE].control_info():
        output_json["control"] = control


@pytest.hookimpl(tryfirst=True)  # before anything is deselected or reordered
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the claims first, into a fresh process, and remembers every one that exists."""
    items.sort(key=lambda item: not _is_claim(item))
    claims = [item for item in items if _is_claim(item)]
    config.stash[COLLECTED] = [item.nodeid for item in claims]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Prepares the process for timing, or refuses, once it is known that there are claims."""
    config = session.config
    selected = [item.nodeid for item in session.items if _is_claim(item)]
    config.stash[SELECTED] = selected
    if not selected:
        return
    found = machine.disturbances(config)
    if selected != [name for name in config.stash[COLLECTED] if name in set(selected)]:
        found.append("the order of the claims was changed: they run in one order")
    if found:
        raise pytest.UsageError("; ".join(found))
    if not config.option.collectonly:
        try:
            machine.restart_pinned(config)
        except InputError as error:
            raise pytest.UsageError(str(error)) from error


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
    """`claim(subject, reference, accuracy=, rule=, about=, gate=)` times, checks and judges."""
    config, name = request.config, request.node.nodeid
    session = config.stash[GATE]

    def run(
        subject: Side,
        reference: Side,
        *,
        accuracy: Check,
        rule: Rule = Rule(),  # noqa: B008 (frozen)
        about: Mapping[str, Any] | None = None,
        gate: Gate | None = None,
    ) -> PairedTiming:
        if benchmark.disabled:
            pytest.fail("benchmarks are disabled (xdist or --benchmark-disable): not timed", False)
        if name in session.rows:
            pytest.fail("this claim has run in this session before: reruns are not allowed", False)
        seed = zlib.crc32(name.encode())
        session.time_control(perf_control or reference, seed, perf_clock)
        timings = session.time(name, subject, reference, rule, seed, perf_clock, gate)
        _fill(benchmark, subject, timings.judged)
        row = session.row(name, timings, rule, accuracy(timings.shown), gate)
        cost = {"cost": timings.judged.cost} if timings.judged.cost else {}
        row = session.rows[name] = replace(row, about={**(about or {}), **cost})
        if row.verdict in CHANGED and not config.option.confirm:
            row = session.rows[name] = _confirm(config, name, row)
        benchmark.extra_info.update(row.extra_info())
        _end(_outcome(config, name, row))
        return timings.judged

    return run


def _fill(benchmark: Any, subject: Side, timing: PairedTiming) -> None:
    """Gives pytest-benchmark the timed runs of the subject, in seconds per unit."""
    iterations = timing.repeats[0] * subject.units
    benchmark.pedantic(subject.call, args=(0,), rounds=1)  # makes the row
    benchmark.stats.stats.data.clear()  # that one call was not part of a pair
    benchmark.stats.iterations = iterations
    for seconds in timing.subject_seconds:
        benchmark.stats.update(seconds * iterations)


def _confirm(config: pytest.Config, name: str, row: Row) -> Row:
    """A changed row after fresh processes have measured it, until one is not void."""
    try:
        for _ in range(CONFIRMATIONS):
            again = machine.fresh_row(config, name)
            void = again.pop("void")
            if not void:
                break
    except InputError as error:
        pytest.fail(str(error), False)
    return confirmed(row, Row.of(again), bool(void), config.stash[GATE].recording)


def _outcome(config: pytest.Config, name: str, row: Row) -> Outcome:
    """The outcome of a claim's test; with --confirm its row goes to a file instead."""
    session, path = config.stash[GATE], config.option.confirm
    if path:
        Path(path).write_text(json.dumps({**row.extra_info(), "void": session.void}))
        return Outcome()
    stored = session.stored or {}
    accepted = session.accepts(name)
    return outcome(row, session.void, session.recording, stored.get(name), bool(stored), accepted)


def _end(found: Outcome) -> None:
    """Ends a test with an outcome."""
    if found.status == "failed":
        pytest.fail(found.message, False)
    if found.status == "skipped":
        pytest.skip(found.message)


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
    """Finds claims that went missing; stores those rows of a recording that may be stored."""
    config = session.config
    if GATE not in config.stash or config.option.collectonly or SELECTED not in config.stash:
        return
    gate, path = config.stash[GATE], config.option.confirm
    selected, collected = config.stash[SELECTED], config.stash[COLLECTED]
    if selected and path:  # the session that reads the row judges it
        problems = [f"--confirm judges nothing: the row goes to {path}"]
    else:
        vanished = _vanished(config, gate)
        problems = gate.problems(collected, selected, () if gate.recording else vanished)
        if gate.recording:
            accepted = {name for name in gate.rows if gate.accepts(name)}
            problems += refusals(gate.rows, accepted) + _record(session, vanished)
    config.stash[PROBLEMS] = problems
    if problems and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _vanished(config: pytest.Config, gate: Session) -> list[str]:
    """Stored rows that belong to the files of this session, but to no test in them."""
    paths = [Path(config.invocation_params.dir, argument).resolve() for argument in config.args]
    left_out = [path.resolve() for path in map(Path, config.getoption("ignore", None) or ())]
    collected = config.stash[COLLECTED]

    def included(name: str) -> bool:
        file = (config.rootpath / name.split("::")[0]).resolve()
        if file in left_out and file.exists():
            return False
        return any(path == file or path in file.parents for path in paths)

    return [name for name in gate.expected_rows if name not in collected and included(name)]


def _record(session: pytest.Session, vanished: list[str]) -> list[str]:
    """Stores the rows of the tests that passed; the others stay as the run before had them.

    Returns:
        Why nothing was stored, unless no row could be.
    """
    config = session.config
    gate, passed = config.stash[GATE], config.stash.get(PASSED, set())
    ended = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if not ended or session.shouldfail or session.shouldstop:
        return ["nothing was recorded: the session did not finish"]
    if gate.void or not passed:
        return []
    try:
        if require_committed(config.rootpath) != config.stash[COMMIT]:  # the run took minutes
            raise InputError("another commit was checked out while claims were measured")
        data = _benchmark_data(config)
        data["benchmarks"] = [row for row in data["benchmarks"] if row["fullname"] in passed]
        dropped = {*vanished, *gate.retired}
        baselines.write(baselines_root(config) / machine.this_machine().id, data, dropped)
    except InputError as error:
        return [f"nothing was recorded: {error}"]
    config.stash[MOVED] = [
        moved(name, row)
        for name, row in gate.rows.items()
        if name in passed and row.verdict in CHANGED
    ]
    return []


def _benchmark_data(config: pytest.Config) -> dict[str, Any]:
    """The session as pytest-benchmark stores it."""
    session: Any = config.pluginmanager.get_plugin("pytest-benchmark")
    data: dict[str, Any] = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=session.benchmarks,
        include_data=False,
        machine_info=session.get_machine_info(),
        commit_info=config.hook.pytest_benchmark_generate_commit_info(config=config),
    )
    config.hook.pytest_benchmark_update_json(
        config=config, benchmarks=session.benchmarks, output_json=data
    )
    return data


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The verdicts as a table, the machine, and what is wrong with the session."""
    if GATE not in config.stash:
        return
    gate, problems = config.stash[GATE], config.stash.get(PROBLEMS, [])
    if gate.rows:
        terminalreporter.section(f"claims on {machine.this_machine().id}")
        terminalreporter.write_line(session_table(gate.rows, terminalreporter.hasmarkup))
        _write_summary(config, session_markdown(gate.rows), problems)
    if gate.rows and not gate.recording:
        collected = config.stash[COLLECTED]
        unjudged = set(gate.expected_rows) & set(collected) - set(gate.rows)
        if unjudged and gate.stored is not None:
            terminalreporter.write_line(
                f"{len(unjudged)} stored claims were not judged; `-m ''` adds the slow ones"
            )
        if gate.stored is None:
            terminalreporter.write_line(_welcome(), yellow=True)
    found = config.stash.get(MOVED, [])
    for line in found:
        terminalreporter.write_line(f"{line}, confirmed in a fresh process: stored", yellow=True)
    if found:
        terminalreporter.write_line("say why in baselines/README.md", yellow=True)
    for problem in problems:
        terminalreporter.write_line(f"claims: {problem}", red=True)


def _write_summary(config: pytest.Config, table: str, problems: list[str]) -> None:
    """Writes what a session found to the file that was named."""
    if config.option.summary and not config.option.confirm:
        said = "".join(f"- {problem}\n" for problem in problems)
        write_whole(config.option.summary, f"{table}\n\n{said}")


def _welcome() -> str:
    """What a first run on a machine means."""
    name = machine.this_machine().id
    return (
        f"{name} has no stored run yet: work counters and accuracy were gated, speed was not. "
        "`--against REV` judges speed against a commit on any machine. To gate it here, close "
        "other work, run `tox -e record` in a clean clone, renew the tables by `mpnn report "
        "--readme README.md --results baselines/RESULTS.md`, and commit them with "
        f"baselines/{name}/."
    )


def _is_claim(item: pytest.Item) -> bool:
    return {"claim", "benchmark"} <= set(getattr(item, "fixturenames", ()))


def _versions() -> Iterator[tuple[str, str]]:
    if sys.platform == "darwin":
        yield "macOS", f"{machine.macos_version()} {machine.said('sysctl', '-n', 'kern.osversion')}"
    for name in REPORTED_VERSIONS:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
