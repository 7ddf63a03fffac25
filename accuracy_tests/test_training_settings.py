"""Settings of a run: what is refused, and those of the shipped runs."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from cli_runs import run
from training_helpers import write_chains

from mpnn.errors import InputError
from mpnn.training import learning_rate, train
from mpnn.training.job import read_config
from mpnn.weights import SHIPPED

pytest_plugins = ["cli_fixtures", "training_fixtures"]
FILE = 'data = "chains.npz"\nweights = "w.safetensors"\nstate = "run.pt"\n'


def test_learning_rate_warms_up_stays_and_decays_to_zero(config):
    """Longer runs share all of it but the decay."""
    long = dataclasses.replace(config, steps=100, warmup_steps=10, decay_steps=20)
    rates = [learning_rate(long, step) for step in range(101)]
    assert rates[0] == pytest.approx(long.learning_rate / 10)
    assert set(rates[9:81]) == {long.learning_rate}
    assert all(a > b for a, b in itertools.pairwise(rates[80:]))
    assert rates[100] == 0
    longer = dataclasses.replace(long, steps=200)
    assert rates[:81] == [learning_rate(longer, step) for step in range(81)]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_settings_of_shipped_runs_are_valid(path):
    """The settings beside a shipped checkpoint are those of a run of its architecture."""
    config = read_config(str(path))
    assert config.architecture == path.stem
    assert Path(config.weights).name == f"{path.stem}.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "huge"}, "'huge'; it must be one of baseline"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"tokens": -4}, "tokens is -4; it must be at least 1"),
        ({"teacher": "v_48_002", "teacher_orders": 4}, "apply to cached teacher outputs"),
        ({"mutations": 0.3}, "mutations above 0 needs a teacher"),
        ({"hidden_weight": 0.3}, "hidden_weight above 0 needs an online teacher"),
        ({"hidden_weight": -1.0}, "hidden_weight is -1.0; it must be at least 0"),
        ({"hidden_weight": float("nan")}, "hidden_weight is nan; it must be at least 0, finite"),
        ({"optimizer": "sgd"}, "'sgd'; it must be one of adamw, muon"),
        ({"teacher": "v_48_002", "targets": "t", "mutations": 0.3}, 'teacher_sees = "native"'),
        (
            {"teacher": "v_48_002", "targets": "t", "hidden_weight": 1.0},
            "hidden_weight above 0 needs an online teacher",
        ),
        (
            {"architecture": "ssm", "teacher": "v_48_002", "hidden_weight": 0.1},
            "must be 0 for ssm: its layers do not correspond",
        ),
        ({"mutations": -0.1}, "mutations is -0.1; it must be from 0 to 1"),
        ({"teacher_weight": 1.5}, "teacher_weight is 1.5; it must be from 0 to 1"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; it must be at least 0, finite"),
        ({"noise": -1.0}, "noise is -1.0; it must be at least 0"),
        ({"warmup_steps": -5}, "warmup_steps is -5; it must be at least 0"),
        ({"decay_steps": 7}, "decay_steps is 7, more than the 6 steps"),
        ({"seed": -1}, "seed is -1; it must be from 0 to"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be from 0 to 9223372036854775807"),
        ({"teacher_sees": "all"}, "'all'; it must be one of shown, native"),
        (
            {"teacher": "v_48_002", "teacher_sees": "native"},
            'teacher_sees = "native" has no effect while mutations = 0',
        ),
        ({"begin_from": "v_48_020"}, "random weights, or with .safetensors weights trained"),
        ({"weights": "tiny.pt"}, "written as .safetensors"),
    ],
)
def test_invalid_settings_are_refused(config, change, message):
    """The error names the setting, its value and the rule."""
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, **change)


def test_missing_and_foreign_data_files_are_refused(config, tmp_path):
    """A data file that is missing, no archive, or lacks an array is named."""
    noise = tmp_path / "noise.npz"
    noise.write_bytes(b"no archive")
    partial = tmp_path / "partial.npz"
    np.savez(partial, ca=np.zeros(3))
    for path, message in [("gone.npz", "gone.npz"), (noise, "cannot be read"), (partial, "nco")]:
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(config, data=str(path)))


def test_an_unusable_device_is_refused(config):
    """The run ends before it begins, with one sentence."""
    with pytest.raises(InputError, match="device 'abacus' cannot be used"):
        train(dataclasses.replace(config, device="abacus"))


# Command line


@pytest.mark.parametrize(
    ("command", "content", "changes", "message"),
    [
        ("train", None, [], "cannot be read as a TOML file of settings"),
        ("train", "data = ", [], "cannot be read as a TOML file of settings"),
        ("train", 'data = "x"\n', [], "weights, state are missing"),
        ("train", FILE, ["speed=9"], "unknown settings speed; known are data"),
        ("train", FILE, ["steps=many"], "steps is 'many'; it must be of type int"),
        ("train", FILE, ["steps=true"], "steps is True; it must be of type int"),
        ("train", FILE, ["steps"], "write NAME=VALUE"),
        ("train", FILE, ["begin_from=2"], "begin_from is 2; it must be of type str"),
        ("train", FILE, ["teacher=v_48_020"], "mpnn train takes no teacher; use mpnn distill"),
        ("distill", FILE, [], "mpnn distill needs a teacher; use mpnn train"),
        ("train", FILE, ["noise=true"], "noise is True; it must be of type float"),
        ("train", FILE, ["steps=5"], "decay_steps is 2000, more than the 5 steps"),
        ("train", FILE, ["noise=0", "decay_steps=0"], "chains.npz"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(here, command, content, changes, message):
    """The command ends with exit code 2 and the reason."""
    if content is not None:
        (here / "run.toml").write_text(content)
    result = run(command, "run.toml", *(word for c in changes for word in ("--set", c)))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["train", "distill"])
def test_train_then_design(here, made, command):
    """Training by a settings file reports its steps and writes weights that design takes."""
    write_chains(here / "chains.npz", (30,), (0,))
    (here / "run.toml").write_text(FILE + 'architecture = "extreme-v2"\nreport_every = 1\n')
    changes = ["steps=2", "decay_steps=1", f"validation={here / 'chains.npz'}"]
    if command == "distill":
        changes += [f"teacher={made}", f"targets={here / 'cache'}"]
    trained = run(command, "run.toml", *(word for c in changes for word in ("--set", c)))
    assert trained.exit_code == 0
    assert re.search(r"^step 1/2  loss .*perplexity", trained.stderr, re.M)
    assert re.search(r"^step 2/2 .* validation perplexity", trained.stderr, re.M)
    assert "2 steps done -> w.safetensors" in trained.stderr
    assert run("design", "dimer.pdb", "--weights", "w.safetensors").exit_code == 0
