"""The reference network as three programs, for compilers to take one by one.

| program  | inputs → outputs | run |
| -------- | ---------------- | --- |
| `encode` | atoms, chains, neighbors → h_V, h_E | once for each batch |
| `score`  | h_V, h_E, residue types, ranks → log-probabilities | once for each given sequence |
| `step`   | the state of decoding, some residues → their logits and states | in every wavefront |

A whole score pass is `encode`, then `score`. What a compiler would trip over stays outside:

- The neighbor search: `topk` with K = min(k, L) gives every short protein other shapes, and each
  compiler breaks ties between equal distances in its own way. Programs take E_idx and distances;
  where a structure has fewer than k residues, the slots left over are masked.
- Batches: structures lie end to end, T residues in all, and samples are scored one after another.
  So no axis counts structures, nothing is padded, and the first axis of every input is the only one
  whose size varies: T residues, M residues of a step, or N·T rows of N samples. Row n·T + t is
  residue t of sample n.
- Sampling, and writing into the state of decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpnn import graph
from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.model import DecoderLayer, ProteinMPNN
from mpnn.optimizations.exact.graph import FlatGraph
from mpnn.optimizations.tensors import TensorRows, name_of, on_device, own, synchronize
from mpnn.sampling import Job, Samples
from mpnn.schedule import Graph, IntArray, StepRows, steps_of


class EncodeStage(nn.Module):
    """Edge features and encoder."""

    def __init__(self, model: ProteinMPNN) -> None:
        super().__init__()
        self.features, self.W_e, self.layers = model.features, model.W_e, model.encoder_layers

    def forward(
        self,
        X: Tensor,
        mask: Tensor,
        residue_idx: Tensor,
        chain_encoding: Tensor,
        E_idx: Tensor,
        D: Tensor,
        real: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """X [T, 4, 3]; mask, residue_idx, chain_encoding [T]; the rest [T, K] -> [T, C], [T, K, C].

        `real` is 0 where a neighbor slot is padding, and D the distances of the neighbors in Å.
        """
        X, mask, E_idx, D = X[None], mask[None], E_idx[None], D[None]
        offsets = graph.relative_positions(residue_idx[None], chain_encoding[None], E_idx)
        radial = graph.rbf(graph.atom_pair_distances(X, E_idx, D))  # [1, T, K, 25, 16]
        E = torch.cat([self.features.embeddings(offsets), radial.flatten(-2)], -1)
        h_E = self.W_e(self.features.norm_edges(self.features.edge_embedding(E)))
        h_V = torch.zeros_like(h_E[:, :, 0])
        edge_mask = mask[..., None] * graph.gather_nodes(mask, E_idx) * real
        for layer in self.layers:
            h_V, h_E = layer(h_V, h_E, E_idx, mask, edge_mask)
        return h_V[0], h_E[0]


class ScoreStage(nn.Module):
    """The decoder over all residues at once, residue types given."""

    def __init__(self, model: ProteinMPNN) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        h_V: Tensor,
        h_E: Tensor,
        E_idx: Tensor,
        real: Tensor,
        mask: Tensor,
        S: Tensor,
        rank: Tensor,
    ) -> Tensor:
        """h_V [T, C], h_E [T, K, C], E_idx and real [T, K], the rest [T] -> [T, 21]."""
        encoded = (h_V[None], h_E[None], E_idx[None], real[None])
        return self.model.decode(encoded, S[None], rank[None], mask[None])[0]


class StepStage(nn.Module):
    """The decoder for some residues whose earlier neighbors are all decoded."""

    def __init__(self, model: ProteinMPNN) -> None:
        super().__init__()
        self.W_s, self.layers, self.W_out = model.W_s, model.decoder_layers, model.W_out

    def forward(
        self,
        row: Tensor,
        residue: Tensor,
        h_E: Tensor,
        E_idx: Tensor,
        real: Tensor,
        mask: Tensor,
        S: Tensor,
        rank: Tensor,
        states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step for M rows.

        Args:
            row: [M].
            residue: [M], row modulo T.
            h_E: [T, K, C].
            E_idx: [T, K].
            real: [T, K].
            mask: [T].
            S: [N·T] residue types so far.
            rank: [N·T].
            states: [N·T, layers, C], input of each layer from a row: the encoder's state for the
                first, for the others that of the layer before.

        Returns:
            Logits [M, 21], and the new states of the rows, [M, layers, C].
        """
        neighbor = (row - residue)[:, None] + E_idx[residue]  # [M, K]
        see = (rank[neighbor] < rank[row][:, None])[..., None]  # [M, K, 1]
        s_j = self.W_s(S[neighbor]) * see
        h_E, real, mask = h_E[residue], real[residue], mask[residue]
        h_j = states[neighbor]  # [M, K, layers, C]
        h = [states[row, 0]]
        for n, layer in enumerate(cast(list[DecoderLayer], list(self.layers))):
            h_ESV = torch.cat([h_E, s_j, torch.where(see, h_j[:, :, n], h_j[:, :, 0])], -1)
            h_ESV = mask[:, None, None] * h_ESV
            h.append(layer.update_nodes(h[-1], h_ESV, mask, real))
        return self.W_out(h[-1]), torch.stack(h[:-1], 1)


