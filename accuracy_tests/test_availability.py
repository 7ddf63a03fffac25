"""`mpnn engines`: every engine, whether it can run here, and why not."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from cli_runs import run

from mpnn.optimizations import ENGINES, EngineSpec, availability
from mpnn.optimizations.native import library


def test_command_lists_every_engine():
    """Each engine has one line with its networks; the last one is of the native library."""
    done = run("engines")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*ENGINES, "native"]
    assert all(re.search(r" networks +(yes$|no: .)", line) for line in lines[:-1])
    assert re.search(r"yes, level \w+$|no: .", lines[-1])


def test_listing_imports_no_framework():
    """Neither torch nor any engine's package is imported for the list."""
    heavy = {"torch", *(name for names in availability.PACKAGES.values() for name in names)}
    code = (
        "import sys; from mpnn.optimizations.availability import lines; list(lines()); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    """Without the package that an engine imports, the reason names it and the extra."""
    (package, *_) = availability.PACKAGES[ENGINES[name].extra]
    if ENGINES[name].target.startswith("mpnn.optimizations.native."):
        pytest.skip("the native engine needs no package")
    hidden = lambda wanted: None if wanted == package else find_spec(wanted)  # noqa: E731
    monkeypatch.setattr(availability, "find_spec", hidden)
    extra = ENGINES[name].extra
    advice = f"pip install 'mpnn[{extra}]'" if extra else "pip install 'mpnn'"
    assert availability.obstacle(name) == f"{package} not installed; {advice}"


@pytest.mark.parametrize(
    ("version", "reason"),
    [("", "on macOS only"), ("14.7", "macOS 15 or newer, and this is macOS 14.7"), ("15.0", None)],
)
def test_core_ml_needs_macos_15(version, reason, monkeypatch):
    """Core ML's obstacle is the one that its engine would raise."""
    monkeypatch.setattr(availability, "find_spec", lambda _: True)
    monkeypatch.setattr(availability.platform, "mac_ver", lambda: (version, ("", "", ""), ""))
    found = availability.obstacle("coreml")
    assert found is None if reason is None else reason in found


def test_oldest_macos_is_that_of_the_predictor():
    """The list and the engine demand the same macOS."""
    pytest.importorskip("coremltools")
    from mpnn.optimizations.coreml import predictor

    assert availability.OLDEST_MACOS == predictor.OLDEST_MACOS


def test_compilers_are_needed_where_programs_are_compiled(monkeypatch):
    """On Linux without a compiler, torch.compile and MLX's compiled engines cannot run."""
    monkeypatch.setattr(availability, "find_spec", lambda _: True)
    monkeypatch.setattr(availability.sys, "platform", "linux")
    monkeypatch.setenv("CXX", "no-such-compiler")
    availability._no_compiler.cache_clear()
    blocked = {name for name in ENGINES if "no C++20" in (availability.obstacle(name) or "")}
    availability._no_compiler.cache_clear()
    assert blocked == {"compiled", "mlx", "mlx-fused"}


def test_native_engine_is_as_available_as_its_library(monkeypatch):
    """An engine of the native package has the library's reason, whatever is installed."""
    spec = EngineSpec("mpnn.optimizations.native.engine:NativeEngine")
    monkeypatch.setitem(ENGINES, "native-alone", spec)
    monkeypatch.setenv(library.SWITCH, "0")
    library.load.cache_clear()
    assert availability.obstacle("native-alone") == library.unavailable()
    assert "switched off" in library.unavailable()
    library.load.cache_clear()
