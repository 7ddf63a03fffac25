"""A teacher's distributions as soft targets: kept in a file, or asked anew for every crop.

Kept answers cost a teacher once: they are for long runs of small students, whose own work is less
than its. Asked anew, it sees the noise, the cut and the order that its student sees, and if wanted
letters that were never native: there is no end of such examples to learn by heart (Beyer et al.
2022, *A good teacher is patient and consistent*). Either way letters drawn from its answers can
replace some of those that the student is shown. What each was worth stands in
`mpnn/checkpoints/README.md`.
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

from mpnn.config import NUM_LETTERS, UNKNOWN
from mpnn.datasets import ChainSet
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.output import write_whole
from mpnn.training import forward
from mpnn.training.data import Crop, RaggedBatch, fixed_rank
from mpnn.weights import find_weights, load_weights

Answer = tuple[Tensor, Tensor]
"""Letters [R] that a student is shown, and a teacher's log-probabilities [R, 21]."""


class PresentTeacher:
    """A network that is asked about every crop, under its noise, cut and order."""

    def __init__(
        self,
        weights: str,
        mutations: float,
        sees: str = "shown",
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        """Loads the weights (a name or a path).

        Args:
            weights: of a message-passing network.
            mutations: share of the letters that are replaced by draws from its distributions.
            sees: shown, the letters that the student is shown; or native, those before any were
                replaced.
            device: where it runs.
            precision: of its products: float32 or bfloat16.

        Raises:
            InputError: there are no such weights, or they are of a state-space network.
        """
        model, _ = load_weights(find_weights(weights))
        if not isinstance(model, ProteinMPNN):
            raise InputError(f"{weights}: a state-space network teaches by kept answers alone")
        self.model = model.to(device).eval()
        self.mutations, self.sees = mutations, sees
        self.device, self.precision = device, precision

    @torch.no_grad()
    def answer(self, crops: Sequence[Crop]) -> Answer:
        """Letters to show to the student, and log-probabilities under those that it sees."""
        batch = RaggedBatch.from_crops(crops, self.model.config.k_neighbors, self.device)
        with forward.products_in(self.precision, self.device):
            return self._answer(crops, batch)

    def _answer(self, crops: Sequence[Crop], batch: RaggedBatch) -> Answer:
        """The same, for the crops as a batch too."""
        encoded = forward.encode(self.model, batch)
        rank = forward.rank_seen(self.model, batch)
        log_probs = forward.decode(self.model, batch, *encoded, rank)
        S = mutated(batch.S, log_probs, crops, self.mutations)
        if self.sees == "native" or not self.mutations:
            return S, log_probs
        shown = dataclasses.replace(batch, S=S)
        return S, forward.decode(self.model, shown, *encoded, rank)


class Teacher:
    """A network whose kept distributions are the target of another.

    The answers for a chain are those in its fixed orders, for its whole length, for native letters
    and without noise. The file's name carries a digest of teacher, chains and number of orders.
    Its room is taken when it is made: a disk that is full says so before the first answer.
    """

    def __init__(
        self,
        weights: str,
        chains: ChainSet,
        orders: int,
        folder: str | Path,
        mutations: float = 0.0,
        device: str = "cpu",
    ) -> None:
        """Loads the weights (a name or a path); opens or makes their file of answers.

        Args:
            weights: of any network.
            chains: those that are asked about.
            orders: of each chain.
            folder: where the file is, or is to be.
            mutations: share of the letters that are replaced, for the student alone, by draws from
                the answers.
            device: where it runs.

        Raises:
            InputError: there are no such weights, or the file cannot be made or is damaged.
        """
        path = find_weights(weights)
        model, _ = load_weights(path)
        self.engine = load_engine(model, device=device)
        self.chains = chains
        self.orders, self.mutations = orders, mutations
        digest = hashlib.sha256(path.read_bytes())
        digest.update(chains.digest)
        digest.update(str(orders).encode())
        stem = Path(folder) / f"targets-{digest.hexdigest()[:12]}"
        shape = (orders, int(chains.offsets[-1]), NUM_LETTERS)
        self.kept = _open_kept(stem.with_suffix(".npy"), shape)

    def answer(self, crops: Sequence[Crop]) -> Answer:
        """Letters to show to the student, and log-probabilities of the kept orders."""
        device = self.engine.device
        S = torch.from_numpy(np.concatenate([crop.residues.S for crop in crops])).to(device)
        kept = np.concatenate([self.log_probs(crop) for crop in crops])
        log_probs = torch.from_numpy(kept).to(device, torch.float32)
        return mutated(S, log_probs, crops, self.mutations), log_probs

    def log_probs(self, crop: Crop) -> NDArray[np.float16]:
        """Log-probabilities [L, 21] for a crop that was drawn with a fixed order."""
        start = int(self.chains.offsets[crop.chain])
        answer: NDArray[np.float16] = self.kept[crop.order, start + crop.rows]
        if np.isclose(np.exp(answer, dtype=np.float32).sum(-1), 1, atol=0.1).all():
            return answer  # else not asked yet, or written in part when the machine went down
        whole = self._answer(crop.chain).astype(np.float16)
        self.kept[:, start : start + whole.shape[1]] = whole
        asked: NDArray[np.float16] = whole[crop.order, crop.rows]
        return asked

    def _answer(self, index: int) -> NDArray[np.floating]:
        """Log-probabilities [orders, L, 21] for the complete residues of a chain."""
        backbone = self.chains[index]
        flat = Flat.from_backbones([backbone])
        rank = np.full((self.orders, len(backbone)), len(backbone), np.int64)
        for order in range(self.orders):
            rank[order, backbone.mask] = fixed_rank(int(backbone.mask.sum()), index, order)
        S = np.broadcast_to(flat.S, rank.shape)
        answers = self.engine.log_probs(self.engine.encode(flat), S, rank)
        complete: NDArray[np.floating] = answers[:, backbone.mask]
        return complete


AnyTeacher = Teacher | PresentTeacher


def mutated(S: Tensor, log_probs: Tensor, crops: Sequence[Crop], share: float) -> Tensor:
    """Letters S [R], a share of them replaced by draws from exp(log_probs) [R, 21]; never by X."""
    if not share:
        return S
    lot = torch.from_numpy(np.concatenate([crop.lot for crop in crops])).to(S.device)
    sums = log_probs[:, :UNKNOWN].exp().cumsum(1)
    drawn = (sums < lot[:, 1:] * sums[:, -1:]).sum(1)
    return torch.where(lot[:, 0] < share, drawn, S)


def _open_kept(path: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """A float16 array that lives in a file; zeros, which no log-probabilities are, at first.

    Raises:
        InputError: it cannot be made, or is no such array.
    """
    open_: Callable[..., NDArray[np.float16]] = np.lib.format.open_memmap  # typed in some versions
    if not path.exists():
        empty = io.BytesIO()
        np.save(empty, np.zeros(shape, np.float16))
        write_whole(path, empty.getbuffer())
    try:
        kept = open_(path, "r+")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no answers of a teacher ({error}); remove it") from error
    if (kept.dtype, kept.shape) != (np.dtype(np.float16), shape):
        raise InputError(f"{path}: {kept.dtype} {kept.shape} instead of float16 {shape}; remove it")
    return kept
