"""A Mac on Linux: runs a stage of `mpnn.studies.mac_stages` as if coremltools were on macOS.

The classes of coremltools are the real ones. What they call in `libcoremlpython`, their binding to
Apple's framework, is replaced: predictions come from the MIL evaluator, compiling is copying, and
plans put convolutions on the Neural Engine unless it may not be used. Facts about the machine come
from scripts that the test puts on the path under the names of Apple's tools.

`python fake_mac.py STAGE [ARGUMENT]…`, or `-m mpnn.optimizations.coreml.trial` as the gate starts
it; `FAKE_MAC` = crash or hang does that when Core ML loads a function, error when it compiles.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401 (before the platform changes its name)


class Device:
    """The binding's idea of a CPU, a GPU or a Neural Engine."""


class Plan:
    """The binding's idea of a compute plan: all operations of one function cost the same."""

    def __init__(self, path: str, unit: str) -> None:
        from mil_evaluator import MILEvaluator

        evaluator = MILEvaluator(Path(path), exact=False)
        functions = {name: evaluator.operations(name) for name in evaluator.program.functions}
        self.unit = unit
        self.count = {name: len(operations) for name, operations in functions.items()}
        program = types.SimpleNamespace(functions={n: block(o) for n, o in functions.items()})
        self.model_structure = types.SimpleNamespace(program=program)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        """Convolutions on the Neural Engine, the rest on the CPU."""
        from coremltools.models import compute_device, compute_plan

        on_engine = operation.operator_name.endswith("conv") and self.unit == "CPU_AND_NE"
        kind = "MLNeuralEngineComputeDevice" if on_engine else "MLCPUComputeDevice"
        device = getattr(compute_device, kind)(Device())
        return compute_plan.MLComputePlanDeviceUsage(device, [device])

    def get_estimated_cost_for_mlprogram_operation(self, _: Any) -> Any:
        """A share that does not depend on the operation."""
        from coremltools.models import compute_plan

        return compute_plan.MLComputePlanCost(1 / max(self.count.values()))


def block(operations: list[Any]) -> Any:
    """A function's operations as coremltools shows them."""
    found = [
        types.SimpleNamespace(
            operator_name=f"ios18.{op.op_type}",
            outputs=[types.SimpleNamespace(name=op.outputs[0].name)],
        )
        for op in operations
    ]
    return types.SimpleNamespace(block=types.SimpleNamespace(operations=found))


class Model:
    """The binding's idea of a model: one function of a package."""

    def __init__(self, path: str, _unit: str, function: str, *_: Any) -> None:
        from mil_evaluator import MILEvaluator

        self.evaluator, self.function = MILEvaluator(Path(path), exact=False), function
        how = os.environ.get("FAKE_MAC")
        if how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        while how == "hang":
            time.sleep(60)

    def predict(self, inputs: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Outputs by name; the binding takes float32 alone."""
        assert all(x.dtype == np.float32 for x in inputs.values())
        return self.evaluator(self.function, inputs)

    @staticmethod
    def compileModel(source: str) -> str:  # noqa: N802 (the binding's name)
        """A copy of the package, named as a compiled one."""
        if os.environ.get("FAKE_MAC") == "error":
            raise RuntimeError("cannot compile")
        target = Path(tempfile.mkdtemp()) / "model.mlmodelc"
        shutil.copytree(source, target)
        return str(target)

    @staticmethod
    def maximum_supported_specification_version() -> int:
        """As macOS 15."""
        return 9

    @staticmethod
    def get_compute_plan(path: str, unit: str) -> Any:
        """A plan of the real class."""
        from coremltools.models import compute_plan

        return compute_plan.MLComputePlan(Plan(path, unit))


def become_a_mac() -> None:
    """Installs the binding, and names the platform as coremltools and this project ask for it."""
    binding: Any = types.ModuleType("coremltools.libcoremlpython")
    binding._MLModelProxy, binding._MLModelAssetProxy = Model, Device
    binding._MLComputePlanProxy = Plan
    for kind in ("CPU", "GPU", "NeuralEngine"):
        setattr(binding, f"_ML{kind}ComputeDeviceProxy", Device)
    sys.modules["coremltools.libcoremlpython"] = binding
    platform.mac_ver = lambda *_: ("15.5", ("", "", ""), "arm64")  # type: ignore[assignment]


def main(name: str, *arguments: str) -> None:
    """Runs a stage, or a trial."""
    from mpnn.optimizations.coreml import package
    from mpnn.studies import mac_stages

    package.BUCKETS = (64,)  # one is enough to prove the way
    mac_stages.REPEATS = 1
    if name in ("coreml", "-m"):
        sys.platform = "darwin"
    if name == "-m":
        from mpnn.optimizations.coreml import trial

        trial.main(*arguments[1:])
        return
    mac_stages.main(name, *arguments)


if __name__ == "__main__":
    become_a_mac()
    main(*sys.argv[1:])
