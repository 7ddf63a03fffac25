"""Stored runs: found, read strictly, written whole, refused with a reason."""

import json
import math
import subprocess
from pathlib import Path

import pytest

from mpnn.errors import InputError
from mpnn.regression import baselines
from mpnn.regression.rows import Accuracy, Row
from mpnn.regression.verdict import refusals


def row(log_ratio=-1.0, width=0.01, passed=True):
    return {
        "log_ratio": log_ratio,
        "log_ratio_low": log_ratio - width / 2,
        "log_ratio_high": log_ratio + width / 2,
        "margin": 0.03,
        "speedup": 2.7,
        "subject_seconds": 0.01,
        "reference_seconds": 0.01 / math.exp(log_ratio),
        "accuracy": {"passed": passed, "text": "equal"},
        "verdict": "recorded",
        "commit": "0123456789ab",
        "recorded": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13.0"},
    }


def run(hardware="chip-a", rows=None, commit="0123456789ab"):
    rows = {"t.py::test[a]": row()} if rows is None else rows
    return {
        "machine_info": {"hardware": hardware, "threads": 2},
        "commit_info": {"id": commit},
        "datetime": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13.0"},
        "benchmarks": [
            {"fullname": name, "extra_info": info, "stats": {}} for name, info in rows.items()
        ],
    }


def test_written_runs_are_numbered_and_read_back(tmp_path):
    """Two recordings get two numbers, and the rows come back as written."""
    folder = tmp_path / "chip-a"
    first = baselines.write(folder, run())
    second = baselines.write(folder, run(commit="ffff00001111"))
    assert [first.name, second.name] == ["0001_01234567.json", "0002_ffff0000.json"]
    assert [r.commit for r in baselines.history(folder)] == ["0123456789ab", "ffff00001111"]
    assert baselines.load(first).rows == {"t.py::test[a]": Row.read("a", row())}
    assert baselines.machines(tmp_path) == [folder]


def test_a_run_keeps_the_rows_that_it_does_not_renew(tmp_path):
    """New rows take the place of old ones, others stay with their commit, dropped ones go."""
    folder = tmp_path / "chip-a"
    baselines.write(folder, run(rows={name: row(-1.0) for name in ("kept", "renewed", "gone")}))
    baselines.write(folder, run(rows={"renewed": row(-2.0)}, commit="ffff00001111"), ["gone"])
    latest = baselines.history(folder)[-1].rows
    assert {name: (r.log_ratio, r.commit) for name, r in latest.items()} == {
        "kept": (-1.0, "0123456789ab"),
        "renewed": (-2.0, "ffff00001111"),
    }


