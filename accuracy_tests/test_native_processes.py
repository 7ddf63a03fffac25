"""The compiled engine in a process of its own: no torch, forks, Ctrl-C, and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from native_build import library_path

BEGIN = "import os, signal, sys, time\nfrom native_process import *\n"


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own that has `native_process` imported."""
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + code, str(library_path()), *arguments]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_no_torch() -> None:
    """Structures are encoded, designed and scored in a process that never imports torch."""
    done = run_python(
        """
flat = Flat.from_backbones([synthetic_backbone(30)])
e = engine(1)
encoding, wanted = e.encode(flat), job(flat, 2)
S, log_probs = sampled(e, encoding, wanted)
assert (e.log_probs(encoding, S, wanted.rank) == log_probs).all() and np.isfinite(log_probs).all()
assert "torch" not in sys.modules, "torch was imported"
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """A child of a process that has used the engine can use it too, and gets the same bits."""
    done = run_python(
        """
flat = Flat.from_backbones([synthetic_backbone(40)])
e, wanted = engine(2), job(flat, 4)
encoding = e.encode(flat)
S, log_probs = sampled(e, encoding, wanted)
child = os.fork()
if not child:
    signal.alarm(120)
    same = (sampled(e, encoding, wanted)[1] == log_probs).all()
    os._exit(0 if same and (sampled(e, e.encode(flat), wanted)[0] == S).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")
@pytest.mark.parametrize("what", ["encode", "draw", "log_probs"])
def test_ctrl_c_within_a_second(what: str) -> None:
    """A job of many seconds ends within one of Ctrl-C, and the engine can be used afterwards.

    In CPU seconds of each of two threads, so that a machine that stalls for a moment is no failure.
    """
    done = run_python(
        """
import threading
flat = Flat.from_backbones([synthetic_backbone(60)] * (1600 if sys.argv[2] == "encode" else 4))
N = 4000
e = engine(2)
if sys.argv[2] != "encode":
    encoding, wanted = e.encode(flat), job(flat, N)
calls = {"encode": lambda: e.encode(flat), "draw": lambda: sampled(e, encoding, wanted),
         "log_probs": lambda: e.log_probs(encoding, wanted.rank % 20, wanted.rank)}
sent = []
def interrupt():
    time.sleep(0.3)
    sent.append(time.process_time())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    calls[sys.argv[2]]()
    sys.exit("the job was over before the signal")
except KeyboardInterrupt:
    late = time.process_time() - sent[0]
assert late < 2, f"{late:.2f} CPU seconds"
small = Flat.from_backbones([synthetic_backbone(20)])
assert np.isfinite(sampled(e, e.encode(small), job(small, 2))[1]).all()
""",
        what,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
@pytest.mark.parametrize(("samples", "length", "most"), [(8, 955, 300), (64, 2000, 1000)])
def test_peak_memory(samples: int, length: int, most: int) -> None:
    """Peak memory of the process in MB, Python and numpy included."""
    done = run_python(
        """
N, L = int(sys.argv[2]), int(sys.argv[3])
flat = Flat.from_backbones([synthetic_backbone(L, chains=3)])
e, wanted = engine(2), job(flat, N)
sampled(e, e.encode(flat), wanted)
status = open("/proc/self/status").read()  # ru_maxrss begins at the parent's
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
""",
        str(samples),
        str(length),
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < most
