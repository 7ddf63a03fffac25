"""The gate, tested like any instrument: what it must catch, and every way to pass untested.

Sessions are whole pytest processes on the synthetic claims of `toys`; one session holds as many
planted claims as it can tell apart.
"""

import json
import math
import re

import pytest

from mpnn.regression.machine import PINNED
from mpnn.studies.project import Project

CLAIMS = "a,b,c,d,e,f,g,h"
A, B, C, D, E, F, G, H = (f"perf_tests/test_toy.py::test_claim[{name}]" for name in "abcdefgh")
ROW = re.compile(r"^ *test_claim\[(\w+)\] +\S+ +[\d.]+× .*?(\w+)$", re.M)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A project whose claims were recorded once."""
    project = Project.make(tmp_path_factory.mktemp("toy") / "project")
    ended = project.pytest("perf_tests", "--record", claims=CLAIMS)
    assert ended.code == 0, ended.output
    project.commit()
    return project


@pytest.fixture
def project(recorded, tmp_path):
    """A copy of the recorded project, to be changed."""
    return recorded.copy(tmp_path / "project")


def session(project, *arguments, **planted):
    """A session on all claims, unless others are named."""
    return project.pytest(*arguments, **{"claims": CLAIMS, **planted})


def verdicts(ended):
    """Last word of each claim's row in the table of a session."""
    return dict(ROW.findall(ended.output))


def edit(project, old, new):
    path = project.root / "perf_tests" / "test_toy.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def conftest(project, text):
    path = project.root / "perf_tests" / "conftest.py"
    path.write_text(path.read_text() + text)


def edit_stored(project, change):
    data = json.loads(project.runs()[-1].read_text())
    change(data)
    project.runs()[-1].write_text(json.dumps(data))


def retire(project, *tests):
    """Lists rows as retired."""
    items = [{"test": test, "what": "it", "why": "slower", "figures": {}} for test in tests]
    (project.root / "baselines" / "retired.json").write_text(json.dumps({"retired": items}))


def failure(ended, name):
    """The line of pytest's summary about one claim."""
    found = [line for line in ended.output.splitlines() if f"test_claim[{name}]" in line]
    return next(line for line in found if line.startswith(("FAILED", "ERROR")))


# What it must catch, and what it must not


def test_same_code_holds(recorded):
    """The same code holds, in a session that says so and exits with zero."""
    ended = session(recorded)
    assert ended.code == 0, ended.output
    assert set(verdicts(ended).values()) == {"holds"}
    assert len(verdicts(ended)) == 8


def test_planted_changes_are_told_apart(recorded, tmp_path):
    """In one session: +5 and +10 %, what a fresh process does not see, −10 %, wrong outputs.

    Each verdict is an ordinary failure, in junit's file too; the unchanged claims hold.
    """
    path = tmp_path / "junit.xml"
    ended = session(
        recorded,
        *("perf_tests", f"--junit-xml={path}", "-rA"),
        slow={"a": 1.05, "b": 1.10, "d": 0.9},
        slow_once={"c": 1.10},
        wrong={"e": True},
        noise_of={"f": 0.9},
    )
    assert ended.code == 1
    expected = dict.fromkeys("abcdefgh", "holds") | dict.fromkeys("ab", "regressed")
    expected |= {"c": "undecided", "d": "improved", "e": "failed", "f": "undecided"}
    assert verdicts(ended) == expected
    for name in "ab":
        assert "a fresh process said +" in failure(ended, name)
        assert "the subject moved more" in failure(ended, name)
    assert "`--record` keeps the gain" in failure(ended, "d")
    assert "accuracy failed: outputs differ; its speed is not judged" in failure(ended, "e")
    assert "4 failed, 2 passed, 2 skipped" in ended.output
    assert 'failures="4"' in path.read_text()
    assert "regressed: " in path.read_text()


def test_plain_compare_is_gated(recorded):
    """`pytest perf_tests --benchmark-compare` is a gated run, from another directory too."""
    for arguments, cwd in [(("perf_tests",), "."), ((".",), "perf_tests")]:
        ended = session(
            recorded,
            *(*arguments, "--benchmark-compare", "-k", "[a]"),
            cwd=recorded.root / cwd,
            slow={"a": 1.1},
        )
        assert ended.code == 1
        assert "regressed" in ended.output