def test_interrupted_recording_leaves_the_old_run(tmp_path, monkeypatch):
    """When writing stops half way, the folder holds what it held before and nothing else."""
    folder = tmp_path / "chip-a"
    kept = baselines.write(folder, run())

    def interrupted(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        baselines.write(folder, run())
    assert list(folder.iterdir()) == [kept]


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    """NaN does not reach a baseline."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        baselines.write(tmp_path / "chip-a", run(rows={"t": row(float("nan"))}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a run of this suite"),
        ('{"benchmarks": []}', "machine_info"),
        (json.dumps(run("chip-b")), "recorded on chip-b, not on chip-a"),
        (
            json.dumps(run(rows={"t": {"log_ratio": 0.0}})),
            "row t lacks accuracy, commit, log_ratio_high, log_ratio_low, margin, recorded",
        ),
        (
            json.dumps(run(rows={"t": row() | {"gate_reference": "short", "gate_log_ratio": 0.1}})),
            "row t lacks gate_log_ratio_high, gate_log_ratio_low, gate_seconds",
        ),
        (json.dumps(run(rows={"t": row() | {"subject_seconds": 0.0}})), "seconds that are not"),
        (json.dumps(run(rows={"t": []})), "not a run of this suite"),
        (json.dumps(run(rows={"t": row() | {"margin": "3 %"}})), "not a run of this suite"),
        (json.dumps(run(rows={"t": row() | {"recorded": 3}})), "needs strings in commit"),
        (json.dumps(run(rows={"t": row() | {"accuracy": {}}})), "does not say whether"),
        (json.dumps(run(rows={"t": row(float("nan"))})), "not finite"),
        (json.dumps({**run(), "benchmarks": run()["benchmarks"] * 2}), "row twice"),
    ],
)
def test_a_broken_run_is_an_error(tmp_path, text, reason):
    """A broken, foreign or incomplete run is refused by name, never passed over."""
    path = tmp_path / "chip-a" / "0001_x.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        baselines.history(path.parent)


def test_committed_runs_never_change():
    """Stored runs are append-only: no commit has changed or removed one."""
    root = Path(baselines.__file__).parents[2]
    command = ["git", "-C", str(root), "log", "--diff-filter=MDR", "--name-only", "--format="]
    done = subprocess.run([*command, "--", "baselines"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a clone: there is no history")
    runs = [f for folder in baselines.machines(root / "baselines") for f in folder.glob("0*.json")]
    names = {str(run.relative_to(root)) for run in runs}
    assert names & set(done.stdout.split()) == set()


def test_rows_of_the_torch_form_are_renamed_once(tmp_path):
    """Rows stored as exact-… before the compiled form existed are the torch form's, in any copy."""
    old = row(-1.0) | {"claim": "exact-1x106", "engine": "exact"}
    baselines.write(tmp_path / "chip-a", run("chip-a", {"test_claim[exact-1x106]": old}))
    baselines.write(tmp_path / "chip-a", run("chip-a", {"t": row()}))  # carries it over
    for found in baselines.history(tmp_path / "chip-a"):
        assert "test_claim[exact-torch-1x106]" in found.rows


def test_an_edited_ratio_is_refused(tmp_path):
    """A ratio that its own seconds contradict was edited, in whichever of the two."""
    rows = {"t": row(-1.0) | {"subject_seconds": 1.0, "reference_seconds": 2.718}}
    baselines.write(tmp_path / "chip-a", run("chip-a", rows))
    assert baselines.latest_runs(tmp_path)
    rows["t"]["log_ratio"] = -1.2
    baselines.write(tmp_path / "chip-a", run("chip-a", rows))
    with pytest.raises(InputError, match=r"one of them was edited: restore the file"):
        baselines.latest_runs(tmp_path)


def test_what_machines_have_in_common(tmp_path):
    """Common rows are those of two machines; recovery is that of whichever recorded last."""
    assert baselines.common_rows([]) == set()
    days = {"chip-a": "2026-01-02", "chip-b": "2026-01-03", "chip-c": "2026-01-01"}
    for number, (name, day) in enumerate(days.items()):
        stating = {"passed": True, "text": "", "figures": {"recovery": 40.0 + number}}
        rows = {"t": row() | {"accuracy": stating}, name: row()}
        baselines.write(tmp_path / name, run(name, rows) | {"datetime": f"{day}T10:00:00+00:00"})
    runs = baselines.latest_runs(tmp_path)
    assert baselines.common_rows(runs) == {"t"}
    assert baselines.common_rows(runs[:1]) == {"t", "chip-a"}
    few = baselines.Run(tmp_path, "chip-d", "", {"chip-b": runs[1].rows["chip-b"]}, 1)
    assert baselines.common_rows([*runs, few]) == {"t", "chip-b"}
    assert baselines.stated_recoveries(runs) == {"t": 41.0}
    assert baselines.stated_recoveries(runs, "chip-a") == {"t": 40.0}  # its own comes first


def test_refusals_name_noise_and_accuracy():
    """Noise and a failed accuracy each keep a row from being stored."""
    rows = {"good": row(), "noisy": row(width=0.05), "wrong": row(passed=False)}
    reasons = refusals({name: Row.read(name, info) for name, info in rows.items()})
    assert [reason.split(":")[0] for reason in reasons] == ["noisy", "wrong"]


def test_a_row_keeps_what_else_was_stored():
    """What the record has no field for comes back from `extra_info` as it was."""
    found = Row.read("t", row() | {"claim": "minimal", "bound": {"seconds": 0.1}})
    assert found.about == {"claim": "minimal", "bound": {"seconds": 0.1}}
    assert found.accuracy == Accuracy(True, "equal")
    assert Row.of(found.extra_info()) == found


def test_retired_rows_are_read_strictly(tmp_path):
    """Each names its test, reason and last figures; a broken list is an error that names it."""
    assert baselines.retired(tmp_path) == []
    path = tmp_path / baselines.RETIRED
    item = {"test": "t.py::test[a]", "what": "a", "why": "slower", "figures": {"chip-a": "0.7×"}}
    path.write_text(json.dumps({"retired": [item]}))
    assert baselines.retired(tmp_path) == [baselines.Retired(**item)]
    for text in ("{", '{"retired": ["a"]}', '{"retired": [{"test": "a"}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="not a list of retired rows"):
            baselines.retired(tmp_path)


def test_uncommitted_changes_are_seen(tmp_path):
    """A changed or untracked file shows; a clean tree does not; no tree is an error."""
    with pytest.raises(InputError, match="not a git working tree"):
        baselines.uncommitted(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert baselines.uncommitted(tmp_path) == []
    (tmp_path / "new.py").touch()
    assert baselines.uncommitted(tmp_path) == ["new.py"]
