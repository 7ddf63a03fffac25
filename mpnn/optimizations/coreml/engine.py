"""The engine itself: features here, the network in whatever executes the package."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from mpnn.config import NUM_LETTERS
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import Batch, ProteinMPNN
from mpnn.optimizations import check_neighbors
from mpnn.optimizations.coreml.gate import fastest, judge_residency, require_parity
from mpnn.optimizations.coreml.network import LAYOUTS, STEP_ROWS, slots_of
from mpnn.optimizations.coreml.package import BUCKETS, Package, Weights, cached_package
from mpnn.optimizations.coreml.padding import Array, Arrays, Padded
from mpnn.optimizations.coreml.predictor import CoreMLPredictor, Predictor, require_macos
from mpnn.optimizations.tensors import name_of, own, synchronize
from mpnn.sampling import Job, Samples, sample_types
from mpnn.schedule import Graph, IntArray, StepRows, steps_of


@dataclass(frozen=True, eq=False)
class EncodedStructure:
    """One structure in its bucket, and what the encoder made of it."""

    rows: slice  # of the structures laid end to end
    padded: Padded
    inputs: Arrays  # edge vectors and the graph
    encoded: dict[str, Array] = field(default_factory=dict)  # h_V and h_E, once they are computed


@dataclass(frozen=True, eq=False)
class Decoding:
    """One sample on its way: types S [L] as they are, and what enters each decoder layer."""

    structure: EncodedStructure
    S: IntArray
    rank: IntArray
    states: list[Array]  # [1, C, 1, L'], the encoder's first

    def inputs(self, rows: IntArray) -> Arrays:
        """Inputs of `step_L` for at most `STEP_ROWS` residues; the last fills up the rest."""
        at = np.pad(rows, (0, STEP_ROWS - len(rows)), mode="edge")
        known = {**self.structure.inputs, **self.structure.encoded}
        named = ("h_V", "h_E", "E_idx", "decoder_weight", "mask")
        return {
            **{name: np.take(known[name], at, -1) for name in named},
            **self.structure.padded.types_at(self.S, self.rank, at, STEP_ROWS),
            **{f"state_{n}": state for n, state in enumerate(self.states)},
        }


CoreMLEncoding = list[EncodedStructure]
"""Structure by structure."""


class CoreMLEngine:
    """The network on the Neural Engine, or where Core ML puts it instead.

    Log-probabilities differ from the reference's by half precision (`gate.BANDS`), so a sample that
    is close to a tie may differ, and the residues after it with it.

    A score of one sequence is one call. A sample takes a call for each `STEP_ROWS` residues of a
    wavefront, and computes those alone; with k = 48 and 106 residues these are 56 calls or more, so
    the exact engine may still sample faster on the CPU: not measured here.

    Attributes:
        device_seconds: spent in predictions so far; the rest of a call's time is the host's.
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
        self.device_seconds = 0.0
        self._predictor = predictor

    @property
    def predictor(self) -> Predictor:
        """Executes the functions.

        Raises:
            InputError: Core ML cannot predict on this machine, or predicts something else.
        """
        if self._predictor is None:
            package = self._package()
            self._predictor = CoreMLPredictor(package.path, self.unit, package.layout)
        return self._predictor

    def _package(self) -> Package:
        """The package in the faster layout that passes its trial."""
        require_macos()
        made = (
            cached_package(self.model, self.buckets, self.weights, layout)
            for layout in LAYOUTS.values()
        )
        return fastest(made, self.unit, self.weights)

    def require_neural_engine(self, length: int) -> None:
        """Checks that a figure of this engine would be one of the Neural Engine.

        Core ML may put everything on the CPU without a warning; see `gate.judge_residency`.

        Args:
            length: residues.

        Raises:
            InputError: the Neural Engine is missing or hardly used.
        """
        bucket, package = bucket_of(length, self.buckets), self._package()
        ours, cpu = (
            require_parity(package.path, unit, self.weights)[str(bucket)]
            for unit in (self.unit, "CPU_ONLY")
        )
        judge_residency(bucket, ours, cpu)

    def synchronize(self) -> None:
        """Blocks until the features' device has finished; predictions return when they are done."""
        synchronize(self.device)

    @torch.inference_mode()
    def encode(self, flat: Flat) -> CoreMLEncoding:
        """Computes edge vectors and pads every structure to its bucket; the encoder runs later.

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
            mask = flat.mask[rows]
            padded = Padded(E_idx, mask, bucket, slots, predict.dtype, predict.layout)
            inputs = {"E": padded.edges(E, bucket), **padded.graph()}
            structures.append(EncodedStructure(rows, padded, inputs))
        return structures

    def neighbors(self, encoding: CoreMLEncoding, b: int) -> Graph:
        """E_idx [L, K] of structure b; every slot is real, as no structure has others beside it."""
        E_idx = encoding[b].padded.E_idx
        return E_idx, np.ones(E_idx.shape, bool)

    def log_probs(
        self, encoding: CoreMLEncoding, S: IntArray, rank: IntArray
    ) -> NDArray[np.floating]:
        """Teacher-forced log-probabilities [N, R, 21].

        A single sample takes one `score_L` unless the encoder has run; several take one `encode_L`
        and a `decode_L` each.
        """
        found = np.zeros((*S.shape, NUM_LETTERS), self.dtype)
        for structure in encoding:
            part = "decode" if len(S) > 1 or structure.encoded else "score"
            for n in range(len(S)):
                at = (n, structure.rows)
                outputs = self._call(part, structure, structure.padded.types(S[at], rank[at]))
                found[at] = self._log_softmax(structure.padded.rows(outputs["logits"]))
        return found

    def sample(self, encoding: CoreMLEncoding, job: Job) -> Samples:
        """Samples one sequence after another, wavefront by wavefront."""
        S = np.tile(job.S, (len(job.rank), 1))
        log_probs = np.zeros((*S.shape, NUM_LETTERS), self.dtype)
        step = steps_of(job, [self.neighbors(encoding, b) for b in range(len(encoding))])
        for structure in encoding:
            for n in range(len(S)):
                at = (n, structure.rows)
                mine = np.zeros_like(step)
                mine[at] = step[at]
                logits = self._sample(structure, StepRows.of(job, mine), S[at], job.rank[at])
                log_probs[at] = self._log_softmax(logits)
        return Samples(S, log_probs)

    def _sample(
        self, structure: EncodedStructure, rows: StepRows, S: IntArray, rank: IntArray
    ) -> Array:
        """Fills in S [L] under rank [L]; logits [L, 21]."""
        h_V = self._encoded(structure)["h_V"]
        states = {f"new_{n}": np.zeros_like(h_V) for n in range(1, len(self.model.decoder_layers))}
        decoding = Decoding(structure, S, rank, [h_V, *states.values()])
        logits = np.zeros((len(S), NUM_LETTERS), self.dtype)
        if len(rows.row) < len(S):  # the residues of step 0, all at once
            outputs = self._call("decode", structure, structure.padded.types(S, rank))
            logits[:] = structure.padded.rows(outputs["logits"])
            for name, state in states.items():
                state[:] = outputs[name]
        for now in rows.steps():
            i = now.residue - structure.rows.start
            for first in range(0, len(i), STEP_ROWS):
                at = i[first : first + STEP_ROWS]
                outputs = self._predict(f"step_{structure.padded.bucket}", decoding.inputs(at))
                logits[at] = outputs["logits"][0, :, 0, : len(at)].T
                for name, state in states.items():
                    state[..., at] = outputs[name][..., : len(at)]
            types = sample_types(
                logits[i],
                now.gumbel.astype(self.dtype),
                now.temperature.astype(self.dtype),
                now.bias.astype(self.dtype),
                now.group,
                now.weight.astype(self.dtype),
            )
            S[i] = np.where(now.designed, types, S[i])
        return logits

    def _log_softmax(self, logits: Array) -> Array:
        found: Array = torch.from_numpy(logits.astype(self.dtype)).log_softmax(-1).numpy()
        return found

    def _encoded(self, structure: EncodedStructure) -> Arrays:
        """h_V and h_E of a structure, computed when first needed."""
        if not structure.encoded:
            outputs = self._call("encode", structure)
            for name, x in outputs.items():
                structure.encoded[name] = np.ascontiguousarray(x, self.predictor.dtype)
        return structure.encoded

    def _call(self, part: str, structure: EncodedStructure, types: Arrays | None = None) -> Arrays:
        """Runs `score_L`, `encode_L` or `decode_L` on a structure."""
        unused = {"score": (), "encode": ("decoder_weight",), "decode": ("E", "encoder_weight")}
        inputs = {n: x for n, x in structure.inputs.items() if n not in unused[part]}
        if part == "decode":
            inputs |= self._encoded(structure)
        return self._predict(f"{part}_{structure.padded.bucket}", inputs | dict(types or {}))

    def _predict(self, function: str, inputs: Arrays) -> Arrays:
        start = time.perf_counter()
        outputs = self.predictor(function, inputs)
        self.device_seconds += time.perf_counter() - start
        return outputs


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