STAGES: dict[str, type[nn.Module]] = {
    "encode": EncodeStage,
    "score": ScoreStage,
    "step": StepStage,
}
"""Name of a program to its module, made from the model."""


def example(stage: str, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs of a program, for compilers that want to see some: two samples of 5 residues.

    No two axes that vary have the same size, so no compiler can take them for one.
    """
    K, C, layers = config.k_neighbors, config.hidden_dim, config.num_decoder_layers
    T, M, rows = 5, 3, 10

    def whole(*shape: int) -> Tensor:
        return torch.arange(int(np.prod(shape))).reshape(shape) % T

    def real(*shape: int) -> Tensor:
        return whole(*shape).to(dtype)

    graph_of = (whole(T, K), torch.ones(T, K, dtype=dtype), torch.ones(T, dtype=dtype))
    if stage == "encode":
        E_idx, neighbor_mask, mask = graph_of
        return real(T, 4, 3), mask, whole(T), whole(T), E_idx, real(T, K), neighbor_mask
    if stage == "score":
        return real(T, C), real(T, K, C), *graph_of, whole(T), whole(T)
    state = whole(rows), whole(rows), real(rows, layers, C)
    return whole(M), whole(M), real(T, K, C), *graph_of, *state


@dataclass(frozen=True, eq=False)
class StagedEncoding:
    """The structures' graph with as many neighbor slots as the network has, and `encode` of it."""

    graph: FlatGraph
    real: Tensor  # [T, K], 0 where a neighbor slot is padding
    h_V: Tensor  # noqa: N815 – [T, C]
    h_E: Tensor  # noqa: N815 – [T, K, C]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The part of a decoder program's inputs that depends on the structures alone."""
        return self.h_E, self.graph.E_idx, self.real, self.graph.mask


class StagedEngine:
    """Runs the three programs uncompiled: structures encoded once, residues in wavefronts.

    Compilers override `run`. What a compiled engine gains over this one is due to its compiler;
    the rest of its gain over the reference is not.

    Attributes:
        compile_seconds: seconds of each compilation so far, by the name of the program, followed by
            sizes of that call where a program does not serve all. Timings without it need one call
            with every shape first.
    """

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        self.device = device
        self.model = own(model, device)
        self.torch_dtype = model.W_e.weight.dtype
        self.dtype = name_of(self.torch_dtype)
        self.stages = {name: make(self.model).eval() for name, make in STAGES.items()}
        self.compile_seconds: dict[str, float] = {}

    def synchronize(self) -> None:
        """Blocks until the device has finished all work."""
        synchronize(self.device)

    def run(self, stage: str, *inputs: Tensor) -> Any:
        """Runs one program of `STAGES` on this engine's device."""
        return self.stages[stage](*inputs)

    @torch.inference_mode()
    def encode(self, flat: Flat) -> StagedEncoding:
        """Finds the neighbors and runs `encode`."""
        k = self.model.config.k_neighbors
        g = FlatGraph.of(flat, k, self.device, self.torch_dtype, slots=k)
        real = torch.ones_like(g.D) if g.neighbor_mask is None else g.neighbor_mask
        chains = g.residue_idx, g.chain_encoding
        h_V, h_E = self.run("encode", g.X, g.mask, *chains, g.E_idx, g.D, real)
        return StagedEncoding(g, real, h_V, h_E)

    def neighbors(self, encoding: StagedEncoding, b: int) -> Graph:
        """E_idx [L, K] of structure b within itself, and False where a slot is padding."""
        return encoding.graph.of_structure(b)

    @torch.inference_mode()
    def log_probs(
        self, encoding: StagedEncoding, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """Runs `score` on one sample after another."""
        given = on_device(S, self.device), on_device(rank, self.device)
        scored = [
            self.run("score", encoding.h_V, *encoding.inputs, *sample)
            for sample in zip(*given, strict=True)
        ]
        return torch.stack(scored).cpu().numpy()

    @torch.inference_mode()
    def sample(self, encoding: StagedEncoding, job: Job) -> Samples:
        """Runs `step` once for each depth of dependencies; scores come from sampling."""
        N, layers = len(job.rank), self.model.config.num_decoder_layers
        S = on_device(np.tile(job.S, N), self.device)
        rank = on_device(job.rank.ravel(), self.device)
        states = encoding.h_V[:, None].repeat(N, layers, 1)
        logits = encoding.h_V.new_empty(len(S), self.model.W_out.out_features)
        step = steps_of(job, encoding.graph.all_structures(), known_first=False)
        rows = TensorRows.of(StepRows.of(job, step), self.device, self.torch_dtype)
        for now in rows.steps():
            inputs = (now.row, now.residue, *encoding.inputs, S, rank, states)
            logits[now.row], states[now.row] = self.run("step", *inputs)
            S[now.row] = now.sample(logits[now.row], S[now.row])
        log_probs = logits.log_softmax(-1).view(*job.rank.shape, -1)
        return Samples(S.view(job.rank.shape).cpu().numpy(), log_probs.cpu().numpy())
