"""The study of the gate's error rates: what it plants, its sessions, its rates, its table."""

import json
import subprocess

import pytest

from mpnn.regression.verdict import Rule
from mpnn.studies import gate, planted
from mpnn.studies.gate import KINDS
from mpnn.studies.project import HELPERS, ROOT, Project
from mpnn.studies.tables import GATE, gate_markdown


def session(**changes):
    ended = {"code": 0, "verdicts": {"a": "holds", "b": "holds"}, "seconds": 10.0, "beside": 0.5}
    return ended | changes


RED = {"code": 1, "verdicts": {"a": "regressed", "b": "holds"}}


def test_rates_have_clopper_and_pearsons_interval():
    """None of 300 leaves rates up to 1 − 0.025^(1/300), and 100 of 100 those from 96.4 %."""
    assert gate.rate(0, 300) == pytest.approx((0, 1 - 0.025 ** (1 / 300)), rel=1e-6)
    assert gate.rate(100, 100) == pytest.approx((0.9638, 1), abs=1e-4)


def test_what_is_planted_slows_each_job_in_proportion(monkeypatch):
    """A job of 4 s at +25 % ends after 5 s, with the same result."""
    now = [0.0]

    class Engine:
        def encode(self, x):
            now[0] += 4.0
            return x

        log_probs = sample = encode

    def clock():
        now[0] += 1e-3
        return now[0]

    monkeypatch.setattr(planted.time, "perf_counter", clock)
    planted.slow_down(Engine, 25)
    for name in planted.METHODS:
        now[0] = 0.0
        assert getattr(Engine(), name)("x") == "x"
        assert now[0] == pytest.approx(5.0, abs=0.01)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project whose claims were recorded once."""
    project = Project.make(tmp_path_factory.mktemp("toy") / "project")
    ended = project.pytest("perf_tests", "--record")
    assert ended.code == 0, ended.output
    project.commit()
    return project


def test_a_session_is_read_from_its_junit_file(recorded, monkeypatch):
    """Exit code and verdict of every claim: held, regressed, undecided, wrong."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{HELPERS}")
    environ = {
        "TOY_CLAIMS": "a,b,c",
        "TOY_SLOW": '{"b": 1.1}',
        "TOY_NOISE_OF": '{"c": 0.9}',
    }
    found = gate.run_session(recorded.root, ["perf_tests"], **environ)
    assert found["code"] == 1
    assert found["verdicts"] == {"a": "holds", "b": "regressed", "c": "undecided"}
    assert found["seconds"] > 0


def test_the_table_of_a_comparison_is_read():
    """`--against` has no JUnit file: its table names the verdicts."""
    table = "| claim | time |\n| --- | --- |\n| `a+b` | +9 % [8, 10] | regressed | the same |\n"
    assert gate.compared(table) == {"a+b": "regressed"}
    assert gate.compared("1 claims compared with HEAD~1") == {gate.COMPARED: "holds"}
    assert gate.compared("") == {}


def test_finished_sessions_survive_an_interrupted_study(tmp_path, monkeypatch):
    """Sessions add up over runs; a line cut short is dropped, other rules or machines left out."""
    path = tmp_path / gate.SESSIONS
    gate.append(path, "same", session())
    path.write_text(path.read_text() + '{"kind": "sa')
    assert len(gate.finished(path)) == 1
    gate.append(path, "five", session(**RED))
    assert [found["kind"] for found in gate.finished(path)] == ["same", "five"]
    assert gate.missing(["same", "five"], gate.finished(path) * 100) == ["same"]
    with monkeypatch.context() as patched:
        patched.setenv("MPNN_HARDWARE_CHIP", "another")
        assert not gate.finished(path)
    monkeypatch.setattr(gate, "rules", lambda: "laxer")
    assert not gate.finished(path)


def test_rates_are_those_of_whole_sessions(tmp_path):
    """Red sessions, their interval, the claims' verdicts and the work beside them are stated."""
    path = tmp_path / gate.SESSIONS
    for kind, ended in [("same", session())] * 3 + [("five", session(**RED))] * 2:
        gate.append(path, kind, ended)
    gate.append(path, "five", session(beside=1.5))
    result = gate.aggregate(gate.finished(path))
    same, five = result["cases"]["same"], result["cases"]["five"]
    assert (same["red"], same["passed"]) == (0, True)
    assert (five["red"], five["sessions"], five["passed"]) == (2, 3, False)
    assert five["found"].startswith("2 red, 66.7% [9.4%, 99.2%]; claims: 4 holds, 2 regressed; ")
    assert five["found"].endswith("10 s each, 0.5–1.5 cores busy beside it")
    (tmp_path / GATE).write_text(json.dumps(result))
    assert "| +5 % (a, b) | 3 | 2 red" in gate_markdown(tmp_path)


def test_a_clean_session_is_hardly_ever_red():
    """The bound is the sum over looks, squared for the fresh process, once for each claim."""
    assert gate.chance_red(1, Rule()) == pytest.approx(1e-4, rel=1e-9)
    assert gate.chance_red(40, Rule()) == pytest.approx(1 - (1 - 1e-4) ** 40)
    assert gate.computed([session(date="2026-01-01")])["passed"]


@pytest.mark.parametrize("name", ["against-ten", "against-base"])
def test_a_comparison_has_the_plant_in_one_of_two_commits(name, tmp_path, monkeypatch):
    """The head or the base of the clone is the slow one; the other has a comment."""
    origin = Project.make(tmp_path / "origin")
    path = origin.root / gate.ENGINE
    path.parent.mkdir(parents=True)
    path.write_text("class NativeEngine: pass\n")
    origin.commit()
    monkeypatch.setattr(gate, "ROOT", origin.root)
    clone = gate.two_commits(tmp_path / "clone", KINDS[name])
    show = ["git", "-C", str(clone), "show"]
    texts = [
        subprocess.run([*show, f"{commit}:{gate.ENGINE}"], capture_output=True, text=True).stdout
        for commit in ("HEAD", "HEAD~1")
    ]
    slow = ["slow_down(NativeEngine, 10)" in text for text in texts]
    assert slow == [name == "against-ten", name == "against-base"]
