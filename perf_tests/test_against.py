"""A working tree against a commit, on a synthetic package whose claims take simulated time."""

import itertools
import json
import math
import random
import site
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpnn.errors import InputError
from mpnn.regression import against, trees
from mpnn.regression.tables import only_changed
from mpnn.regression.verdict import Verdict
from mpnn.studies.project import Project

PYPROJECT = '[project]\nname = "mpnn"\nversion = "0"\ndependencies = []\n'
CLAIMS = """
from types import SimpleNamespace
NAMES = ("spin", "turn", "lost", "retired", "nowhere")
CLAIMS = [SimpleNamespace(id=name, slow=False) for name in NAMES]
def not_measured_here(claim):
    return ""
"""
WORKLOADS = """
import os, random, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from mpnn.errors import InputError

NOW, NOISE = [0.0], random.Random(os.getpid())
time.perf_counter = lambda: NOW[0]
STARTS = Path(__file__).with_name("starts")
STARTS.open("a").write(".")
FIRST = 1.0 if STARTS.stat().st_size > 1 else 1.0  # slower in the first process
SECONDS = {"spin": 0.03}
TEMPERATURE = 1.0
print("a library greets")

def sides(claim):
    if claim.id == "nowhere":
        raise InputError("no such package")
    def call(number):
        NOW[0] += FIRST * SECONDS.get(claim.id, 0.02) * np.exp(NOISE.gauss(0, 0.01))
        S = np.arange(20) % 7 + number + round(TEMPERATURE - 1)
        return [SimpleNamespace(S=S, log_probs=np.outer(S, np.ones(21)) / TEMPERATURE)]
    return [SimpleNamespace(call=call, units=1)] * 2

def accuracy(claim, timing):
    subject, reference = timing.outputs
    return SimpleNamespace(passed=claim.id != "WRONG", text="other residues")
"""


@pytest.fixture
def project(tmp_path):
    """A repository with a synthetic `mpnn`, committed once."""
    project = Project.make(tmp_path / "project")
    package = project.root / "mpnn" / "regression"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (project.root / ".gitignore").write_text("__pycache__/\nstarts\n")
    (project.root / "pyproject.toml").write_text(PYPROJECT)
    (package.parent / "errors.py").write_text("class InputError(Exception): pass\n")
    (package / "claims.py").write_text(CLAIMS)
    (package / "workloads.py").write_text(WORKLOADS)
    project.commit()
    return project


