"""Order, noise, schedule, and the draw: what every engine's sampler has in common.

The noise is part of the interface. Every number a sample needs comes from the counter-based
generator Philox keyed by (seed, sample), at a counter given by the residue. So one draw depends on
(seed, sample, residue) alone: not on the engine, the batch, the device or how a job was split.

Visibility is expressed by ranks: neighbour j is visible to residue i where rank_j < rank_i. Tied
residues share a rank, and see nothing of one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.config import NUM_LETTERS, UNKNOWN

FIXED_WEIGHT = 1e-4  # (chain_M + 0.0001)·|r|: fixed residues come first in practice
OMITTED = -1e8  # added to the logits of letters that must not be drawn
WORDS = 24  # 64-bit words for each residue: 21 for the letters, 2 for the order, 1 spare

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def noise(seed: int, sample: int, length: int) -> tuple[FloatArray, FloatArray]:
    """Gumbel noise [L, 21] for the draws and standard normals [L] for the order.

    Row i is the same for every `length` > i.
    """
    words = np.random.Philox(key=np.array([seed, sample], np.uint64)).random_raw(length * WORDS)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53  # (0, 1), 53 bits
    uniform = uniform.reshape(length, WORDS)
    gumbel = -np.log(-np.log(uniform[:, :NUM_LETTERS]))
    u, v = uniform[:, NUM_LETTERS], uniform[:, NUM_LETTERS + 1]
    return gumbel, np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)  # Box–Muller


def decoding_order(designed: NDArray[np.bool_], normal: FloatArray) -> IntArray:
    """The published order: argsort((chain_M + 0.0001)·|r|), [L] positions, first decoded first.

    Args:
        designed: [L], True where a letter is to be drawn (chain_M · mask).
        normal: [L] standard normals.
    """
    return np.argsort((designed + FIXED_WEIGHT) * np.abs(normal), kind="stable")


def rank_of(order: IntArray, tie_group: IntArray | None = None) -> IntArray:
    """Turns an order [L] into ranks [L]; members of a tie take the rank of the first to come.

    Args:
        order: [L] positions, first decoded first.
        tie_group: [L] index of each residue's group, its own index where it is free.
    """
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    if tie_group is None:
        return rank
    first = np.full(len(order), len(order), np.int64)
    np.minimum.at(first, tie_group, rank)
    return first[tie_group]
