"""The exact engine in C++: `src/` is its source, `toolchain` compiles it, `library` loads it."""

from __future__ import annotations

from typing import Any

from mpnn.config import ModelConfig
from mpnn.optimizations.native import library

WIDTH_STEP = 64
"""The hidden size must be a multiple: whole vectors of every instruction set."""

MOST_NEIGHBORS = 128
"""Largest K that the library has buffers for."""


def obstacle(network: Any, device: str) -> str:
    """Why the compiled engine cannot run a network on a device; "" where it can.

    Args:
        network: a torch network, or a checkpoint, which is float32.
        device: "cpu", "mps", "cuda".
    """
    if device != "cpu":
        return f"the compiled engine runs on the CPU, not on {device}"
    if hasattr(network, "parameters"):
        dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
        if dtype != "float32":
            return f"the compiled engine computes in float32, and the network is in {dtype}"
    return unsupported(network.config) or library.unavailable() or ""


def unsupported(config: Any) -> str:
    """Why the library does not run networks of this configuration; "" where it does."""
    if not isinstance(config, ModelConfig):
        return "it is not a ProteinMPNN network"
    if config.hidden_dim % WIDTH_STEP:
        return f"its hidden size is {config.hidden_dim}, and must be a multiple of {WIDTH_STEP}"
    if config.k_neighbors > MOST_NEIGHBORS:
        return f"it reads {config.k_neighbors} neighbors, and {MOST_NEIGHBORS} are the most"
    return ""
