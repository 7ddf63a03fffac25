"""The study of what a teacher is worth, with made-up chains and a clock that ticks when asked."""

import json
from dataclasses import replace
from itertools import count

import distillation_study
import pytest
from test_training import TINY, write_chains

from mpnn.config import ARCHITECTURES
from mpnn.errors import InputError
from mpnn.studies.tables import ARMS, DISTILLATION, distillation_markdown
from mpnn.training.distillation import Teacher
from mpnn.weights import formula_weights, load_checkpoint, save_checkpoint

SECONDS = 10  # CPU seconds of an arm, by the clock below


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Whatever is charged took a second: each step, and each answer about a crop."""
    seconds = count()
    monkeypatch.setattr("time.process_time", lambda: float(next(seconds)))


def about_all(seconds):
    """Whether an arm used its seconds, but for what is charged before and after its steps."""
    return abs(seconds - SECONDS) <= 3


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Architecture, teacher and precision of a tiny study, whose data are found by name."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(distillation_study, "EVERY", 1)
    monkeypatch.setenv("MPNN_DATA", str(tmp_path))
    write_chains(tmp_path / "train.npz")
    write_chains(tmp_path / "ts50.npz", (30, 25), (1, 2))
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(teacher, formula_weights(TINY), {})
    return "tiny", str(teacher), "float32"


@pytest.fixture
def arms(settings, tmp_path):
    return distillation_study.arms(*settings, tmp_path / "runs")


def test_all_arms_cost_the_same_with_the_teacher_paid_for(settings, tmp_path):
    """Each arm fills its CPU seconds, the teacher's answers among them, and the table shows it."""
    study = distillation_study.study(*settings, SECONDS, tmp_path / "runs")
    assert list(study["arms"]) == list(ARMS)
    for name, arm in study["arms"].items():
        assert (arm["answers_seconds"] > 0) == (name == "kept")
        assert (arm["mutations"] > 0) == (name in ("asked", "hidden"))
        assert ("difference" in arm) == (name != "plain")
        total = arm["answers_seconds"] + arm["training_seconds"]
        assert about_all(total)
        assert arm["residues"] > arm["steps"] > 2
    (tmp_path / DISTILLATION).write_text(json.dumps(study))
    table = distillation_markdown(tmp_path)
    assert "the teacher `teacher`" in table
    assert len(table.splitlines()) == 8


def test_arms_done_before_are_taken_as_they_are(settings, tmp_path):
    """An arm can be trained alone; the study that follows does not train it again."""
    alone = distillation_study.study(*settings, SECONDS, tmp_path / "runs", ["hidden"])
    assert list(alone["arms"]) == ["hidden"]
    both = distillation_study.study(*settings, SECONDS, tmp_path / "runs", ["hidden", "plain"])
    del both["arms"]["hidden"]["difference"]
    assert both["arms"]["hidden"] == alone["arms"]["hidden"]


def test_arms_of_other_settings_have_another_folder(settings, tmp_path):
    """What was trained with other settings is never taken for an arm of these."""
    here = distillation_study.arms(*settings, tmp_path)
    place = distillation_study.of_settings(tmp_path, here)
    elsewhere = distillation_study.arms(*settings, tmp_path / "elsewhere")
    assert distillation_study.of_settings(tmp_path, elsewhere) == place
    for name in here:
        changed = here | {name: replace(here[name], learning_rate=0.1)}
        assert distillation_study.of_settings(tmp_path, changed) != place


def test_some_arms_alone_are_not_stored(settings, tmp_path, monkeypatch):
    """A stored study stays whole: it is replaced by a whole one, or not at all."""
    target = tmp_path / "stored.json"
    target.write_text("the stored study")
    arguments = ["--architecture", "tiny", "--teacher", settings[1], "--seconds", str(SECONDS)]
    arguments += ["--folder", str(tmp_path / "runs"), "--out", str(target)]
    monkeypatch.setattr("sys.argv", ["study", *arguments, "--arms", "plain", "asked"])
    distillation_study.main()
    assert target.read_text() == "the stored study"
    monkeypatch.setattr("sys.argv", ["study", *arguments])
    distillation_study.main()
    assert list(json.loads(target.read_text())["arms"]) == list(ARMS)


def test_the_arms_differ_in_how_they_are_taught(arms):
    """Architecture, seed, noise, batches and learning rate are the same; kept answers fix draws."""
    plain, kept, asked, hidden = (vars(arms[name]) for name in ARMS)
    places = {"weights", "state", "teacher", "teacher_weight"}
    assert {name for name in plain if plain[name] != kept[name]} == places | {"targets"}
    assert {name for name in plain if plain[name] != asked[name]} == places | {"mutations"}
    files = {"weights", "state"}
    assert {name for name in asked if asked[name] != hidden[name]} == files | {"hidden_weight"}
    assert arms["kept"].draws == replace(arms["plain"].draws, orders=2, rounds=1)
    assert arms["hidden"].draws == arms["plain"].draws
    assert plain["validation"] is None  # nothing is measured at the arm's expense


def test_the_teacher_is_not_asked_while_the_student_trains(arms, monkeypatch):
    """Every answer that the run needs in any round is kept, and charged, before its first step."""
    distillation_study.ask(arms["kept"], distillation_study.account_of(arms["kept"]))

    def refuse(_self, _index):
        raise AssertionError("asked the teacher again")

    monkeypatch.setattr(Teacher, "_answer", refuse)
    asked = distillation_study.account_of(arms["kept"]).used
    assert (asked["asked"], asked["training"]) == (3, 0)
    used = distillation_study.run_arm(arms["kept"], asked["answers"] + SECONDS)
    assert used["answers"] == asked["answers"] > 0


class StopRun(Exception):  # noqa: N818 – no error
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("part", ["stable", "decay"])
def test_an_interrupted_arm_goes_on_in_steps_and_in_seconds(arms, monkeypatch, part):
    """What was spent before the interruption counts, and the run ends where it was to end."""
    charge = distillation_study.Account.charge

    def stop(self, purpose, **counts):
        charge(self, purpose, **counts)
        if self.used["training"] > (0.2 if part == "stable" else 0.8) * SECONDS:
            raise StopRun

    with monkeypatch.context() as patch:
        patch.setattr(distillation_study.Account, "charge", stop)
        with pytest.raises(StopRun):
            distillation_study.run_arm(arms["plain"], SECONDS)
    before = distillation_study.account_of(arms["plain"]).used
    assert (before["steps"] > 0) == (part == "decay")
    used = distillation_study.run_arm(arms["plain"], SECONDS)
    assert before["training"] < used["training"]
    assert about_all(used["training"])
    _, card = load_checkpoint(arms["plain"].weights)
    assert card["training"]["steps"] == used["steps"]
    assert distillation_study.run_arm(arms["plain"], SECONDS) == used


def test_a_teacher_too_dear_for_the_seconds_is_said(arms):
    """Where the answers alone use up the budget there is no arm to compare."""
    with pytest.raises(InputError, match=r"answers took .* CPU seconds of 1e-06 .* --seconds"):
        distillation_study.run_arm(arms["kept"], 1e-6)


def test_without_structures_the_study_says_what_to_set(settings, tmp_path, monkeypatch):
    """Without MPNN_DATA nothing is begun."""
    monkeypatch.delenv("MPNN_DATA")
    with pytest.raises(InputError, match="set MPNN_DATA"):
        distillation_study.study(*settings, SECONDS, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
