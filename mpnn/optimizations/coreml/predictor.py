"""Executes functions of the package: Core ML on a Mac, anything else in a test.

Inputs and outputs are float32 and copied; half-precision ones without copies need IOSurface-backed
arrays through pyobjc, which are not written, as their gain is not measured here.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import coremltools as ct
import numpy as np

from mpnn.errors import InputError
from mpnn.optimizations.coreml.network import Layout
from mpnn.optimizations.coreml.padding import Array, Arrays

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
"""Compute units that Core ML may be limited to; it chooses among them op by op."""

OLDEST_MACOS = 15  # multifunction packages


class Predictor(Protocol):
    """Runs the functions of a package."""

    dtype: np.dtype[Any]
    """Type of the inputs; outputs come in any."""

    layout: Layout
    """Of the edge arrays."""

    def __call__(self, function: str, inputs: Arrays) -> Mapping[str, Array]:
        """Outputs by name."""


class CoreMLPredictor:
    """Core ML, limited to some compute units; a function is loaded when first called."""

    dtype = np.dtype(np.float32)  # coremltools would turn float16 into this, and Core ML back

    def __init__(self, package: Path, unit: str, layout: Layout) -> None:
        require_macos()
        self.layout = layout
        self.unit = ct.ComputeUnit[unit]
        self.compiled = compiled(package)
        self.functions: dict[str, Any] = {}

    def __call__(self, function: str, inputs: Arrays) -> Mapping[str, Array]:
        """Outputs by name."""
        if function not in self.functions:
            self.functions[function] = ct.models.CompiledMLModel(
                str(self.compiled), self.unit, function
            )
        outputs: Mapping[str, Array] = self.functions[function].predict(dict(inputs))
        return outputs


def require_macos() -> None:
    """Raises where Core ML cannot predict.

    Raises:
        InputError: this is not macOS, or one older than 15.
    """
    version = platform.mac_ver()[0]
    if not version:
        raise InputError(
            f"Core ML predicts on macOS only, and this is {platform.system()}; take another engine"
        )
    if int(version.partition(".")[0]) < OLDEST_MACOS:
        raise InputError(
            f"Core ML on macOS {version} knows no multifunction packages; macOS {OLDEST_MACOS} or "
            "newer is needed, or another engine"
        )


def compiled(package: Path) -> Path:
    """The package compiled by this version of macOS, kept beside it."""
    path = package.with_suffix(f".macos-{platform.mac_ver()[0]}.mlmodelc")
    if not path.is_dir():
        with tempfile.TemporaryDirectory(dir=package.parent) as folder:
            partial = Path(folder, path.name)
            ct.models.utils.compile_model(str(package), str(partial))
            if not path.is_dir():  # unless another process was sooner
                shutil.move(partial, path)
    return path
