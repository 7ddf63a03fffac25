"""The gate, tested like any instrument: what it must catch, and every way to be green untested."""

import json

import pytest
from toys import Project

from mpnn.regression.process import PINNED

A = "perf_tests/test_toy.py::test_claim[a]"
C = "perf_tests/test_toy.py::test_claim[c]"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A project whose claims were recorded once."""
    project = Project.make(tmp_path_factory.mktemp("toy") / "project")
    session = project.pytest("perf_tests", "--record")
    assert session.code == 0, session.output
    project.commit()
    return project


@pytest.fixture
def project(recorded, tmp_path):
    """A copy of the recorded project, to be spoilt."""
    return recorded.copy(tmp_path / "project")


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


# What it must catch, and what it must not


def test_same_code_holds(recorded):
    """The same code holds, in a session that says so and exits with zero."""
    session = recorded.pytest()
    assert session.code == 0, session.output
    assert session.output.count("holds") == 3


def test_plain_compare_is_gated(recorded):
    """`pytest perf_tests --benchmark-compare` is a gated run, from another directory too."""
    for arguments, cwd in [(("perf_tests",), "."), ((".",), "perf_tests")]:
        session = recorded.pytest(
            *arguments, "--benchmark-compare", cwd=recorded.root / cwd, slow=1.1
        )
        assert session.code == 1
        assert "regressed" in session.output


@pytest.mark.parametrize("slow", [1.05, 1.10])
def test_a_planted_slow_down_fails(recorded, slow):
    """A slow-down of 5 and of 10 % fails its test, after a fresh process has seen it too."""
    session = recorded.pytest(slow=slow)
    assert session.code == 1
    assert "confirmed in a fresh process" in session.output
    assert "1 failed, 2 passed" in session.output


def test_a_slow_down_that_a_fresh_process_does_not_see_is_undecided(recorded):
    """A regression that a fresh process does not confirm does not count."""
    session = recorded.pytest(slow_once=1.10)
    assert session.code == 0, session.output
    assert "2 passed, 1 skipped" in session.output
    assert "undecided" in session.output


def test_a_slow_down_that_no_fresh_process_can_judge_is_red(project):
    """Where the control is out of band in every process that could confirm, nothing is settled."""
    project.plant(
        "import os, sys\nif '--confirm' in sys.argv:\n    os.environ['TOY_DRIFT'] = '1.1'\n"
    )
    session = project.pytest(slow=1.1)
    assert session.code == 1, session.output
    assert "regressed, but none of 2 fresh processes could tell" in session.output


def test_an_improvement_asks_for_a_recording(recorded):
    """A gain beyond the margin fails until it is recorded, or it would hide the next loss."""
    session = recorded.pytest(slow=0.9)
    assert session.code == 1
    assert "`tox -e record` keeps the gain" in session.output


def test_junit_shows_a_regression_as_a_failure(recorded, tmp_path):
    """The verdict is an ordinary test failure in junit's file."""
    path = tmp_path / "junit.xml"
    recorded.pytest("perf_tests", f"--junit-xml={path}", slow=1.1)
    assert 'failures="1"' in path.read_text()
    assert "regressed: " in path.read_text()


def test_wrong_outputs_void_the_speed(recorded):
    """A claim as fast as ever fails when its outputs are wrong."""
    session = recorded.pytest(wrong=1)
    assert session.code == 1
    assert "void: accuracy failed, outputs differ" in session.output


def test_a_control_out_of_band_voids_the_session(recorded):
    """When the reference differs from itself no verdict counts, and the session says so."""
    session = recorded.pytest(drift=1.1)
    assert session.code == 1
    assert "the reference differs from itself by" in session.output
    assert "3 failed" in session.output


def test_a_noisy_machine_is_said_to_be_noisy(recorded):
    """A session in which most claims stay undecided is red."""
    session = recorded.pytest(noise=0.9)
    assert session.code == 1
    assert "too noisy to gate" in session.output


