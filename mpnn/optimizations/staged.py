"""The reference network as three programs, for compilers to take one by one.

| program  | inputs → outputs | run |
| -------- | ---------------- | --- |
| `encode` | atoms, chains, neighbors → h_V, h_E | once for each batch |
| `score`  | h_V, h_E, letters, ranks → log-probabilities | once for each given sequence |
| `step`   | the state of decoding, some residues → their logits and states | in every wavefront |

A whole score pass is `encode`, then `score`. What a compiler would trip over stays outside:

- The neighbor search: `topk` with K = min(k, L) gives every short protein other shapes, and each
  compiler breaks ties between equal distances in its own way. Programs take E_idx and distances;
  where a structure has fewer than k residues, the slots left over are masked.
- Batches: structures lie end to end, T residues in all, and samples are scored one after another.
  So no axis counts structures, nothing is padded, and the first axis of every input is the only one
  whose size varies: T residues, M residues of a step, or N·T rows of N samples. Row n·T + t is
  residue t of sample n.
- Draws, and writing into the state of decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpnn import graph
from mpnn.batch import Batch
from mpnn.config import ModelConfig
from mpnn.decoding import IntArray, Job, Samples, draw, on_device, slot_of, wavefront
from mpnn.model import DecoderLayer, ProteinMPNN
from mpnn.optimizations import own, synchronize


class Encode(nn.Module):
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

        `real` is 0 where a slot holds no neighbor, and D the distances of the neighbors in Å.
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


class Score(nn.Module):
    """The decoder over all residues at once, letters given."""

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


class Step(nn.Module):
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
        shown: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step for M rows.

        Args:
            row: [M].
            residue: [M], row modulo T.
            h_E: [T, K, C].
            E_idx: [T, K].
            real: [T, K].
            mask: [T].
            S: [N·T] letters so far.
            rank: [N·T].
            shown: [N·T, layers, C]; what each layer reads of a row: the encoder's state for the
                first, for the others that of the layer before.

        Returns:
            Logits [M, 21], and what the rows show from now on, [M, layers, C].
        """
        neighbor = (row - residue)[:, None] + E_idx[residue]  # [M, K]
        see = (rank[neighbor] < rank[row][:, None])[..., None]  # [M, K, 1]
        s_j = self.W_s(S[neighbor]) * see
        h_E, real, mask = h_E[residue], real[residue], mask[residue]
        h_j = shown[neighbor]  # [M, K, layers, C]
        states = [shown[row, 0]]
        for n, layer in enumerate(cast(list[DecoderLayer], list(self.layers))):
            h_ESV = torch.cat([h_E, s_j, torch.where(see, h_j[:, :, n], h_j[:, :, 0])], -1)
            h_ESV = mask[:, None, None] * h_ESV
            states.append(layer.update_nodes(states[-1], h_ESV, mask, real))
        return self.W_out(states[-1]), torch.stack(states[:-1], 1)


STAGES: dict[str, type[nn.Module]] = {"encode": Encode, "score": Score, "step": Step}
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
    """A batch end to end, its graph, and what `encode` made of it."""

    valid: NDArray[np.bool_]  # [B, L]
    E_idx: Tensor  # [T, K] int64; the residue itself where a slot holds no neighbor
    real: Tensor  # [T, K]
    mask: Tensor  # [T]
    h_V: Tensor  # noqa: N815 – [T, C]
    h_E: Tensor  # noqa: N815 – [T, K, C]

    @property
    def lengths(self) -> IntArray:
        """Residues of each structure, [B]."""
        lengths: IntArray = self.valid.sum(1)
        return lengths

    @property
    def first(self) -> IntArray:
        """First residue of each structure, [B]."""
        return self.lengths.cumsum() - self.lengths

    def rows(self, padded: NDArray[Any]) -> NDArray[Any]:
        """[B, N, L, ...] -> [N·T, ...]."""
        flat = np.swapaxes(padded, 0, 1)[:, self.valid]
        return flat.reshape(-1, *flat.shape[2:])

    def padded(self, rows: Tensor) -> NDArray[Any]:
        """[N·T, ...] -> [B, N, L, ...], 0 at the padding."""
        flat = rows.cpu().numpy().reshape(-1, len(self.mask), *rows.shape[1:])
        padded = np.zeros((len(flat), *self.valid.shape, *rows.shape[1:]), flat.dtype)
        padded[:, self.valid] = flat
        return np.swapaxes(padded, 0, 1)


