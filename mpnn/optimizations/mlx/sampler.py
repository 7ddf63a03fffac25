"""Wavefront decoding without asking the device: all steps are queued, one evaluation at the end.

Steps have as many rows as wait for nobody; they are filled up to a power of two, so that a compiled
step serves many, and what the filling computes goes to a spare row that no edge reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypedDict, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mpnn.config import NUM_LETTERS
from mpnn.decoding import IntArray, Job, slots_in_steps
from mpnn.optimizations.mlx.network import Encoded, ProteinMPNN

SPARE = -1
"""Row that takes what the filling of a step computes; no edge reads it."""


class State(TypedDict):
    """Letters so far and what every row shows; the last row is the spare one."""

    S: mx.array  # [(N+1)·R + 1] int32
    logits: mx.array  # [(N+1)·R + 1, 21]
    shown: list[mx.array]  # [(N+1)·R + 1, C] for each decoder layer


class Rows(TypedDict):
    """The M rows of one step, with all that their draws need."""

    row: mx.array  # [M] n·R + i
    residue: mx.array  # [M] i
    designed: mx.array  # [M] bool
    gumbel: mx.array  # [M, 21]
    temperature: mx.array  # [M]
    bias: mx.array  # [M, 21]
    slot: mx.array  # [M] number of each row's tied group within its step
    weight: mx.array  # [M]


def draw(logits: mx.array, rows: Rows, tied: bool) -> mx.array:
    """`mpnn.decoding.draw` in MLX: logits [M, 21] -> letters [M]."""
    if tied:
        slot, nothing = rows["slot"], mx.zeros_like(logits)
        pooled = nothing.at[slot].add(logits * rows["weight"][:, None] + rows["bias"])
        members = mx.zeros_like(rows["temperature"]).at[slot].add(1.0)
        preference = pooled[slot] / members[slot][:, None]
    else:
        preference = logits + rows["bias"]
    return (preference / rows["temperature"][:, None] + rows["gumbel"]).argmax(-1)


def step(
    network: ProteinMPNN, tied: bool, encoded: Encoded, where: mx.array, state: State, rows: Rows
) -> State:
    """Computes rows that wait for nobody, draws their letters, and shows them to those that wait.

    Args:
        network: the network.
        tied: whether any residues share a draw.
        encoded: what its `encode` returned.
        where: [N·R, K], as `ProteinMPNN.where` gives it; the spare row takes the last line.
        state: before the step.
        rows: of the step.
    """
    row, residue = rows["row"], rows["residue"]
    h = encoded["h_V"][residue]
    mask, neighbor_mask = encoded["mask"][residue], encoded["neighbor_mask"][residue]
    states = []
    for n, layer in enumerate(network.decoder_layers):
        states.append(h)
        table, edges = state["shown"][n], encoded["edges"][n]
        h = layer(h, table, where[row], edges, residue, mask, neighbor_mask)
    logits = network.W_out(h)
    letters = draw(logits, rows, tied).astype(mx.int32)
    letters = mx.where(rows["designed"], letters, state["S"][row])
    shown = []
    for n, layer in enumerate(network.decoder_layers):
        now = layer.show(states[n], encoded["letters"][n][letters])
        shown.append(put(state["shown"][n], row, now))
    return {
        "S": put(state["S"], row, letters),
        "logits": put(state["logits"], row, logits),
        "shown": shown,
    }


def put(table: mx.array, row: mx.array, values: mx.array) -> mx.array:
    """The table with `values` [M, ...] in its rows [M]; in place where nobody else holds it."""
    table = table[:]  # another array object: the one passed in stays as it is
    table[row] = values
    return table


def rows_of(job: Job, step_of: IntArray) -> Iterator[Rows]:
    """The rows of step 1, 2, … in turn, filled up to powers of two.

    Args:
        job: of the structures.
        step_of: [N, R] step of every row.
    """
    N, R = step_of.shape
    rows = np.flatnonzero(step_of > 0)
    rows = rows[np.argsort(step_of.ravel()[rows], kind="stable")]
    step = step_of.ravel()[rows]
    sample, residue = np.divmod(rows, R)
    leader = leaders(job)[residue]  # row leading the tied group
    slot = slots_in_steps(step, sample, leader) if job.tied else np.zeros_like(rows)
    columns: dict[str, NDArray[np.generic]] = {
        "row": rows,
        "residue": residue,
        "designed": job.designed.ravel()[residue],
        "gumbel": np.swapaxes(job.gumbel, 1, 2).reshape(R, N, -1)[leader, sample],
        "temperature": job.temperature[sample],
        "bias": job.bias.reshape(R, -1)[residue],
        "slot": slot,
        "weight": job.tie_weight.ravel()[residue],
    }
    ends = np.flatnonzero(np.diff(step, append=0)) + 1
    for first, last in pairwise([0, *ends]):
        yield filled({k: v[first:last] for k, v in columns.items()})


def filled(columns: dict[str, NDArray[np.generic]]) -> Rows:
    """One step's columns as MLX arrays; the filling is the spare row, in a group of its own."""
    count = len(columns["row"])
    extra = (1 << (count - 1).bit_length()) - count
    filling = {"row": SPARE, "temperature": 1, "slot": count}
    arrays = {}
    for name, column in columns.items():
        shape = (extra, *column.shape[1:])
        column = np.concatenate([column, np.full(shape, filling.get(name, 0), column.dtype)])
        arrays[name] = on_device(column)
    return cast("Rows", arrays)


def on_device(x: NDArray[np.generic]) -> mx.array:
    """A host array in float32, int32 or bool."""
    kinds = {"f": np.float32, "i": np.int32, "b": np.bool_}
    return mx.array(np.ascontiguousarray(x, kinds[x.dtype.kind]))


def leaders(job: Job) -> IntArray:
    """Row leading the tied group of every residue, [R]."""
    B, L = job.tie_group.shape
    leader: IntArray = (job.tie_group + np.arange(B)[:, None] * L).ravel()
    return leader


def first_state(network: ProteinMPNN, encoded: Encoded, S: mx.array, rank: mx.array) -> State:
    """State with all of S [N, R] decoded under `rank`, of which wavefronts overwrite their rows.

    Rows whose letters are known and that come before every designed one read none but their like.
    """
    logits, tables = network.decode(encoded, S, rank)
    spare = mx.zeros_like(encoded["h_V"][:1])
    return {
        "S": mx.concatenate([S.flatten(), mx.zeros(S.shape[1] + 1, mx.int32)]),
        "logits": mx.concatenate([logits, mx.zeros((S.shape[1] + 1, NUM_LETTERS))]),
        "shown": [mx.concatenate([table, spare]) for table in tables],
    }


def empty_state(encoded: Encoded, S: mx.array) -> State:
    """State before the first of S [N, R] is decoded: tables show what nodes show unseen."""
    N, R = S.shape
    rows = mx.zeros((N * R, encoded["h_V"].shape[1]))
    return {
        "S": mx.concatenate([S.flatten(), mx.zeros(R + 1, mx.int32)]),
        "logits": mx.zeros(((N + 1) * R + 1, NUM_LETTERS)),
        "shown": [mx.concatenate([rows, table, rows[:1]]) for table in encoded["unseen"]],
    }