def test_a_part_of_the_claims_can_be_run(recorded):
    """`-k`, a test id and `--quick` are for local work and pass."""
    for arguments in (["perf_tests", "-k", "[b]"], [A], ["perf_tests", "--quick"]):
        session = recorded.pytest(*arguments)
        assert session.code == 0, session.output


def test_a_process_that_is_not_pinned_starts_again(recorded):
    """An environment with another hash seed or allocator is replaced before anything is timed."""
    session = recorded.pytest("perf_tests", environ=dict.fromkeys(PINNED, "1"))
    assert session.code == 0, session.output
    assert "starting again with PYTHONHASHSEED" in session.output
    assert session.output.count("3 passed") == 1


# A new machine


def test_an_unknown_machine_explains_itself(recorded):
    """It passes on the ratios of the others, with a wider margin, and says how to record."""
    new = {"MPNN_HARDWARE_CHIP": "new"}
    session = recorded.pytest("perf_tests", "--benchmark-compare", environ=new, slow=1.2)
    assert session.code == 0, session.output
    assert "has no stored run yet" in session.output
    assert "tox -e record" in session.output


def test_an_unknown_machine_still_gates(recorded):
    """A subject that became slower than its reference fails on an unknown machine too."""
    session = recorded.pytest("perf_tests", environ={"MPNN_HARDWARE_CHIP": "new"}, slow=3)
    assert session.code == 1
    assert "regressed" in session.output


def test_an_unknown_machine_must_not_lack_what_all_others_have(project):
    """There too a claim that is gone or skips itself is red, but for one that is excused."""
    new = {"MPNN_HARDWARE_CHIP": "new"}
    session = project.pytest(environ=new, claims="b,c")
    assert session.code == 1, session.output
    assert f"{A}: is stored, but no test has this id" in session.output
    edit(project, "    claim(*", "    pytest.skip('no time') if name == 'a' else claim(*")
    session = project.pytest(environ=new)
    assert session.code == 1, session.output
    assert f"{A}: is stored, but was not measured" in session.output
    edit(
        project,
        "pytest.skip('no time')",
        "(request.config.stash[GATE].excused.add(request.node.nodeid), pytest.skip('cannot'))",
    )
    edit(project, "import pytest\n", "import pytest\nfrom mpnn.regression.plugin import GATE\n")
    session = project.pytest(environ=new)
    assert session.code == 0, session.output
    session = project.pytest()  # but where it was recorded it could be measured
    assert session.code == 1, session.output


def test_nothing_stored_anywhere_is_red(tmp_path):
    """The very first run has nothing to gate against, and does not pass."""
    session = Project.make(tmp_path / "project").pytest()
    assert session.code == 1
    assert "nothing was gated" in session.output


# Ways to be green without having gated


@pytest.mark.parametrize(
    ("arguments", "environ", "reason"),
    [
        (["--benchmark-disable"], {}, "benchmarks are disabled"),
        (["--benchmark-skip"], {}, "nothing was gated|was not measured"),
        ([], {"PYTEST_XDIST_WORKER": "gw0"}, "xdist"),
        (["--benchmark-autosave"], {}, "must not become a baseline"),
        (["--benchmark-compare", "--benchmark-save=x"], {}, "must not become a baseline"),
        (["--record", "--quick"], {}, "drop --quick"),
        (["--benchmark-json=baselines/x.json"], {}, "only `tox -e record` writes"),
        (["--benchmark-storage=elsewhere"], {}, "drop --benchmark-storage"),
        (["--confirm=row.json"], {}, "--confirm judges nothing: the row goes to row.json"),
    ],
)
def test_a_session_that_could_not_gate_is_red(project, arguments, environ, reason):
    """Options that keep claims from being timed, judged or stored apart end in red."""
    session = project.pytest("perf_tests", *arguments, environ=environ)
    assert session.code != 0, session.output
    assert any(part in session.output for part in reason.split("|")), session.output