class StagedEngine:
    """Runs the three programs uncompiled: structures encoded once, residues in wavefronts.

    Compilers override `run`. What a compiled engine gains over this one is due to its compiler;
    the rest of its gain over the reference is not.

    Attributes:
        compile_seconds: what each compilation so far took, by the name of the program, followed by
            sizes of that call where a program does not serve all. Timings that are to be free of it
            call with every shape once before.
    """

    def __init__(self, model: ProteinMPNN, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.model = own(model, self.device)
        self.dtype = model.W_e.weight.dtype
        self.stages = {name: make(self.model).eval() for name, make in STAGES.items()}
        self.compile_seconds: dict[str, float] = {}

    def synchronize(self) -> None:
        """Waits for the device."""
        synchronize(self.device)

    def run(self, stage: str, *inputs: Tensor) -> Any:
        """Runs one program of `STAGES` on this engine's device."""
        return self.stages[stage](*inputs)

    @torch.inference_mode()
    def encode(self, batch: Batch) -> StagedEncoding:
        """Finds the neighbors, drops the padding, and runs `encode`."""
        found, D = self.model.features.neighbors(batch)
        valid, start = batch.valid, batch.lengths.cumsum(0) - batch.lengths
        spare = max(self.model.config.k_neighbors - found.shape[-1], 0)
        real = nn.functional.pad(graph.gather_nodes(valid, found)[valid], (0, spare))  # [T, K]
        E_idx = nn.functional.pad((found + start[:, None, None])[valid], (0, spare))
        E_idx = torch.where(real, E_idx, torch.arange(len(E_idx), device=E_idx.device)[:, None])
        D = nn.functional.pad(D[valid], (0, spare)).masked_fill(~real, 0.0)
        mask, neighbor_mask = batch.mask[valid], real.to(D.dtype)
        chains = batch.residue_idx[valid], batch.chain_encoding[valid]
        h_V, h_E = self.run("encode", batch.X[valid], mask, *chains, E_idx, D, neighbor_mask)
        return StagedEncoding(valid.cpu().numpy(), E_idx, neighbor_mask, mask, h_V, h_E)

    def neighbors(self, encoding: StagedEncoding, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b within itself, and where its slots are real."""
        first, length = int(encoding.first[b]), int(encoding.lengths[b])
        rows = slice(first, first + length)
        return encoding.E_idx[rows].cpu().numpy() - first, encoding.real[rows].cpu().numpy() > 0

    @torch.inference_mode()
    def log_probs(
        self, encoding: StagedEncoding, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """Runs `score` on one sample after another."""
        e, T = encoding, len(encoding.mask)
        given = (torch.split(on_device(e.rows(x), self.device), T) for x in (S, rank))
        scored = [
            self.run("score", e.h_V, e.h_E, e.E_idx, e.real, e.mask, *sample)
            for sample in zip(*given, strict=True)
        ]
        return e.padded(torch.cat(scored))

    @torch.inference_mode()
    def sample(self, encoding: StagedEncoding, job: Job) -> Samples:
        """Runs `step` once for each depth of what waits for what; scores come from the draws."""
        e, N = encoding, job.rank.shape[1]
        S = on_device(e.rows(np.broadcast_to(job.S[:, None], job.rank.shape)), self.device)
        rank = on_device(e.rows(job.rank), self.device)
        layers = self.model.config.num_decoder_layers
        shown = e.h_V[:, None].repeat(N, layers, 1)
        logits = e.h_V.new_empty(len(S), self.model.W_out.out_features)
        for now in self._steps(e, job):
            logits[now.row], shown[now.row] = self.run(
                "step", now.row, now.residue, e.h_E, e.E_idx, e.real, e.mask, S, rank, shown
            )
            S[now.row] = torch.where(now.designed, now.draw(logits[now.row]), S[now.row])
        return Samples(e.padded(S), e.padded(logits.log_softmax(-1)))

    def _steps(self, encoding: StagedEncoding, job: Job) -> Iterator[_Rows]:
        """All rows, cut where the wavefront's depth changes."""
        depth = encoding.rows(self._depth(encoding, job))
        order = np.argsort(depth, kind="stable")
        sizes = np.unique(depth, return_counts=True)[1].tolist()
        leader = (job.tie_group + encoding.first[:, None])[encoding.valid]  # [T]
        T = len(leader)
        residue = order % T
        group = order - residue + leader[residue]

        def cut(x: NDArray[Any]) -> tuple[Tensor, ...]:
            t = torch.from_numpy(x)
            dtype = self.dtype if t.is_floating_point() else t.dtype
            return torch.split(t.to(self.device, dtype), sizes)

        parts = (
            cut(order),
            cut(residue),
            cut(job.designed[encoding.valid][residue]),
            cut(encoding.rows(job.gumbel)[group]),
            cut(job.temperature[order // T]),
            cut(job.bias[encoding.valid][residue]),
            cut(group) if job.tied else [None] * len(sizes),
            cut(job.tie_weight[encoding.valid][residue]),
        )
        return (_Rows(*row) for row in zip(*parts, strict=True))

    def _depth(self, encoding: StagedEncoding, job: Job) -> IntArray:
        """How many residues in a row each one waits for, [B, N, L]."""
        depth = np.zeros_like(job.rank)
        for b, length in enumerate(encoding.lengths):
            E_idx, real = self.neighbors(encoding, b)
            everyone, ties = np.ones(length, bool), job.tie_group[b, :length]
            depth[b, :, :length] = wavefront(job.rank[b, :, :length], everyone, E_idx, real, ties)
        return depth


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows [M] of one step with all that their draws need."""

    row: Tensor
    residue: Tensor
    designed: Tensor
    gumbel: Tensor  # [M, 21]
    temperature: Tensor
    bias: Tensor  # [M, 21]
    group: Tensor | None  # row leading each row's tied group
    weight: Tensor

    def draw(self, logits: Tensor) -> Tensor:
        """Letters [M] from logits [M, 21]."""
        slot = None if self.group is None else slot_of(self.group)
        return draw(logits, self.gumbel, self.temperature, self.bias, slot, self.weight)
