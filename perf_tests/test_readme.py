"""What the README shows is run: its worked example, its commands and its table of environments."""

import argparse
import configparser
import re
import shlex
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpnn import cli
from mpnn.config import ModelConfig
from mpnn.equality import ROUNDING, flips, largest_difference
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import ENGINES, load_engine, reference
from mpnn.regression import claims, workloads
from mpnn.regression.machine import PINNED
from mpnn.regression.session import Session
from mpnn.regression.verdict import Rule, Verdict
from mpnn.sampling import Constraints, Key, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S))
ENGINES_PAGE = (ROOT / "mpnn/optimizations/README.md").read_text(encoding="utf-8")
EXAMPLE = ENGINES_PAGE.split("## Add your own optimization\n")[1]
MODULE, ROW = re.findall(r"^```python\n(.*?)^```", EXAMPLE, re.M | re.S)
(COMMAND,) = re.findall(r"^```sh\n(.*?)\n```", EXAMPLE, re.M | re.S)
CLAIM = eval(ROW, vars(claims))
NAME = CLAIM.subject.partition(":")[0]
PATH = NAME.replace(".", "/") + ".py"
SMALL = ModelConfig(num_encoder_layers=2, num_decoder_layers=2, hidden_dim=32, k_neighbors=16)


@pytest.fixture
def engine(monkeypatch):
    """The name under which the example's engine can be loaded."""
    module = types.ModuleType(NAME)
    exec(MODULE, vars(module))
    monkeypatch.setitem(sys.modules, NAME, module)
    return CLAIM.subject


def jobs():
    """A batch of two lengths: one structure free, one with fixed, tied and masked residues."""
    backbones = [synthetic_backbone(50), synthetic_backbone(31, chains=2, seed=1)]
    backbones[1].mask[7] = False
    backbones[1].coords[7] = 0
    batch = Flat.from_backbones(backbones)
    free, bound = (Constraints.free(backbone.mask) for backbone in backbones)
    bound.designed[10:14] = False
    bound.tie_group[25] = 2
    return batch, make_job(batch.S, [free, bound], [Key(3, n, 0.1) for n in range(2)])


def test_example_samples_the_sequences_of_the_reference(engine, monkeypatch):
    """The example's engine gives the reference's sequences and scores in fewer steps."""
    batch, job = jobs()
    steps, gather = [], reference.StepRows.of
    monkeypatch.setattr(
        reference.StepRows, "of", lambda job, step: steps.append(step.max()) or gather(job, step)
    )
    samples = []
    for name in ("reference", engine):
        runner = load_engine(formula_weights(SMALL), name)
        samples.append(runner.sample(runner.encode(batch), job))
    assert flips(job, *samples, batch.lengths) == []
    assert largest_difference(*samples) <= ROUNDING
    assert np.array_equal(samples[1].S[:, 52], samples[1].S[:, 75])
    assert steps[1] < steps[0]


@pytest.mark.parametrize("name", ["nowhere.engine:Engine", "mpnn.model:Engine", "fast", ":", "x:"])
def test_an_engine_that_is_not_there_is_named(name):
    """A name that leads to no engine is an error that repeats the name."""
    with pytest.raises(InputError, match=re.escape(name)):
        load_engine(formula_weights(SMALL), name)


def test_example_row_is_judged(engine, monkeypatch):
    """The example's row is a claim that the gate times, and finds accurate, on a small workload."""
    small = replace(workloads.WORKLOADS[CLAIM.workload], length=24)
    monkeypatch.setitem(workloads.WORKLOADS, CLAIM.workload, small)
    assert f"`{PATH}`" in EXAMPLE
    assert CLAIM.id not in claims.BY_ID
    assert not claims.not_measured_here(CLAIM)
    rule = Rule(pairs=7, looks=1, alpha_fail=1 / 128, alpha_pass=1 / 128, shortest_run=1e-3)
    seconds = iter(range(10_000))
    session = Session()
    timings = session.time(CLAIM.id, *workloads.sides(CLAIM), rule, 0, lambda: next(seconds))
    row = session.row(CLAIM.id, timings, rule, workloads.accuracy(CLAIM, timings.shown))
    assert row.accuracy.passed
    assert row.accuracy.text.startswith("equal")
    assert row.verdict is Verdict.NOT_RECORDED
    assert workloads.about(CLAIM)["engine"] == engine


