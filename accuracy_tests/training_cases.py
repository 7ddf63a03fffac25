"""Chains and crops for tests of training, and the same crops for the reference network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mpnn.flat import Flat
from mpnn.model import Batch
from mpnn.synthetic import made_up_backbone
from mpnn.training.data import Crop, RaggedBatch

LENGTHS = (30, 41, 56, 64, 72)
CLUSTERS = (7, 7, 9, 9, 30)  # three clusters of two, two and one chains


def write_chains(
    path: Path, lengths=LENGTHS, clusters=CLUSTERS, incomplete: int | None = 3
) -> Path:
    """A chain file of made-up backbones; residue `incomplete` of each chain lacks an atom."""
    backbones = [made_up_backbone(length, seed=seed) for seed, length in enumerate(lengths)]
    coords = np.concatenate([b.coords for b in backbones]).astype(np.float64)
    complete = np.ones(len(coords), bool)
    offsets = np.cumsum([0, *lengths])
    if incomplete is not None:
        complete[offsets[:-1] + incomplete] = False
    np.savez(
        path,
        ca=np.round(coords[:, 1] * 1000).astype(np.int32),
        nco=np.round((coords[:, [0, 2, 3]] - coords[:, 1:2]) * 1000).astype(np.int16),
        complete=complete,
        sequence=np.frombuffer("".join(b.sequence for b in backbones).encode(), np.uint8),
        residue_number=np.concatenate([b.numbers for b in backbones]).astype(np.int32),
        offsets=offsets,
        name=np.array([f"made_{i}" for i in range(len(lengths))]),
        cluster=np.array(clusters, np.int32),
    )
    return path


def padded(crops: Sequence[Crop]) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The same crops for the reference network, in float64: a batch, S and ranks [B, L]."""
    flat = Flat(
        X=np.concatenate([c.residues.coords for c in crops]),
        mask=np.ones(sum(map(len, crops)), bool),
        residue_idx=np.concatenate([c.residues.residue_idx for c in crops]),
        chain_encoding=np.ones(sum(map(len, crops)), np.int64),
        S=np.concatenate([c.residues.S for c in crops]),
        lengths=tuple(map(len, crops)),
    )
    rank = flat.padded(np.concatenate([c.rank for c in crops]), fill=10**6)
    S = torch.from_numpy(flat.padded(flat.S))
    return Batch.from_flat(flat, dtype=torch.float64), S, torch.from_numpy(rank)


def in_double(batch: RaggedBatch) -> RaggedBatch:
    return dataclasses.replace(
        batch, X=batch.X.double(), neighbor_mask=batch.neighbor_mask.double()
    )
