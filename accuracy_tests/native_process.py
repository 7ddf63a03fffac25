"""What the processes of test_native_processes.py begin with; imports no torch of its own."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.optimizations.native.engine import NativeEngine
from mpnn.sampling import Job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import Checkpoint

__all__ = ["Flat", "engine", "job", "np", "sampled", "synthetic_backbone"]


def _shapes(C: int) -> dict[str, tuple[int, ...]]:
    """Weights of the layers that have a bias, of a network with one layer on either side."""
    shapes = {"features.embeddings.linear": (16, 66), "W_e": (C, C), "W_out": (21, C)}
    shapes["features.norm_edges"] = (C,)
    for at, parts in (("encoder_layers.0.", 3), ("decoder_layers.0.", 4)):
        shapes |= {at + "W1": (C, parts * C), at + "W2": (C, C), at + "W3": (C, C)}
        shapes |= {at + "dense.W_in": (4 * C, C), at + "dense.W_out": (C, 4 * C)}
        shapes |= {at + "norm1": (C,), at + "norm2": (C,)}
    at = "encoder_layers.0."
    return shapes | {
        at + "W11": (C, 3 * C),
        at + "W12": (C, C),
        at + "W13": (C, C),
        at + "norm3": (C,),
    }


def _network(config: ModelConfig) -> dict[str, np.ndarray]:
    """Random weights; every layer has those of the first."""
    rng, C = np.random.default_rng(0), config.hidden_dim
    weights: dict[str, tuple[int, ...]] = {"features.edge_embedding.weight": (C, 416)}
    weights["W_s.weight"] = (21, C)
    for name, shape in _shapes(C).items():
        weights |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    arrays = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in weights.items()
    }
    for side in ("encoder", "decoder"):
        layers = getattr(config, f"num_{side}_layers")
        first = {name: x for name, x in arrays.items() if name.startswith(side)}
        for n in range(1, layers):
            arrays |= {name.replace(".0.", f".{n}."): x for name, x in first.items()}
    return arrays


def engine(threads: int) -> NativeEngine:
    """The engine of the library that the command line names."""
    config = ModelConfig()
    return NativeEngine(
        Checkpoint(_network(config), config, {}),
        threads=threads,
        library=ctypes.CDLL(sys.argv[1]),
    )


def job(flat: Flat, samples: int) -> Job:
    """A job that designs everything, in random orders."""
    rng, R = np.random.default_rng(0), flat.size
    return Job(
        S=flat.S,
        designed=flat.mask,
        rank=np.stack([rng.permutation(R) for _ in range(samples)]),
        gumbel=rng.gumbel(size=(samples, R, 21)),
        temperature=np.full(samples, 0.1),
        bias=np.zeros((R, 21)),
        tie_group=np.arange(R),
        tie_weight=np.ones(R),
    )


def sampled(engine: NativeEngine, flat: Any, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Residue types [N, R] and log-probabilities [N, R, 21] of a job."""
    samples = engine.sample(flat, job)
    return samples.S, samples.log_probs
