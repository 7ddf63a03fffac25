"""Core ML: the cache of packages, the gate of compute units, and compute plans."""

from __future__ import annotations

import os
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
from mpnn.optimizations.coreml.gate import fastest, judge, measured, require_parity
from mpnn.optimizations.coreml.network import BATCH, HEIGHT, LAYOUTS, Layout
from mpnn.optimizations.coreml.package import Package, cached_package, digest
from mpnn.optimizations.coreml.predictor import CoreMLPredictor
from mpnn.optimizations.coreml.trial import Figures

TINY = ModelConfig(1, 2, 16, 6)


def figures(difference: float, seconds: float = 1.0, share: float = 1.0) -> Figures:
    return Figures(difference=difference, seconds=seconds, host_seconds=1.0, share=share)


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
    """The same network finds its package; another weight, bucket, storage or layout does not."""
    model, other = formula_weights(TINY), formula_weights(TINY)
    first = cached_package(model, [16]).path
    assert first.parent.parent == cache
    made = first.stat()
    assert cached_package(other, [16]).path.stat() == made
    with torch.no_grad():
        other.W_out.bias[0] += 1
    paths = [cached_package(other, [16]).path, cached_package(model, [32]).path, first]
    paths.append(cached_package(model, [16], "int8").path)
    paths.append(cached_package(model, [16], layout=HEIGHT).path)
    assert len(set(paths)) == len(list(cache.iterdir())) == 5
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
        CoreMLPredictor(Path("a.mlpackage"), "CPU_ONLY", BATCH)


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
        predict = CoreMLPredictor(tmp_path / "a.mlpackage", "CPU_AND_NE", BATCH)
        for _ in range(2):
            assert predict("encode_64", {"x": np.ones(1)})["doubled"] == 2
    assert done == ["a.mlpackage"] + 2 * [(ct.ComputeUnit.CPU_AND_NE, "encode_64")]
    version = "15.4"
    CoreMLPredictor(tmp_path / "a.mlpackage", "CPU_ONLY", BATCH)
    assert done[-1] == "a.mlpackage"


@pytest.mark.parametrize("difference", [0.2, float("nan"), float("inf")])
def test_a_unit_out_of_its_band_is_refused(difference: float) -> None:
    """One bucket that is wrong, or NaN, refuses the unit, and the message has the figures."""
    judge({"64": figures(0.01), "128": figures(0.09)}, "CPU_AND_NE", "float16")
    with pytest.raises(InputError, match=r"CPU_AND_NE.*bucket of 128.*float16.*0\.1; take another"):
        judge({"64": figures(0.01), "128": figures(difference)}, "CPU_AND_NE", "float16")


def test_verdict_on_a_unit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit is tried once; a kept figure out of its band refuses it again."""
    asked: list[str] = []

    def trial(_: Path, unit: str) -> dict[str, Figures]:
        asked.append(unit)
        if unit == "CPU_AND_NE":
            raise InputError("it hung")
        return {"16": figures(0.01 if unit == "CPU_ONLY" else 1.0)}

    monkeypatch.setattr(gate, "measured", trial)
    path = tmp_path / "a.mlpackage"
    for _ in range(2):
        assert require_parity(path, "CPU_ONLY", "float16") == {"16": figures(0.01)}
        with pytest.raises(InputError, match="CPU_AND_GPU"):
            require_parity(path, "CPU_AND_GPU", "float16")
        with pytest.raises(InputError, match=r"it hung .delete .*trial\.CPU_AND_NE.* to try again"):
            require_parity(path, "CPU_AND_NE", "float16")
    assert asked == ["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]


@pytest.mark.parametrize(
    ("batch", "height", "chosen"),
    [
        (figures(0.01, 2.0), figures(0.01, 1.0), HEIGHT),
        (figures(0.01, 1.0), figures(0.01, 2.0), BATCH),
        (figures(0.01, 2.0), figures(float("nan"), 1.0), BATCH),
    ],
    ids=["height faster", "batch faster", "height wrong"],
)
def test_the_faster_layout_that_passes_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: Figures, height: Figures, chosen: Layout
) -> None:
    """Time decides between layouts that pass their trial; a wrong one is not taken for its time."""
    tried = {"batch": {"64": batch}, "height": {"64": height}}
    monkeypatch.setattr(gate, "measured", lambda path, _: tried[path.parent.name])
    packages = [Package(tmp_path / n / "a.mlpackage", layout) for n, layout in LAYOUTS.items()]
    for package_of in packages:
        package_of.path.parent.mkdir()
    assert fastest(packages, "CPU_AND_NE", "float16").layout == chosen


def test_a_unit_without_a_layout_that_passes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message has the reason of every layout."""
    monkeypatch.setattr(gate, "measured", lambda *_: {"64": figures(1.0)})
    packages = [Package(tmp_path / "a.mlpackage", layout) for layout in LAYOUTS.values()]
    with pytest.raises(InputError, match=r"batch layout: .*1 nats.*; height layout: .*1 nats"):
        fastest(packages, "CPU_AND_NE", "float16")


