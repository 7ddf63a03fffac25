"""Runs Metal kernels on a CPU: the text that MLX generates, compiled as C++ through a shim.

The header beside this file stands in for Metal's own; it says what it catches.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

COMPILER = "g++"
FORBIDDEN = re.compile(r"\b(std::\w+|new|delete|goto|throw|try|virtual)\b")
BUILT_IN = {
    "thread_position_in_threadgroup": "shim::self()->position",
    "threadgroup_position_in_grid": "shim::self()->group",
    "simdgroup_index_in_threadgroup": "shim::self()->position.x / 32",
}
MAIN = """
static char* buffers[32];
static void one_thread() {{ {call}; }}
void (*shim::kernel_of_thread)() = one_thread;

// stdin: grid, threadgroup and buffers as numbers, their sizes, then their bytes; stdout: the last
int main() {{
  unsigned grid, size, count;
  size_t bytes[32];
  if (scanf("%u %u %u", &grid, &size, &count) != 3) shim::fail("no grid");
  for (unsigned i = 0; i < count; i++) if (scanf("%zu", bytes + i) != 1) shim::fail("no sizes");
  getchar();
  for (unsigned i = 0; i < count; i++) {{
    buffers[i] = shim::guarded(bytes[i]);
    if (fread(buffers[i], 1, bytes[i], stdin) != bytes[i]) shim::fail("no buffer");
  }}
  shim::dispatch(grid, size);
  for (unsigned i = 0; i < count; i++)
    if (!shim::untouched_before(buffers[i], bytes[i])) shim::fail("a write out of bounds");
  fwrite(buffers[count - 1], 1, bytes[count - 1], stdout);
}}
"""


class MetalError(Exception):
    """The kernel is not Metal, or does what a GPU would not forgive."""


def generated(kernel: Any, launch: dict[str, Any]) -> str:
    """The text that MLX would hand to Metal for one call of a `mx.fast.metal_kernel`.

    MLX prints it, from C++, while it records the call for export; that needs no Metal.
    """
    arguments = {**launch, "verbose": True}
    inputs = arguments.pop("inputs")
    mx.eval(inputs)
    sys.stdout.flush()
    stdout = os.dup(1)
    with tempfile.TemporaryFile() as printed, tempfile.NamedTemporaryFile() as exported:
        os.dup2(printed.fileno(), 1)
        try:
            mx.export_function(
                exported.name, lambda *given: kernel(inputs=list(given), **arguments), *inputs
            )
            ctypes.CDLL(None).fflush(None)
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        printed.seek(0)
        text = printed.read().decode()
    return text[text.index("```\n") + 4 : text.rindex("```")]


def as_cpp(metal: str) -> str:
    """A C++ program that runs the one kernel of the text on buffers from its standard input.

    Raises:
        MetalError: the text uses what Metal does not have.
    """
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", metal, flags=re.DOTALL)
    if found := FORBIDDEN.search(code):
        raise MetalError(f"Metal has no {found[0]}")
    code, instance = re.split(r"template \[\[host_name", code)
    name = re.search(r"decltype\((.*?)\)", instance)[1]
    signature = re.search(r"\[\[kernel\]\] void \w+\((.*?)\)\s*\{", code, re.DOTALL)[1]
    arguments = []
    for kind, attribute, number in re.findall(
        r"([^,]*?)\w+ \[\[(\w+)(?:\((\d+)\))?\]\]", signature
    ):
        cast = f"({kind.strip()})buffers[{number}]"
        arguments.append(cast if attribute == "buffer" else BUILT_IN[attribute])
    code = re.sub(r"\[\[.*?\]\]", "", code)
    arrays = iter(range(16))
    code = re.sub(
        r"\bthreadgroup (\w+) (\w+)\[(.*?)\];",
        lambda m: f"auto* {m[2]} = shim::threadgroup_array<{m[1]}>({next(arrays)}, {m[3]});",
        code,
    )
    code = re.sub(r"\bthreadgroup (\w+)\*", r"shim::Cell<\1>*", code)
    call = f"{name}({', '.join(arguments)})"
    return f"#include <metal_stdlib>\n{code}\n{MAIN.format(call=call)}"


class Kernel:
    """One compiled kernel."""

    def __init__(self, metal: str, folder: Path) -> None:
        """Compiles the text of a kernel in a folder of its own.

        Raises:
            MetalError: it does not compile.
        """
        folder.mkdir(parents=True, exist_ok=True)
        source, self.program = folder / "kernel.cpp", folder / "kernel"
        source.write_text(as_cpp(metal))
        flags = ["-std=c++14", "-O1", "-ffp-contract=off", "-fsingle-precision-constant", "-w"]
        command = [COMPILER, *flags, "-I", str(Path(__file__).parent), str(source)]
        done = subprocess.run(
            [*command, "-o", str(self.program)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MetalError(done.stderr)

    def __call__(self, launch: dict[str, Any]) -> np.ndarray:
        """The kernel's only output, which starts as NaN.

        Args:
            launch: what the `mx.fast.metal_kernel` would be called with.

        Raises:
            MetalError: the sentence says what the kernel did.
        """
        buffers = [np.array(x) for x in launch["inputs"]]
        buffers.append(np.full(launch["output_shapes"][0], np.nan, np.float32))
        numbers = [launch["grid"][0], launch["threadgroup"][0], len(buffers)]
        numbers += [b.nbytes for b in buffers]
        given = (
            " ".join(map(str, numbers)).encode() + b"\n" + b"".join(b.tobytes() for b in buffers)
        )
        done = subprocess.run([str(self.program)], input=given, capture_output=True, check=False)
        if done.returncode:
            raise MetalError(done.stderr.decode().strip() or f"ended with {done.returncode}")
        return np.frombuffer(done.stdout, np.float32).reshape(buffers[-1].shape)
