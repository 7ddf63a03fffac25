"""Checks of what crosses the C interface: the library trusts its input.

All raise InputError, which names the array, what it is and what it must be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpnn.config import NUM_LETTERS
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations.native import MOST_NEIGHBORS
from mpnn.sampling import Job

FARTHEST = 1e6
"""Å from the origin: beyond, float32 cannot tell a residue from its neighbor."""

Array = NDArray[Any]


def check_array(
    name: str,
    array: Array,
    dtype: type,
    shape: tuple[int, ...],
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Refuses an array of another type or shape, or with numbers outside [low, high]."""
    if array.dtype != dtype or array.shape != shape:
        raise InputError(
            f"{name} is {array.dtype} {list(array.shape)}, and must be "
            f"{np.dtype(dtype)} {list(shape)}"
        )
    if low is not None and high is not None and array.size:
        least, most = array.min(), array.max()  # NaN where there is one, and then neither holds
        if not (least >= low and most <= high):
            raise InputError(f"{name} has {least} … {most}, and must lie within {low} … {high}")


def check_rows(N: int, R: int) -> None:
    """Refuses more rows than the library counts in 32 bits."""
    if N < 1 or N * R >= 2**31:
        raise InputError(f"{N} samples of {R} residues: 1 to {(2**31 - 1) // max(R, 1)} fit a job")


def check_flat(flat: Flat, K: int) -> None:
    """Refuses structures that the library cannot take, with K neighbors of each residue."""
    R = flat.size
    if not flat.lengths or min(flat.lengths) < 1 or sum(flat.lengths) != R:
        raise InputError(f"structures of {list(flat.lengths)} residues do not add up to {R} rows")
    check_rows(1, R)
    check_array("X", flat.X, np.float32, (R, 4, 3), -FARTHEST, FARTHEST)
    check_array("mask", flat.mask, np.bool_, (R,))
    check_array("residue_idx", flat.residue_idx, np.int64, (R,), -(2**40), 2**40)
    check_array("chain_encoding", flat.chain_encoding, np.int64, (R,))
    if not 1 <= K <= MOST_NEIGHBORS:
        raise InputError(f"{K} neighbors of each residue: 1 to {MOST_NEIGHBORS} are possible")
    if flat.E_idx is None:
        return
    check_array("E_idx", flat.E_idx, np.int64, (R, K))
    lengths = np.array(flat.lengths)
    start = np.repeat(flat.offsets, lengths)[:, None]
    if ((flat.E_idx < start) | (flat.E_idx >= start + np.repeat(lengths, lengths)[:, None])).any():
        raise InputError("E_idx names rows outside the residue's own structure")


def check_job(job: Job, lengths: tuple[int, ...]) -> None:
    """Refuses a job that the library cannot take, for structures of these lengths."""
    N, R, V = len(job.rank), sum(lengths), NUM_LETTERS
    check_rows(N, R)
    check_array("S", job.S, np.int64, (R,), 0, V - 1)
    check_array("designed", job.designed, np.bool_, (R,))
    check_array("rank", job.rank, np.int64, (N, R))
    check_array("gumbel", job.gumbel, np.float64, (N, R, V), -1e30, 1e30)
    check_array("temperature", job.temperature, np.float64, (N,), 1e-30, 1e30)
    check_array("bias", job.bias, np.float64, (R, V), -1e30, 1e30)
    check_array("tie_group", job.tie_group, np.int64, (R,), 0, R - 1)
    check_array("tie_weight", job.tie_weight, np.float64, (R,), -1e30, 1e30)
    structure = np.repeat(np.arange(len(lengths)), lengths)
    head = job.tie_group
    if (head[head] != head).any() or (structure[head] != structure).any():
        raise InputError("tie_group must name the first residue of a group in the same structure")
    if (job.rank[:, head] != job.rank).any():
        raise InputError("tied residues must share a rank, for they are drawn together")