def test_a_session_whose_only_claim_is_undecided_is_red(recorded):
    """What could not be decided was not gated."""
    session = recorded.pytest("perf_tests", "-k", "[c]", noise_of_c=0.9)
    assert session.code == 1, session.output
    assert "nothing was gated" in session.output


def test_claims_left_out_on_purpose_are_not_missing(recorded):
    """With --ignore the other tests of a folder pass; a file that is gone stays red."""
    (recorded.root / "perf_tests" / "test_other.py").write_text("def test_other():\n    pass\n")
    ignored = "--ignore=perf_tests/test_toy.py"
    try:
        session = recorded.pytest("perf_tests", ignored)
        assert session.code == 0, session.output
    finally:
        (recorded.root / "perf_tests" / "test_other.py").unlink()


def test_a_renamed_claim_is_red(recorded):
    """A stored row that no test bears any more fails the session, and so does the new name."""
    session = recorded.pytest(claims="new,b,c")
    assert session.code == 1
    assert f"{A}: is stored, but no test has this id" in session.output
    assert "no stored figure" in session.output


@pytest.mark.parametrize("claims", ["b,c", ""])
def test_a_deleted_claim_is_red(recorded, claims):
    """A claim that is gone fails a session in which all others hold, or in which none is left."""
    session = recorded.pytest(claims=claims)
    assert session.code != 0
    assert f"{A}: is stored, but no test has this id" in session.output


def test_a_deleted_test_file_is_red(project):
    """Stored rows are missed when their whole file is gone."""
    (project.root / "perf_tests" / "test_toy.py").unlink()
    session = project.pytest()
    assert session.code != 0
    assert f"{A}: is stored, but no test has this id" in session.output


def test_a_skipped_claim_is_red(project):
    """A stored claim that skips itself was not measured, and the session says so."""
    edit(project, "    claim(*", "    pytest.skip('no time') if name == 'a' else claim(*")
    session = project.pytest()
    assert session.code == 1
    assert f"{A}: is stored, but was not measured" in session.output


def test_a_claim_that_times_nothing_is_red(project):
    """A test that takes the fixture and never uses it has not measured anything."""
    edit(project, "    claim(*", "    name == 'a' or claim(*")
    session = project.pytest()
    assert session.code == 1
    assert f"{A}: is stored, but was not measured" in session.output


def test_a_rerun_is_red(project):
    """A claim that runs twice fails, whoever repeats it."""
    repeat = "\n    claim(*subject_and_reference(CLOCK, name, False), accuracy=same_outputs)\n"
    edit(project, "accuracy=same_outputs)\n", "accuracy=same_outputs)" + repeat)
    session = project.pytest()
    assert session.code == 1
    assert "reruns are not allowed" in session.output


def test_a_time_whose_test_failed_is_not_stored(project, tmp_path):
    """A test that fails after timing leaves no row in any file."""
    edit(project, "same_outputs)\n", "same_outputs)\n    assert name != 'a'\n")
    project.pytest("perf_tests", f"--benchmark-json={tmp_path / 'out.json'}")
    names = [row["name"] for row in json.loads((tmp_path / "out.json").read_text())["benchmarks"]]
    assert names == ["test_claim[b]", "test_claim[c]"]


def test_a_foreign_baseline_is_red(project):
    """A run of another machine is refused wherever it lies."""
    edit_stored(project, lambda data: data["machine_info"].update(hardware="other"))
    session = project.pytest()
    assert session.code == 4
    assert "recorded on other" in session.output
    path = project.runs()[-1].replace(project.root / "other.json")
    session = project.pytest("perf_tests", f"--benchmark-compare={path}")
    assert session.code != 0


def test_a_torn_baseline_is_red(project):
    """Half a file is an error, not a reason to take an older one."""
    run = project.runs()[-1]
    run.with_name("0002_torn.json").write_text(run.read_text()[:1000])
    session = project.pytest()
    assert session.code == 4
    assert "0002_torn.json is not a run of this suite" in session.output


