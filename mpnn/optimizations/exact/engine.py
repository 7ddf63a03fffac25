"""The engine itself: encode once, then score and sample from the encoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations.exact.decoder import Decoder, DecoderWeights
from mpnn.optimizations.exact.encoder import Encoder, ExactEncoding
from mpnn.optimizations.exact.workers import Buffers, Workers
from mpnn.optimizations.tensors import TensorRows, name_of, on_device, own, synchronize
from mpnn.sampling import Job, Samples
from mpnn.schedule import Graph, IntArray, StepRows, steps_of

ROWS_PER_WORKER = 16
"""Rows a step must have on average for a further thread to pay: fewer take less time than the
interpreter, which only one thread can hold, needs to reach the next operation."""


class ExactEngine:
    """Sequences and scores of the reference at a fraction of its time."""

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        self.device = device
        model = own(model, device)
        dtype = model.W_e.weight.dtype
        self.dtype = name_of(dtype)
        self.workers = Workers(torch.device(device), torch.get_num_threads())
        self.buffers = Buffers(torch.device(device), dtype)
        with torch.inference_mode():
            self.encoder = Encoder(model, self.workers, self.buffers)
            self.decoder = DecoderWeights(model)

    def synchronize(self) -> None:
        """Blocks until the device has finished all work."""
        synchronize(self.device)

    def encode(self, flat: Flat) -> ExactEncoding:
        """Runs the encoder once, and every decoder matmul that depends on no residue type."""
        return self.workers.run(lambda: self.encoder(flat))

    def neighbors(self, encoding: ExactEncoding, b: int) -> Graph:
        """E_idx [L, K] of structure b within itself, and False where a slot is padding."""
        return encoding.graph.of_structure(b)

    def log_probs(
        self, encoding: ExactEncoding, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [N, R, 21]: all residues at once, layer by layer."""

        def score() -> Decoder:
            decoder = self.decoder_for(encoding, S, rank)
            decoder.teacher_forced()
            return decoder

        return self.workers.run(score).samples().log_probs

    def sample(self, encoding: ExactEncoding, job: Job) -> Samples:
        """Fixed residues in one pass, then wavefronts; samples are distributed over threads."""

        def sample_all() -> Decoder:
            S = np.broadcast_to(job.S, job.rank.shape)
            decoder = self.decoder_for(encoding, S, job.rank)
            step = steps_of(job, encoding.graph.all_structures())
            known = np.flatnonzero(step == 0)
            if len(known):
                decoder.teacher_forced(on_device(known, self.device))
            parts = rows_of_workers(decoder, job, step, _worker_count(step, self.workers.size))
            self.workers.map(lambda part: part.run(decoder), parts)
            return decoder

        return self.workers.run(sample_all).samples()

    def decoder_for(self, encoding: ExactEncoding, S: IntArray, rank: IntArray) -> Decoder:
        """A decoder of S [N, R] under rank [N, R]; call it on the main thread."""
        given = on_device(S, self.device), on_device(rank, self.device)
        return Decoder(self.decoder, encoding, *given, self.workers, self.buffers)


@dataclass(frozen=True, eq=False)
class WorkerRows:
    """One worker's rows [M], sorted by decoding step, with the tensors needed to sample them."""

    rows: TensorRows
    where: Tensor  # [M, K] row that each edge reads, as in `Decoder`

    def run(self, decoder: Decoder) -> None:
        """One step after another: compute, sample, commit."""
        where = torch.split(self.where, self.rows.sizes)
        for now, at in zip(self.rows.steps(), where, strict=True):
            states = decoder.decode(now.row, now.residue, at)
            types = now.sample(decoder.logits[now.row], decoder.S[now.row])
            decoder.commit(now.row, types, states)


def _worker_count(step: IntArray, threads: int) -> int:
    """As many workers as threads, while the steps of each have enough rows."""
    rows, steps = int((step > 0).sum()), max(1, int(step.max()))
    return max(1, min(threads, rows // (steps * ROWS_PER_WORKER)))


def rows_of_workers(decoder: Decoder, job: Job, step: IntArray, count: int) -> list[WorkerRows]:
    """Distributes whole samples of whole structures, which never depend on one another."""
    lengths, N = decoder.encoding.graph.lengths, len(job.rank)
    structure = np.repeat(np.arange(len(lengths)), lengths)  # [R]
    owner = (structure * N + np.arange(N)[:, None]) % count  # [N, R]
    parts = []
    for worker in range(count):
        rows = StepRows.of(job, np.where(owner == worker, step, 0))
        if rows.sizes:
            device, dtype = decoder.logits.device, decoder.logits.dtype
            tensors = TensorRows.of(rows, device, dtype)
            parts.append(WorkerRows(tensors, decoder.where[tensors.row]))
    return parts
