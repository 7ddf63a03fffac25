"""The study of distillation at equal compute, on synthetic chains with a simulated clock."""

import json
from dataclasses import replace
from itertools import count

import pytest
from training_helpers import TINY, StopRun, write_chains

from mpnn.config import ARCHITECTURES
from mpnn.errors import InputError
from mpnn.studies import distillation as study
from mpnn.studies.tables import ARMS, DISTILLATION, distillation_markdown
from mpnn.training.distillation import CachedTeacher
from mpnn.weights import formula_weights, load_checkpoint, save_checkpoint

SECONDS = 10  # CPU seconds of an arm, by the clock below


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Each charge takes one second: each step, and each output of the teacher."""
    seconds = count()
    monkeypatch.setattr("time.process_time", lambda: float(next(seconds)))


def about_all(seconds):
    """Whether an arm used its seconds, up to the charges before and after its steps."""
    return abs(seconds - SECONDS) <= 3


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Architecture, teacher and precision of a tiny study, whose data are found by name."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(study, "EVERY", 1)
    monkeypatch.setattr(study, "TOKENS", 64)
    monkeypatch.setenv("MPNN_DATA", str(tmp_path))
    write_chains(tmp_path / "train.npz", (22, 23, 24, 25, 26))
    write_chains(tmp_path / "ts50.npz", (24, 22), (1, 2))
    teacher = tmp_path / "teacher.safetensors"
    save_checkpoint(teacher, formula_weights(TINY), {})
    return "tiny", str(teacher), "float32"


@pytest.fixture
def arms(settings, tmp_path):
    return study.arms(*settings, tmp_path / "runs")


def test_a_study_is_stored_whole_and_all_arms_cost_the_same(settings, tmp_path, monkeypatch):
    """Some arms alone are reused, not stored; each fills its CPU seconds, its teacher included."""
    some = study.study(*settings, SECONDS, tmp_path / "runs", ["plain", "hidden"])["arms"]
    assert list(some) == ["plain", "hidden"]
    target = tmp_path / DISTILLATION
    target.write_text("the stored study")
    arguments = ["--architecture", "tiny", "--teacher", settings[1], "--precision", "float32"]
    arguments += ["--seconds", str(SECONDS), "--folder", str(tmp_path / "runs")]
    arguments += ["--out", str(target)]
    monkeypatch.setattr("sys.argv", ["study", *arguments, "--arms", "plain", "hidden"])
    study.main()
    assert target.read_text() == "the stored study"
    monkeypatch.setattr("sys.argv", ["study", *arguments])
    study.main()
    arms = json.loads(target.read_text())["arms"]
    assert list(arms) == list(ARMS)
    assert {name: arms[name] for name in some} == some
    for name, arm in arms.items():
        assert (arm["answers_seconds"] > 0) == (name == "kept")
        assert (arm["mutations"] > 0) == (name in ("asked", "hidden"))
        assert ("difference" in arm) == (name != "plain")
        assert about_all(arm["answers_seconds"] + arm["training_seconds"])
        assert arm["residues"] > arm["steps"] > 2
    table = distillation_markdown(tmp_path)
    assert "`teacher`" in table
    assert len(table.splitlines()) == 8


def test_arms_of_other_settings_have_another_folder(settings, tmp_path):
    """Weights trained with other settings are never reused."""
    here = study.arms(*settings, tmp_path)
    place = study.folder_of(tmp_path, here)
    elsewhere = study.arms(*settings, tmp_path / "elsewhere")
    assert study.folder_of(tmp_path, elsewhere) == place
    for name in here:
        changed = here | {name: replace(here[name], learning_rate=0.1)}
        assert study.folder_of(tmp_path, changed) != place


def test_the_arms_differ_in_how_they_are_taught(arms):
    """All other settings are the same; cached outputs restrict the crops."""
    plain, kept, asked, hidden = (vars(arms[name]) for name in ARMS)
    places = {"weights", "state", "teacher", "teacher_weight"}
    assert {name for name in plain if plain[name] != kept[name]} == places | {"targets"}
    assert {name for name in plain if plain[name] != asked[name]} == places | {"mutations"}
    files = {"weights", "state"}
    assert {name for name in asked if asked[name] != hidden[name]} == files | {"hidden_weight"}
    assert arms["kept"].crops == replace(arms["plain"].crops, orders=2, rounds=1)
    assert arms["hidden"].crops == arms["plain"].crops
    assert plain["validation"] is None  # validation would cost CPU seconds


def test_the_teacher_does_not_run_while_the_student_trains(arms, monkeypatch):
    """All outputs that the run needs are cached, and charged, before its first step."""
    study.cache_outputs(arms["kept"], study.Account(arms["kept"]))

    def refuse(_self, _index):
        raise AssertionError("ran the teacher again")

    monkeypatch.setattr(CachedTeacher, "_compute", refuse)
    asked = study.Account(arms["kept"]).used
    assert (asked["asked"], asked["training"]) == (3, 0)
    used = study.run_arm(arms["kept"], asked["answers"] + SECONDS)
    assert used["answers"] == asked["answers"] > 0


@pytest.mark.parametrize("part", ["stable", "decay"])
def test_an_interrupted_arm_resumes_in_steps_and_in_seconds(arms, monkeypatch, part):
    """Seconds spent before the interruption count, and the run ends at the planned step."""
    charge = study.Account.charge

    def stop(self, purpose, **counts):
        charge(self, purpose, **counts)
        if self.used["training"] > (0.2 if part == "stable" else 0.8) * SECONDS:
            raise StopRun

    with monkeypatch.context() as patch:
        patch.setattr(study.Account, "charge", stop)
        with pytest.raises(StopRun):
            study.run_arm(arms["plain"], SECONDS)
    before = study.Account(arms["plain"]).used
    assert (before["steps"] > 0) == (part == "decay")
    used = study.run_arm(arms["plain"], SECONDS)
    assert before["training"] < used["training"]
    assert about_all(used["training"])
    _, card = load_checkpoint(arms["plain"].weights)
    assert card["training"]["steps"] == used["steps"]
    assert study.run_arm(arms["plain"], SECONDS) == used


def test_a_teacher_that_uses_up_the_seconds_is_refused(arms):
    """The error names the seconds used and the option to raise."""
    with pytest.raises(
        InputError, match=r"outputs took .* CPU seconds of the 1e-06 .* raise --seconds"
    ):
        study.run_arm(arms["kept"], 1e-6)


def test_without_structures_the_study_names_the_variable_to_set(settings, tmp_path, monkeypatch):
    """Without MPNN_DATA nothing is trained."""
    monkeypatch.delenv("MPNN_DATA")
    with pytest.raises(InputError, match="set MPNN_DATA"):
        study.study(*settings, SECONDS, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
