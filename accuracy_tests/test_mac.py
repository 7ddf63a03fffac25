"""The bundle of a Mac: made on a fake one, and read anywhere."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mpnn.errors import InputError
from mpnn.studies import mac
from mpnn.studies.mac import Stage, bundle, run_stage, scrubbed
from mpnn.studies.mac_report import LARGEST, lines, read_bundle, report, store

FAKE = Path(__file__).with_name("fake_mac.py")
ROOT = Path(__file__).parent.parent
RUN = sorted((ROOT / "baselines" / "amd-epyc-26-2-vm-linux6").glob("0*.json"))[-1]

TOOLS = {
    "sysctl": """case "$2" in
machdep.cpu.brand_string) echo Apple M3 Pro;; hw.model) echo Mac15,6;;
hw.perflevel0.physicalcpu) echo 6;; hw.perflevel1.physicalcpu) echo 6;;
kern.osproductversion) echo 15.5;; kern.osversion) echo 24F74;; *) echo 0;; esac""",
    "ioreg": """echo '    "gpu-core-count" = 18'""",
    "pmset": """case "$2" in batt) echo "Now drawing from 'AC Power'";; therm) echo none;;
*) echo " lowpowermode         1";; esac""",
    "sw_vers": "echo 15.5",
}


@pytest.fixture
def fake_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's tools on the path, and stages that believe to be on a Mac."""
    for name, script in TOOLS.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mac, "WORKER", (str(FAKE),))


def stage(name: str) -> Stage:
    return next(stage for stage in mac.stages() if stage.name == name)


def script(code: str, minutes: float = 1, **environ: str) -> Stage:
    return Stage("try", ("-c", code), minutes, environ)


@pytest.mark.usefixtures("fake_mac")
def test_the_machine_is_described() -> None:
    """Cores of each kind, the build, power and versions: what a ratio depends on."""
    result = run_stage(stage("machine"), ROOT)["result"]
    assert result["facts"]["machdep.cpu.brand_string"] == "Apple M3 Pro"
    assert result["facts"]["kern.osversion"] == "24F74"
    assert (result["gpu_cores"], result["power"], result["low_power_mode"]) == (18, "mains", True)
    assert result["versions"]["torch"].startswith("2.")


@pytest.mark.slow
@pytest.mark.usefixtures("fake_mac")
def test_core_ml_runs_through_the_real_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion, plan, parity and predictions of a unit; a crash or a hang of it is a result."""
    pytest.importorskip("coremltools")
    done = run_stage(stage("coreml-CPU_AND_NE-height"), ROOT)
    assert done["outcome"] == "passed", done["log"]
    bucket = done["result"]["buckets"]["64"]
    assert 0 < bucket["difference"] < 0.1
    assert min(bucket["host_seconds"], bucket["seconds"]) > 0
    assert "| 64 | CPU_AND_NE-height |" in "\n".join(lines({"coreml-CPU_AND_NE-height": done}))
    function = next(iter(done["result"]["functions"].values()))
    assert function["shares"]["NE"] > 0
    assert (
        "conv" not in function["elsewhere"] or function["shares"]["NE"] < function["shares"]["CPU"]
    )
    assert function["seconds"] > 0
    monkeypatch.setenv("FAKE_MAC", "crash")
    assert run_stage(stage("coreml-CPU_ONLY-batch"), ROOT)["outcome"] == "crashed: SIGSEGV"
    monkeypatch.setenv("FAKE_MAC", "hang")
    hung = Stage("coreml", stage("coreml-CPU_ONLY-batch").arguments, 0.5)
    assert run_stage(hung, ROOT)["outcome"] == "killed after 0.5 minutes"


@pytest.mark.slow
def test_metal_kernels_are_tried() -> None:
    """Every variant has an error and a time; without Metal those of the fallback, which is said."""
    mx = pytest.importorskip("mlx.core")
    result = run_stage(stage("metal"), ROOT)["result"]
    assert result["metal"] == mx.metal.is_available()
    assert "mpnn_multiply" in result["text"]
    assert all(row["difference"] < 1e-4 for row in result["variants"].values())


def test_a_missing_device_is_a_result() -> None:
    """An engine on MPS where there is none says so, and the stage has passed."""
    torch = pytest.importorskip("torch")
    if torch.backends.mps.is_available():
        pytest.skip("MPS is here")
    done = run_stage(stage("mps-reference"), ROOT)
    assert done["outcome"] == "passed"
    assert "device 'mps' cannot be used" in done["result"]["not_here"]
    assert "not here: device 'mps'" in "\n".join(lines({"mps-reference": done}))


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("print('noise'); print('{\"a\": 1}')", "passed"),
        ("import sys; sys.exit('no')", "failed with exit code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "crashed: SIGABRT"),
    ],
)
def test_outcomes(code: str, outcome: str) -> None:
    """What a stage printed last is its result; its end is told in words."""
    done = run_stage(script(code), ROOT)
    assert done["outcome"] == outcome
    assert done["result"] == ({"a": 1} if outcome == "passed" else None)


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.returncode == 0 and not done.stdout.startswith("Z")


def test_a_stage_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    """No process is left behind."""
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    done = run_stage(script(code, minutes=2 / 60), ROOT)
    assert done["outcome"] == "killed after 0.0333333 minutes"
    assert done["seconds"] < 30
    deadline = time.monotonic() + 30
    while running(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_personal_is_in_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host, user and home folder are removed, also from failures; words that hold them stay."""
    host, home = "adas-mac.local", str(Path.home())
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    code = f"import sys; sys.exit('{home}/x.py on {host}, user {getpass.getuser()}')"
    path = tmp_path / "bundle.zip"
    path.write_bytes(bundle([run_stage(script(code), ROOT)], None))
    with zipfile.ZipFile(path) as file:
        text = file.read("try.json").decode()
    for word in mac.private_words():
        assert word not in text
    assert "…/x.py on …, user …" in text
    assert scrubbed("adapter /home/ada/x", ["/home/ada", "ada"]) == "adapter …/x"


