"""How many kernels a function of MLX arrays launches, read from its graph without running it."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

VIEWS = frozenset(
    ("Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze",
     "StopGradient", "Transpose", "Unflatten", "View")
)  # fmt: skip
"""Operations that describe an array anew and launch nothing; a few of them, rarely, copy."""


def launches(function: Callable[..., Any], *args: Any) -> Counter[str]:
    """Operations that `function(*args)` launches, by name.

    What `mx.compile` fuses is one operation, and its name says of what. MLX's LayerNorm is one
    launch on Metal, but on the CPU it is made of others, which are counted then.

    Args:
        function: returns arrays, or lists, tuples and dicts of arrays; compiled or not.
        args: what it is called with.
    """
    mx.eval(args)
    outputs = [array for _, array in tree_flatten(function(*args))]
    dot = io.StringIO()
    mx.export_to_dot(dot, *outputs)
    names = re.findall(r'label\s*=\s*"([^"]+)",\s*shape\s*=\s*rectangle', dot.getvalue())
    return Counter(name for name in names if name not in VIEWS)
