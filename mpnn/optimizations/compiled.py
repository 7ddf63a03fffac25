"""torch.compile: the three programs of `staged`, each fused into C++ (Metal on a Mac's GPU).

**Lengths are dynamic.** The first axis of every input is marked so, and one program serves all
sizes from 2 up. torch takes a size of 1 for a constant, so a step of one residue, and a protein of
one residue, have programs of their own. Nothing else compiles again, and where a program cannot be
taken whole (`fullgraph`) or too many have been made, torch raises an error: nothing runs uncompiled
in silence.

**Cache.** Compiled programs are kept in memory for the process, keyed by code and shapes, not by
weights: another engine of the same architecture takes them over. On disk torch keeps what it built
in `TORCHINDUCTOR_CACHE_DIR`, a folder `torchinductor_USER` for temporary files unless set; another
process with the same torch then only traces, which is several times sooner done.

Of the whole network torch.compile would take `topk` too, but K = min(k, L) would give every short
protein a program of its own; `staged` keeps it outside. Programs for the CPU need a C++ compiler.
Device "mps" has torch write Metal instead; how fast that is, only a Mac can show.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config, mark_dynamic

from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.optimizations.staged import StagedEngine

MOST_PROGRAMS = 64
"""Of each stage, over all architectures in the process; torch's own limit is 8."""


class CompiledEngine(StagedEngine):
    """The staged engine with its programs compiled by torch when they are first run.

    `compile_seconds` has one entry for each program, named by the sizes of the call that it was
    compiled in: "step 6×106×106". It is that call's time, the run included.

    Raises:
        InputError: there is no C++ compiler to build programs for the CPU with.
    """

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        super().__init__(model, device)
        compilers = (os.environ.get("CXX", ""), "g++", "clang++")
        if self.device == "cpu" and not any(map(shutil.which, compilers)):
            raise InputError(
                "engine compiled: torch.compile needs a C++ compiler and found none; "
                "install g++ (on a Mac: xcode-select --install), or take another engine"
            )
        self.compiled = {
            name: torch.compile(stage, fullgraph=True) for name, stage in self.stages.items()
        }
        self.programs: set[tuple[str, tuple[bool, ...]]] = set()

    def run(self, stage: str, *inputs: Tensor) -> Any:
        """Runs one program, compiled before if it is the first time for such sizes."""
        many = tuple(len(x) > 1 for x in inputs)
        for x, dynamic in zip(inputs, many, strict=True):
            if dynamic:
                mark_dynamic(x, 0)
        if (stage, many) in self.programs:
            return self.compiled[stage](*inputs)
        start = time.perf_counter()
        with config.patch(recompile_limit=MOST_PROGRAMS), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses torch.jit
            outputs = self.compiled[stage](*inputs)
        sizes = "×".join(dict.fromkeys(str(len(x)) for x in inputs))
        self.compile_seconds[f"{stage} {sizes}"] = time.perf_counter() - start
        self.programs.add((stage, many))
        return outputs
