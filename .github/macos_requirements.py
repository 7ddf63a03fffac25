"""Prints what this project requires on macOS arm64, one requirement a line, markers evaluated."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

MACOS = {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"}
OWN = "mpnn"


def main() -> None:
    """All dependencies, and those of every extra but the tools of development."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [r for n, e in extras.items() if n != "dev" for r in e]
    for requirement in map(Requirement, lines):
        marker, requirement.marker = requirement.marker, None
        if requirement.name != OWN and (marker is None or marker.evaluate(MACOS)):
            sys.stdout.write(f"{requirement}\n")


if __name__ == "__main__":
    main()
