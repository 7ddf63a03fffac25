"""One command on a Mac: everything that only a Mac can show, in one small file to send.

`tox -e mac` runs the stages below, each in a process of its own with a time limit, and writes
`mpnn-mac.zip`. A stage that fails, crashes or hangs is a result like any other, and the next one
runs. Host, user and home folder are removed from all text. `mpnn mac-report mpnn-mac.zip` reads the
file on any machine.
"""

from __future__ import annotations

import argparse
import getpass
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.optimizations import ENGINES
from mpnn.regression.baselines import run_files
from mpnn.regression.machine import this_machine

BUNDLE = "mpnn-mac.zip"
LARGEST = 1_000_000
"""Bytes of a bundle: small enough for a mail."""

LOG = 20_000
"""Characters of a stage's output that are kept: its end, where errors are."""

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
LAYOUTS = ("batch", "height")
VALIDATION = {"MTL_DEBUG_LAYER": "1", "MTL_SHADER_VALIDATION": "1"}
"""Metal checks its API calls and the memory accesses of its kernels."""

WORKER = ("-m", "mpnn.studies.mac_stages")
SPEED = "perf_tests/test_speed.py"
GATE = ("-m", "pytest", "-p", "pytest_benchmark.plugin", "--benchmark-quiet")


@dataclass(frozen=True)
class Stage:
    """A process and what may become of it.

    Attributes:
        name: of its file in the bundle.
        arguments: of the Python that runs it.
        minutes: after which it is killed.
        environ: variables that it gets besides this process's.
    """

    name: str
    arguments: tuple[str, ...]
    minutes: float
    environ: Mapping[str, str] = field(default_factory=dict)


def stages() -> list[Stage]:
    """Every stage, quick and certain ones first."""
    torch_engines = [name for name, spec in ENGINES.items() if spec.torch and not spec.extra]
    metal_tests = ("accuracy_tests/test_mlx.py", "accuracy_tests/test_metal_kernel.py")
    return [
        Stage("machine", (*WORKER, "machine"), 2),
        Stage("metal", (*WORKER, "metal"), 10),
        *(Stage(f"mps-{name}", (*WORKER, "mps", name), 10) for name in torch_engines),
        *(
            Stage(f"coreml-{unit}-{layout}", (*WORKER, "coreml", unit, layout), 40)
            for unit in UNITS
            for layout in LAYOUTS
        ),
        Stage("tests", ("-m", "pytest", "-q", "accuracy_tests"), 60),
        Stage("tests-validated", ("-m", "pytest", "-q", *metal_tests), 30, VALIDATION),
        Stage("claims", (*GATE, SPEED, "--record"), 180, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
    ]


def run_stage(stage: Stage, root: Path) -> dict[str, Any]:
    """Runs a stage to its end or its limit.

    Args:
        stage: what to run.
        root: of the project; the working directory of the process.

    Returns:
        `stage`, `outcome` in words, `seconds`, `log`, and `result`: the JSON in the last line that
        it printed, None where that line is something else.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *stage.arguments],
        cwd=root,
        env={**os.environ, **stage.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it started can be killed with it
    )
    try:
        output, _ = process.communicate(timeout=60 * stage.minutes)
        outcome = _outcome(process.returncode)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        outcome = f"killed after {stage.minutes:g} minutes"
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    result = _last_line(output)
    return {
        "stage": stage.name,
        "outcome": outcome,
        "seconds": round(time.monotonic() - start, 2),
        "result": result,
        "log": "" if result is not None and outcome == "passed" else output[-LOG:],
    }


def _outcome(code: int) -> str:
    if code == 0:
        return "passed"
    return f"crashed: {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def _last_line(output: str) -> Any:
    lines = output.strip().splitlines()
    with suppress(ValueError):
        return json.loads(lines[-1]) if lines else None
    return None


def private_words() -> list[str]:
    """Names of this host and this user, and the home folder: longest first."""
    host = socket.gethostname()
    words = {host, host.partition(".")[0], str(Path.home()), *_user_names()}
    return sorted((word for word in words if len(word) > 2), key=len, reverse=True)


def _user_names() -> list[str]:
    try:
        return [getpass.getuser()]
    except (OSError, KeyError):  # no such user, as in some containers
        return []


def scrubbed(text: str, words: Sequence[str]) -> str:
    """The text without private words, which stand as words of their own or inside paths."""
    for word in words:
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", "…", text)
    return text


def bundle(results: Sequence[Mapping[str, Any]], run: Path | None) -> bytes:
    """The zip file of all results.

    Args:
        results: of `run_stage`.
        run: the stored run that stage `claims` wrote; None where it wrote none.

    Raises:
        InputError: the file would be too large to send.
    """
    words, target = private_words(), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for result in results:
            text = json.dumps(result, indent=1, ensure_ascii=False)
            file.writestr(f"{result['stage']}.json", scrubbed(text, words))
        if run is not None:
            file.write(run, f"run/{run.name}")  # which names no host and no user
    if len(target.getvalue()) > LARGEST:
        raise InputError(
            f"the bundle has {len(target.getvalue()):,} bytes, and {LARGEST:,} are the limit: a "
            "stage printed too much; leave it out with --skip"
        )
    return target.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stages and writes the bundle after each, so that stopping loses one stage."""
    parser = argparse.ArgumentParser(prog="tox -e mac --", description=__doc__)
    parser.add_argument("--out", default=BUNDLE, help="The file to write.")
    parser.add_argument("--only", action="append", help="A stage to run; others are left out.")
    parser.add_argument("--skip", action="append", default=[], help="A stage to leave out.")
    options = parser.parse_args(arguments)
    named, every = {*(options.only or ()), *options.skip}, stages()
    if unknown := named - {stage.name for stage in every}:
        parser.error(
            f"no stage is called {', '.join(sorted(unknown))}; "
            f"take of {', '.join(stage.name for stage in every)}"
        )
    root, results = Path.cwd(), []
    folder = root / "baselines" / this_machine().id
    before = set(run_files(folder))
    for stage in every:
        if stage.name in options.skip or (options.only and stage.name not in options.only):
            continue
        sys.stdout.write(f"{stage.name}: ")
        sys.stdout.flush()
        results.append(run_stage(stage, root))
        sys.stdout.write(f"{results[-1]['outcome']}, {results[-1]['seconds']:.0f} s\n")
        new = sorted(set(run_files(folder)) - before)
        write_whole(options.out, bundle(results, new[-1] if new else None))
    sys.stdout.write(f"{options.out}: read it with `mpnn mac-report {options.out}`\n")


if __name__ == "__main__":
    main()
