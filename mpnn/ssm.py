"""A network without messages: selective state-space layers along the chain, in both directions.

Geometry enters once: the edge vectors of ProteinMPNN, pooled over each residue's K neighbors.
From then on residues hear of one another along their chain alone, through a state that decays by a
factor that depends on the residue, so that a layer costs the same however many neighbors there
are. Letters never enter: every residue's distribution is p(s_i | X), and one pass serves all draws.

Residues of all structures lie end to end without padding, incomplete ones left out, as in training.
Shapes: R residues, K neighbors, C hidden, D = 2·C inner in H heads of P, n state, V = 21 letters.
Source: Gu and Dao, arXiv:2312.00752 (selection, gate); Dao and Gu, arXiv:2405.21060 (one decay for
each head, chunks as matmuls).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, silu, softplus

from mpnn import graph
from mpnn.config import NUM_LETTERS, ModelConfig, SSMConfig
from mpnn.model import MESSAGE_SCALE, Batch, ProteinFeatures

CHUNK = 32  # residues whose influence on one another is one matmul
LONGEST_MEMORY = 100.0  # residues; heads begin with memories of 1 to so many, evenly by logarithm


def scan(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, segment: Tensor) -> Tensor:
    """y_t = C_t·h_t of the recurrence h_t = a_t·h_{t−1} + B_t·x_tᵀ, without a step per residue.

    What residue s is to residue t is C_t·B_s·Π a over s < r ≤ t. Within a chunk of T residues that
    is a T × T matrix; a chunk leaves one state to later ones, which are G × G for G chunks.

    Args:
        x: [R, H, P].
        log_a: [R, H], at most 0.
        B: [R, n].
        C: [R, n].
        segment: [R], the same number for residues of one chain; h is 0 before each chain.

    Returns:
        [R, H, P].
    """
    R = len(x)
    x = _chunks(x).transpose(1, 2)  # [G, H, T, P]
    total = _chunks(log_a).cumsum(1).transpose(1, 2)  # [G, H, T] log of the decay since the start
    B, C = _chunks(B)[:, None], _chunks(C)[:, None]  # [G, 1, T, n]
    segment = _chunks(segment, fill=-1)  # [G, T]

    # Within a chunk.
    hears = (segment[:, :, None] == segment[:, None]).tril()  # [G, T, T]
    decay = _exp(total[..., :, None] - total[..., None, :], hears[:, None])  # [G, H, T, T]
    y = (decay * (C @ B.mT)) @ x

    # From earlier chunks: what each leaves, carried to the start of each later one.
    to_end = _exp(total[..., -1:] - total, (segment == segment[:, -1:])[:, None])  # [G, H, T]
    left = (B * to_end[..., None]).mT @ x  # [G, H, n, P]
    reaches = (segment[:, None, 0] == segment[None, :, -1]).tril(-1)  # [G, G]
    carry = _exp(_sums_between(total[..., -1].T), reaches)  # [H, G, G]
    carried = (carry @ left.transpose(0, 1).flatten(2)).transpose(0, 1).view_as(left)
    from_start = _exp(total, (segment == segment[:, :1])[:, None])  # [G, H, T]
    y = y + (C * from_start[..., None]) @ carried
    return y.transpose(1, 2).flatten(0, 1)[:R]


def _chunks(x: Tensor, fill: int = 0) -> Tensor:
    """[R, ...] -> [G, T, ...], the last chunk filled up."""
    filled = pad(x, (0, 0) * (x.dim() - 1) + (0, -len(x) % CHUNK), value=fill)
    return filled.view(len(filled) // CHUNK, CHUNK, *x.shape[1:])


def _exp(x: Tensor, where: Tensor) -> Tensor:
    """exp(x) where `where` is True, 0 elsewhere, whatever x is there."""
    return x.masked_fill(~where, -torch.inf).exp()


def _sums_between(x: Tensor) -> Tensor:
    """Σ x_r over b < r < c for every c > b, without differences of large sums: [H, G] -> [H, c, b].

    Other entries are of no use.
    """
    G = x.shape[1]
    later = x[..., None].expand(-1, G, G).tril(-1)  # x_r where r > b
    return pad(later.cumsum(1), (0, 0, 1, 0))[:, :G]


class Direction(nn.Module):
    """One direction of a layer: what each residue writes, keeps and reads, and the scan."""

    def __init__(self, config: SSMConfig) -> None:
        super().__init__()
        H, n = config.num_heads, config.state_dim
        self.sizes = (H, n, n)
        self.select = nn.Linear(config.hidden_dim, sum(self.sizes))
        self.log_A = nn.Parameter(torch.zeros(H))

    def forward(self, h: Tensor, x: Tensor, segment: Tensor) -> Tensor:
        """What residues read, [R, H, P].

        Args:
            h: [R, C], decides what is taken in, kept and read.
            x: [R, H, P], what is remembered.
            segment: [R], see `scan`.
        """
        step, B, C = self.select(h).split(self.sizes, -1)
        step = softplus(step)  # [R, H], Δ: how much of the residue is taken in
        return scan(x * step[..., None], -step * self.log_A.exp(), B, C, segment)


class SelectiveLayer(nn.Module):
    """Both directions, then a gate: the chain's counterpart of a round of messages."""

    def __init__(self, config: SSMConfig) -> None:
        super().__init__()
        C, D = config.hidden_dim, 2 * config.hidden_dim
        self.heads = config.num_heads
        self.norm = nn.LayerNorm(C)
        self.W_in = nn.Linear(C, 2 * D)
        self.forward_direction = Direction(config)
        self.backward_direction = Direction(config)
        self.skip = nn.Parameter(torch.ones(D))
        self.norm_gated = nn.LayerNorm(D)
        self.W_out = nn.Linear(D, C)

    def forward(self, h: Tensor, segment: Tensor) -> Tensor:
        """Nodes h [R, C] and segment [R] of `scan` -> updated nodes [R, C]."""
        u = self.norm(h)
        x, gate = self.W_in(u).chunk(2, -1)  # [R, D]
        with torch.autocast(h.device.type, enabled=False):  # states add up: no half precision
            u, x = u.to(self.skip.dtype), x.to(self.skip.dtype)
            parts = x.view(len(x), self.heads, x.shape[1] // self.heads)
            y = self.forward_direction(u, parts, segment)
            y = y + self.backward_direction(u.flip(0), parts.flip(0), segment.flip(0)).flip(0)
            y = y.flatten(1) + self.skip * x
        update: Tensor = self.W_out(self.norm_gated(y * silu(gate)))
        return h + update


class SSM(nn.Module):
    """p(s_i | X) for every residue, in one pass."""

    def __init__(self, config: SSMConfig) -> None:
        super().__init__()
        C = config.hidden_dim
        self.config = config
        self.features = ProteinFeatures(
            ModelConfig(hidden_dim=C, k_neighbors=config.k_neighbors, autoregressive=False)
        )
        self.W_e = nn.Linear(C, C)
        self.W2 = nn.Linear(C, C)
        self.W3 = nn.Linear(C, C)
        self.layers = nn.ModuleList(SelectiveLayer(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(C)
        self.W_out = nn.Linear(C, NUM_LETTERS)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        for module in self.modules():
            if isinstance(module, Direction):
                _begin_with_memories(module)

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities [B, L, 21]; where atoms are missing, those of no information."""
        E, E_idx = self.features(batch)
        complete = batch.mask > 0
        mask = graph.gather_nodes(batch.mask, E_idx)[complete]
        total = self.messages(self.W_e(E[complete]), mask)
        structure = torch.arange(len(E), device=E.device)[:, None]
        segment = (structure * (batch.chain_encoding.max() + 1) + batch.chain_encoding)[complete]
        h = E.new_zeros(*E.shape[:2], E.shape[3])
        h[complete] = self.along_chain(total, mask, segment)
        return self.log_probs(h)

    def messages(self, h_E: Tensor, mask: Tensor) -> Tensor:
        """Edges h_E [R, K, C] after W_e and mask [R, K] -> messages summed before W3, [R, C]."""
        return torch.bmm(mask[:, None], gelu(self.W2(gelu(h_E))))[:, 0]

    def along_chain(self, total: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
        """Nodes [R, C] from the summed messages [R, C], mask [R, K] and segment [R] of `scan`."""
        pooled = total @ self.W3.weight.T + mask.sum(1, keepdim=True) * self.W3.bias
        h: Tensor = pooled / MESSAGE_SCALE
        for layer in self.layers:
            h = layer(h, segment)
        return h

    def log_probs(self, h: Tensor) -> Tensor:
        """Nodes [..., C] -> log-probabilities [..., 21]."""
        logits: Tensor = self.W_out(self.norm(h))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _begin_with_memories(direction: Direction) -> None:
    """Biases with which Δ is 1/τ on average, for memories τ of 1 to `LONGEST_MEMORY` residues."""
    H = direction.sizes[0]
    memory = torch.logspace(0, math.log10(LONGEST_MEMORY), H)
    with torch.no_grad():
        direction.select.bias.zero_()
        direction.select.bias[:H] = (1 / memory).expm1().log()  # softplus of it is 1/τ