def test_a_bundle_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that prints without end does not make a file that no mail takes."""
    monkeypatch.setattr(mac, "LARGEST", 100)
    with pytest.raises(InputError, match=r"bytes, and 100 are the limit.*--skip"):
        bundle([{"stage": "a", "log": os.urandom(200).hex()}], None)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A bundle with a stored run."""
    results: list[dict[str, Any]] = [
        {"stage": "machine", "outcome": "passed", "seconds": 1, "log": "", "result": {"a": 1}},
        {"stage": "claims", "outcome": "failed with exit code 1", "seconds": 9, "result": None,
         "log": "1 failed"},
    ]  # fmt: skip
    path = tmp_path / "mpnn-mac.zip"
    path.write_bytes(bundle(results, RUN))
    return path


def test_a_bundle_becomes_a_stored_run(whole: Path, tmp_path: Path) -> None:
    """The run goes to its machine's folder under the next number, once; the tables say the rest."""
    root = tmp_path / "baselines"
    text = "\n".join(report(whole, root))
    folder = root / "amd-epyc-26-2-vm-linux6"
    (stored,) = folder.iterdir()
    assert stored.name.startswith("0001_")
    assert json.loads(stored.read_text()) == json.loads(RUN.read_text())
    assert f"stored as {stored}" in text
    assert "| claims | failed with exit code 1 |" in text
    assert "its run is stored already" in "\n".join(report(whole, root))
    assert len(list(folder.iterdir())) == 1


def test_bad_bundles(tmp_path: Path, whole: Path) -> None:
    """A file that is missing, damaged, empty, or too large inside is named with the way out."""
    missing, damaged, empty = (tmp_path / name for name in ("a.zip", "b.zip", "c.zip"))
    damaged.write_bytes(whole.read_bytes()[:200])
    zipfile.ZipFile(empty, "w").close()
    for path, message in ((missing, "does not exist; make it"), (damaged, "is not a bundle"),
                          (empty, "holds no stage")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_bundle(path)
    bomb = tmp_path / "d.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("machine.json", "0" * (LARGEST + 1))
    with pytest.raises(InputError, match=r"machine\.json has"):
        read_bundle(bomb)
    for run in ("{", "[]", '{"machine_info": {"hardware": "m"}}'):
        with pytest.raises(InputError, match="not one of this suite"):
            store(run, tmp_path)


def test_stages_are_chosen_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--only and --skip; the bundle is written after each stage; an unknown name is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mac, "stages", lambda: [Stage(n, ("-c", "print(1)"), 1) for n in "abc"])
    mac.main(["--skip", "b"])
    with zipfile.ZipFile(mac.BUNDLE) as file:
        assert file.namelist() == ["a.json", "c.json"]
    mac.main(["--only", "b", "--out", "b.zip"])
    assert list(read_bundle(tmp_path / "b.zip")[0]) == ["b"]
    with pytest.raises(SystemExit):
        mac.main(["--only", "x"])
    assert "no stage is called x; take of a, b, c" in capsys.readouterr().err


def test_every_file_of_the_stages_exists() -> None:
    """Stages name tests and modules that are there."""
    for found in mac.stages():
        for argument in found.arguments:
            if argument.endswith(".py"):
                assert (ROOT / argument).exists()
    assert sys.executable
