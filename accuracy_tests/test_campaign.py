"""Runs over many structures: any split gives the same bytes, and nothing is lost on the way."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli_runs import run, sequences
from fatal_engine import EXHAUSTS, KILLS, WAITS
from fatal_tasks import FATAL_TASKS, square_or_die
from synthetic_files import write_pdb

from mpnn import campaign, executors, tasks
from mpnn.errors import InputError
from mpnn.manifest import Shard, manifests, read
from mpnn.synthetic import synthetic_backbone

pytest_plugins = ["cli_fixtures"]

COUNT = 9
FATAL = "fatal_engine:FatalEngine"


def write_structures(folder: Path, *lengths: int) -> None:
    """Structures s0.pdb, s1.pdb and so on."""
    folder.mkdir(exist_ok=True)
    for n, length in enumerate(lengths):
        write_pdb(folder / f"s{n}.pdb", synthetic_backbone(length, seed=n))


@pytest.fixture
def many(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to work in, with nine small structures in `in`; processes find the tests.

    Runs start processes where a test asks for workers, not by the cores of the machine.
    """
    monkeypatch.setattr(executors, "cores", lambda: 1)
    write_structures(here / "in", *range(20, 20 + COUNT))
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *filter(None, sys.path)]))
    monkeypatch.syspath_prepend(tests)
    return here


def results(folder: Path) -> dict[str, bytes]:
    """Content of all results by name."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("manifest")}


def design(made: str, *arguments: object, out: str = "seqs") -> int:
    """Exit code of a run over `in` with two samples each."""
    done = run("design", "in", "--weights", made, "--num-seqs", 2, "--out", out, *arguments)
    assert "Traceback" not in done.output
    return done.exit_code


def start(made: str, *arguments: str) -> subprocess.Popen[str]:
    """The same in a process that can be killed."""
    command = [sys.executable, "-m", "mpnn", "design", "in", "--weights", made, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, seconds: float = 120) -> None:
    """Waits until the condition holds; a machine may be slow."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- splits ---------------------------------------------------------------------------------


def test_any_split_gives_the_same_bytes(many: Path, made: str) -> None:
    """One process, several, shards in any order and an executor write equal files."""
    assert design(made, "--workers", 1, "--format", "json", out="one") == 0
    expected = results(many / "one")
    assert len(expected) == COUNT
    assert design(made, "--workers", 2, "--format", "json", out="two") == 0
    for shard in ("4/4", "1/4", "3/4", "2/4"):
        assert design(made, "--shard", shard, "--format", "json", out="shards") == 0
    with ThreadPoolExecutor(2) as pool:
        settings = {"weights": made, "num_seqs": 2, "format": "json"}
        summary = campaign.design(["in"], "threads", executor=pool, **settings)
    assert (summary.done, summary.skipped, summary.failed) == (COUNT, 0, {})
    for folder in ("two", "shards", "threads"):
        assert results(many / folder) == expected