def test_other_work_voids_speed_and_nothing_else(recorded):
    """Beside a busy process no speed is judged, wrong outputs fail, and a summary line says so.

    A session that judged no speed at all is not green.
    """
    ended = session(recorded, load=0.8, slow={"a": 1.2}, wrong={"b": True})
    assert ended.code == 1
    assert verdicts(ended) == dict.fromkeys("abcdefgh", "judged") | {"b": "failed"}
    assert "1 failed, 7 skipped" in ended.output
    assert "7 of 8 claims not judged: other processes used up to 0.80 cores" in ended.output
    assert "accuracy failed: outputs differ" in failure(ended, "b")
    assert "nothing was gated" in ended.output


def test_other_work_that_ends_is_waited_for(recorded):
    """A claim is timed once more, and then judged as if nothing had been."""
    ended = session(recorded, load=0.8, waits="1", slow={"a": 1.2})
    assert verdicts(ended) == dict.fromkeys("bcdefgh", "holds") | {"a": "regressed"}
    assert "not judged" not in ended.output


def test_a_recording_beside_other_work_is_refused(project):
    """No row is stored, and each says what used the machine."""
    runs = len(project.runs())
    ended = session(project, "perf_tests", "--record", load=0.8)
    assert ended.code == 1
    assert "other processes used 0.80 cores while it was timed" in failure(ended, "a")
    assert len(project.runs()) == runs


def test_a_change_that_only_void_processes_saw_is_red(project):
    """Where the control is out of band in every process that could confirm, nothing is settled."""
    project.plant(
        "import os, sys\nif '--confirm' in sys.argv:\n    os.environ['TOY_DRIFT'] = '1.1'\n"
    )
    ended = session(project, "perf_tests", "-k", "[a]", slow={"a": 1.1})
    assert ended.code == 1, ended.output
    assert "regressed, but no fresh process could confirm or refute it" in ended.output


def test_a_control_out_of_band_voids_the_session(recorded):
    """When the reference differs from itself no verdict counts, and the session says so."""
    ended = session(recorded, drift=1.1)
    assert ended.code == 1
    assert "the reference differs from itself by" in ended.output
    assert "8 failed" in ended.output


def test_a_noisy_machine_is_named(recorded):
    """A session in which most claims stay undecided is red, and so is one with nothing decided."""
    ended = session(recorded, "perf_tests", "-k", "[a] or [b] or [c]", noise=0.3)
    assert ended.code == 1
    assert "too noisy to gate" in ended.output
    ended = session(recorded, "perf_tests", "-k", "[c]", noise_of={"c": 0.4})
    assert ended.code == 1, ended.output
    assert "nothing was gated" in ended.output


def test_a_part_of_the_claims_can_be_run(recorded):
    """`-k` with `--quick` and a test id are for local work and pass."""
    for arguments in (["perf_tests", "-k", "[b]", "--quick"], [A]):
        ended = session(recorded, *arguments)
        assert ended.code == 0, ended.output


def test_a_process_that_is_not_pinned_restarts(recorded):
    """An environment with another hash seed or allocator is replaced before anything is timed."""
    ended = session(recorded, "perf_tests", "-k", "[a]", environ=dict.fromkeys(PINNED, "1"))
    assert ended.code == 0, ended.output
    assert "restarting with PYTHONHASHSEED" in ended.output


def test_an_unknown_machine_gates_accuracy_alone(recorded):
    """Without a stored run speed is not judged, by nobody's ratios; wrong outputs are red."""
    new = {"MPNN_HARDWARE_CHIP": "new"}
    ended = session(recorded, environ=new, slow={"a": 3.0})
    assert ended.code == 0, ended.output
    assert "work counters and accuracy were gated, speed was not" in ended.output
    assert "`--against REV` judges speed" in ended.output
    assert "8 skipped" in ended.output
    ended = session(recorded, environ=new, wrong={"e": True})
    assert ended.code == 1
    assert "accuracy failed" in failure(ended, "e")


