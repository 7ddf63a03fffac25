"""The state-space network, its edges made in tiles that stay in cache and are pooled at once.

All the work is in `encode`, as no residue type enters. An edge vector is made, passed through the
message network and added to its residue before the next tile begins, so that memory grows with
residues and not with edges. The layers along the chain then run on all structures together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations.exact.encoder import TILE
from mpnn.optimizations.exact.graph import EdgeFeatures, FlatGraph, tiles
from mpnn.optimizations.exact.workers import Buffers, Workers
from mpnn.optimizations.one_shot import UnconditionalEngine
from mpnn.optimizations.tensors import name_of, on_device, own, synchronize
from mpnn.schedule import Graph, IntArray
from mpnn.ssm import SSM


@dataclass(frozen=True, eq=False)
class SSMEncoding:
    """The structures' graph and distributions."""

    graph: FlatGraph
    log_probs: NDArray[np.floating]  # [R, 21]


class SSMEngine(UnconditionalEngine):
    """Scores and samples of a state-space network."""

    def __init__(self, model: SSM, device: str = "cpu") -> None:
        self.device = device
        self.model = own(model, device)
        dtype = model.W_e.weight.dtype
        self.dtype = name_of(dtype)
        self.workers = Workers(torch.device(device), torch.get_num_threads())
        self.buffers = Buffers(torch.device(device), dtype)
        with torch.inference_mode():
            # The two networks give the parameters of their features the same names.
            self.features = EdgeFeatures(cast(ProteinMPNN, self.model), self.buffers)

    def synchronize(self) -> None:
        """Blocks until the device has finished all work."""
        synchronize(self.device)

    def encode(self, flat: Flat) -> SSMEncoding:
        """Runs the whole network."""
        return self.workers.run(lambda: self._encode(flat))

    def neighbors(self, encoding: SSMEncoding, b: int) -> Graph:
        """E_idx [L, K] of structure b within itself, and False where a slot is padding."""
        return encoding.graph.of_structure(b)

    def unconditional(
        self,
        encoding: SSMEncoding,
        S: IntArray,  # noqa: ARG002 – no residue type enters
    ) -> NDArray[np.floating]:
        """p(s_i | X) as log-probabilities [R, 21]."""
        return encoding.log_probs

    def _encode(self, flat: Flat) -> SSMEncoding:
        k, dtype = self.model.config.k_neighbors, self.buffers.dtype
        graph = FlatGraph.of(flat, k, self.device, dtype, for_each=self.workers.map)
        mask = graph.edge_mask
        if mask is None:
            mask = torch.ones_like(graph.D)
        total = self._messages(graph, mask)  # [R, C]
        complete = graph.mask > 0
        structure = on_device(flat.structure, self.device)
        segment = structure * (graph.chain_encoding.max() + 1) + graph.chain_encoding
        h = torch.zeros_like(total)
        h[complete] = self.model.along_chain(total[complete], mask[complete], segment[complete])
        return SSMEncoding(graph, self.model.log_probs(h).cpu().numpy())

    def _messages(self, graph: FlatGraph, mask: Tensor) -> Tensor:
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
