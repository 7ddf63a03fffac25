"""The engine's face: encode once, then score and sample from the encoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.batch import Batch
from mpnn.decoding import IntArray, Job, Samples, draw, on_device, slots_in_steps, wavefront
from mpnn.model import ProteinMPNN
from mpnn.optimizations import own, synchronize
from mpnn.optimizations.exact.decoder import Decoder, DecoderWeights
from mpnn.optimizations.exact.encoder import Encoder, ExactEncoding
from mpnn.optimizations.exact.ragged import RaggedBatch
from mpnn.optimizations.exact.workers import Buffers, Workers

ROWS_FOR_A_LANE = 16
"""Rows a step must have on average for a thread of its own to pay: fewer are done sooner than the
interpreter, which only one thread can hold, gets to the next operation."""


class ExactEngine:
    """Sequences and scores of the reference, many times sooner."""

    def __init__(self, model: ProteinMPNN, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        model = own(model, self.device)
        self.dtype = model.W_e.weight.dtype
        self.workers = Workers(self.device, torch.get_num_threads())
        self.buffers = Buffers(self.device, self.dtype)
        with torch.inference_mode():
            self.encoder = Encoder(model, self.workers, self.buffers)
            self.decoder = DecoderWeights(model)

    def synchronize(self) -> None:
        """Waits for the device."""
        synchronize(self.device)

    def encode(self, batch: Batch) -> ExactEncoding:
        """Runs the encoder once, and every decoder product that no letter enters."""
        return self.workers.run(lambda: self.encoder(batch))

    def neighbors(self, encoding: ExactEncoding, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b within itself, and where its slots are real."""
        return encoding.graph.structure_graph(b)

    def log_probs(
        self, encoding: ExactEncoding, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [B, N, L, 21]: all residues at once, layer by layer."""

        def score() -> Decoder:
            decoder = self.decoder_for(encoding, S, rank)
            decoder.teacher_forced()
            return decoder

        return self.workers.run(score).samples().log_probs

    def sample(self, encoding: ExactEncoding, job: Job) -> Samples:
        """Fixed residues in one pass, then wavefronts; samples are shared out to the threads."""

        def draw_all() -> Decoder:
            S = np.broadcast_to(job.S[:, None], job.rank.shape)
            decoder = self.decoder_for(encoding, S, job.rank)
            step = steps_of(encoding.graph, job)
            known = np.flatnonzero(step == 0)
            if len(known):
                decoder.teacher_forced(on_device(known, self.device))
            lanes = lanes_of(decoder, job, step, _lane_count(step, self.workers.size))
            self.workers.map(lambda lane: lane.run(decoder), lanes)
            return decoder

        return self.workers.run(draw_all).samples()

    def decoder_for(self, encoding: ExactEncoding, S: IntArray, rank: IntArray) -> Decoder:
        """A decoder of S [B, N, L] under rank [B, N, L]; call on the leader thread."""
        graph = encoding.graph
        return Decoder(
            self.decoder,
            encoding,
            graph.flatten_samples(S),
            graph.flatten_samples(rank),
            self.workers,
            self.buffers,
        )


@dataclass(frozen=True, eq=False)
class Lane:
    """Rows [M] in the order of their steps, with all that their draws need."""

    sizes: list[int]  # rows in each step
    rows: Tensor  # n·R + i
    residues: Tensor  # i
    where: Tensor  # [M, K]
    designed: Tensor
    gumbel: Tensor  # [M, 21]
    temperature: Tensor
    bias: Tensor  # [M, 21]
    slot: Tensor | None  # number of each row's tied group within its step
    weight: Tensor

    def steps(self) -> Iterator[Lane]:
        """The lane cut into its steps; no step asks the device for anything."""
        tensors = [getattr(self, f.name) for f in fields(self)[1:]]
        cut = [[None] * len(self.sizes) if t is None else t.split(self.sizes) for t in tensors]
        for size, parts in zip(self.sizes, zip(*cut, strict=True), strict=True):
            yield Lane([size], *parts)

    def run(self, decoder: Decoder) -> None:
        """One step after another: compute, draw, settle."""
        for now in self.steps():
            states = decoder.decode(now.rows, now.residues, now.where)
            decoder.settle(now.rows, now.draw(decoder), states)

    def draw(self, decoder: Decoder) -> Tensor:
        """Letters [M] of the lane's rows: drawn where designed, as they are elsewhere."""
        logits = decoder.logits[self.rows]
        drawn = draw(logits, self.gumbel, self.temperature, self.bias, self.slot, self.weight)
        return torch.where(self.designed, drawn, decoder.S[self.rows])


def steps_of(graph: RaggedBatch, job: Job) -> IntArray:
    """Wavefront step of every row, [N·R]."""
    steps = []
    for b, length in enumerate(graph.lengths):
        E_idx, real = graph.structure_graph(b)
        ties = job.tie_group[b, :length]
        steps.append(
            wavefront(job.rank[b, :, :length], job.designed[b, :length], E_idx, real, ties)
        )
    return np.concatenate(steps, 1).ravel()


def _lane_count(step: IntArray, threads: int) -> int:
    """As many lanes as threads, while a lane's steps have work enough for one."""
    rows, steps = int((step > 0).sum()), max(1, int(step.max()))
    return max(1, min(threads, rows // (steps * ROWS_FOR_A_LANE)))


def lanes_of(decoder: Decoder, job: Job, step: IntArray, count: int) -> list[Lane]:
    """Shares out whole samples of whole structures, which never wait for one another."""
    graph, N = decoder.encoding.graph, job.rank.shape[1]
    structure = np.repeat(np.arange(len(graph.lengths)), graph.lengths)  # [R]
    owner = (structure * N + np.arange(N)[:, None]).ravel() % count  # [N·R]
    lanes = []
    for lane in range(count):
        rows = np.flatnonzero((step > 0) & (owner == lane))
        if len(rows):
            rows = rows[np.argsort(step[rows], kind="stable")]
            lanes.append(lane_of(decoder, job, rows, step[rows]))
    return lanes


def lane_of(decoder: Decoder, job: Job, rows: IntArray, step: IntArray) -> Lane:
    """Gathers what the draws of `rows` [M], sorted by `step` [M], need."""
    graph, R = decoder.encoding.graph, decoder.R
    sample, residue = np.divmod(rows, R)
    first = np.array(graph.offsets)[:, None]
    leader = (job.tie_group + first)[graph.valid][residue]  # flat residue leading the tied group
    slot = slots_in_steps(step, sample, leader) if job.tied else None

    def put(x: NDArray[np.generic]) -> Tensor:
        t = on_device(x, graph.mask.device)
        return t.to(decoder.logits.dtype) if t.is_floating_point() else t

    at = put(rows)
    return Lane(
        [int(n) for n in np.unique(step, return_counts=True)[1]],
        at,
        put(residue),
        decoder.where[at],
        put(job.designed[graph.valid][residue]),
        put(np.swapaxes(job.gumbel, 1, 2)[graph.valid][leader, sample]),
        put(job.temperature[sample]),
        put(job.bias[graph.valid][residue]),
        None if slot is None else put(slot),
        put(job.tie_weight[graph.valid][residue]),
    )