def test_a_claim_with_a_gate_reference(project):
    """A long reference is timed when a row is recorded; sessions judge beside the short one."""
    short = dict.fromkeys("ab", True)
    ended = session(project, "perf_tests", "--record", gate=short)
    assert ended.code == 0, ended.output
    row = project.rows()[-1][A]
    assert row["gate_reference"] == "short"
    assert row["log_ratio"] == pytest.approx(math.log(0.01), abs=0.02)
    assert row["gate_log_ratio"] == pytest.approx(0, abs=0.02)
    project.commit()
    ended = session(project, gate=short, slow={"b": 1.05})
    assert ended.code == 1
    assert verdicts(ended) == dict.fromkeys("abcdefgh", "holds") | {"b": "regressed"}
    assert "beside its short" in failure(ended, "b")
    ended = session(project, gate={"a": True}, slow={"a": 0.1})
    assert "below 0.2 no processor can have done the work" in failure(ended, "a")
    ended = session(project, gate={"a": True})  # b is gated beside its reference now
    assert ended.code == 1
    assert (
        "b: its rules are laxer than those of the stored row (gate_reference short" in ended.output
    )


def test_claims_of_an_engine_that_lean_alike_are_red(recorded):
    """Each is undecided, and together they are slower: that is no noise."""
    ended = session(recorded, slow=dict.fromkeys("abc", 1.03), noise=0.05)
    assert ended.code == 1, ended.output
    assert "undecided one by one, and together engine unknown has regressed" in ended.output


def test_changed_counters_are_in_the_summary(project):
    """A session that counts work writes what changed, with the tier that saw it."""
    (project.root / "perf_tests" / "test_count.py").write_text(
        "from mpnn.regression.plugin import COUNTED\n"
        "from mpnn.regression.tables import Change\n"
        "def test_count(request):\n"
        "    request.config.stash[COUNTED] = [Change('a', 'counters', 'matmuls 2 → 4', 'FAILED')]\n"
    )
    ended = session(project, "perf_tests/test_count.py", "--summary", "summary.md")
    assert ended.code == 0, ended.output
    written = (project.root / "summary.md").read_text()
    assert "| `a` | counters | matmuls 2 → 4 | FAILED |" in written


def test_weaker_rules_and_other_versions_are_named(project):
    """Fewer pairs than when the row was stored are red; another release of a library is named."""
    edit_stored(
        project, lambda data: data["benchmarks"][0]["extra_info"]["versions"].update(numpy="1.0")
    )
    edit(project, "gate=gate_of", "rule=Rule(pairs=20), gate=gate_of")
    edit(project, "import pytest\n", "import pytest\nfrom mpnn.regression.verdict import Rule\n")
    ended = session(project)
    assert ended.code == 1
    assert "a: its rules are laxer than those of the stored row (pairs 40 → 20)" in ended.output
    assert "stored rows were measured with numpy 1.0, here" in ended.output


def test_an_unknown_machine_must_not_lack_what_all_others_have(project):
    """There too a claim that is gone or skips itself is red, unless it is excused."""
    new = {"MPNN_HARDWARE_CHIP": "new"}
    edit(
        project,
        "    claim(*",
        "    if name in 'bc':\n"
        "        if name == 'c': request.config.stash[GATE].excused.add(request.node.nodeid)\n"
        "        pytest.skip('no time')\n"
        "    claim(*",
    )
    edit(project, "import pytest\n", "import pytest\nfrom mpnn.regression.plugin import GATE\n")
    ended = session(project, environ=new, claims=CLAIMS.removeprefix("a,"))
    assert ended.code == 1, ended.output
    assert f"{A}: is stored, but no test has this id" in ended.output
    assert f"{B}: is stored, but was not measured" in ended.output
    assert f"{C}: is stored" not in ended.output
    ended = session(project)  # where it was recorded it could be measured
    assert ended.code == 1, ended.output
    assert f"{C}: is stored, but was not measured" in ended.output


def test_the_very_first_run_gates_accuracy(tmp_path):
    """With nothing stored anywhere outputs are still checked, and the session says what was not."""
    project = Project.make(tmp_path / "project")
    ended = project.pytest("perf_tests", "--quick")
    assert ended.code == 0, ended.output
    assert "has no stored run yet" in ended.output
    assert project.pytest("perf_tests", "--quick", wrong={"a": True}).code == 1


# Ways to pass without having gated