@pytest.mark.slow
def test_example_command_judges_the_row(tmp_path):
    """In a copy with the example's module and row, its command prints the row it promises."""
    for folder in ("mpnn", "perf_tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / PATH).write_text(MODULE)
    table = tmp_path / "mpnn/regression/claims.py"
    head, opening, rows = table.read_text().partition("CLAIMS: tuple[Claim, ...] = (\n")
    table.write_text(f"{head}{opening}{ROW.rstrip()},\n{rows}")
    small = tmp_path / "mpnn/regression/workloads.py"
    small.write_text(small.read_text().replace("length=416", "length=24"))
    _, arguments = COMMAND.split(" -- ")
    command = [sys.executable, "-m", "pytest", "-p", "pytest_benchmark.plugin"]
    done = subprocess.run(
        [*command, "perf_tests/test_speed.py", *shlex.split(arguments)],
        cwd=tmp_path,
        env={**PINNED, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"^ *wavefront .*\d× \[.*equal.*not recorded$", done.stdout, re.M), done.stdout
    assert "`--record` stores it" in done.stdout
    assert done.returncode == 1


def test_first_commands_are_those_of_continuous_integration():
    """The README's test command is that of `.ci/run`."""
    (ours,) = re.findall(r"^python -m pip install tox && python -m tox run$", SHELL, re.M)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == ours


def test_environments_are_those_of_tox():
    """Every environment that the README names is in tox.ini, and its menu has them all."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    there = {name.removeprefix("testenv:") for name in tox.sections() if ":" in name}
    named = set(re.findall(r"tox (?:run )?-e ([\w-]+)", README + ENGINES_PAGE))
    assert {"perf", "record"} <= named <= there
    (menu,) = re.findall(r"`python -m tox list` is the menu: (.*?)\.", README)
    assert set(re.findall(r"`([\w-]+)`", menu)) == there
    assert tox["tox"]["env_list"] in there


def command_lines():
    """Every `mpnn …` of the two pages: lines of shell blocks and code in the text."""
    inline = re.findall(r"`(mpnn (?:-|[a-z]+\b).*?)`", README + ENGINES_PAGE)
    return sorted({*re.findall(r"^mpnn .*", SHELL, re.M), *inline})


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(line):
    """The command line takes each command and option that the README shows."""
    names, arguments = [], shlex.split(line, comments=True)[1:]
    while arguments and arguments[0] in commands_of(names):
        names.append(arguments.pop(0))
    assert names or line.startswith("mpnn -")
    assert options_of(names) >= {word for word in arguments if word.startswith("--")}
    if arguments and "--help" not in arguments:
        cli.parser().parse_args([*names, *arguments])


def parser_of(names):
    """The parser of a command, such as ["weights", "list"]."""
    parser = cli.parser()
    for name in names:
        (commands,) = (a.choices for a in parser._actions if a.nargs == argparse.PARSER)
        parser = commands[name]
    return parser


def commands_of(names):
    """Names of the commands below a command."""
    below = [a.choices for a in parser_of(names)._actions if a.nargs == argparse.PARSER]
    return set(*below)


def options_of(names):
    """Long options of a command."""
    return {name for action in parser_of(names)._actions for name in action.option_strings}


def test_options_exist():
    """Each option in the README's table of options is one of `mpnn design` or `mpnn score`."""
    heads = re.findall(r"^\| (`--.*?) \| ", README, re.M)
    shown = {name for head in heads for name in re.findall(r"--[a-z-]+", head)}
    assert {"--weights", "--seed"} <= shown
    assert shown <= options_of(["design"]) | options_of(["score"])


def test_every_engine_is_in_the_table():
    """The page of the engines names every one that `--engine` takes, and no other."""
    table = ENGINES_PAGE.split("## Add your own optimization\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([\w-]+)`", "".join(rows))) == sorted(ENGINES)


def test_row_of_the_readme_is_that_of_the_example():
    """The README shows the row of the worked example, and stays short."""
    assert ROW in README
    assert len(README.splitlines()) <= 160
    assert len(README.encode()) <= 11 * 1024