def test_weights_load_once_in_each_process(
    many: Path, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker makes its engine for the first structure, and again only for another job."""
    loaded: list[str | None] = []

    def load(options: Any) -> Any:
        loaded.append(options.temperature)
        return original(options)

    original = tasks.load_model
    for module in (campaign, tasks):
        monkeypatch.setattr(module, "load_model", load)
    kept: list[Any] = []
    perform = campaign.perform
    monkeypatch.setattr(campaign, "perform", lambda task, *_: kept.append(task) or perform(task))
    for temperature in ("0.1", "0.2"):
        design(made, "--temperature", temperature, "--workers", 1, out=f"out{temperature}")
    assert loaded == ["0.1", "0.2"]
    monkeypatch.setattr(tasks, "_READY", [None])  # as in a new process
    for task in kept:
        perform(task)
    assert loaded == ["0.1", "0.2"] * 2
    assert many


def test_shards_are_a_stable_partition(many: Path) -> None:
    """Every structure is in one shard, whichever way the files were named."""
    files = sorted((many / "in").iterdir())
    parts = [Shard(n, 4).pick(reversed(files)) for n in range(1, 5)]
    assert sorted(itertools.chain(*parts)) == files
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [Shard(n, 4).pick(files) for n in range(1, 5)]


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1", "1/", "-1/4", "1/0", "²/4"])
def test_bad_shards(text: str) -> None:
    """The rule is in the message."""
    with pytest.raises(InputError, match=r"write I/N with I from 1 to N, such as 3/400"):
        Shard.parse(text)


def test_rules_of_every_kind_reach_other_processes(many: Path, made: str) -> None:
    """Options, published files and a file of rules split into one structure's own."""
    (many / "rules.json").write_text(json.dumps({"s3": {"fixed": "A1-5"}}))
    (many / "fixed.jsonl").write_text(json.dumps({f"s{n}": {"A": [n + 7]} for n in range(COUNT)}))
    (many / "bias.json").write_text(json.dumps({"A": 0.5}))
    (many / "by_res.json").write_text(json.dumps({f"s{n}": {"A3": {"W": 9}} for n in range(COUNT)}))
    rules = ["--rules", "rules.json", "--published-rules", "fixed.jsonl", "--omit", "C"]
    rules += ["--published-rules", "bias.json", "--bias-per-residue", "by_res.json"]
    assert design(made, *rules, "--workers", 1, out="one") == 0
    assert design(made, *rules, "--workers", 2, out="two") == 0
    assert results(many / "one") == results(many / "two")
    assert all(
        text[2] == "W" for n in range(4, COUNT) for text in sequences(many / f"one/s{n}.fa")[1:]
    )


def test_standard_output_keeps_the_order(many: Path, made: str) -> None:
    """Printed results come in the order of the structures, however many processes work."""
    arguments = ("design", "in", "--weights", made, "--out", "-")
    expected = run(*arguments, "--workers", 1)
    found = run(*arguments, "--workers", 2)
    assert (found.exit_code, found.stdout) == (0, expected.stdout)
    assert not manifests(many)


def test_scores_split_too(many: Path, made: str) -> None:
    """`mpnn score` has the same shards, processes and manifest."""
    arguments = ("score", "in", "--weights", made)
    assert run(*arguments, "--out", "one", "--workers", 1).exit_code == 0
    for n in (1, 2):
        assert run(*arguments, "--out", "two", "--shard", f"{n}/2", "--workers", n).exit_code == 0
    assert results(many / "one") == results(many / "two")


# --- resuming -------------------------------------------------------------------------------


def test_a_run_resumes_with_what_is_missing(many: Path, made: str) -> None:
    """Done structures are skipped unless their result or their file has changed."""
    assert design(made) == 0
    files = list((many / "seqs").glob("*.fa"))
    before = {p: p.stat().st_mtime_ns for p in files}
    (many / "seqs" / "s2.fa").unlink()
    write_pdb(many / "in" / "s5.pdb", synthetic_backbone(31))
    done = run("design", "in", "--weights", made, "--num-seqs", 2)
    assert f"{COUNT - 2} structures are done already" in done.stderr
    changed = {
        p.name for p in (many / "seqs").glob("*.fa") if before.get(p) != p.stat().st_mtime_ns
    }
    assert changed == {"s2.fa", "s5.fa"}
    assert len(sequences(many / "seqs" / "s5.fa")[0]) == 31


def test_what_failed_is_tried_again(many: Path, made: str) -> None:
    """A bad file among good ones is one failure, which another run makes good."""
    good = (many / "in" / "s4.pdb").read_bytes()
    (many / "in" / "s4.pdb").write_text("nothing")
    assert design(made) == 1
    assert design(made) == 1  # of structures done before and one that fails, too
    assert read(many / "seqs" / "manifest.jsonl")[1]["s4"].status == "failed"
    (many / "in" / "s4.pdb").write_bytes(good)
    assert design(made) == 0
    assert read(many / "seqs" / "manifest.jsonl")[1]["s4"].status == "done"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_resumes(many: Path, made: str, workers: str) -> None:
    """After SIGKILL no process is left, no file is partial, and the end is that of a whole run."""
    write_structures(many / "in", *range(30, 50))
    options = ("--num-seqs", "40", "--workers", workers)
    process = start(made, *options)
    wait_for(lambda: len(list(many.glob("seqs/*.fa"))) >= 2)
    process.kill()
    process.communicate()
    count = len(list(many.glob("seqs/*.fa")))
    assert count < 20
    done = run("design", "in", "--weights", made, *options)
    assert done.exit_code == 0
    assert run("design", "in", "--weights", made, "--num-seqs", 40, "--out", "whole").exit_code == 0
    found = {name: text for name, text in results(many / "seqs").items() if name[0] != "."}
    assert found == results(many / "whole")


def test_a_torn_last_line_is_done_again(many: Path, made: str) -> None:
    """A line that a killed run has not finished counts for nothing; a damaged one is an error."""
    assert design(made) == 0
    path = many / "seqs" / "manifest.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert design(made) == 0
    assert read(path)[1].keys() == {f"s{n}" for n in range(COUNT)}
    path.write_bytes(whole.replace(b'"done"', b'"do\xff', 1))
    done = run("design", "in", "--weights", made, "--num-seqs", 2)
    assert done.exit_code == 2
    assert "line 2 is no line of a manifest" in done.stderr
    assert "remove the file to begin anew" in done.stderr


@pytest.mark.usefixtures("many")
def test_other_settings_are_refused(made: str) -> None:
    """A folder holds results of one kind; the message says what differs and the way out."""
    assert design(made) == 0
    for option, value in (
        ("--temperature", "0.2"),
        ("--omit", "CH"),
        ("--format", "csv"),
        ("--seed", "1"),
    ):
        done = run("design", "in", "--weights", made, "--num-seqs", 2, option, value)
        assert done.exit_code == 2
        assert f"holds results of other settings: {option[2:]} was" in done.stderr
        assert "choose another --out, or remove seqs/manifest*.jsonl to begin anew" in done.stderr
    for same in (("--workers", 2), ("--batch-size", 1), ("--shard", "1/2")):
        assert design(made, *same) == 0


def test_changed_files_of_rules_are_other_settings(many: Path, made: str) -> None:
    """Rules are compared by the content of their files, weights by theirs."""
    bias = many / "bias.json"
    for value, code in ((1.0, 0), (1.0, 0), (2.0, 2)):
        bias.write_text(json.dumps({"A1": {"A": value}}))
        assert design(made, "--bias-per-residue", bias) == code


def test_one_structure_is_designed_anew_each_time(many: Path, made: str) -> None:
    """Trying options on one structure needs no other folder, and keeps no manifest."""
    for temperature in ("0.1", "0.9"):
        options = ("--temperature", temperature, "--weights", made)
        assert run("design", "in/s0.pdb", *options).exit_code == 0
        assert f"T={temperature}" in (many / "seqs" / "s0.fa").read_text()
    assert not manifests(many / "seqs")
    assert run("design", "in/s0.pdb", "--shard", "1/1", "--weights", made).exit_code == 0
    assert manifests(many / "seqs")
    assert run("design", "in/s0.pdb", *options).exit_code == 2


def test_two_runs_in_one_folder(many: Path, made: str) -> None:
    """The second says that the first is at work, and changes nothing; another shard may run."""
    folder = many / "seqs"
    folder.mkdir()
    with (folder / "manifest.jsonl").open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        done = run("design", "in", "--weights", made)
        assert done.exit_code == 2
        assert "another run is at work here; wait for it" in done.stderr
        assert not list(folder.glob("*.fa"))
        assert design(made, "--shard", "1/2") == 0
    assert design(made) == 0


# --- collecting -----------------------------------------------------------------------------


def test_collect(many: Path, made: str) -> None:
    """Shards become one table, best score first; what is missing or failed is listed."""
    (many / "in" / "s8.pdb").write_text("nothing")
    assert design(made, "--shard", "1/3") == 0
    assert design(made, "--shard", "3/3") == 1
    done = run("collect", "seqs")
    assert done.exit_code == 1
    assert "missing: shards 2 of 3 have not begun" in done.stdout
    assert "failed: in/s8.pdb" in done.stdout
    assert design(made, "--shard", "2/3") == 0
    (many / "in" / "s8.pdb").write_bytes((many / "in" / "s0.pdb").read_bytes())
    assert design(made, "--shard", "3/3") == 0
    done = run("collect", "seqs")
    assert (done.exit_code, done.stdout) == (0, f"{COUNT} structures, {2 * COUNT} rows\n")
    with (many / "seqs" / "designs.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 2 * COUNT + 1)]
    printed = {text for n in range(COUNT) for text in sequences(many / f"seqs/s{n}.fa")[1:]}
    assert {row["sequence"] for row in rows} == printed


def test_collect_into_parquet(many: Path, made: str) -> None:
    """The same rows with their types."""
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run("score", "in", "--weights", made, "--out", "out").exit_code == 0
    assert run("collect", "out", "--out", "table.csv", "--parquet").exit_code == 0
    table = parquet.read_table(many / "table.parquet")
    assert table.num_rows == COUNT
    assert table.column("perplexity").to_pylist()[0] > 1


@pytest.mark.usefixtures("many")
def test_collect_of_nothing() -> None:
    """A folder without a manifest, and one that does not exist, are named with the way out."""
    for folder in ("in", "nowhere"):
        done = run("collect", folder)
        assert done.exit_code == 2
        assert "name the --out folder of a run over many structures" in done.stderr


# --- faults ---------------------------------------------------------------------------------


def test_a_task_that_kills_its_process_is_told_apart() -> None:
    """Of the tasks in flight only those at fault are lost; every other is done once."""
    work = executors.Work(square_or_die, lost=lambda task: -task)
    found = list(work.side_by_side(iter(range(1, 16)), 2))
    assert sorted(found) == [(n, -n if n in FATAL_TASKS else n * n) for n in range(1, 16)]


def test_outcomes_in_order() -> None:
    """Outcomes come in the order of the tasks where that is wanted, whichever ends first."""
    work = executors.Work(square_or_die, lost=lambda task: -task, in_order=True)
    numbers = [9, 1, 8, 2]
    with ThreadPoolExecutor(4) as pool:
        assert [task for task, _ in work.on(pool, iter(numbers), 4)] == numbers


@pytest.mark.slow
def test_a_structure_that_kills_its_process_is_one_failure(many: Path, made: str) -> None:
    """Its neighbors in flight are done again, each once, and the culprit is told apart."""
    write_structures(many / "in", 20, KILLS, EXHAUSTS, 21, 22, 23, KILLS, 24, 25)
    done = run("design", "in", "--weights", made, "--engine", FATAL, "--workers", "2")
    assert done.exit_code == 1
    assert done.stderr.count("its worker process was killed, perhaps for memory") == 2
    assert done.stderr.count("out of memory; a smaller --batch-size") == 1
    assert results(many / "seqs").keys() == {f"s{n}.fa" for n in (0, 3, 4, 5, 7, 8)}
    lines = (many / "seqs" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 1 + COUNT


def test_an_executor_whose_processes_die(many: Path, made: str) -> None:
    """An executor of the caller's cannot be mended here: the folder resumes with another."""
    write_structures(many / "in", *range(20, 28), KILLS)
    settings: dict[str, Any] = {"weights": made, "engine": FATAL}
    with (
        ProcessPoolExecutor(1, mp_context=executors.get_context("spawn")) as pool,
        pytest.raises(InputError, match="processes died; make a new one and run again"),
    ):
        campaign.design(["in"], executor=pool, **settings)
    (many / "in" / "s8.pdb").unlink()
    with ThreadPoolExecutor(1) as pool:
        summary = campaign.design(["in"], executor=pool, **settings)
    assert summary.exit_code == 0
    assert summary.done + summary.skipped == 8


def test_an_executor_that_is_gone(many: Path, made: str) -> None:
    """Futures that are cancelled, as by a scheduler that went away, end the run in a sentence."""

    class Gone(Executor):
        """Cancels everything."""

        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            """A cancelled future."""
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(InputError, match=r"cannot be reached any more.*which resumes"):
        campaign.design(["in"], executor=Gone(), weights=made)
    assert manifests(many / "seqs")


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are no zombies."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(p) for p, parent, state in rows if int(parent) == pid and state[0] != "Z"]


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_an_end_leaves_no_process(many: Path, made: str, sent: int, code: int) -> None:
    """Whatever ends the run ends its workers, in the middle of long work too."""
    write_structures(many / "in", 20, 21, WAITS, WAITS, WAITS, 22, 23, 24, 25)
    with start(made, "--engine", FATAL, "--workers", "2") as process:
        wait_for(lambda: list(many.glob("seqs/s1.fa")))
        workers = children(process.pid)
        assert len(workers) >= 2
        process.send_signal(sent)
        began = time.monotonic()
        errors = process.communicate()[1]
        assert time.monotonic() - began < 25  # the work in flight would take longer
    assert process.returncode == code
    assert "Traceback" not in errors
    wait_for(lambda: not [pid for pid in workers if is_running(pid)], 20)
    if sent != signal.SIGKILL:
        assert re.search(r"interrupted: [12] of 9 results are complete\n$", errors)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_a_disk_that_is_full_for_the_manifest(many: Path, made: str) -> None:
    """What was done so far is kept, the reason is one sentence, and the run resumes."""
    assert design(made, "--shard", "1/3") == 0
    size = (many / "seqs" / "manifest.1-of-3.jsonl").stat().st_size

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 10, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "mpnn", "design", "in", "--weights", made, "--num-seqs", "2"]
    command += ["--shard", "2/3"]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=small_files, check=False
    )
    assert done.returncode == 2
    assert "error: seqs: the manifest cannot be written (File too large); free some" in done.stderr
    assert "Traceback" not in done.stderr
    assert design(made, "--shard", "2/3") == 0
    assert run("collect", "seqs").stdout.startswith("6 structures, 12 rows\n")


def test_a_shard_reads_no_more_than_it_needs(many: Path, made: str) -> None:
    """Of the other shards of a split only the first line is read; of another split, all."""
    assert design(made, "--shard", "1/3") == 0
    other = many / "seqs" / "manifest.1-of-3.jsonl"
    whole = other.read_bytes()
    other.write_bytes(whole.replace(b'"done"', b'"do\xff'))  # which is an error where it is read
    assert design(made, "--shard", "2/3") == 0
    assert design(made, "--shard", "1/2") == 2
    other.write_bytes(whole)
    assert design(made, "--shard", "1/2") == 0


def test_a_full_disk(many: Path, made: str) -> None:
    """Results that cannot be written whole are failures; once there is room the run resumes."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    write_structures(many / "few", 20, 21, 60)
    command = [sys.executable, "-m", "mpnn", "design", "few", "--weights", made, "--num-seqs", "40"]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=small_files, check=False
    )
    assert done.returncode == 2
    assert "cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert all(len(sequences(p)) == 41 for p in many.glob("seqs/*.fa"))
    assert run("design", "few", "--weights", made, "--num-seqs", 40).exit_code == 0


def test_unknown_settings_in_python(many: Path) -> None:
    """A name that is neither an option nor a rule is refused before any work."""
    with pytest.raises(InputError, match="no option or rule is called temprature"):
        campaign.design(["in"], temprature=0.2)
    assert not (many / "seqs").exists()


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_bad_number_of_workers(many: Path, workers: str) -> None:
    """At least one is needed."""
    done = run("design", "in", "--workers", workers)
    assert done.exit_code == 2
    assert f"--workers {workers}: take 1 or more" in done.stderr
    assert not (many / "seqs").exists()


# --- load -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_thousand_structures(many: Path, made: str) -> None:
    """Memory of the coordinator and open files stay as they are after the first few hundred."""
    folder = many / "in"
    for n in range(2000):
        write_pdb(folder / f"t{n:04}.pdb", synthetic_backbone(40 + n % 97 * 10, seed=n))
    with start(made, "--workers", "2") as process:
        seen: list[tuple[int, int, int]] = []

        def watch() -> bool:
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                memory = int(status.split("VmRSS:")[1].split()[0])
                open_files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
                seen.append((len(list(many.glob("seqs/*.fa"))), memory, open_files))
            return process.poll() is not None

        with Path(os.devnull).open("w"):
            reader = ThreadPoolExecutor(1).submit(process.communicate)
            wait_for(watch, 1800)
        assert "Traceback" not in reader.result()[1]
    assert process.returncode == 0
    early = [s for s in seen if 300 <= s[0] <= 600]
    late = [s for s in seen if s[0] >= 1500]
    assert max(s[1] for s in late) < 1.1 * max(s[1] for s in early)
    assert max(s[2] for s in late) <= max(s[2] for s in early) + 2


# --- Dask -----------------------------------------------------------------------------------


@pytest.fixture
def cluster(many: Path) -> Iterator[Any]:  # noqa: ARG001 (its environment)
    """A function that starts a local cluster of processes with one thread each."""
    distributed = pytest.importorskip("distributed")
    with contextlib.ExitStack() as stack:

        def make(workers: int) -> Any:
            return stack.enter_context(
                distributed.LocalCluster(
                    workers, threads_per_worker=1, processes=True, dashboard_address=None
                )
            )

        yield make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_same_bytes(many: Path, made: str, cluster: Any) -> None:
    """One, two and four workers write what this process writes."""
    assert design(made, "--workers", 1, out="here") == 0
    for workers in (1, 2, 4):
        address = cluster(workers).scheduler_address
        assert design(made, "--dask", address, out=f"dask{workers}") == 0
        assert results(many / f"dask{workers}") == results(many / "here")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_dask_worker_loses_nothing(many: Path, made: str, cluster: Any) -> None:
    """Its structures are done by another, each once."""
    write_structures(many / "in", *range(20, 60))
    running = cluster(2)
    with start(made, "--dask", running.scheduler_address, "--num-seqs", "40") as process:
        wait_for(lambda: len(list(many.glob("seqs/*.fa"))) >= 2)
        os.kill(next(iter(running.workers.values())).pid, signal.SIGKILL)
        errors = process.communicate()[1]
    assert process.returncode == 0, errors
    entries = (many / "seqs" / "manifest.jsonl").read_text().splitlines()[1:]
    assert sorted(json.loads(line)["name"] for line in entries) == sorted(
        f"s{n}" for n in range(40)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dask_scheduler_that_goes_away(many: Path, made: str, cluster: Any) -> None:
    """The run ends with a sentence, and resumes without the cluster."""
    write_structures(many / "in", *range(20, 60))
    running = cluster(1)
    options = ("--num-seqs", "40")
    with start(made, "--dask", running.scheduler_address, *options) as process:
        wait_for(lambda: len(list(many.glob("seqs/*.fa"))) >= 2)
        running.close()
        errors = process.communicate()[1]
    assert process.returncode == 2, errors
    assert "cannot be reached any more" in errors
    assert run("design", "in", "--weights", made, *options).exit_code == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_dask_scheduler(many: Path, made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nobody answers, and an environment without Dask, are told apart."""
    pytest.importorskip("distributed")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    done = subprocess.run(
        [sys.executable, "-m", "mpnn", "design", "in", "--weights", made, "--dask",
         "tcp://127.0.0.1:9"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--dask tcp://127.0.0.1:9: no scheduler answers" in done.stderr
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = run("design", "in", "--weights", made, "--dask", "x")
    assert "--dask needs Dask; pip install 'mpnn[dask]'" in done.stderr
    assert many