@pytest.mark.parametrize(
    ("arguments", "environ", "reason"),
    [
        (["--benchmark-disable"], {}, "benchmarks are disabled"),
        (["--benchmark-skip"], {}, "nothing was gated|was not measured"),
        ([], {"PYTEST_XDIST_WORKER": "gw0"}, "xdist"),
        (["--benchmark-autosave"], {}, "must not become a baseline"),
        (["--benchmark-compare", "--benchmark-save=x"], {}, "must not become a baseline"),
        (["--record", "--quick"], {}, "drop --quick"),
        (["--benchmark-json=baselines/x.json"], {}, "only `--record` writes"),
        (["--benchmark-storage=elsewhere"], {}, "drop --benchmark-storage"),
        (["--confirm=row.json", "-k", "[a]"], {}, "--confirm judges nothing: the row goes to row"),
    ],
)
def test_a_session_that_could_not_gate_is_red(project, arguments, environ, reason):
    """Options that keep claims from being timed, judged or stored apart end in red."""
    ended = session(project, "perf_tests", *arguments, environ=environ)
    assert ended.code != 0, ended.output
    assert any(part in ended.output for part in reason.split("|")), ended.output


def test_claims_left_out_on_purpose_are_not_missing(project):
    """With --ignore the other tests of a folder pass; a file that is gone stays red."""
    (project.root / "perf_tests" / "test_other.py").write_text("def test_other():\n    pass\n")
    ignored = "--ignore=perf_tests/test_toy.py"
    ended = session(project, "perf_tests", ignored)
    assert ended.code == 0, ended.output
    (project.root / "perf_tests" / "test_toy.py").unlink()
    for arguments in ([], ["perf_tests", ignored]):
        ended = session(project, *arguments)
        assert ended.code != 0
        assert f"{A}: is stored, but no test has this id" in ended.output


def test_claims_that_are_not_measured_once_are_red(project):
    """In one session: renamed, skipped, never timed, run twice, failed after its timing.

    The row of a test that failed is in no file.
    """
    edit(
        project,
        "    claim(*sides, accuracy=same_outputs(name), gate=gate_of(CLOCK, name))\n",
        "    if name == 'b': pytest.skip('no time')\n"
        "    for _ in range({'c': 0, 'd': 2}.get(name, 1)):\n"
        "        claim(*subject_and_reference(CLOCK, name, confirming),"
        " accuracy=same_outputs(name))\n"
        "    assert name != 'e'\n",
    )
    out = project.root / "out.json"
    ended = session(project, "perf_tests", f"--benchmark-json={out}", claims="new,b,c,d,e,f,g,h")
    assert ended.code == 1
    assert f"{A}: is stored, but no test has this id" in ended.output
    assert f"{B}: is stored, but was not measured" in ended.output
    assert f"{C}: is stored, but was not measured" in ended.output
    assert "reruns are not allowed" in failure(ended, "d")
    assert "no stored figure" in failure(ended, "new")
    names = {row["name"][-2] for row in json.loads(out.read_text())["benchmarks"]}
    assert names == set("fgh")


@pytest.mark.parametrize("claims", ["b", ""])
def test_a_deleted_claim_is_red(recorded, claims):
    """A claim that is gone fails a session in which all others hold, or in which none is left."""
    ended = session(recorded, claims=claims)
    assert ended.code != 0
    assert f"{A}: is stored, but no test has this id" in ended.output


def test_a_retired_claim_is_not_missing(project):
    """A row that is retired with a reason may be gone; one whose test exists is not retired."""
    retire(project, A)
    ended = session(project, "perf_tests", "--quick", claims=CLAIMS.removeprefix("a,"))
    assert ended.code == 0, ended.output
    ended = session(project, "perf_tests", "-k", "[b]")
    assert ended.code == 1
    assert f"{A}: is in retired.json, but a test has this id" in ended.output


def test_a_foreign_or_torn_baseline_is_red(project):
    """A run of another machine is refused wherever it lies; so is half a file."""
    run = project.runs()[-1]
    torn = run.with_name("0002_torn.json")
    torn.write_text(run.read_text()[:1000])
    ended = session(project)
    assert ended.code == 4
    assert "0002_torn.json is not a run of this suite" in ended.output
    torn.unlink()
    edit_stored(project, lambda data: data["machine_info"].update(hardware="other"))
    ended = session(project)
    assert ended.code == 4
    assert "recorded on other" in ended.output
    path = run.replace(project.root / "other.json")
    assert session(project, "perf_tests", f"--benchmark-compare={path}").code != 0


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (
            "def pytest_collection_modifyitems(items):\n    items.reverse()\n",
            "the order of the claims was changed",
        ),
        (
            "import sys\ndef pytest_configure():\n    sys.settrace(lambda *event: None)\n",
            "tracing",
        ),
    ],
)
def test_another_order_and_a_tracer_are_red(project, hook, reason):
    """A plugin that shuffles the claims, and coverage, a debugger or a profiler, are refused."""
    conftest(project, f"\n{hook}")
    ended = session(project)
    assert ended.code == 4
    assert reason in ended.output