def edit(project, old, new, file="workloads.py"):
    path = project.root / "mpnn" / "regression" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cells(table, name):
    """The row of a claim: change of time, verdict, outputs."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


class SimulatedWorkers:
    """Two processes of which each start has its own bias, and each run its own noise."""

    def __init__(self, seed, shift):
        self.random, self.shift = random.Random(seed), shift
        self.start()

    def start(self):
        """Starts both, each a per cent or two from what it should take."""
        self.both = [SimpleNamespace(ask=self.side(shift)) for shift in (0.0, self.shift)]

    def side(self, shift):
        """What answers `run` for one of them."""
        bias = shift + self.random.gauss(0, 0.015)

        def ask(_, repeats):
            slow = 5 if self.random.random() < 0.02 else 1
            return {"seconds": 0.03 * repeats * slow * math.exp(self.random.gauss(bias, 0.03))}

        return ask

    def ask(self, *_, **__):
        """The answers to `load`."""
        return [{"seconds": 0.03}] * 2


def verdicts(percent):
    """Verdicts of 60 simulated comparisons with a slow-down of the head."""
    found = []
    for seed in range(60):
        workers = SimulatedWorkers(seed, math.log1p(percent / 100))
        found.append(against.difference(workers, "a", workers.ask("load")).verdict)
    return found


def test_same_code_is_never_called_changed():
    """Processes 1.5 % apart and runs with noise of 3 %: of 60 comparisons all hold."""
    assert set(verdicts(0)) == {Verdict.HOLDS}


@pytest.mark.parametrize(("percent", "verdict"), [(12, "regressed"), (-12, "improved")])
def test_a_change_is_seen_in_both_directions(percent, verdict):
    """Of 60 changes by 12 %, under the same noise, none holds and 57 or more are decided."""
    found = verdicts(percent)
    assert Verdict.HOLDS not in found
    assert found.count(verdict) >= 57


def test_lost_and_incomparable_claims_are_reasons():
    """A claim that the head lost, and two trees without a common claim, are each red."""
    same = against.Difference("a", 0, 0, 0, Verdict.HOLDS)
    said = against.problems((["a", "b"], ["a"]), [same], {}, False)
    assert said == ["b: is a claim of the base that the head lacks"]
    assert "nothing was compared" in against.problems(([], ["a"]), [], {}, False)[0]
    wide = against.Difference("a", 0, -1, 1, Verdict.UNDECIDED)
    assert "1 of 1 claims are undecided" in against.problems((["a"], ["a"]), [wide], {}, False)[0]


def test_an_innocent_change_is_green(project):
    """The same work in other words holds; a claim that neither tree can run is named."""
    edit(project, '{"spin": 0.03}', 'dict([("spin", 0.03)])')
    table, reasons = against.compare(project.root, "HEAD")
    assert not reasons
    assert cells(table, "spin")[1:] == cells(table, "turn")[1:] == ["holds", "the same"]
    assert table.endswith("`nowhere` not measured here: no such package")


def test_a_slow_down_of_the_working_tree_is_red(project):
    """+10 % in one claim regresses, confirmed by a second pair of processes; the other holds."""
    edit(project, "0.03", "0.033")
    table, reasons = against.compare(project.root, "HEAD", "n")
    (reason,) = reasons
    assert reason.startswith("spin: regressed by ")
    assert reason.endswith("%, in two pairs of processes")
    assert cells(table, "turn")[1] == "holds"
    starts = project.root / "mpnn" / "regression" / "starts"
    assert starts.stat().st_size == 2


def test_a_slow_base_is_an_improvement_and_green(project):
    """Ten per cent less time is shown, and no failure."""
    edit(project, "0.03", "0.027")
    table, reasons = against.compare(project.root, "HEAD", "spin")
    assert not reasons
    assert cells(table, "spin")[1] == "improved"


def test_a_slow_process_of_the_same_code_holds(project):
    """What the first process of the head shows, but not the second, is no regression."""
    edit(project, "else 1.0", "else 1.12")
    table, reasons = against.compare(project.root, "HEAD", "spin")
    assert not reasons
    assert cells(table, "spin")[1] == "holds"
    assert (project.root / "mpnn" / "regression" / "starts").stat().st_size == 2


def test_changed_outputs_are_red_unless_they_may_change(project):
    """A temperature changed in shared code passes each tree's own accuracy, and is seen."""
    edit(project, "TEMPERATURE = 1.0", "TEMPERATURE = 2.0")
    table, reasons = against.compare(project.root, "HEAD", "spin")
    assert cells(table, "spin")[2].startswith("100.0% of the residues")
    assert len(reasons) == 1
    assert reasons[0].startswith("spin: outputs changed, ")
    assert reasons[0].endswith("if that is meant, --outputs-may-change")
    table, reasons = against.compare(project.root, "HEAD", "spin", may_change=True)
    assert not reasons
    assert "residues" in cells(table, "spin")[2]


def test_rounding_is_no_change_of_outputs(project):
    """Log-probabilities may differ by 1e-4 nats at the same residues, and by no more."""
    edit(project, "/ TEMPERATURE", "/ TEMPERATURE + 5e-5")
    assert not against.compare(project.root, "HEAD", "spin")[1]
    edit(project, "5e-5", "2.0e-4")  # of another length: bytecode is known by size and second
    (reason,) = against.compare(project.root, "HEAD", "spin")[1]
    assert "|Δ| 2e-04, allowed 1e-04" in reason


def test_a_working_tree_that_is_fast_and_wrong_is_red(project):
    """Wrong outputs fail, whatever the time says; so does a claim that is lost and not retired."""
    edit(project, "WRONG", "turn")
    edit(project, '"lost", "retired", ', "", "claims.py")
    (project.root / "baselines").mkdir()
    item = {"test": "t.py::test_claim[retired]", "what": "", "why": "", "figures": {}}
    retired = project.root / "baselines" / "retired.json"
    retired.write_text(json.dumps({"retired": [item]}))
    _, reasons = against.compare(project.root, "HEAD")
    assert reasons == [
        "turn: accuracy failed, other residues",
        "lost: is a claim of the base that the head lacks",
    ]


def test_a_claim_that_only_the_base_can_run_is_red(project):
    """A head that refuses a job is not one on which the job was not measured."""
    edit(project, '== "nowhere"', 'in ("nowhere", "turn")')
    _, reasons = against.compare(project.root, "HEAD", "n")
    assert reasons == ["turn: the base can run it and the head cannot: no such package"]


@pytest.fixture
def stub_of_pip(tmp_path, monkeypatch):
    """A pip that notes what it should install and lends the packages of this Python."""
    package = tmp_path / "stub" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import pathlib, site, sys\n"
        "pathlib.Path(__file__).with_name('asked').write_text(' '.join(sys.argv[1:]))\n"
        "folder = pathlib.Path(site.getsitepackages()[0])\n"
        f"(folder / 'lent.pth').write_text({site.getsitepackages()[0]!r})\n"
        "sys.exit('not a requirement' in sys.argv)\n"
    )
    create = trees.venv.create
    monkeypatch.setattr(trees.venv, "create", lambda path, **_: create(path, symlinks=True))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return package / "asked"


