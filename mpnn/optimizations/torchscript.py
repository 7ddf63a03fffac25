"""TorchScript: the three programs of `staged`, traced and frozen.

`torch.jit.script` refuses the network: it cannot read the dataclass `Batch` ("Failed to get source
for Batch.__init__"), the loop over decoder layers ("list cannot be used as a value"), or sizes
passed on by a star. `torch.jit.trace` takes the programs as they are.

**Lengths are dynamic.** A trace would freeze any size that passes through a Python number; in these
programs none does, so one trace of two made-up samples of five residues serves all sizes.

**Cache.** One trace of each program for each engine, in memory and with the weights in it; nothing
is kept on disk. TorchScript looks at types in the first run and optimizes in the second, so both
are part of compiling.

torch calls `torch.jit` deprecated, and unsupported from Python 3.14 on.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor

from mpnn.model import ProteinMPNN
from mpnn.optimizations.staged import StagedEngine, example

RUNS_TO_OPTIMIZE = 2


class TorchScriptEngine(StagedEngine):
    """The staged engine with its programs traced and frozen when they are first run.

    `compile_seconds` has one entry for each program: trace, freeze, and the first two runs.
    """

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        super().__init__(model, device)
        self.scripts: dict[str, torch.jit.ScriptModule] = {}

    def run(self, stage: str, *inputs: Tensor) -> Any:
        """Runs one program, traced before if it is the first time."""
        if stage not in self.scripts:
            start = time.perf_counter()
            self.scripts[stage] = self._traced(stage)
            for _ in range(RUNS_TO_OPTIMIZE):
                self.scripts[stage](*inputs)
            self.compile_seconds[stage] = time.perf_counter() - start
        return self.scripts[stage](*inputs)

    def _traced(self, stage: str) -> torch.jit.ScriptModule:
        inputs = example(stage, self.model.config, self.torch_dtype)
        inputs = tuple(x.to(self.device) for x in inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            # The list of atom pairs becomes a constant of the trace: it is one.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            module = self.stages[stage]
            traced = torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
        return frozen