def test_another_order_is_red(project):
    """Claims run in one order; a plugin that shuffles them is found out."""
    conftest(project, "\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n")
    session = project.pytest()
    assert session.code == 4
    assert "the order of the claims was changed" in session.output


def test_a_tracer_is_red(project):
    """Coverage, a debugger or a profiler beside the timing is found out."""
    conftest(
        project, "\nimport sys\ndef pytest_configure():\n    sys.settrace(lambda *event: None)\n"
    )
    session = project.pytest()
    assert session.code == 4
    assert "tracing" in session.output


# Recording


def test_a_recording_refuses_a_dirty_tree(project):
    """What no commit describes cannot be a baseline."""
    (project.root / "new.py").touch()
    session = project.pytest("perf_tests", "--record")
    assert session.code == 4
    assert "not committed: new.py" in session.output


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ({"noise": 0.5}, "too noisy just now"),
        ({"wrong": 1}, "accuracy failed"),
        ({"drift": 1.1}, "differs from itself"),
    ],
)
def test_a_recording_refuses_noise_and_failures(project, planted, reason):
    """Noise, a failed accuracy and a void session each leave the old run as the only one."""
    before = project.runs()
    session = project.pytest("perf_tests", "--record", **planted)
    assert session.code == 1
    assert reason in session.output
    assert project.runs() == before


@pytest.mark.parametrize(("slow", "said"), [(1.1, "× → 1.8"), (1.045, "× → 1.9"), (0.9, "× → 2.2")])
def test_a_recording_becomes_the_next_baseline(project, slow, said):
    """A change that a fresh process sees too is stored and said; then it holds."""
    session = project.pytest("perf_tests", "--record", slow=slow)
    assert session.code == 0, session.output
    (line,) = [x for x in session.output.splitlines() if "in a fresh process: stored" in x]
    assert line.startswith("test_claim[a]: 2.0")
    assert said in line
    assert "say why in baselines/README.md" in session.output
    session = project.pytest(slow=slow)
    assert session.code == 0, session.output
    assert [path.name[:4] for path in project.runs()] == ["0001", "0002"]


def test_a_recording_says_nothing_of_a_change_within_the_margin(project):
    """A row that moved by less than its margin is stored without a fresh process."""
    session = project.pytest("perf_tests", "--record", slow=1.01)
    assert session.code == 0, session.output
    assert "fresh process" not in session.output
    old, new = project.rows()
    assert new[A]["log_ratio"] != old[A]["log_ratio"]


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ({"SLOW": "1"}, "(holds): the old row stays"),
        ({"SLOW": "0.9"}, "(improved): the old row stays"),
        ({"SLOW": "1.05"}, "a fresh process says +5"),
        ({"DRIFT": "1.1"}, "(void): the old row stays"),
        ({"WRONG": "1"}, "accuracy failed, outputs differ"),
    ],
)
def test_a_recording_refuses_a_change_that_a_fresh_process_does_not_see(project, planted, reason):
    """Where the fresh process says otherwise, is void or inaccurate, the old row stays."""
    project.plant(
        "import os, sys\n"
        "if '--confirm' in sys.argv:\n"
        f"    os.environ.update({ {f'TOY_{key}': value for key, value in planted.items()} })\n"
    )
    session = project.pytest("perf_tests", "--record", slow=1.1)
    assert session.code == 1, session.output
    assert reason in session.output
    assert "1 failed, 2 passed" in session.output
    assert "say why" not in session.output
    old, new = project.rows()
    assert new[A] == old[A]
    assert all(new[name] != old[name] for name in old if name != A)


def test_a_recording_that_measured_nothing_is_red(project):
    """Where every claim is skipped, nothing can be stored, and that is said."""
    for path in project.runs():
        path.unlink()
    project.plant(
        "import pytest\n\n@pytest.fixture\ndef claim(benchmark):\n    pytest.skip('not here')\n"
    )
    session = project.pytest("perf_tests", "--record")
    assert session.code == 1, session.output
    assert "nothing was measured" in session.output
    assert not project.runs()


