"""Chain files, crops and short runs for tests of training; fixtures are in training_fixtures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.model import Batch, ProteinMPNN
from mpnn.synthetic import synthetic_backbone
from mpnn.training import Progress, TrainConfig, forward, train
from mpnn.training.data import Crop, CropConfig, RaggedBatch, TrainingChains, next_crop

LENGTHS = (30, 41, 56, 64, 72)
CLUSTERS = (7, 7, 9, 9, 30)  # three clusters of two, two and one chains
TINY = ModelConfig(1, 1, 16, 12)
Weights = dict[str, torch.Tensor]


def write_chains(
    path: Path,
    lengths: Sequence[int] = LENGTHS,
    clusters: Sequence[int] = CLUSTERS,
    incomplete: int | None = 3,
) -> Path:
    """A chain file of synthetic backbones; residue `incomplete` of each chain lacks an atom."""
    backbones = [synthetic_backbone(length, seed=seed) for seed, length in enumerate(lengths)]
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


def with_unknown_residues(path: Path, known: slice) -> Path:
    """The chain file at `path` with X instead of all residues but the `known` ones of a chain."""
    arrays = dict(np.load(path))
    for first, last in zip(arrays["offsets"], arrays["offsets"][1:], strict=False):
        chain = arrays["sequence"][first:last]
        kept = chain[known].copy()
        chain[:] = ord("X")
        chain[known] = kept
    np.savez(path, **arrays)
    return path


def crops_of(chains: TrainingChains, count: int = 3, first: int = 0, **settings: Any) -> list[Crop]:
    """`count` crops from number `first` on."""
    config = CropConfig(**settings)
    return [next_crop(chains, config, number) for number in range(first, first + count)]


def native_of(crops: list[Crop]) -> torch.Tensor:
    """Native residue types [R] of some crops."""
    return torch.from_numpy(np.concatenate([crop.residues.S for crop in crops]))


def padded(crops: list[Crop]) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The same crops for the reference network, in float64: a batch, S and ranks [B, L]."""
    rows = sum(map(len, crops))
    flat = Flat(
        X=np.concatenate([c.residues.coords for c in crops]),
        mask=np.ones(rows, bool),
        residue_idx=np.concatenate([c.residues.residue_idx for c in crops]),
        chain_encoding=np.ones(rows, np.int64),
        S=np.concatenate([c.residues.S for c in crops]),
        lengths=tuple(map(len, crops)),
    )
    rank = flat.padded(np.concatenate([c.rank for c in crops]), fill=10**6)
    S = torch.from_numpy(flat.padded(flat.S))
    return Batch.from_flat(flat, dtype=torch.float64), S, torch.from_numpy(rank)


def in_double(batch: RaggedBatch) -> RaggedBatch:
    """The batch in float64."""
    return dataclasses.replace(
        batch, X=batch.X.double(), neighbor_mask=batch.neighbor_mask.double()
    )


def log_probs(model: ProteinMPNN, crops: list[Crop], double: bool = False) -> torch.Tensor:
    """Log-probabilities [R, 21] of the training network on some crops."""
    batch = RaggedBatch.from_crops(crops, model.config.k_neighbors)
    batch = in_double(batch) if double else batch
    return forward.log_probs(model, batch, [len(crop) for crop in crops])


def run(config: TrainConfig, **changes: Any) -> tuple[Weights, list[Progress]]:
    """Weights and reports of a run with changed settings; `name` gives it its own files."""
    name = changes.pop("name", None)
    if name is not None:
        folder = Path(config.state).parent
        changes |= {"weights": str(folder / f"{name}.safetensors"), "state": str(folder / name)}
    reports: list[Progress] = []
    model = train(dataclasses.replace(config, **changes), reports.append)
    return {n: tensor.clone() for n, tensor in model.state_dict().items()}, reports


def assert_same(a: Weights, b: Weights) -> None:
    """Two sets of weights are bit-equal."""
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class StopRun(Exception):  # noqa: N818 – not an error
    """Stands for whatever interrupts a run."""


def interrupt(config: TrainConfig, step: int) -> None:
    """Runs until `step` is reported, and stops there without saving."""

    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise StopRun

    try:
        train(config, stop)
    except StopRun:
        return
    raise AssertionError(f"the run did not report step {step}")