def test_a_tree_with_other_dependencies_gets_a_python_of_its_own(project, stub_of_pip):
    """The base is timed with what it needs, not with what the working tree needs; and it holds."""
    pyproject = project.root / "pyproject.toml"
    pyproject.write_text(PYPROJECT.replace("[]", '["old-package==1"]'))
    project.commit()
    pyproject.write_text(PYPROJECT)
    table, reasons = against.compare(project.root, "HEAD", "spin")
    assert not reasons
    assert cells(table, "spin")[1] == "holds"
    assert stub_of_pip.read_text() == "install -q old-package==1"
    base = trees.check_out(project.root, "HEAD", project.root.parent / "base")
    assert trees.python_for(base, project.root).is_relative_to(base.with_name("base-venv"))
    assert trees.python_for(base, base) == Path(sys.executable)


def test_dependencies_that_cannot_be_had_are_an_error(project, stub_of_pip):
    """What pip cannot install is named."""
    pyproject = project.root / "pyproject.toml"
    pyproject.write_text(PYPROJECT.replace("[]", '["not a requirement"]'))
    project.commit()
    pyproject.write_text(PYPROJECT)
    with pytest.raises(InputError, match=r"needs \(not a requirement\)"):
        against.compare(project.root, "HEAD")
    assert stub_of_pip.exists()


def test_libraries_of_the_same_sources_are_not_compiled_twice(tmp_path):
    """The base gets the head's libraries before its own toolchain looks what is missing."""
    head, base = tmp_path / "head", tmp_path / "base"
    native = Path("mpnn", "optimizations", "native")
    (head / native / "lib").mkdir(parents=True)
    (head / native / "lib" / "digest.so").touch()
    (base / native).mkdir(parents=True)
    (base / native / "toolchain.py").write_text(
        "from pathlib import Path\n"
        "lib = Path(__file__).with_name('lib')\n"
        "(lib / 'seen').write_text(str((lib / 'digest.so').exists()))\n"
    )
    trees.compiled(base, built=head)
    assert (base / native / "lib" / "seen").read_text() == "True"


def test_an_unknown_commit_is_an_error(project):
    """A revision that git does not know is named."""
    with pytest.raises(InputError, match="cannot check out 'nowhere'"):
        against.compare(project.root, "nowhere")


@pytest.mark.parametrize("where", ["import os", "def accuracy"])
def test_a_tree_that_cannot_be_timed_is_an_error(project, where):
    """A process that ends, at its start or later, is said to be that, with what it said."""
    ending = "import sys; sys.exit('out of order')\n"
    if where == "def accuracy":
        edit(project, "subject, reference = timing.outputs", ending.strip())
    else:
        edit(project, where, ending + where)
    with pytest.raises(InputError, match=r"(?s)cannot be timed:.*out of order"):
        against.compare(project.root, "HEAD")


def test_both_trees_go_first_equally_often():
    """Of each block of two pairs one begins with the head."""
    firsts = list(itertools.islice(against.subject_first(3), 40))
    assert all(sum(block) == 1 for block in zip(firsts[::2], firsts[1::2], strict=True))


def test_a_pull_request_is_shown_what_changed_alone():
    """Claims that hold with the same outputs are left out; without any other it says so."""
    head, holds = "| claim | time | verdict | outputs |", "| `a` | +0.1 % | holds | the same |"
    slower = "| `b` | +9.0 % | regressed | the same |"
    assert only_changed("\n".join([head, holds, slower])) == f"{head}\n{slower}"
    assert only_changed(f"{head}\n{holds}") == "Nothing changed: 1 claims compared."


def test_a_comparison_prints_its_table_and_its_reasons(tmp_path):
    """`pytest perf_tests --against REV` ends with the table, also in the file asked for."""
    project = Project.make(tmp_path / "project")
    (project.root / "conftest.py").write_text(
        "from mpnn.regression import against\n"
        "against.compare = lambda *a: (f'| the table | {a[1:]}', ['a: regressed by 9 %'])\n"
    )
    session = project.pytest(
        *("perf_tests", "--against", "HEAD", "--summary", "summary.md", "--outputs-may-change")
    )
    assert session.code == 1
    assert "| the table | ('HEAD', '', True)\nclaims: a: regressed by 9 %" in session.output
    assert (project.root / "summary.md").read_text().endswith("\n\n- a: regressed by 9 %\n")


def test_against_is_an_option_of_pytest(tmp_path):
    """`pytest perf_tests --against REV` compares instead of testing; REV must exist."""
    session = Project.make(tmp_path / "project").pytest("perf_tests", "--against", "nowhere")
    assert session.code == 4
    assert "cannot check out 'nowhere'" in session.output
