"""The networks of `mpnn.model` and `mpnn.ssm` written for fast gradients on ragged batches.

Parameters and results are the same; three rewrites save most of the work. W1 is split by blocks, so
that the parts that depend on a node or a residue type are computed per node and gathered; W3 is
applied after the sum over neighbors; radial basis functions are computed in tiles that stay in
cache, and recomputed for the gradient instead of being stored. All residues of a ragged batch are
complete. A one-shot network is trained as it runs: with all ranks 0, it sees no residue types.
Shapes: R residues, K neighbors, C hidden, V = 21 residue types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from mpnn import graph
from mpnn.model import MESSAGE_SCALE, DecoderLayer, EncoderLayer, MessageLayer, ProteinMPNN
from mpnn.ssm import SSM
from mpnn.training.data import RaggedBatch
from mpnn.weights import Network

TILE = 512  # edges whose 400 radial features are computed at a time: 0.8 MB
FAR = 9.0  # in units of RBF_SIGMA: exp(−81) = 7e-36 is normal, and exp is 17 times as fast there


class RadialEmbedding(torch.autograd.Function):
    """rbf(D) @ weight.T without storing rbf(D)."""

    @staticmethod
    def forward(ctx: Any, D: Tensor, weight: Tensor) -> Tensor:
        """D [E, 25] Å without gradient, weight [C, 400] -> [E, C]."""
        ctx.save_for_backward(D)
        out = D.new_empty(len(D), len(weight))
        for start in range(0, len(D), TILE):
            tile = _radial(D[start : start + TILE])
            torch.mm(tile, weight.T, out=out[start : start + TILE])
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        """Gradient of the weight; the distances have none."""
        (D,), (grad,) = ctx.saved_tensors, grad_outputs
        total = D.new_zeros(grad.shape[1], D.shape[1] * graph.NUM_RBF)
        for start in range(0, len(D), TILE):
            total.addmm_(grad[start : start + TILE].T, _radial(D[start : start + TILE]))
        return None, total


def _radial(D: Tensor) -> Tensor:
    """graph.rbf in place and flat, at least exp(−FAR²): [E, 25] -> [E, 400]."""
    z = D[..., None] / graph.RBF_SIGMA - graph.rbf_centers(D) / graph.RBF_SIGMA
    return z.clamp_(-FAR, FAR).square_().neg_().exp_().flatten(1)


def matmul_precision(precision: str, device: str | torch.device) -> torch.autocast:
    """Within it matmuls run in this precision, float32 or bfloat16."""
    reduced = precision == "bfloat16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=reduced)


def log_probs(model: Network, batch: RaggedBatch, lengths: Sequence[int]) -> Tensor:
    """Log-probabilities [R, 21] of all residue types, given the batch's residues and ranks.

    Args:
        model: the network.
        batch: the crops.
        lengths: residues of each crop.
    """
    if isinstance(model, SSM):
        number = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        return along_chain(model, batch, number.to(batch.S.device))
    return decode(model, batch, *encode(model, batch), visible_rank(model, batch))


def visible_rank(model: ProteinMPNN, batch: RaggedBatch) -> Tensor:
    """The batch's ranks [R]; all 0, so that nothing is visible, for a one-shot network."""
    return batch.rank if model.config.autoregressive else torch.zeros_like(batch.rank)


def along_chain(model: SSM, batch: RaggedBatch, segment: Tensor) -> Tensor:
    """Log-probabilities [R, 21] of a state-space network; segment [R] as in `mpnn.ssm.scan`."""
    mask = batch.neighbor_mask
    total = model.messages(model.W_e(_edge_vectors(model, batch)), mask)
    return model.log_probs(model.along_chain(total, mask, segment))


def encode(model: ProteinMPNN, batch: RaggedBatch) -> tuple[Tensor, Tensor]:
    """Node vectors [R, C] and edge vectors [R, K, C] of the structures."""
    h_E = model.W_e(_edge_vectors(model, batch))
    h_V = h_E.new_zeros(h_E.shape[0], h_E.shape[2])
    for layer in model.encoder_layers:
        assert isinstance(layer, EncoderLayer)
        h_V = _update_nodes(layer, h_V, _edge_input(layer.W1, h_V, h_E, batch.E_idx), batch)
        x = _edge_input(layer.W11, h_V, h_E, batch.E_idx)
        h_E = layer.norm3(h_E + layer.W13(gelu(layer.W12(gelu(x)))))
    return h_V, h_E


