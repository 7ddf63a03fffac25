"""Where Core ML means to run each operation (`MLComputePlan`, macOS alone)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coremltools as ct

from mpnn.optimizations.coreml.predictor import require_macos

DEVICES = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "NE",
}


@dataclass(frozen=True)
class Placement:
    """One operation of a function.

    Attributes:
        operation: its MIL type, such as `conv`.
        output: name of its first result.
        device: CPU, GPU or NE; '' where Core ML does not say.
        cost: estimated share of the function's work, 0 to 1.
    """

    operation: str
    output: str
    device: str
    cost: float


def placements(package: Path, function: str, unit: str) -> list[Placement]:
    """Where the operations of a function are to run; constants are left out.

    Raises:
        InputError: this is not macOS 15 or newer.
    """
    require_macos()
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "function.mlpackage")
        with_default(package, function, alone)
        compiled = ct.models.utils.compile_model(str(alone), str(alone.with_suffix(".mlmodelc")))
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(compiled, ct.ComputeUnit[unit])
        return placements_in(plan, function)


def with_default(package: Path, function: str, destination: Path) -> None:
    """Writes the package with another default function: plans are made for that one alone."""
    model = ct.models.MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    spec.description.defaultFunctionName = function
    ct.models.utils.save_spec(spec, str(destination), weights_dir=model.weights_dir)


def placements_in(plan: Any, function: str) -> list[Placement]:
    """Reads a compute plan."""
    found = []
    for operation in plan.model_structure.program.functions[function].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        name = operation.operator_name.rpartition(".")[2]
        if name == "const" or name.startswith("constexpr"):
            continue
        device = type(usage.preferred_compute_device).__name__ if usage else ""
        found.append(
            Placement(
                name,
                operation.outputs[0].name,
                DEVICES.get(device, device),
                cost.weight if cost else 0.0,
            )
        )
    return found


def share(found: Iterable[Placement], device: str) -> float:
    """Share of the estimated work that is to run on a device, 0 to 1."""
    found = list(found)
    total = sum(p.cost for p in found)
    return sum(p.cost for p in found if p.device == device) / total if total else 0.0
