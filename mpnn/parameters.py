"""Names, shapes and deterministic values of every network's parameters, without torch.

C hidden, V = 21 residue types; names are those of the published checkpoints.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpnn.config import NUM_LETTERS, ModelConfig, NetworkConfig, SSMConfig

Arrays = dict[str, NDArray[np.float32]]
"""Parameters by name."""

Shape = tuple[int, ...]

NUM_OFFSETS, NUM_POSITIONAL = 66, 16
EDGE_INPUT = NUM_POSITIONAL + 25 * 16  # positional encoding, and 16 radial bases of 25 atom pairs
FEED_FORWARD = 4  # inner width of the feed-forward block in units of C


def parameter_shapes(config: NetworkConfig) -> dict[str, Shape]:
    """Shape of every parameter of a network, by name."""
    parts = _ssm(config) if isinstance(config, SSMConfig) else _protein_mpnn(config)
    return dict(parts)


def deterministic_arrays(config: NetworkConfig) -> Arrays:
    """Weights that follow from the parameters' names, for tests and timings without a file.

    Normal numbers w seeded by the name: matrices w/√(last axis), LayerNorm weights 1 + 0.1·w, other
    vectors 0.1·w; drawn in float64 and kept in float32.
    """
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if w.ndim > 1:
            w = w / np.sqrt(shape[-1])
        else:
            w = 0.1 * w + (1.0 if name.endswith("weight") else 0.0)
        arrays[name] = w.astype(np.float32)
    return arrays


def _protein_mpnn(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    C = config.hidden_dim
    yield from _features(C)
    yield from _linear("W_e", C, C)
    yield "W_s.weight", (NUM_LETTERS, C)
    for i in range(config.num_encoder_layers):
        layer = f"encoder_layers.{i}"
        yield from _messages(layer, C, 3 * C)
        yield from _norm(f"{layer}.norm3", C)
        yield from _linear(f"{layer}.W11", 3 * C, C)
        yield from _linear(f"{layer}.W12", C, C)
        yield from _linear(f"{layer}.W13", C, C)
    for i in range(config.num_decoder_layers):
        yield from _messages(f"decoder_layers.{i}", C, 4 * C)
    yield from _linear("W_out", C, NUM_LETTERS)


def _ssm(config: SSMConfig) -> Iterator[tuple[str, Shape]]:
    C, D = config.hidden_dim, 2 * config.hidden_dim
    yield from _features(C)
    for name in ("W_e", "W2", "W3"):
        yield from _linear(name, C, C)
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        yield f"{layer}.skip", (D,)
        yield from _norm(f"{layer}.norm", C)
        yield from _linear(f"{layer}.W_in", C, 2 * D)
        for way in ("forward", "backward"):
            yield f"{layer}.{way}_direction.log_A", (config.num_heads,)
            selected = config.num_heads + 2 * config.state_dim
            yield from _linear(f"{layer}.{way}_direction.select", C, selected)
        yield from _norm(f"{layer}.norm_gated", D)
        yield from _linear(f"{layer}.W_out", D, C)
    yield from _norm("norm", C)
    yield from _linear("W_out", C, NUM_LETTERS)


def _features(C: int) -> Iterator[tuple[str, Shape]]:
    yield from _linear("features.embeddings.linear", NUM_OFFSETS, NUM_POSITIONAL)
    yield "features.edge_embedding.weight", (C, EDGE_INPUT)
    yield from _norm("features.norm_edges", C)


def _messages(layer: str, C: int, message_input: int) -> Iterator[tuple[str, Shape]]:
    """What encoder and decoder layers share."""
    yield from _norm(f"{layer}.norm1", C)
    yield from _norm(f"{layer}.norm2", C)
    yield from _linear(f"{layer}.W1", message_input, C)
    yield from _linear(f"{layer}.W2", C, C)
    yield from _linear(f"{layer}.W3", C, C)
    yield from _linear(f"{layer}.dense.W_in", C, FEED_FORWARD * C)
    yield from _linear(f"{layer}.dense.W_out", FEED_FORWARD * C, C)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
