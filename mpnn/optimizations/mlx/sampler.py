"""Wavefront decoding without reading back from the device: all steps are queued, then evaluated.

Steps differ in their number of rows; they are filled up to a power of two, so that a compiled step
serves many, and what the filling computes goes to a spare row that no edge reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TypedDict, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mpnn.config import NUM_LETTERS
from mpnn.optimizations.mlx.network import Encoded, MLXProteinMPNN
from mpnn.sampling import Job, sample_types
from mpnn.schedule import IntArray, StepRows

SPARE = -1
"""Row that takes what the filling of a step computes; no edge reads it."""


class State(TypedDict):
    """Residue types so far and the tables of inputs; the last row is the spare one."""

    S: mx.array  # [(N+1)·R + 1] int32
    logits: mx.array  # [(N+1)·R + 1, 21]
    tables: list[mx.array]  # [(N+1)·R + 1, C] for each decoder layer


class MLXRows(TypedDict):
    """The M rows of one step as MLX arrays, see `mpnn.schedule.StepRows`."""

    row: mx.array  # [M] n·R + i
    residue: mx.array  # [M] i
    designed: mx.array  # [M] bool
    gumbel: mx.array  # [M, 21]
    temperature: mx.array  # [M]
    bias: mx.array  # [M, 21]
    group: mx.array  # [M] number of each row's tied group within its step
    weight: mx.array  # [M]


def step(
    network: MLXProteinMPNN,
    tied: bool,
    encoded: Encoded,
    where: mx.array,
    state: State,
    rows: MLXRows,
) -> State:
    """Computes rows without open dependencies, samples them, and makes them visible to later ones.

    Args:
        network: the network.
        tied: whether any residues are tied.
        encoded: what its `encode` returned.
        where: [N·R, K], as `MLXProteinMPNN.where` gives it; the spare row takes the last line.
        state: before the step.
        rows: of the step.
    """
    row, residue = rows["row"], rows["residue"]
    h = encoded["h_V"][residue]
    mask, neighbor_mask = encoded["mask"][residue], encoded["neighbor_mask"][residue]
    states = []
    for n, layer in enumerate(network.decoder_layers):
        states.append(h)
        table, edges = state["tables"][n], encoded["edges"][n]
        h = layer(h, table, where[row], edges, residue, mask, neighbor_mask)
    logits = network.W_out(h)
    group = rows["group"] if tied else None
    sampling = (rows["gumbel"], rows["temperature"], rows["bias"], group, rows["weight"])
    types = sample_types(logits, *sampling).astype(mx.int32)
    types = mx.where(rows["designed"], types, state["S"][row])
    tables = []
    for n, layer in enumerate(network.decoder_layers):
        now = layer.commit(states[n], encoded["types"][n][types])
        tables.append(put(state["tables"][n], row, now))
    return {
        "S": put(state["S"], row, types),
        "logits": put(state["logits"], row, logits),
        "tables": tables,
    }


def put(table: mx.array, row: mx.array, values: mx.array) -> mx.array:
    """The table with `values` [M, ...] in its rows [M]; in place where it has no other owner."""
    table = table[:]  # another array object: the one passed in stays as it is
    table[row] = values
    return table


def rows_of(job: Job, step: IntArray) -> Iterator[MLXRows]:
    """The rows of step 1, 2, … in turn, filled up to powers of two.

    Args:
        job: of the structures.
        step: [N, R] step of every row.
    """
    for rows in StepRows.of(job, step).steps():
        yield filled(rows)


def filled(rows: StepRows) -> MLXRows:
    """One step's rows as MLX arrays; the filling is the spare row, in a group of its own."""
    count = len(rows.row)
    extra = (1 << (count - 1).bit_length()) - count
    filling = {"row": SPARE, "temperature": 1, "group": count}
    arrays = {}
    for name in (f.name for f in fields(rows)[1:]):
        column = getattr(rows, name)
        if column is None:  # nothing is tied
            column = np.zeros(count, np.int64)
        shape = (extra, *column.shape[1:])
        column = np.concatenate([column, np.full(shape, filling.get(name, 0), column.dtype)])
        arrays[name] = on_device(column)
    return cast("MLXRows", arrays)


def on_device(x: NDArray[np.generic]) -> mx.array:
    """A host array in float32, int32 or bool."""
    kinds = {"f": np.float32, "i": np.int32, "b": np.bool_}
    return mx.array(np.ascontiguousarray(x, kinds[x.dtype.kind]))


def first_state(network: MLXProteinMPNN, encoded: Encoded, S: mx.array, rank: mx.array) -> State:
    """State with all of S [N, R] decoded under `rank`, of which wavefronts overwrite their rows.

    Rows of known type that come before every designed one depend on rows of their kind alone.
    """
    logits, tables = network.decode(encoded, S, rank)
    spare = mx.zeros_like(encoded["h_V"][:1])
    return {
        "S": mx.concatenate([S.flatten(), mx.zeros(S.shape[1] + 1, mx.int32)]),
        "logits": mx.concatenate([logits, mx.zeros((S.shape[1] + 1, NUM_LETTERS))]),
        "tables": [mx.concatenate([table, spare]) for table in tables],
    }


def empty_state(encoded: Encoded, S: mx.array) -> State:
    """State before the first of S [N, R] is decoded: tables hold the encoder state alone."""
    N, R = S.shape
    rows = mx.zeros((N * R, encoded["h_V"].shape[1]))
    return {
        "S": mx.concatenate([S.flatten(), mx.zeros(R + 1, mx.int32)]),
        "logits": mx.zeros(((N + 1) * R + 1, NUM_LETTERS)),
        "tables": [mx.concatenate([rows, table, rows[:1]]) for table in encoded["encoder_state"]],
    }