# Recording


def test_a_recording_refuses_a_dirty_tree(project):
    """What no commit describes cannot be a baseline."""
    (project.root / "new.py").touch()
    ended = session(project, "perf_tests", "--record")
    assert ended.code == 4
    assert "not committed: new.py" in ended.output


def test_a_void_recording_stores_nothing(project):
    """A recording whose control is out of band leaves the old run as the only one."""
    before = project.runs()
    ended = session(project, "perf_tests", "--record", "-k", "[a] or [b]", drift=1.1)
    assert ended.code == 1
    assert "differs from itself" in ended.output
    assert project.runs() == before


CHANGED = {"a": 1.1, "b": 1.045, "c": 0.9, "d": 1.01}
"""Factors beyond the margin, and one within it."""


def test_a_recording_stores_what_may_be_stored(project):
    """Rows beyond and within the margin, a new claim, noise, wrong outputs and a renamed claim.

    A change that a fresh process sees too is stored, if it is accepted where slower, and reported,
    then it holds; a row that may not be stored costs that row, and an exit code, not the recording.
    """
    planted = {"slow": CHANGED, "claims": "a,b,c,d,e,f,new"}
    arguments = ("perf_tests", "--record", "--accept", "a,b")
    ended = session(project, *arguments, noise_of={"e": 0.9}, wrong={"f": True}, **planted)
    assert ended.code == 1, ended.output
    assert "too noisy now" in failure(ended, "e")
    assert "accuracy failed" in failure(ended, "f")
    stored = [x for x in ended.output.splitlines() if "confirmed in a fresh process: stored" in x]
    for line, name, now in zip(stored, "abc", ("1.8", "1.9", "2.2"), strict=True):
        assert line.startswith(f"test_claim[{name}]: 2.0")
        assert f"× → {now}" in line
    assert "say why in baselines/README.md" in ended.output
    old, new = project.rows()
    assert {name for name in old if new.get(name) == old[name]} == {E, F}
    assert new.keys() - old.keys() == {A.replace("[a]", "[new]")}
    assert old.keys() - new.keys() == {G, H}
    assert [path.name[:4] for path in project.runs()] == ["0001", "0002"]
    ended = session(project, **planted)  # rows that any run had are missed until they are retired
    assert f"{G}: is stored, but no test has this id" in ended.output
    retire(project, G, H)
    ended = session(project, **planted)
    assert ended.code == 0, ended.output
    ended = session(project, "perf_tests", "--record", "-k", "[e]", **planted)  # tried again
    assert ended.code == 0, ended.output
    assert project.rows()[-1][E] != old[E]


def test_a_recording_refuses_what_is_slower(project):
    """A second step of a slow drift is not stored, unless by its very id; "est" is in every one."""

    def record(slow, accept):
        arguments = "perf_tests", "--record", "--accept", accept, "-k", "[a]"
        return session(project, *arguments, slow={"a": slow})

    assert record(1.02, "").code == 0
    project.commit()
    for accept in ("", "est", "b"):
        ended = record(1.045, accept)
        assert ended.code == 1, ended.output
        assert "the old row stays; `--record --accept ID`" in ended.output
    assert len(project.runs()) == 2
    ended = record(1.045, "b,a")
    assert ended.code == 0, ended.output
    assert len(project.runs()) == 3


def test_a_recording_of_one_claim_keeps_the_others(project):
    """Only the claims that are selected are renewed; the next session gates on all."""
    accepted = "--accept", "a"
    ended = session(project, "perf_tests", "--record", *accepted, "-k", "[a]", slow={"a": 1.1})
    assert ended.code == 0, ended.output
    old, new = project.rows()
    assert new[A]["log_ratio"] > old[A]["log_ratio"] + 0.05
    assert {name for name in old if new[name] == old[name]} == {B, C, D, E, F, G, H}


