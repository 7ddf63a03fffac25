"""Core ML: the cache of packages, the gate of compute units, and compute plans."""

from __future__ import annotations

import platform
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpnn.config import ModelConfig
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import load_engine
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights, load_weights

pytest.importorskip("coremltools")

import coremltools as ct

from mpnn.optimizations.coreml import CoreMLEngine, gate, network, package, plan
from mpnn.optimizations.coreml.gate import judge, measured, require_parity
from mpnn.optimizations.coreml.package import cached_package, digest
from mpnn.optimizations.coreml.predictor import CoreMLPredictor

TINY = ModelConfig(1, 2, 16, 6)

mac = platform.mac_ver()[0] != "" and platform.machine() == "arm64"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache, and conversions that are quick."""
    monkeypatch.setattr(package, "cache_folder", lambda: tmp_path / "weights")
    made: list[Path] = []

    def written(path: Path, *_: Any) -> None:
        path.mkdir()
        made.append(path)

    monkeypatch.setattr(package, "save_package", written)
    return tmp_path / "coreml"


def test_package_is_made_once(cache: Path) -> None:
    """The same network finds its package; another weight, bucket or storage makes another."""
    model, other = formula_weights(TINY), formula_weights(TINY)
    first = cached_package(model, [16])
    assert first.parent.parent == cache
    made = first.stat()
    assert cached_package(other, [16]).stat() == made
    with torch.no_grad():
        other.W_out.bias[0] += 1
    paths = [cached_package(other, [16]), cached_package(model, [32]), first]
    paths.append(cached_package(model, [16], "int8"))
    assert len(set(paths)) == len(list(cache.iterdir())) == 4
    for path, given in zip(paths, (other, model, model), strict=False):
        stored = load_weights(path.with_name(package.CHECKPOINT))[0]
        torch.testing.assert_close(stored.W_out.bias, given.W_out.bias)


def test_stopped_conversion_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that was not finished is not taken for one."""

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "save_package", stopped)
    with pytest.raises(KeyboardInterrupt):
        cached_package(formula_weights(TINY), [16])
    assert not list(cache.iterdir())


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the cache's place is named in one sentence."""
    (tmp_path / "coreml").write_text("")
    monkeypatch.setattr(package, "cache_folder", lambda: tmp_path / "weights")
    with pytest.raises(InputError, match=r"coreml.*cannot be written"):
        cached_package(formula_weights(TINY), [16])


def test_digest_follows_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A changed graph is converted again."""
    before = digest(formula_weights(TINY), [16], "float16")
    changed = tmp_path / "network.py"
    changed.write_text(Path(str(network.__file__)).read_text() + "\n# changed\n")
    monkeypatch.setattr(network, "__file__", str(changed))
    assert digest(formula_weights(TINY), [16], "float16") != before


@pytest.mark.skipif(mac, reason="Core ML predicts here")
def test_elsewhere_prediction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Core ML cannot predict, the engine says so at its first use, and converts nothing."""
    monkeypatch.setattr("mpnn.optimizations.coreml.engine.cached_package", pytest.fail)
    engine = load_engine(formula_weights(TINY), "coreml")
    with pytest.raises(InputError, match=r"Core ML predicts on macOS only.*another engine"):
        engine.encode(Flat.from_backbones([synthetic_backbone(10)]))


def test_old_macos_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multifunction packages need macOS 15."""
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.6.1", ("", "", ""), "arm64"))
    with pytest.raises(InputError, match=r"macOS 14\.6\.1.*macOS 15 or newer"):
        CoreMLPredictor(Path("a.mlpackage"), "CPU_ONLY")


def test_functions_are_loaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each version of macOS compiles a package once; functions are loaded when first called."""
    done: list[Any] = []

    def compile_model(source: str, destination: str) -> None:
        done.append(Path(source).name)
        Path(destination).mkdir()

    class Compiled:
        def __init__(self, path: str, unit: ct.ComputeUnit, function: str) -> None:
            assert Path(path).is_dir()
            done.append((unit, function))

        def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"doubled": inputs["x"] * 2}

    version = "15.3"
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    monkeypatch.setattr(ct.models.utils, "compile_model", compile_model)
    monkeypatch.setattr(ct.models, "CompiledMLModel", Compiled)
    for _ in range(2):
        predict = CoreMLPredictor(tmp_path / "a.mlpackage", "CPU_AND_NE")
        for _ in range(2):
            assert predict("encode_64", {"x": np.ones(1)})["doubled"] == 2
    assert done == ["a.mlpackage"] + 2 * [(ct.ComputeUnit.CPU_AND_NE, "encode_64")]
    version = "15.4"
    CoreMLPredictor(tmp_path / "a.mlpackage", "CPU_ONLY")
    assert done[-1] == "a.mlpackage"


@pytest.mark.parametrize("difference", [0.2, float("nan"), float("inf")])
def test_a_unit_out_of_its_band_is_refused(difference: float) -> None:
    """One bucket that is wrong, or NaN, refuses the unit, and the message has the figures."""
    judge({"64": 0.01, "128": 0.09}, "CPU_AND_NE", "float16")
    with pytest.raises(InputError, match=r"CPU_AND_NE.*bucket of 128.*float16.*0\.1; take another"):
        judge({"64": 0.01, "128": difference}, "CPU_AND_NE", "float16")


