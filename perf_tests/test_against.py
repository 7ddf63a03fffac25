"""A working tree against a commit, on a synthetic package whose claims spin for a while."""

import json
import math
import random
import shutil

import pytest

from mpnn.errors import InputError
from mpnn.regression import against
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
from types import SimpleNamespace
from mpnn.errors import InputError
def sides(claim):
    if claim.id == "nowhere":
        raise InputError("no such package")
    rounds = ROUNDS if claim.id == "spin" else 20_000
    return [SimpleNamespace(call=lambda number: sum(range(rounds)), units=1)] * 2
def accuracy(claim, timing):
    subject, reference = timing.outputs
    passed = subject == reference and claim.id != "WRONG"
    return SimpleNamespace(passed=passed, text="other residues")
"""


@pytest.fixture
def project(tmp_path):
    """A repository with a synthetic `mpnn`, committed once."""
    project = Project.make(tmp_path / "project")
    package = project.root / "mpnn" / "regression"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (project.root / "pyproject.toml").write_text(PYPROJECT)
    (package.parent / "errors.py").write_text("class InputError(Exception): pass\n")
    (package / "claims.py").write_text(CLAIMS)
    (package / "workloads.py").write_text(WORKLOADS.replace("ROUNDS", "20_000"))
    project.commit()
    return project


def times(shift, seed, pairs=10, noise=0.02):
    noises = random.Random(seed)
    return [{"a": 0.01 * math.exp(shift + noises.gauss(0, noise))} for _ in range(pairs)]


def test_same_tree_holds():
    """Over 100 simulated comparisons of the same code none is called changed."""
    verdicts = [
        against.differences(times(0, 2 * i), times(0, 2 * i + 1))[0].verdict for i in range(100)
    ]
    assert set(verdicts) <= {Verdict.HOLDS, Verdict.UNDECIDED}
    assert verdicts.count(Verdict.HOLDS) >= 90


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.15, Verdict.REGRESSED), (-0.15, Verdict.IMPROVED)]
)
def test_a_changed_tree_is_seen(shift, verdict):
    """A change of 15 % is seen from ten pairs of processes, in both directions."""
    assert against.differences(times(0, 1), times(shift, 2))[0].verdict is verdict


def test_drift_of_the_machine_cancels():
    """A machine that slows down by half during the comparison does not look like a regression."""
    drift = [1 + i / 20 for i in range(10)]
    base = [{"a": t["a"] * d} for t, d in zip(times(0, 1), drift, strict=True)]
    head = [{"a": t["a"] * d} for t, d in zip(times(0, 2), drift, strict=True)]
    assert against.differences(base, head)[0].verdict is Verdict.HOLDS


def test_processes_alternate():
    """Each pair has one process of either tree, and both go first about as often."""
    log = []
    against.alternate(lambda: log.append("base") or {}, lambda: log.append("head") or {}, 20)
    pairs = list(zip(log[::2], log[1::2], strict=True))
    assert all(set(pair) == {"base", "head"} for pair in pairs)
    assert pairs.count(("head", "base")) == 10


def test_gone_and_incomparable_claims_are_reasons():
    """A claim that the head lost, and two trees without a common claim, are each red."""
    said = against.problems({"a": 1.0, "b": 1.0}, {"a": 1.0}, [against.Difference("a", 0, 0, 0)])
    assert said == ["b: is a claim of the base that the head lacks"]
    assert "nothing was compared" in against.problems({}, {"a": 1.0}, [])[0]
    wide = against.Difference("a", 0, -1, 1)
    assert "1 of 1 claims are undecided" in against.problems({"a": 1.0}, {"a": 1.0}, [wide])[0]


def test_a_planted_slow_down_of_the_working_tree_is_red(project):
    """A claim five times slower than at HEAD regresses; one that cannot run is named."""
    path = project.root / "mpnn" / "regression" / "workloads.py"
    path.write_text(WORKLOADS.replace("ROUNDS", "100_000"))
    table, reasons = against.compare(project.root, "HEAD", "n", pairs=7)
    assert any(reason.startswith("spin: regressed by") for reason in reasons)
    assert "| `spin` | speed | time +" in table
    assert table.endswith("`nowhere` not measured here: no such package")


def test_a_working_tree_that_is_fast_and_wrong_is_red(project):
    """Wrong outputs fail, whatever the time says; so does a claim that is gone and not retired."""
    path = project.root / "mpnn" / "regression" / "workloads.py"
    path.write_text(path.read_text().replace("WRONG", "turn"))
    claims = project.root / "mpnn" / "regression" / "claims.py"
    claims.write_text(CLAIMS.replace('"lost", ', "").replace('"retired", ', ""))
    (project.root / "baselines").mkdir()
    item = {"test": "t.py::test_claim[retired]", "what": "", "why": "", "figures": {}}
    retired = project.root / "baselines" / "retired.json"
    retired.write_text(json.dumps({"retired": [item]}))
    _, reasons = against.compare(project.root, "HEAD", pairs=1)
    assert "turn: accuracy failed, other residues" in reasons
    assert not any(reason.startswith("spin: accuracy") for reason in reasons)
    assert "lost: is a claim of the base that the head lacks" in reasons
    assert not any(reason.startswith("retired") for reason in reasons)


def test_a_tree_with_other_dependencies_gets_a_python_of_its_own(project):
    """The base is timed with what it needs, not with what the working tree needs; and it holds."""
    changed = PYPROJECT.replace("[]", '["a-package-that-nobody-has"]')
    (project.root / "pyproject.toml").write_text(changed)
    base = against.check_out(project.root, "HEAD", project.root.parent / "base")
    python = against.python_for(base, project.root)
    assert python.parent.parent == base.with_name("base-venv")
    seconds = against.Tree(base, python).time("")
    assert seconds.keys() == {"spin", "turn", "lost", "retired"}


def test_dependencies_that_cannot_be_had_are_an_error(project):
    """What pip cannot install is named."""
    pyproject = project.root / "pyproject.toml"
    pyproject.write_text(PYPROJECT.replace("[]", '["not a requirement"]'))
    project.commit()
    pyproject.write_text(PYPROJECT)
    with pytest.raises(InputError, match="not a requirement"):
        against.compare(project.root, "HEAD", pairs=1)


def test_an_unknown_commit_is_an_error(project):
    """A revision that git does not know is named."""
    with pytest.raises(InputError, match="cannot check out 'nowhere'"):
        against.compare(project.root, "nowhere")


def test_a_tree_that_cannot_be_timed_is_an_error(project):
    """A commit without claims is said to be that, with what its process said."""
    shutil.rmtree(project.root / "mpnn" / "regression")
    with pytest.raises(InputError, match="cannot be timed"):
        against.compare(project.root, "HEAD", pairs=1)


def test_a_comparison_prints_its_table_and_its_reasons(tmp_path):
    """`pytest perf_tests --against REV` ends with the table, also in the file asked for."""
    project = Project.make(tmp_path / "project")
    (project.root / "conftest.py").write_text(
        "from mpnn.regression import against\n"
        "against.compare = lambda *_: ('| the table |', ['a: regressed by 9 %'])\n"
    )
    session = project.pytest("perf_tests", "--against", "HEAD", "--summary", "summary.md")
    assert session.code == 1
    assert "| the table |\nclaims: a: regressed by 9 %" in session.output
    assert (project.root / "summary.md").read_text() == "| the table |\n\n- a: regressed by 9 %\n"


def test_against_is_an_option_of_pytest(tmp_path):
    """`pytest perf_tests --against REV` compares instead of testing; REV must exist."""
    session = Project.make(tmp_path / "project").pytest("perf_tests", "--against", "nowhere")
    assert session.code == 4
    assert "cannot check out 'nowhere'" in session.output
