"""The engine itself: features here, the network in whatever executes the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpnn.config import NUM_LETTERS
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import Batch, ProteinMPNN
from mpnn.optimizations import check_neighbors
from mpnn.optimizations.coreml.gate import require_parity
from mpnn.optimizations.coreml.network import slots_of
from mpnn.optimizations.coreml.package import BUCKETS, Weights, cached_package
from mpnn.optimizations.coreml.padding import Arrays, Padded
from mpnn.optimizations.coreml.plan import placements, share
from mpnn.optimizations.coreml.predictor import CoreMLPredictor, Predictor, require_macos
from mpnn.optimizations.tensors import name_of, own, synchronize
from mpnn.sampling import Job, Samples, sample_types
from mpnn.schedule import Graph, IntArray, StepRows, steps_of


@dataclass(frozen=True, eq=False)
class EncodedStructure:
    """One structure in its bucket, and what the encoder made of it."""

    rows: slice  # of the structures laid end to end
    padded: Padded
    decoder_inputs: Arrays  # all but the residue types


CoreMLEncoding = list[EncodedStructure]
"""Structure by structure."""


class CoreMLEngine:
    """The network on the Neural Engine, or where Core ML puts it instead.

    Log-probabilities differ from the reference's by half precision (`gate.BANDS`), so a sample that
    is close to a tie may differ, and the residues after it with it.

    **Sampling is expensive.** The package has no step for a few residues: each wavefront costs a
    score pass over the whole bucket, one sample at a time; a sample of 106 residues with k = 48
    takes 56. This engine is for scoring; the exact engine is the one to sample with.
    """

    def __init__(
        self,
        model: ProteinMPNN,
        device: str = "cpu",
        predictor: Predictor | None = None,
        buckets: Sequence[int] = BUCKETS,
        unit: str = "CPU_AND_NE",
        weights: Weights = "float16",
    ) -> None:
        """Converts nothing yet: a package is made, and its unit checked, when first used.

        Args:
            model: the network.
            device: where neighbors and edge features are computed.
            predictor: executes the package's functions; Core ML if None.
            buckets: lengths to pad to, in rising order.
            unit: compute units that Core ML may use, one of `predictor.UNITS`.
            weights: how they are stored.
        """
        self.device = device
        self.model = own(model, device)
        self.dtype = name_of(model.W_e.weight.dtype)
        self.buckets = tuple(buckets)
        self.unit, self.weights = unit, weights
        self._predictor = predictor

    @property
    def predictor(self) -> Predictor:
        """Executes the functions.

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
        """Checks that a figure of this engine would be one of the Neural Engine.

        Core ML may put everything on the CPU without a warning; its plan says what it will do.

        Args:
            length: residues.

        Raises:
            InputError: it plans to run half of the encoder or decoder elsewhere, or is missing.
        """
        require_macos()
        package = cached_package(self.model, self.buckets, self.weights)
        bucket = bucket_of(length, self.buckets)
        for part in ("encode", "decode"):
            found = share(placements(package, f"{part}_{bucket}", self.unit), "NE")
            if found <= 0.5:
                raise InputError(
                    f"Core ML plans to run {found:.0%} of {part}_{bucket} on the Neural Engine, so "
                    "its time would be that of something else"
                )

    def synchronize(self) -> None:
        """Blocks until the features' device has finished; predictions return when they are done."""
        synchronize(self.device)

    @torch.inference_mode()
    def encode(self, flat: Flat) -> CoreMLEncoding:
        """Pads every structure to its bucket and runs the encoder.

        Raises:
            InputError: a structure is longer than the longest bucket, or has more neighbors than
                a package has room for; or see `predictor`.
        """
        check_neighbors(flat, self.model.config.k_neighbors)
        buckets = [bucket_of(length, self.buckets) for length in flat.lengths]
        predict = self.predictor
        structures = []
        for b, (rows, bucket) in enumerate(zip(flat.slices, buckets, strict=True)):
            batch = Batch.from_flat(flat.alone(b), self.device, getattr(torch, self.dtype))
            E, E_idx = (x[0].cpu().numpy() for x in self.model.features(batch))
            slots = slots_of(self.model.config, bucket)
            padded = Padded(E_idx, flat.mask[rows], bucket, slots, predict.dtype)
            found = predict(f"encode_{bucket}", padded.encoder_inputs(E))
            outputs = {n: np.ascontiguousarray(x, predict.dtype) for n, x in found.items()}
            inputs = {**outputs, **padded.decoder_graph()}
            structures.append(EncodedStructure(rows, padded, inputs))
        return structures

    def neighbors(self, encoding: CoreMLEncoding, b: int) -> Graph:
        """E_idx [L, K] of structure b; every slot is real, as no structure has others beside it."""
        E_idx = encoding[b].padded.E_idx
        return E_idx, np.ones(E_idx.shape, bool)

    def log_probs(
        self, encoding: CoreMLEncoding, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [N, R, 21]: one score pass for each sample."""
        found = np.zeros((*S.shape, NUM_LETTERS), self.dtype)
        for structure in encoding:
            for n in range(len(S)):
                at = (n, structure.rows)
                found[at] = self._logits(structure, S[at], rank[at]).log_softmax(-1).numpy()
        return found

    def sample(self, encoding: CoreMLEncoding, job: Job) -> Samples:
        """Samples one sequence after another, wavefront by wavefront: a score pass for each."""
        S = np.tile(job.S, (len(job.rank), 1))
        log_probs = np.zeros((*S.shape, NUM_LETTERS), self.dtype)
        step = steps_of(job, [self.neighbors(encoding, b) for b in range(len(encoding))])
        for structure in encoding:
            for n in range(len(S)):
                at = (n, structure.rows)
                mine = np.zeros_like(step)
                mine[at] = step[at]
                logits = self._sample(structure, StepRows.of(job, mine), S[at], job.rank[at])
                log_probs[at] = logits.log_softmax(-1).numpy()
        return Samples(S, log_probs)

    def _sample(
        self, structure: EncodedStructure, rows: StepRows, S: IntArray, rank: IntArray
    ) -> Tensor:
        """Fills in S [L] under rank [L]; logits [L, 21] of the last pass, which saw all types."""
        logits = self._logits(structure, S, rank)
        for number, now in enumerate(rows.steps()):
            if number:
                logits = self._logits(structure, S, rank)
            i = now.residue - structure.rows.start
            types = sample_types(
                logits.numpy()[i],
                now.gumbel.astype(self.dtype),
                now.temperature.astype(self.dtype),
                now.bias.astype(self.dtype),
                now.group,
                now.weight.astype(self.dtype),
            )
            S[i] = np.where(now.designed, types, S[i])
        return logits

    def _logits(self, structure: EncodedStructure, S: IntArray, rank: IntArray) -> Tensor:
        """One score pass: logits [L, 21] of residue types S [L] under rank [L]."""
        padded = structure.padded
        inputs = {**structure.decoder_inputs, **padded.decoder_types(S, rank)}
        outputs = self.predictor(f"decode_{padded.bucket}", inputs)
        return torch.from_numpy(padded.rows(outputs["logits"]).astype(self.dtype))


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
        "take --engine exact, which has no limit"
    )
