"""Two states of the project, each with its own Python and a process that times its claims."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpnn.errors import InputError
from mpnn.regression.machine import PINNED

EXTRAS = ("bench", "coreml", "knn", "mlx", "onnx")
"""Extras installed beside the dependencies, where the tree has them."""
WORKER = Path(__file__).with_name("against_worker.py")


@dataclass(frozen=True)
class Tree:
    """One state of the project: its source tree and the Python that has its dependencies."""

    root: Path
    python: Path


class Worker:
    """A process that answers requests about the claims of one tree until it is closed."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        reading, writing = os.pipe()  # standard output is for what libraries print
        self.answers = os.fdopen(reading)
        self.process = subprocess.Popen(
            [str(tree.python), "-P", str(WORKER), str(writing)],
            cwd=tree.root,
            env={**os.environ, **PINNED, "PYTHONPATH": str(tree.root)},
            stdin=subprocess.PIPE,
            stdout=self.errors,
            stderr=self.errors,
            pass_fds=[writing],
            text=True,
        )
        os.close(writing)

    def send(self, request: str, **arguments: Any) -> None:
        """Sends a request, a function's name in `against_worker.py` and its arguments."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([request, arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def receive(self) -> dict[str, Any]:
        """The answer to the request sent last.

        Raises:
            InputError: the process has ended.
        """
        line = self.answers.readline()
        if not line:
            self._fail()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            InputError: the process has ended.
        """
        self.send(request, **arguments)
        return self.receive()

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.answers, self.errors):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # a request that it no longer read
                stream.close()

    def _fail(self) -> None:
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip()
        raise InputError(f"the claims of {self.tree.root.name} cannot be timed:\n{said}")


class Workers:
    """A process of the base and one of the head."""

    def __init__(self, base: Tree, head: Tree) -> None:
        self.both: list[Worker] = []
        self.trees = base, head

    def __enter__(self) -> Workers:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Replaces both processes by fresh ones.

        Raises:
            InputError: one imports another tree than its own, or nothing.
        """
        self.close()
        for tree in self.trees:
            self.both.append(Worker(tree))
        for tree, answer in zip(self.trees, self.ask("package"), strict=True):
            if Path(answer["package"]) != tree.root.resolve():
                raise InputError(f"would time {answer['package']} instead of {tree.root}")

    def close(self) -> None:
        """Ends both processes."""
        while self.both:
            self.both.pop().close()

    def ask(self, request: str, **arguments: Any) -> list[dict[str, Any]]:
        """Asks both at once; the answer of the base comes first."""
        for worker in self.both:
            worker.send(request, **arguments)
        return [worker.receive() for worker in self.both]


def check_out(root: Path, revision: str, target: Path) -> Path:
    """Unpacks a commit of the repository at `root` into `target`.

    Raises:
        InputError: there is no such commit.
    """
    target.mkdir(parents=True)
    archive = target.with_suffix(".tar")
    command = ["git", "-C", str(root), "archive", f"--output={archive}", revision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"cannot check out {revision!r}: {done.stderr.strip()}")
    subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True)
    return target


def compiled(tree: Path, built: Path | None = None) -> Path:
    """The tree with its native library, if it has one and a compiler is installed.

    Without it the claims of the compiled engine are among those that could not be measured.

    Args:
        tree: the source tree.
        built: a compiled tree, whose libraries serve where the sources are the same: their names
            hold a digest of these.
    """
    native = Path("mpnn", "optimizations", "native")
    if built is not None and (built / native / "lib").exists():
        shutil.copytree(built / native / "lib", tree / native / "lib", dirs_exist_ok=True)
    toolchain = tree / native / "toolchain.py"
    if toolchain.exists():
        subprocess.run([sys.executable, str(toolchain)], capture_output=True, check=False)
    return tree


def python_for(tree: Path, head: Path) -> Path:
    """A Python with the tree's dependencies: this one, or a new one where the two trees differ.

    Raises:
        InputError: they cannot be installed.
    """
    wanted = _dependencies(tree)
    if wanted == _dependencies(head):
        return Path(sys.executable)
    environment = tree.with_name(tree.name + "-venv")
    venv.create(environment, symlinks=True, with_pip=bool(wanted))
    python = environment / "bin" / "python"
    if wanted and _install(python, wanted):
        raise InputError(f"pip cannot install what {tree.name} needs ({', '.join(wanted)})")
    return python


def _install(python: Path, wanted: Sequence[str]) -> int:
    """Installs requirements for a Python; returns pip's exit code."""
    return subprocess.run(
        [str(python), "-m", "pip", "install", "-q", *wanted], check=False
    ).returncode


def _dependencies(tree: Path) -> list[str]:
    """Requirements of a tree and of those timed extras that it has."""
    path = tree / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(need for name in EXTRAS for need in extras.get(name, []))]