@pytest.mark.slow
@pytest.mark.skipif(mac, reason="Core ML predicts here")
@pytest.mark.usefixtures("cache")
def test_trial_in_a_process_of_its_own() -> None:
    """The program that the gate starts loads the package's network, and its last line is told."""
    path = cached_package(formula_weights(TINY), [16]).path
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


@pytest.mark.parametrize(
    ("share", "seconds", "said"),
    [
        (0.75, 0.5, None),
        (0.5, 0.5, "run 50% of score_64 on the Neural Engine"),
        (0.75, 0.8, r"score_64 takes 0\.8 s .* 1 s on the CPU alone"),
    ],
    ids=["used", "planned elsewhere", "as slow as the CPU"],
)
def test_a_figure_of_the_neural_engine_is_measured_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: float, seconds: float, said: str | None
) -> None:
    """Where half of a score is planned elsewhere, or no time is saved, nothing is measured."""
    tried = {"CPU_AND_NE": figures(0.01, seconds, share), "CPU_ONLY": figures(0.01, 1.0)}
    monkeypatch.setattr(gate, "measured", lambda _, unit: {"64": tried[unit]})
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    monkeypatch.setattr(
        "mpnn.optimizations.coreml.engine.cached_package",
        lambda *_: Package(tmp_path / "a.mlpackage", BATCH),
    )
    engine = CoreMLEngine(formula_weights(TINY))
    if said is None:
        engine.require_neural_engine(40)
        return
    with pytest.raises(InputError, match=said):
        engine.require_neural_engine(40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("", None),
        ("error", "the trial ended with 1 .*cannot compile"),
        ("crash", r"the trial ended with -11"),
        ("hang", "no answer in"),
    ],
    ids=["passes", "error", "crash", "hang"],
)
def test_trial_on_a_fake_mac(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, said: str | None
) -> None:
    """The trial compiles, plans and predicts; an error, a crash and a hang refuse the unit."""
    monkeypatch.setattr(package, "cache_folder", lambda: tmp_path / "weights")
    fake = Path(__file__).with_name("fake_mac.py")
    programs = {"python": f'exec {sys.executable} {fake} "$@"', "sw_vers": "echo 15.5"}
    for name, program in programs.items():
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\n{program}\n")
        script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_MAC", how)
    if how == "hang":
        monkeypatch.setattr(gate, "PATIENCE", 20.0)
    path = cached_package(formula_weights(TINY), [16], layout=HEIGHT).path
    if said is None:
        found = measured(path, "CPU_AND_NE")["16"]
        assert 0 < found["difference"] < 0.1
        assert 0 < found["share"] < 1
        assert found["seconds"] > 0
        return
    with pytest.raises(InputError, match=said):
        measured(path, "CPU_AND_NE")
