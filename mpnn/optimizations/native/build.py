"""Build hook of hatchling: puts the native libraries into wheels and editable installations.

With a C++20 compiler the wheel is `py3-none-<platform>`. Without one the hook asks for `ziglang`
from PyPI, and where that is not at hand (no network, `--no-build-isolation`) the wheel is pure
Python: `mpnn engines` then says what was missing. The environment's MPNN_NATIVE decides: 0 builds
no library, 1 fails where none can be built, and unset does what is possible.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _toolchain() -> ModuleType:
    """The module `toolchain` beside this file: the package itself cannot be imported yet."""
    path = Path(__file__).with_name("toolchain.py")
    spec = importlib.util.spec_from_file_location("mpnn_toolchain", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toolchain = _toolchain()


class NativeLibraries(BuildHookInterface[BuilderConfig]):
    """Compiles the native engine into the wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """`ziglang` where it would help: there is native code for the platform and no compiler."""
        wanted = os.environ.get("MPNN_NATIVE") != "0" and toolchain.target() in toolchain.LEVELS
        if not wanted or os.environ.get("CXX"):
            return []
        try:
            toolchain.find_compiler(zig=False)
        except toolchain.BuildError:
            return ["ziglang>=0.13"]
        return []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Builds the libraries and names the wheel after the platform they are for.

        Raises:
            BuildError: none can be built, and MPNN_NATIVE=1 demands one.
        """
        demanded = os.environ.get("MPNN_NATIVE") == "1"
        try:
            if os.environ.get("MPNN_NATIVE") == "0":
                raise toolchain.BuildError("it was built with MPNN_NATIVE=0")
            libraries = toolchain.build(toolchain.WARNINGS if demanded else ())
        except (toolchain.BuildError, OSError) as error:
            if demanded:
                raise
            toolchain.record_failure(str(error))
            self.app.display_warning(f"no native engine in this build: {error}")
            libraries = [toolchain.LIBRARIES / toolchain.WHY_NOT]
        else:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform_tag()}"
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in libraries]


def _platform_tag() -> str:
    """The platform of the wheel; a Python for two processors does not make the library so."""
    if platform.system() != "Darwin":
        return sysconfig.get_platform().replace("-", "_").replace(".", "_")
    oldest = os.environ.get("MACOSX_DEPLOYMENT_TARGET", toolchain.MACOS)
    return f"macosx_{oldest.partition('.')[0]}_0_{platform.machine()}"
