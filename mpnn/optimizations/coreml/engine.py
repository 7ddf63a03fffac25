"""The engine's face: features here, the network in whoever executes the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.batch import Batch
from mpnn.config import NUM_LETTERS
from mpnn.decoding import FloatArray, IntArray, Job, Samples, draw, slot_of, wavefront
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.optimizations import check_neighbors, own, synchronize
from mpnn.optimizations.coreml.gate import require_parity
from mpnn.optimizations.coreml.network import slots
from mpnn.optimizations.coreml.package import BUCKETS, Weights, cached_package
from mpnn.optimizations.coreml.padding import Arrays, Padded
from mpnn.optimizations.coreml.plan import placements, share
from mpnn.optimizations.coreml.predictor import CoreMLPredictor, Predictor, require_macos


@dataclass(frozen=True, eq=False)
class EncodedStructure:
    """One structure in its bucket, and what the encoder made of it."""

    padded: Padded
    decoder_inputs: Arrays  # all but the letters

    @property
    def length(self) -> int:
        """Residues."""
        return len(self.padded.mask)


CoreMLEncoding = list[EncodedStructure]
"""A batch, structure by structure."""


class CoreMLEngine:
    """The network on the Neural Engine, or where Core ML puts it instead.

    Log-probabilities differ from the reference's by half precision (`gate.BANDS`), so a draw that
    is close to a tie may fall the other way, and the residues after it with it.

    **Sampling is dear.** The package has no step for a few residues: each wavefront costs a score
    pass over the whole bucket, one sample at a time; a sample of 106 residues with k = 48 takes 56.
    This engine is for scoring; the exact engine is the one to sample with.
    """

    weights: Weights = "float16"
    unit = "CPU_AND_NE"
    """Compute units that Core ML may use, one of `predictor.UNITS`."""

    def __init__(
        self,
        model: ProteinMPNN,
        device: str | torch.device = "cpu",
        predictor: Predictor | None = None,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        """Converts nothing yet: a package is made, and its unit gated, when first used.

        Args:
            model: the network.
            device: where neighbors and edge features are computed.
            predictor: executes the package's functions; Core ML if None.
            buckets: lengths to pad to, in rising order.
        """
        self.device = torch.device(device)
        self.model = own(model, self.device)
        self.dtype = model.W_e.weight.dtype
        self.buckets = tuple(buckets)
        self._predictor = predictor

    @property
    def predictor(self) -> Predictor:
        """Who executes the functions.

        Raises:
            InputError: Core ML cannot predict on this machine, or predicts something else.
        """
        if self._predictor is None:
            require_macos()
            package = cached_package(self.model, self.buckets, self.weights)
            require_parity(package, self.unit, self.weights)
            self._predictor = CoreMLPredictor(package, self.unit)
        return self._predictor

    def require_neural_engine(self, length: int) -> None:
        """Raises where a figure of this engine would not be one of the Neural Engine.

        Core ML may put everything on the CPU without a word; its plan says what it will do.

        Args:
            length: residues.

        Raises:
            InputError: it means to run half of the encoder or decoder elsewhere, or is not there.
        """
        require_macos()
        package = cached_package(self.model, self.buckets, self.weights)
        bucket = bucket_of(length, self.buckets)
        for part in ("encode", "decode"):
            found = share(placements(package, f"{part}_{bucket}", self.unit), "NE")
            if found <= 0.5:
                raise InputError(
                    f"Core ML means to run {found:.0%} of {part}_{bucket} on the Neural Engine: "
                    "its time would be that of something else"
                )

    def synchronize(self) -> None:
        """Waits for the features' device; a prediction is waited for where it is made."""
        synchronize(self.device)

    @torch.inference_mode()
    def encode(self, batch: Batch) -> CoreMLEncoding:
        """Pads every structure to its bucket and runs the encoder.

        Raises:
            InputError: a structure is longer than the longest bucket, or has more neighbors than
                a package has room for; or see `predictor`.
        """
        check_neighbors(batch, self.model.config.k_neighbors)
        lengths = batch.lengths.tolist()
        buckets = [bucket_of(length, self.buckets) for length in lengths]
        predict = self.predictor
        E, E_idx = (x.cpu().numpy() for x in self.model.features(batch))
        mask, valid = batch.mask.cpu().numpy() > 0, batch.valid.cpu().numpy()
        structures = []
        for b, (L, bucket) in enumerate(zip(lengths, buckets, strict=True)):
            K = slots(self.model.config, bucket)  # real neighbors come first
            real = valid[b][E_idx[b, :L, :K]]
            graph = np.where(real, E_idx[b, :L, :K], 0)
            padded = Padded(graph, real, mask[b, :L], bucket, K, predict.dtype)
            found = predict(f"encode_{bucket}", padded.encoder_inputs(E[b, :L, :K]))
            outputs = {n: np.ascontiguousarray(x, predict.dtype) for n, x in found.items()}
            structures.append(EncodedStructure(padded, {**outputs, **padded.decoder_graph()}))
        return structures

    def neighbors(self, encoding: CoreMLEncoding, b: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """E_idx [L, K] of structure b, and where its slots are real."""
        padded = encoding[b].padded
        return padded.E_idx, padded.real

    def log_probs(
        self, encoding: CoreMLEncoding, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [B, N, L, 21]: one score pass for each sample."""
        found = torch.zeros(*S.shape, NUM_LETTERS, dtype=self.dtype)
        for b, structure in enumerate(encoding):
            for n in range(S.shape[1]):
                at = (b, n, slice(structure.length))
                found[at] = self._logits(structure, S[at], rank[at]).log_softmax(-1)
        return found.numpy()

    def sample(self, encoding: CoreMLEncoding, job: Job) -> Samples:
        """Draws one sample after another, wavefront by wavefront: a score pass for each."""
        S = np.repeat(job.S[:, None], job.rank.shape[1], 1)
        log_probs = torch.zeros(*S.shape, NUM_LETTERS, dtype=self.dtype)
        for b, structure in enumerate(encoding):
            for n in range(S.shape[1]):
                at = (b, n, slice(structure.length))
                log_probs[at] = self._sample(structure, job, b, n, S[at]).log_softmax(-1)
        return Samples(S, log_probs.numpy())

    def _sample(self, structure: EncodedStructure, job: Job, b: int, n: int, S: IntArray) -> Tensor:
        """Fills in S [L]; the logits [L, 21] of the last pass, which saw all letters that count."""
        L, graph = structure.length, structure.padded
        rank, designed = job.rank[b, n, :L], job.designed[b, :L]
        ties = job.tie_group[b, :L]
        step = wavefront(rank[None], designed, graph.E_idx, graph.real, ties)[0]
        logits = self._logits(structure, S, rank)
        for now in range(1, int(step.max()) + 1):
            if now > 1:
                logits = self._logits(structure, S, rank)
            rows = np.flatnonzero(step == now)
            drawn = draw_rows(logits[rows], job, b, n, rows)
            S[rows] = np.where(designed[rows], drawn, S[rows])
        return logits

    def _logits(self, structure: EncodedStructure, S: IntArray, rank: IntArray) -> Tensor:
        """One score pass: logits [L, 21] of letters S [L] under rank [L]."""
        padded = structure.padded
        inputs = {**structure.decoder_inputs, **padded.decoder_letters(S, rank)}
        outputs = self.predictor(f"decode_{padded.bucket}", inputs)
        return torch.from_numpy(padded.rows(outputs["logits"])).to(self.dtype)


class CoreMLGPUEngine(CoreMLEngine):
    """The same package on the GPU."""

    unit = "CPU_AND_GPU"


class CoreMLCPUEngine(CoreMLEngine):
    """The same package on the CPU alone."""

    unit = "CPU_ONLY"


class CoreMLInt8Engine(CoreMLEngine):
    """Weights in 8 bits, one scale for each output channel."""

    weights: Weights = "int8"


class CoreMLPalette6Engine(CoreMLEngine):
    """Weights from tables of 64 values."""

    weights: Weights = "palette6"


class CoreMLPalette4Engine(CoreMLEngine):
    """Weights from tables of 16 values."""

    weights: Weights = "palette4"


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that holds `length` residues.

    Raises:
        InputError: none does.
    """
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise InputError(
        f"the structure has {length} residues, and Core ML's longest bucket is {buckets[-1]}; "
        "take --engine exact, which knows no limit"
    )


def draw_rows(logits: Tensor, job: Job, b: int, n: int, rows: IntArray) -> IntArray:
    """Letters [R] for the residues `rows` [R] of one step of sample n of structure b."""
    group = job.tie_group[b, rows]

    def put(x: FloatArray) -> Tensor:
        return torch.from_numpy(x).to(logits.dtype)

    letters = draw(
        logits,
        put(job.gumbel[b, n, group]),
        put(np.full(len(rows), job.temperature[n])),
        put(job.bias[b, rows]),
        slot_of(torch.from_numpy(group)) if job.tied else None,
        put(job.tie_weight[b, rows]),
    )
    return letters.numpy()
