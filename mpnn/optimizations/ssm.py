"""The state-space network, its edges made in tiles that stay in cache and are pooled at once.

All the work is in `encode`: letters never enter. An edge vector is made, passed through the message
network and added to its residue before the next tile begins, so that memory grows with residues
and not with edges. The layers along the chain then run on the residues of all structures together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.batch import Batch
from mpnn.decoding import IntArray, Job, Samples
from mpnn.model import ProteinMPNN
from mpnn.optimizations import own, synchronize
from mpnn.optimizations.exact.encoder import TILE
from mpnn.optimizations.exact.ragged import EdgeFeatures, RaggedBatch, tiles
from mpnn.optimizations.exact.workers import Buffers, Workers
from mpnn.optimizations.one_shot import draw_all
from mpnn.ssm import SSM


@dataclass(frozen=True, eq=False)
class SSMEncoding:
    """The structures' graph and distributions."""

    graph: RaggedBatch
    log_probs: NDArray[np.floating]  # [B, L, 21]


class SSMEngine:
    """Scores and samples of a state-space network."""

    def __init__(self, model: SSM, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = own(model, self.device)
        self.dtype = model.W_e.weight.dtype
        self.workers = Workers(self.device, torch.get_num_threads())
        self.buffers = Buffers(self.device, self.dtype)
        with torch.inference_mode():
            self.features = EdgeFeatures(cast(ProteinMPNN, model), self.buffers)  # same names

    def synchronize(self) -> None:
        """Waits for the device."""
        synchronize(self.device)

    def encode(self, batch: Batch) -> SSMEncoding:
        """Runs the whole network."""
        return self.workers.run(lambda: self._encode(batch))

    def neighbors(self, encoding: SSMEncoding, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b within itself, and where its slots are real."""
        return encoding.graph.structure_graph(b)

    def log_probs(
        self,
        encoding: SSMEncoding,
        S: IntArray,
        rank: IntArray,  # noqa: ARG002 – every engine takes ranks
    ) -> NDArray[np.floating]:
        """p(s_i | X) as [B, N, L, 21], whatever the N letters and ranks of a structure."""
        return np.repeat(encoding.log_probs[:, None], S.shape[1], axis=1)

    def sample(self, encoding: SSMEncoding, job: Job) -> Samples:
        """Draws all letters at once."""
        return draw_all(encoding.log_probs, job)

    def _encode(self, batch: Batch) -> SSMEncoding:
        graph = RaggedBatch.from_batch(batch, self.model.config.k_neighbors, self.workers)
        mask = graph.edge_mask
        if mask is None:
            mask = torch.ones_like(graph.D)
        total = self._messages(graph, mask)  # [R, C]
        complete = graph.mask > 0
        structure = torch.arange(len(graph.lengths), device=self.device)
        structure = structure.repeat_interleave(batch.lengths)  # [R]
        segment = structure * (graph.chain_encoding.max() + 1) + graph.chain_encoding
        h = torch.zeros_like(total)
        h[complete] = self.model.along_chain(total[complete], mask[complete], segment[complete])
        log_probs = self.model.log_probs(h)
        return SSMEncoding(graph, graph.unflatten_samples(log_probs[None])[:, 0])

    def _messages(self, graph: RaggedBatch, mask: Tensor) -> Tensor:
        """Messages summed over neighbors, [R, C]."""
        R, K = graph.E_idx.shape
        C = self.model.config.hidden_dim
        total = graph.X.new_empty(R, C)
        atoms = self.features.atoms(graph)

        def tile(rows: slice) -> None:
            edges = self.buffers.get("edges", (rows.stop - rows.start) * K, C)
            self.features(graph, atoms, rows, edges)
            total[rows] = self.model.messages(edges.view(-1, K, C), mask[rows])

        self.workers.map(tile, tiles(R, TILE if self.workers.tiled else R))
        return total
