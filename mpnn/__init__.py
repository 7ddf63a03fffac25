"""ProteinMPNN made fast, with a measured proof attached to every figure.

The names below are imported when first used, so `import mpnn` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpnn.backbone import Backbone
    from mpnn.design import Model, load
    from mpnn.errors import InputError
    from mpnn.results import Design, Designs, Score, Scores
    from mpnn.rules import Rules
    from mpnn.structure import read_structure

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Design",
    "Designs",
    "InputError",
    "Model",
    "Rules",
    "Score",
    "Scores",
    "load",
    "read_structure",
]

_HOME = {
    "Backbone": "mpnn.backbone",
    "Design": "mpnn.results",
    "Designs": "mpnn.results",
    "InputError": "mpnn.errors",
    "Model": "mpnn.design",
    "Rules": "mpnn.rules",
    "Score": "mpnn.results",
    "Scores": "mpnn.results",
    "load": "mpnn.design",
    "read_structure": "mpnn.structure",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