def test_a_lone_row_that_is_refused_is_told_by_itself(project):
    """Without any row to store no run is written, and one reason is given."""
    session = project.pytest("perf_tests", "--record", "-k", "[a]", slow_once=1.1)
    assert session.code == 1, session.output
    assert "the old row stays" in session.output
    assert "nothing was gated" not in session.output
    assert len(project.runs()) == 1


def test_a_recording_of_one_claim_keeps_the_others(project):
    """Only the claims asked for are renewed; the next session gates on all."""
    assert project.pytest("perf_tests", "--record", "-k", "[a]", slow=1.1).code == 0
    old, new = project.rows()
    assert new[A]["log_ratio"] > old[A]["log_ratio"] + 0.05
    assert {name: row for name, row in new.items() if name != A} == {
        name: row for name, row in old.items() if name != A
    }
    session = project.pytest(slow=1.1)
    assert session.code == 0, session.output


def test_a_noisy_row_keeps_its_old_figure_and_the_others_are_stored(project):
    """A row that may not be stored costs that row, and an exit code, not the recording.

    It can be tried again at once: what the recording wrote is no change to the code.
    """
    session = project.pytest("perf_tests", "--record", noise_of_c=0.9, claims="a,b,c,d")
    assert session.code == 1
    assert "too noisy just now" in session.output
    old, new = project.rows()
    assert new[C] == old[C]
    assert len(new) == len(old) + 1
    assert all(new[name] != old[name] for name in old if name != C)
    assert project.pytest("perf_tests", "--record", "-k", "[c]").code == 0
    assert project.rows()[-1][C] != old[C]


def refused_recording(project, *arguments, **planted):
    """What a recording says that is red and stores nothing."""
    session = project.pytest("perf_tests", "--record", *arguments, **planted)
    assert session.code == 1
    assert len(project.runs()) == 1
    return session.output


@pytest.mark.parametrize("argument", ["-x", "--maxfail=1"])
def test_a_recording_that_was_stopped_stores_nothing(project, argument):
    """A session that ended at its first failure has not come to its end."""
    assert "did not come to its end" in refused_recording(project, argument, noise_of_c=0.9)


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
    assert "another commit was checked out" in refused_recording(project)


def test_a_recording_that_cannot_be_written_says_so(project):
    """A full disk is named, and the run before stays."""
    project.plant(
        "import errno, os\n"
        "def full(_handle):\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.fsync = full\n"
    )
    said = refused_recording(project)
    assert "nothing was recorded" in said
    assert "No space left" in said


def test_a_test_that_fails_after_its_timing_is_not_stored(project):
    """Only rows whose test passed from setup to teardown become baselines."""
    project.plant(
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def late(request):\n"
        "    yield\n"
        "    assert request.node.name != 'test_claim[a]'\n"
    )
    assert project.pytest("perf_tests", "--record", slow=1.1).code == 1
    old, new = project.rows()
    assert new[A] == old[A]


def test_a_recording_lets_go_of_claims_that_are_gone(project):
    """A renamed claim is red until a recording replaces its row."""
    assert project.pytest("perf_tests", "--record", claims="new,b,c").code == 0
    session = project.pytest(claims="new,b,c")
    assert session.code == 0, session.output


def test_a_recording_can_be_read_by_plain_pytest_benchmark(recorded):
    """The file is ordinary pytest-benchmark JSON, with the figures of the pairs beside it."""
    data = json.loads(recorded.runs()[0].read_text())
    row = data["benchmarks"][0]
    assert row["stats"]["median"] == pytest.approx(0.02, rel=0.05)
    assert row["extra_info"]["speedup"] == pytest.approx(2, rel=0.03)
    assert row["extra_info"]["accuracy"]["passed"]
    assert data["control"]["log_ratio"] == pytest.approx(0, abs=0.03)
    assert set(data["versions"]) >= {"python", "torch", "pytest-benchmark"}