def test_verdict_on_a_unit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit is tried once; a kept figure out of its band refuses it again."""
    asked: list[str] = []

    def figures(_: Path, unit: str) -> dict[str, float]:
        asked.append(unit)
        return {"16": 0.01 if unit == "CPU_ONLY" else 1.0}

    monkeypatch.setattr(gate, "measured", figures)
    for _ in range(2):
        assert require_parity(tmp_path / "a.mlpackage", "CPU_ONLY", "float16") == {"16": 0.01}
        with pytest.raises(InputError, match="CPU_AND_GPU"):
            require_parity(tmp_path / "a.mlpackage", "CPU_AND_GPU", "float16")
    assert asked == ["CPU_ONLY", "CPU_AND_GPU"]


@pytest.mark.slow
@pytest.mark.skipif(mac, reason="Core ML predicts here")
@pytest.mark.usefixtures("cache")
def test_trial_in_a_process_of_its_own() -> None:
    """The program that the gate starts loads the package's network, and its last line is told."""
    path = cached_package(formula_weights(TINY), [16])
    with pytest.raises(InputError, match=r"CPU_AND_NE: the trial ended with 1 .*macOS only"):
        measured(path, "CPU_AND_NE")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo noise; echo '{\"64\": 0.01}'", None),
        ("echo first >&2; echo last >&2; exit 3", "ended with 3 .last.; take another unit"),
        ("kill -SEGV $$", r"ended with -11 .no message."),
    ],
    ids=["figures", "failure", "crash"],
)
def test_a_trial_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, said: str | None
) -> None:
    """Figures are read from the last line; a failure or a crash is an error with its reason."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    if said is None:
        assert measured(tmp_path, "CPU_ONLY") == {"64": 0.01}
    else:
        with pytest.raises(InputError, match=said):
            measured(tmp_path, "CPU_ONLY")


def test_a_trial_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A unit that does not answer is refused."""
    monkeypatch.setattr(gate, "PATIENCE", 0.01)
    with pytest.raises(InputError, match=r"CPU_ONLY: no answer in"):
        measured(tmp_path / "a.mlpackage", "CPU_ONLY")


class MLNeuralEngineComputeDevice:
    """Named as coremltools names it."""


class MLCPUComputeDevice:
    """Named as coremltools names it."""


class Plan:
    """A compute plan of three operations and a constant."""

    def __init__(self) -> None:
        rows = [("ios18.const", None, None), ("ios18.conv", MLNeuralEngineComputeDevice(), 0.75)]
        rows += [("ios18.gelu", MLCPUComputeDevice(), 0.25), ("ios18.cast", None, None)]
        operations = [
            types.SimpleNamespace(
                operator_name=name, outputs=[types.SimpleNamespace(name=f"v{n}")], on=on, cost=cost
            )
            for n, (name, on, cost) in enumerate(rows)
        ]
        block = types.SimpleNamespace(operations=operations)
        functions = {"encode_64": types.SimpleNamespace(block=block)}
        program = types.SimpleNamespace(functions=functions)
        self.model_structure = types.SimpleNamespace(program=program)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        """The device, or None."""
        return operation.on and types.SimpleNamespace(preferred_compute_device=operation.on)

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        """The share of the work, or None."""
        return operation.cost and types.SimpleNamespace(weight=operation.cost)


def test_plan_says_where_each_operation_runs() -> None:
    """Devices are told by name, operations without one stay in the list, constants do not."""
    found = plan.placements_in(Plan(), "encode_64")
    assert found == [
        plan.Placement("conv", "v1", "NE", 0.75),
        plan.Placement("gelu", "v2", "CPU", 0.25),
        plan.Placement("cast", "v3", "", 0.0),
    ]
    assert plan.share(found, "NE") == 0.75
    assert plan.share([], "NE") == 0


@pytest.mark.parametrize("elsewhere", ["encode_64", "decode_64", None])
def test_a_figure_of_the_neural_engine_is_measured_on_it(
    monkeypatch: pytest.MonkeyPatch, elsewhere: str | None
) -> None:
    """Where Core ML means to run half of a function elsewhere, nothing is measured."""

    def placements(package: Path, function: str, unit: str) -> list[plan.Placement]:
        assert (package, unit) == (Path("network"), "CPU_AND_NE")
        rest = 0.5 if function == elsewhere else 0.25
        return [
            plan.Placement("conv", "v1", "NE", 1 - rest),
            plan.Placement("gelu", "v2", "CPU", rest),
        ]

    monkeypatch.setattr("platform.mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr("mpnn.optimizations.coreml.engine.placements", placements)
    monkeypatch.setattr(
        "mpnn.optimizations.coreml.engine.cached_package", lambda *_: Path("network")
    )
    engine = CoreMLEngine(formula_weights(TINY))
    if elsewhere is None:
        engine.require_neural_engine(40)
        return
    with pytest.raises(InputError, match=f"run 50% of {elsewhere} on the Neural Engine"):
        engine.require_neural_engine(40)
