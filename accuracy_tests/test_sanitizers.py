"""The native engine's tests again, with the library compiled for GCC's sanitizers."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAGS = {
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": "-fsanitize=thread",
}
LIBRARIES = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so",)}
OPTIONS = {  # the interpreter keeps what it allocates; only the library's threads are instrumented
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:report_signal_unsafe=0",
}
BROKEN = {
    "address": """#include <vector>
        extern "C" int run() { std::vector<int> x(4); volatile int i = 4; return x.data()[i]; }""",
    "thread": """#include <thread>
        extern "C" int run() {
          int x = 0;
          std::thread one([&] { for (int i = 0; i < 100000; ++i) ++x; });
          for (int i = 0; i < 100000; ++i) ++x;
          one.join();
          return x;
        }""",
}

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("sanitizer", FLAGS)]


def compiler() -> str:
    """The path of g++; skips where it or its sanitizers are missing."""
    path = shutil.which("g++")
    if path is None or sys.platform != "linux":
        pytest.skip("no g++ on Linux, whose sanitizers are loaded here")
    return path


def environment(sanitizer: str) -> dict[str, str]:
    """CXX compiles for a sanitizer, and Python loads the sanitizer's runtime before all else."""
    runtime = []
    for name in LIBRARIES[sanitizer]:
        command = [compiler(), f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_absolute():
            pytest.skip(f"g++ comes without {name}")
        runtime.append(found)
    return {
        **{k: v for k, v in os.environ.items() if k != "MPNN_NATIVE"},
        **OPTIONS,
        "CXX": f"{compiler()} -g {FLAGS[sanitizer]}",
        "LD_PRELOAD": " ".join(runtime),
    }


def run(sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python under a sanitizer, at fixed addresses, which older runtimes need."""
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run(
        [*fixed, sys.executable, *arguments],
        env=environment(sanitizer),
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_sanitizers_catch_a_mistake(sanitizer: str, tmp_path: Path) -> None:
    """A read past the end, or a race between threads, ends the process with a report."""
    (tmp_path / "broken.cpp").write_text(BROKEN[sanitizer])
    command = [*shlex.split(environment(sanitizer)["CXX"]), "-shared", "-fPIC", "broken.cpp"]
    subprocess.run([*command, "-o", "broken.so"], cwd=tmp_path, check=True)
    done = run(sanitizer, "-c", f"import ctypes; ctypes.CDLL('{tmp_path}/broken.so').run()")
    assert done.returncode != 0
    assert f"{sanitizer.capitalize()}Sanitizer" in done.stdout


def test_native_tests_pass(sanitizer: str) -> None:
    """The matrix of jobs reads and writes only its own memory, and its threads do not race."""
    files = sorted(str(path) for path in HERE.glob("test_native*.py"))
    assert files
    done = run(sanitizer, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