def test_a_recording_refuses_a_change_that_a_fresh_process_does_not_see(project):
    """In one session a fresh process says otherwise, of less, or fails accuracy: old rows stay."""
    confirming = {"SLOW": {"a": 1, "b": 0.9, "c": 1.05, "d": 1.1}, "WRONG": {"d": True}}
    project.plant(
        "import json, os, sys\n"
        "if '--confirm' in sys.argv:\n"
        f"    os.environ.update({ {f'TOY_{k}': json.dumps(v) for k, v in confirming.items()} })\n"
    )
    slow = dict.fromkeys("abcd", 1.1)
    ended = session(project, "perf_tests", "--record", slow=slow, claims="a,b,c,d,e")
    assert ended.code == 1, ended.output
    for name, reason in {
        "a": "(holds): the old row stays",
        "b": "(improved): the old row stays",
        "c": "a fresh process measured +4",
        "d": "accuracy failed: outputs differ",
    }.items():
        assert reason in failure(ended, name), name
    assert "4 failed, 1 passed" in ended.output
    assert "say why" not in ended.output
    old, new = project.rows()
    assert {name for name in new if new[name] == old[name]} == {A, B, C, D}


def test_a_recording_refuses_a_change_that_void_processes_saw(project):
    """Where each fresh process is void the old row stays, and no run is written for it alone."""
    project.plant(
        "import os, sys\nif '--confirm' in sys.argv:\n    os.environ['TOY_DRIFT'] = '1.1'\n"
    )
    ended = session(project, "perf_tests", "--record", "-k", "[a]", slow={"a": 1.1})
    assert ended.code == 1, ended.output
    assert "(void): the old row stays" in ended.output
    assert "nothing was gated" not in ended.output
    assert len(project.runs()) == 1


def test_a_recording_that_measured_nothing_is_red(project):
    """Where every claim is skipped, nothing can be stored, and the session says so."""
    for path in project.runs():
        path.unlink()
    project.plant(
        "import pytest\n\n@pytest.fixture\ndef claim(benchmark):\n    pytest.skip('not here')\n"
    )
    ended = session(project, "perf_tests", "--record")
    assert ended.code == 1, ended.output
    assert "nothing was measured" in ended.output
    assert not project.runs()


def refused_recording(project, *arguments, **planted):
    """What a recording says that is red and stores nothing."""
    ended = session(project, "perf_tests", "--record", *arguments, **planted)
    assert ended.code == 1, ended.output
    assert len(project.runs()) == 1
    return ended.output


@pytest.mark.parametrize("argument", ["-x", "--maxfail=1"])
def test_a_recording_that_was_stopped_stores_nothing(project, argument):
    """A session that ended at its first failure did not finish."""
    said = refused_recording(project, argument, wrong={"b": True})
    assert "did not finish" in said


def test_a_recording_is_of_the_commit_that_it_began_with(project):
    """A commit made while the claims are measured is not the one that was measured."""
    project.plant(
        "import pytest, subprocess\n"
        "@pytest.fixture(autouse=True, scope='session')\n"
        "def commit():\n"
        "    yield\n"
        "    who = ['-c', 'user.name=a', '-c', 'user.email=a@example.org']\n"
        "    subprocess.run(['git', *who, 'commit', '--allow-empty', '-qm', 'x'], check=True)\n"
    )
    assert "another commit was checked out" in refused_recording(project, "-k", "[a]")


def test_a_recording_that_cannot_be_written_says_so(project):
    """A full disk is named, and the run before stays."""
    project.plant(
        "import errno, os\n"
        "def full(_handle):\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.fsync = full\n"
    )
    said = refused_recording(project, "-k", "[a]")
    assert "nothing was recorded" in said
    assert "No space left" in said


def test_a_test_that_fails_in_teardown_is_not_stored(project):
    """Only rows whose test passed from setup to teardown become baselines."""
    project.plant(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def late(request):\n"
        "    yield\n"
        "    assert request.node.name != 'test_claim[a]'\n"
    )
    ended = session(project, "perf_tests", "--record", "-k", "[a] or [b]", slow={"a": 1.1})
    assert ended.code == 1
    old, new = project.rows()
    assert new[A] == old[A]
    assert new[B] != old[B]


def test_a_recording_can_be_read_by_plain_pytest_benchmark(recorded):
    """The file is ordinary pytest-benchmark JSON, with the figures of the pairs beside it."""
    data = json.loads(recorded.runs()[0].read_text())
    row = data["benchmarks"][0]
    assert row["stats"]["median"] == pytest.approx(0.02, rel=0.05)
    assert row["extra_info"]["speedup"] == pytest.approx(2, rel=0.03)
    assert row["extra_info"]["accuracy"]["passed"]
    assert data["control"]["log_ratio"] == pytest.approx(0, abs=0.03)
    assert set(data["versions"]) >= {"python", "torch", "pytest-benchmark"}
