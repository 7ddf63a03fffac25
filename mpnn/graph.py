"""The protein as a graph: pure functions from coordinates to neighbors and edge features.

Shapes: B structures, L residues, K neighbors, C channels. Distances are in Å and are computed in
the type of the coordinates; callers in half precision keep coordinates in float32.
Source: Dauparas et al., Science 378:49–56 (2022); Ingraham et al., NeurIPS 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpnn.config import ATOM_PAIRS as ATOM_PAIRS
from mpnn.config import CA as CA
from mpnn.config import NUM_POSITIONAL as NUM_POSITIONAL
from mpnn.config import NUM_RBF as NUM_RBF
from mpnn.config import RBF_MAX, RBF_MIN, C, N

RBF_SIGMA = (RBF_MAX - RBF_MIN) / NUM_RBF
MAX_OFFSET = 32  # residue offsets are clipped to ±32
NUM_OFFSETS = 2 * MAX_OFFSET + 2  # 65 offsets on the same chain and one class for other chains
DISTANCE_EPS = 1e-6  # Å², inside every square root


def gather_nodes(h: Tensor, E_idx: Tensor) -> Tensor:
    """Node vectors of the neighbors: h [B, L, ...], E_idx [B, L, K] -> [B, L, K, ...]."""
    batch = torch.arange(h.shape[0], device=h.device)[:, None, None]
    return h[batch, E_idx]


def with_virtual_cb(X: Tensor) -> Tensor:
    """Appends the ideal Cβ to N, CA, C, O: [..., 4, 3] -> [..., 5, 3], Å."""
    b = X[..., CA, :] - X[..., N, :]
    c = X[..., C, :] - X[..., CA, :]
    a = torch.linalg.cross(b, c)
    cb = -0.58273431 * a + 0.56802827 * b - 0.54067466 * c + X[..., CA, :]
    return torch.cat([X, cb[..., None, :]], -2)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|a − b|² + 1e-6) over the last axis, Å; summed x, y, z in that order."""
    d = a - b
    x, y, z = d.unbind(-1)
    return (x * x + y * y + z * z + DISTANCE_EPS).sqrt()


def neighbors(ca: Tensor, mask: Tensor, valid: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """K = min(k, L) nearest residues by CA–CA distance, the residue itself included.

    Args:
        ca: [B, L, 3] Å.
        mask: [B, L], 1 where all atoms are present.
        valid: [B, L] bool, False for padding.
        k: neighbors wanted.

    Returns:
        E_idx [B, L, K] int64, closest first, and their distances [B, L, K]. A pair with a masked
        member has the row's largest distance among unmasked pairs. Such pairs come after all
        others, in the order of the residues, and padding after everything, so that which of them
        are neighbors depends neither on the batch nor on how a library breaks ties.
    """
    pair_mask = mask[:, :, None] * mask[:, None, :]
    D = row_adjusted(distance(ca[:, :, None], ca[:, None, :]), pair_mask)
    D = D.masked_fill(~valid[:, None, :], torch.inf)
    K = min(k, ca.shape[1])
    if bool(mask.all()):
        found = D.topk(K, dim=-1, largest=False)
        return found.indices, found.values
    E_idx = (D + masked_last(pair_mask)).topk(K, dim=-1, largest=False).indices
    return E_idx, D.gather(-1, E_idx)


def row_adjusted(D: Tensor, pair_mask: Tensor) -> Tensor:
    """Puts the row's largest unmasked distance where `pair_mask` [..., L, L] is 0."""
    D = D * pair_mask
    return D + (1 - pair_mask) * D.amax(-1, keepdim=True)


def masked_last(pair_mask: Tensor) -> Tensor:
    """Offset to add to `row_adjusted` distances so that masked pairs sort last, by position."""
    position = torch.arange(1, pair_mask.shape[-1] + 1, device=pair_mask.device)
    return (1 - pair_mask) * position


def rbf_centers(like: Tensor) -> Tensor:
    """Centers of the radial basis functions [16] in Å, on the device and in the type of `like`."""
    return torch.linspace(RBF_MIN, RBF_MAX, NUM_RBF, dtype=like.dtype, device=like.device)


def rbf(D: Tensor) -> Tensor:
    """16 Gaussians of a distance in Å: [...] -> [..., 16]."""
    return (-(((D[..., None] - rbf_centers(D)) / RBF_SIGMA) ** 2)).exp()


def atom_pair_distances(X: Tensor, E_idx: Tensor, D_neighbors: Tensor) -> Tensor:
    """Distances of the 25 atom pairs of every edge.

    Args:
        X: [B, L, 4, 3] Å.
        E_idx: [B, L, K].
        D_neighbors: [B, L, K], used for the pair CA–CA as the neighbor search left it.

    Returns:
        [B, L, K, 25] Å.
    """
    atoms = with_virtual_cb(X)
    first, second = torch.tensor(ATOM_PAIRS[1:], device=X.device).unbind(-1)
    at_i = atoms[:, :, None, first]  # [B, L, 1, 24, 3]
    at_j = gather_nodes(atoms[:, :, second], E_idx)  # [B, L, K, 24, 3]
    return torch.cat([D_neighbors[..., None], distance(at_i, at_j)], -1)


def relative_positions(residue_idx: Tensor, chain_encoding: Tensor, E_idx: Tensor) -> Tensor:
    """Class of the offset between residue and neighbor, 0…65: [B, L, K] int64."""
    offset = residue_idx[:, :, None] - gather_nodes(residue_idx, E_idx)
    same_chain = chain_encoding[:, :, None] == gather_nodes(chain_encoding, E_idx)
    clipped = (offset + MAX_OFFSET).clamp(0, 2 * MAX_OFFSET)
    return torch.where(same_chain, clipped, NUM_OFFSETS - 1)


def visible(rank: Tensor, E_idx: Tensor) -> Tensor:
    """True where the neighbor is decoded before the residue: [B, L], [B, L, K] -> [B, L, K]."""
    return gather_nodes(rank, E_idx) < rank[:, :, None]
