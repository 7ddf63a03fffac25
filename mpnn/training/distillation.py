"""A teacher's distributions as soft targets: cached in a file, or computed online.

Cached outputs cost the teacher's time once; they suit long runs of students smaller than their
teacher. An online teacher sees the noise, crop and order that its student sees, and mutated
residues if wanted, so that examples never repeat (Beyer et al. 2022, *A good teacher is patient and
consistent*). Either way some of the residues that the student sees can be replaced by samples from
the teacher. `mpnn/checkpoints/README.md` says what each brought.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.atomic import write_whole
from mpnn.config import NUM_LETTERS, UNKNOWN
from mpnn.datasets import ChainSet
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.training import forward
from mpnn.training.data import Crop, RaggedBatch, TrainingChains, fixed_rank
from mpnn.training.settings import TrainConfig
from mpnn.weights import find_weights, load_weights

Outputs = tuple[Tensor, Tensor]
"""Residue types [R] that a student sees, and a teacher's log-probabilities [R, 21]."""


class OnlineTeacher:
    """A network that is run on every crop, with the crop's noise and order."""

    def __init__(self, config: TrainConfig) -> None:
        """Loads the weights that `config.teacher` names.

        Raises:
            InputError: the weights cannot be loaded, or are of a state-space network.
        """
        assert config.teacher is not None
        model, _ = load_weights(find_weights(config.teacher))
        if not isinstance(model, ProteinMPNN):
            raise InputError(
                f"teacher is {config.teacher}: a state-space network cannot be an online teacher; "
                "set targets to a folder for its cached outputs"
            )
        self.config = config
        self.model = model.to(config.device).eval()

    @torch.no_grad()
    def outputs(self, crops: Sequence[Crop]) -> Outputs:
        """Residues for the student, and log-probabilities given the residues the teacher sees."""
        config = self.config
        batch = RaggedBatch.from_crops(crops, self.model.config.k_neighbors, config.device)
        with forward.matmul_precision(config.precision, config.device):
            encoded = forward.encode(self.model, batch)
            rank = forward.visible_rank(self.model, batch)
            log_probs = forward.decode(self.model, batch, *encoded, rank)
            S = mutated(batch.S, log_probs, crops, config.mutations)
            if config.teacher_sees == "shown" and config.mutations:
                shown = dataclasses.replace(batch, S=S)
                log_probs = forward.decode(self.model, shown, *encoded, rank)
        return S, log_probs


class CachedTeacher:
    """A network whose outputs for whole chains are stored in a file and reused.

    They are computed for native residues without noise, in the fixed orders of each chain. The file
    name carries a digest of teacher, chains and number of orders. The whole file is allocated at
    once, so that a full disk is reported before the first output is computed.
    """

    def __init__(self, config: TrainConfig, chains: ChainSet) -> None:
        """Loads the weights that `config.teacher` names, and opens or creates the file.

        Args:
            config: the run; `config.targets` is the folder of the file.
            chains: the chains to run the teacher on.

        Raises:
            InputError: the weights cannot be loaded, or the file is damaged or cannot be created.
        """
        assert config.teacher is not None
        assert config.targets is not None
        path = find_weights(config.teacher)
        model, _ = load_weights(path)
        self.engine = load_engine(model, device=config.device)
        self.config, self.chains = config, chains
        digest = hashlib.sha256(path.read_bytes())
        digest.update(chains.digest)
        digest.update(str(config.teacher_orders).encode())
        stem = Path(config.targets) / f"targets-{digest.hexdigest()[:12]}"
        shape = (config.teacher_orders, int(chains.offsets[-1]), NUM_LETTERS)
        self.cache = _open_cache(stem.with_suffix(".npy"), shape)

    def outputs(self, crops: Sequence[Crop]) -> Outputs:
        """Residues for the student, and the cached log-probabilities of the crops' orders."""
        device = self.engine.device
        S = torch.from_numpy(np.concatenate([crop.residues.S for crop in crops])).to(device)
        cached = np.concatenate([self.log_probs(crop) for crop in crops])
        log_probs = torch.from_numpy(cached).to(device, torch.float32)
        return mutated(S, log_probs, crops, self.config.mutations), log_probs

    def log_probs(self, crop: Crop) -> NDArray[np.float16]:
        """Log-probabilities [L, 21] of a crop with a fixed order."""
        start = int(self.chains.offsets[crop.chain])
        cached: NDArray[np.float16] = self.cache[crop.order, start + crop.rows]
        if np.isclose(np.exp(cached, dtype=np.float32).sum(-1), 1, atol=0.1).all():
            return cached  # otherwise not computed yet, or only partly written before a crash
        whole = self._compute(crop.chain).astype(np.float16)
        self.cache[:, start : start + whole.shape[1]] = whole
        computed: NDArray[np.float16] = whole[crop.order, crop.rows]
        return computed

    def _compute(self, index: int) -> NDArray[np.floating]:
        """Log-probabilities [orders, L, 21] of the complete residues of a chain."""
        backbone = self.chains[index]
        flat = Flat.from_backbones([backbone])
        orders = self.config.teacher_orders
        rank = np.full((orders, len(backbone)), len(backbone), np.int64)
        for order in range(orders):
            rank[order, backbone.mask] = fixed_rank(int(backbone.mask.sum()), index, order)
        S = np.broadcast_to(flat.S, rank.shape)
        log_probs = self.engine.log_probs(self.engine.encode(flat), S, rank)
        complete: NDArray[np.floating] = log_probs[:, backbone.mask]
        return complete


Teacher = CachedTeacher | OnlineTeacher


def teacher_for(config: TrainConfig, chains: TrainingChains) -> Teacher | None:
    """The teacher that a run's settings describe, if any.

    Raises:
        InputError: see `OnlineTeacher` and `CachedTeacher`.
    """
    if config.teacher is None:
        return None
    return OnlineTeacher(config) if config.targets is None else CachedTeacher(config, chains)


def mutated(S: Tensor, log_probs: Tensor, crops: Sequence[Crop], share: float) -> Tensor:
    """S [R] with a share of the residues sampled from exp(log_probs) [R, 21], never as X."""
    if not share:
        return S
    uniform = torch.from_numpy(np.concatenate([crop.uniform for crop in crops])).to(S.device)
    sums = log_probs[:, :UNKNOWN].exp().cumsum(1)
    sampled = (sums < uniform[:, 1:] * sums[:, -1:]).sum(1)
    return torch.where(uniform[:, 0] < share, sampled, S)


def _open_cache(path: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """A memory-mapped float16 array; zeros at first, which are not log-probabilities.

    Raises:
        InputError: it cannot be created, or holds something else.
    """
    open_: Callable[..., NDArray[np.float16]] = np.lib.format.open_memmap  # typed in some versions
    if not path.exists():
        empty = io.BytesIO()
        np.save(empty, np.zeros(shape, np.float16))
        write_whole(path, empty.getbuffer())
    try:
        cache = open_(path, "r+")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a file of cached outputs ({error}); remove it") from error
    if (cache.dtype, cache.shape) != (np.dtype(np.float16), shape):
        raise InputError(
            f"{path}: holds {cache.dtype} {cache.shape} instead of float16 {shape}; remove it"
        )
    return cache
