"""Training and distillation: a run is a pure function of its configuration.

A run samples crops per cluster (`mpnn.training.data`), computes gradients through the rewritten
network (`mpnn.training.forward`), and keeps its state in one file that is replaced atomically.
Stopped at any moment, it resumes from the last saved step and ends with the same weights, bit for
bit.

The learning rate warms up, stays constant and decays: a run can be made longer as often as wanted
until its decay begins, and shorter as long as its learning rate does not rise. For weights from the
middle of a run, copy its state and let the copy decay.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpnn.config import ARCHITECTURES, UNKNOWN
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.optimizations import check_device
from mpnn.optimizations.exact.workers import flush_denormals
from mpnn.training import forward
from mpnn.training.data import (
    Crop,
    RaggedBatch,
    TrainingChains,
    crops_for_step,
    packed,
    whole_chain,
)
from mpnn.training.distillation import OnlineTeacher, teacher_for
from mpnn.training.hidden import HiddenMatch
from mpnn.training.optimizers import optimizers_for
from mpnn.training.settings import TrainConfig, learning_rate
from mpnn.training.state import (
    CurvePoint,
    card,
    load_state,
    readable,
    save_state,
    weights_to_begin_from,
)
from mpnn.weights import Network, make_network, save_checkpoint

CLIP_NORM = 1.0


@dataclass(frozen=True)
class Progress:
    """A report of a run; means are over the steps since the last report."""

    step: int
    steps: int
    residues: int  # since the run began
    loss: float  # nats per residue
    perplexity: float  # of the native residues
    accuracy: float  # share of residues whose native type is the most likely
    hidden_error: float  # in units of the teacher's variance; 0 if hidden_weight is 0
    residues_per_second: float
    seconds_left: float  # at the pace since the last report
    validation: CurvePoint | None = None  # measured since the last report


def train(config: TrainConfig, progress: Callable[[Progress], None] | None = None) -> Network:
    """Begins or resumes the run that `config` describes, and writes its weights.

    Sets the CPU to flush denormal numbers to zero in this process: they slow matmuls down.

    Args:
        config: the run.
        progress: called every `report_every` steps, and after the last. An exception that it
            raises ends the run, which can be resumed from the last saved step.

    Returns:
        The trained network.

    Raises:
        InputError: the data, teacher, state or weights to begin from cannot be used, the state
            belongs to another run, or the run diverged.
    """
    check_device(config.device)
    flush_denormals()
    run = _Run(config)
    run.begin()
    while not run.ended:
        run.advance()
        run.after_step(progress)
    return run.model


class _Run:
    """A run: network, optimizers, counters, and sums since the last report."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.chains = config, TrainingChains(config.data)
        self.validation = None if config.validation is None else TrainingChains(config.validation)
        self.curve: list[CurvePoint] = []
        self.teacher = teacher_for(config, self.chains)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = make_network(ARCHITECTURES[config.architecture]).to(config.device)
        self.match = None
        if config.hidden_weight:  # the settings are checked to imply both types
            assert isinstance(self.model, ProteinMPNN)
            assert isinstance(self.teacher, OnlineTeacher)
            self.match = HiddenMatch(self.model, self.teacher.model)
        self.optimizers = optimizers_for(self.model, config.optimizer)
        self.step = self.next_crop = self.residues = 0

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.config.steps

    def begin(self) -> None:
        """Restores the state file if it exists, else loads the weights to begin from.

        The weights of a run that has ended are written again.

        Raises:
            InputError: see `load_state` and `weights_to_begin_from`.
        """
        if Path(self.config.state).exists():
            state = load_state(self.config, self.chains)
            with readable(self.config.state):
                self.model.load_state_dict(state["model"])
                for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(stored)
                self.step, self.next_crop, self.residues = state["counters"]
                self.curve = [CurvePoint(*point) for point in state["curve"]]
            if self.ended:
                self.write_weights()
        elif self.config.begin_from is not None:
            self.model.load_state_dict(weights_to_begin_from(self.config, self.model))
        self._start_report()

    def _start_report(self) -> None:
        self.sums = torch.zeros(5, device=self.config.device)
        self.started, self.first_step = time.monotonic(), self.step

    def advance(self) -> None:
        """Takes one step of the optimizers."""
        config = self.config
        crops = crops_for_step(self.chains, config.crops, self.next_crop, config.tokens)
        total = sum(len(crop) for crop in crops)
        for group in packed(crops, config.micro_tokens):
            loss, sums = self._loss(group)
            (loss / total).backward()  # type: ignore[no-untyped-call]
            self.sums += sums
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(config, self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.next_crop += len(crops)
        self.residues += total

    def after_step(self, progress: Callable[[Progress], None] | None) -> None:
        """Validates, saves and reports, if due after this step."""
        config = self.config
        due = self.step % config.validate_every == 0 or self.ended
        if self.validation is not None and due:
            self.curve.append(self.validate(self.validation))
        if self.step % config.save_every == 0 or self.ended:
            self.save()
        if self.ended:
            self.write_weights()
        if self.step % config.report_every == 0 or self.ended:
            report = self.report()
            if progress is not None:
                progress(report)

    def _loss(self, crops: list[Crop]) -> tuple[Tensor, Tensor]:
        """Summed loss of some crops, and the sums of [loss, −log p, hits, 1, error] to report."""
        config, match = self.config, self.match
        batch = self._batch(crops)
        S, soft = batch.S, None
        with nullcontext() if match is None else match.recording():
            if self.teacher is not None:
                S, soft = self.teacher.outputs(crops)
            log_probs = self._log_probs(crops, dataclasses.replace(batch, S=S))
        nll, hits, known = _native_figures(batch.S, log_probs)
        loss = nll.sum()
        if soft is not None:
            share = config.teacher_weight
            loss = (1 - share) * loss - share * (soft.exp() * log_probs).sum()
        error = torch.zeros_like(loss)
        if match is not None:
            with forward.matmul_precision(config.precision, config.device):
                error = match.error(batch.neighbor_mask)
            loss = loss + config.hidden_weight * error * len(batch.S)
        residues = known.sum()
        sums = [loss, nll.sum(), hits.sum(), residues, error * residues]
        return loss, torch.stack(sums).detach()

    def _batch(self, crops: list[Crop]) -> RaggedBatch:
        return RaggedBatch.from_crops(crops, self.model.config.k_neighbors, self.config.device)

    def _log_probs(self, crops: list[Crop], batch: RaggedBatch) -> Tensor:
        """Log-probabilities [R, 21] of some crops, given as a batch too."""
        with forward.matmul_precision(self.config.precision, self.config.device):
            return forward.log_probs(self.model, batch, [len(c) for c in crops])

    @torch.no_grad()
    def validate(self, chains: TrainingChains) -> CurvePoint:
        """A point of the curve: whole chains without noise, in the precision of the run."""
        whole = [whole_chain(chains, int(chain)) for chain in np.concatenate(chains.clusters)]
        sums = torch.zeros(3, device=self.config.device)
        for group in packed(whole, self.config.micro_tokens):
            batch = self._batch(group)
            figures = _native_figures(batch.S, self._log_probs(group, batch))
            sums += torch.stack([x.sum() for x in figures])
        nll, hits, residues = sums.tolist()
        return CurvePoint(self.step, self.residues, _perplexity(nll / residues), hits / residues)

    def report(self) -> Progress:
        """Means since the last report; begins the next one."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        loss, nll, hits, known, error = self.sums.tolist()
        known = known or math.nan  # crops may hold no residue of known type
        steps_left = self.config.steps - self.step
        report = Progress(
            step=self.step,
            steps=self.config.steps,
            residues=self.residues,
            loss=loss / known,
            perplexity=_perplexity(nll / known),
            accuracy=hits / known,
            hidden_error=error / known,
            residues_per_second=known / seconds,
            seconds_left=steps_left * seconds / (self.step - self.first_step),
            validation=next((p for p in self.curve[-1:] if p.step > self.first_step), None),
        )
        self._start_report()
        return report

    def save(self) -> None:
        """Replaces the state file.

        Raises:
            InputError: the run diverged; the last good state stays.
        """
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise InputError(
                f"{self.config.weights}: the weights are not finite at step {self.step}; the last "
                "saved state stays; begin again with a smaller learning_rate"
            )
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": [self.step, self.next_crop, self.residues],
            "curve": [list(point) for point in self.curve],
        }
        save_state(self.config, self.chains, state)

    def write_weights(self) -> None:
        """Replaces the file of weights."""
        about = card(self.config, self.residues, self.curve)
        save_checkpoint(self.config.weights, self.model, about)


def _native_figures(native: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """−log p of native residues, whether they are the most likely, and 1; 0 for X; each [R]."""
    known = (native != UNKNOWN).to(log_probs.dtype)
    nll = -log_probs.gather(1, native[:, None])[:, 0]
    return nll * known, (log_probs.argmax(1) == native) * known, known


def _perplexity(nll: float) -> float:
    """exp(nll), infinite where it overflows a float, as in a run that diverged."""
    return math.inf if nll > math.log(sys.float_info.max) else math.exp(nll)