def decode(
    model: ProteinMPNN, batch: RaggedBatch, h_V: Tensor, h_E: Tensor, rank: Tensor
) -> Tensor:
    """Log-probabilities [R, 21] under `rank` [R], from what `encode` returned."""
    R = len(h_V)
    hidden = rank[batch.E_idx] >= rank[:, None]  # neighbors not yet decoded
    source = (batch.E_idx + R * hidden).flatten()  # rows 0…R−1 current, R…2R−1 encoder state
    residues = model.W_s(batch.S)
    encoded = h_V
    for layer in model.decoder_layers:
        assert isinstance(layer, DecoderLayer)
        W_i, W_e, W_s, W_j = layer.W1.weight.chunk(4, 1)
        current = h_V @ W_j.T + residues @ W_s.T
        per_node = torch.cat([current, encoded @ W_j.T])
        x = _gathered(h_V @ W_i.T + layer.W1.bias, h_E, W_e, per_node, source)
        h_V = _update_nodes(layer, h_V, x, batch)
    logits = model.W_out(h_V)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def _edge_vectors(model: Network, batch: RaggedBatch) -> Tensor:
    """Edge vectors after the LayerNorm, [R, K, C]."""
    features = model.features
    positional = graph.NUM_POSITIONAL
    weight = features.edge_embedding.weight  # [C, 16 + 400]
    linear = features.embeddings.linear
    table = (linear.weight.T + linear.bias) @ weight[:, :positional].T  # [66, C]
    D = _distances(batch.X, batch.E_idx)
    radial: Tensor = RadialEmbedding.apply(D, weight[:, positional:])  # type: ignore[no-untyped-call]
    E = radial + table.index_select(0, batch.offset_class.flatten())
    normed: Tensor = features.norm_edges(E).view(*batch.E_idx.shape, -1)
    return normed


def _distances(X: Tensor, E_idx: Tensor) -> Tensor:
    """Distances in Å of the 25 atom pairs of every edge: [R, 4, 3], [R, K] -> [R·K, 25]."""
    atoms = graph.with_virtual_cb(X)
    first, second = torch.tensor(graph.ATOM_PAIRS, device=X.device).unbind(-1)
    return graph.distance(atoms[:, None, first], atoms[:, second][E_idx]).flatten(0, 1)


def _edge_input(linear: torch.nn.Linear, h_V: Tensor, h_E: Tensor, E_idx: Tensor) -> Tensor:
    """linear([h_i | h_E_ij | h_j]) for every edge, [R, K, C]."""
    W_i, W_e, W_j = linear.weight.chunk(3, 1)
    return _gathered(h_V @ W_i.T + linear.bias, h_E, W_e, h_V @ W_j.T, E_idx.flatten())


def _gathered(at_i: Tensor, h_E: Tensor, W_e: Tensor, per_node: Tensor, source: Tensor) -> Tensor:
    """at_i [R, C] + h_E [R, K, C] @ W_e.T + per_node[source], [R, K, C]."""
    at_j = per_node.index_select(0, source)
    x = torch.addmm(at_j, h_E.flatten(0, 1), W_e.T).view_as(h_E)
    return x + at_i[:, None]


def _update_nodes(layer: MessageLayer, h_V: Tensor, x: Tensor, batch: RaggedBatch) -> Tensor:
    """One round of messages from W1's outputs x [R, K, C]: the updated nodes [R, C]."""
    hidden = gelu(layer.W2(gelu(x)))
    mask = batch.neighbor_mask
    total = torch.bmm(mask[:, None], hidden)[:, 0]
    message = total @ layer.W3.weight.T + mask.sum(1, keepdim=True) * layer.W3.bias
    h_V = layer.norm1(h_V + message / MESSAGE_SCALE)
    updated: Tensor = layer.norm2(h_V + layer.dense(h_V))
    return updated
