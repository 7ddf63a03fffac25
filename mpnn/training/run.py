"""Training and distillation: a run is a pure function of its configuration.

A run draws crops per cluster (`mpnn.training.data`), takes gradients through the rewritten network
(`mpnn.training.forward`), and keeps its state in one file that is replaced whole. Stopped at any
moment it goes on from the last saved step, and ends with the weights of a run never stopped.
Students of one teacher can be trained in lockstep: it then answers once for all of them.

The schedule is warm-up, stable, decay: a run can be made longer as often as wanted, as long as its
decay has not begun, and shorter as long as its learning rate does not rise by it. To ship weights
on the way, copy the state and let the copy decay.
"""

from __future__ import annotations

import dataclasses
import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpnn.config import ARCHITECTURES, UNKNOWN
from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.optimizations import check_device
from mpnn.optimizations.exact.workers import flush_denormals
from mpnn.output import write_whole
from mpnn.training import forward
from mpnn.training.data import (
    DRAWS,
    Crop,
    RaggedBatch,
    TrainingChains,
    draws_for_step,
    packed,
    whole_chain,
)
from mpnn.training.distillation import Answer, AnyTeacher, PresentTeacher, Teacher
from mpnn.training.hidden import HiddenMatch
from mpnn.training.optimizers import optimizers_for
from mpnn.training.settings import (
    MAY_CHANGE,
    OWN_WEIGHTS_ONLY,
    TrainConfig,
    check_together,
    learning_rate,
)
from mpnn.weights import Network, find_weights, load_checkpoint, make_network, save_checkpoint

CLIP_NORM = 1.0
CURVE = ("step", "residues", "validation perplexity", "validation top-1, %")


class CurvePoint(NamedTuple):
    """What the network knew of chains kept aside: native letters given, one fixed order each."""

    step: int
    residues: int  # trained on so far
    perplexity: float
    accuracy: float  # share of residues whose native letter is the likeliest


@dataclass(frozen=True)
class Progress:
    """What a run reports; means are over the steps since the last report."""

    step: int
    steps: int
    residues: int  # since the run began
    loss: float  # nats for each residue
    perplexity: float  # of the native letters
    accuracy: float  # share of residues whose native letter is the likeliest
    hidden_error: float  # of hidden vectors, in units of the teacher's variance; 0 if not asked
    learning_rate: float
    residues_per_second: float
    seconds_left: float  # at the pace since the last report
    validation: CurvePoint | None = None  # measured since the last report


def train(config: TrainConfig, progress: Callable[[Progress], None] | None = None) -> Network:
    """Begins, or goes on with, the run that `config` describes, and writes its weights.

    Denormal numbers are flushed to zero in this process from here on: they slow products down.

    Args:
        config: the run.
        progress: called every `report_every` steps, and after the last. What it raises ends the
            run, which can be resumed from the step last saved.

    Returns:
        The trained network.

    Raises:
        InputError: the data, teacher, state or weights to begin from cannot be used, or the state
            is of another run.
    """

    def tell(_: TrainConfig, seen: Progress) -> None:
        if progress is not None:
            progress(seen)

    (model,) = train_together([config], tell)
    return model


def train_together(
    configs: Sequence[TrainConfig], progress: Callable[[TrainConfig, Progress], None]
) -> list[Network]:
    """The same for several runs in lockstep, on the same crops and one teacher's answers.

    Each ends with the weights of a run by itself, and writes them when it ends. Those that were
    stopped earlier than others catch up first. A run's pace is that of the steps of all.

    Args:
        configs: the runs, at least one, which agree in the settings `TOGETHER`.
        progress: called with a run and what it reports; else as in `train`.

    Returns:
        The trained networks.

    Raises:
        InputError: the runs differ in what they share, or share a file; else as in `train`.
    """
    check_together(configs)
    check_device(configs[0].device)
    flush_denormals()
    chains = TrainingChains(configs[0].data)
    teacher = _teacher(configs[0], chains)
    runs = [_Run(config, chains, teacher) for config in configs]
    for run in runs:
        run.begin()
    while going := [run for run in runs if not run.ended]:
        first = min(run.drawn for run in going)
        abreast = [run for run in going if run.drawn == first]
        _advance(abreast)
        for run in abreast:
            run.after_step(progress)
    return [run.model for run in runs]


def _advance(runs: Sequence[_Run]) -> None:
    """One step of the optimizers of runs that stand at the same draw."""
    chains, teacher, config = runs[0].chains, runs[0].teacher, runs[0].config
    for run in runs:
        run.start_clock()
    crops, drawn = draws_for_step(chains, config.draws, runs[0].drawn, config.tokens)
    total = sum(len(crop) for crop in crops)
    for group in packed(crops, config.micro_tokens):
        with ExitStack() as listening:
            for run in runs:
                listening.enter_context(run.listening())
            answer = None if teacher is None else teacher.answer(group)
            for run in runs:
                run.learn(group, answer, total)
    for run in runs:
        run.update(drawn, total)


class _Run:
    """State of a run: network, optimizer, counters, and sums since the last report."""

    def __init__(
        self, config: TrainConfig, chains: TrainingChains, teacher: AnyTeacher | None
    ) -> None:
        self.config, self.chains, self.teacher = config, chains, teacher
        self.validation = None if config.validation is None else TrainingChains(config.validation)
        self.curve: list[CurvePoint] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = make_network(ARCHITECTURES[config.architecture]).to(config.device)
            self.match = None
            if config.hidden_weight:  # settings that allow it have networks that do
                assert isinstance(self.model, ProteinMPNN)
                assert isinstance(teacher, PresentTeacher)
                self.match = HiddenMatch(self.model, teacher.model).to(config.device)
        self.optimizers = optimizers_for(
            self.model, self.match, config.optimizer, config.weight_decay
        )
        self.step = self.drawn = self.residues = 0
        self._start_report()

    @property
    def ended(self) -> bool:
        """Whether all its steps are done."""
        return self.step >= self.config.steps

    def _start_report(self) -> None:
        self.sums = torch.zeros(5, device=self.config.device)
        self.started, self.first_step = math.nan, self.step

    def start_clock(self) -> None:
        """Time counts from the first step since the last report, not while others catch up."""
        if math.isnan(self.started):
            self.started = time.monotonic()

    def listening(self) -> AbstractContextManager[None]:
        """Within it the hidden vectors of student and teacher are kept, if they are asked for."""
        return nullcontext() if self.match is None else self.match.listening()

    def learn(self, crops: list[Crop], answer: Answer | None, total: int) -> None:
        """Adds gradients of some of a step's crops, `total` residues in all."""
        loss, sums = self._loss(crops, answer)
        (loss / total).backward()  # type: ignore[no-untyped-call]
        self.sums += sums

    def update(self, drawn: int, residues: int) -> None:
        """Ends a step: the next begins at draw `drawn`."""
        # Maps of hidden vectors are AdamW's alone, which does not mind the size of a gradient.
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(self.config, self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.drawn = drawn
        self.residues += residues

    def after_step(self, progress: Callable[[TrainConfig, Progress], None]) -> None:
        """What is due: a point of the curve, state and weights kept, a report."""
        config = self.config
        if self.validation is not None and config.validates(self.step):
            self.validate(self.validation)
        if self.step % config.save_every == 0 or self.ended:
            self._check_finite()
            self.save()
        if self.ended:
            self.write_weights()
        if self.step % config.report_every == 0 or self.ended:
            progress(config, self.report())

    def _check_finite(self) -> None:
        """Keeps a run that diverged from replacing its last good state.

        Raises:
            InputError: it did.
        """
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise InputError(
                f"{self.config.weights}: weights are no longer finite by step {self.step}; the "
                "state saved last stays; begin anew with a smaller learning_rate"
            )

    def _loss(self, crops: list[Crop], answer: Answer | None) -> tuple[Tensor, Tensor]:
        """Summed loss of some crops, and the sums of [loss, −log p, hits, 1, error] to report."""
        config = self.config
        batch = self._batch(crops, config.neighbors_shown)
        S, soft = (batch.S, None) if answer is None else answer
        log_probs = self._log_probs(crops, dataclasses.replace(batch, S=S))
        known = (batch.S != UNKNOWN).to(log_probs.dtype)
        nll = _nll(batch, log_probs) * known
        smooth = config.label_smoothing
        loss = (1 - smooth) * nll.sum() - smooth * (log_probs.mean(1) * known).sum()
        if soft is not None:
            share = config.teacher_weight
            loss = (1 - share) * loss - share * (soft.exp() * log_probs).sum()
        unlike = torch.zeros_like(loss)
        if self.match is not None:
            with forward.products_in(config.precision, config.device):
                unlike = self.match.error(batch.neighbor_mask)
            loss = loss + config.hidden_weight * unlike * len(batch.S)
        hits = (log_probs.argmax(1) == batch.S) * known
        residues = known.sum()
        return loss, torch.stack(
            [loss, nll.sum(), hits.sum(), residues, unlike * residues]
        ).detach()

    def _batch(self, crops: list[Crop], shown: float = 1.0) -> RaggedBatch:
        k, device = self.model.config.k_neighbors, self.config.device
        return RaggedBatch.from_crops(crops, k, device, shown)

    def _log_probs(self, crops: list[Crop], batch: RaggedBatch) -> Tensor:
        """What the network says of the letters [R, 21] of some crops, given as a batch too."""
        with forward.products_in(self.config.precision, self.config.device):
            return forward.log_probs(self.model, batch, [len(c) for c in crops])

    @torch.no_grad()
    def validate(self, chains: TrainingChains) -> None:
        """Adds a point to the curve: whole chains, without noise, in the precision of the run."""
        whole = [whole_chain(chains, int(chain)) for chain in np.concatenate(chains.clusters)]
        sums = torch.zeros(3, device=self.config.device)
        for group in packed(whole, self.config.micro_tokens):
            batch = self._batch(group)
            log_probs = self._log_probs(group, batch)
            known = (batch.S != UNKNOWN).to(log_probs.dtype)
            hits = log_probs.argmax(1) == batch.S
            sums += torch.stack(
                [x.sum() for x in (_nll(batch, log_probs) * known, hits * known, known)]
            )
        nll, hit, residues = sums.tolist()
        point = CurvePoint(self.step, self.residues, _perplexity(nll / residues), hit / residues)
        self.curve.append(point)

    def report(self) -> Progress:
        """Means since the last report; the next begins here."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        loss, nll, hits, known, unlike = self.sums.tolist()
        known = known or math.nan  # a chain's crops may lie where its letters are unknown
        steps_left = self.config.steps - self.step
        report = Progress(
            step=self.step,
            steps=self.config.steps,
            residues=self.residues,
            loss=loss / known,
            perplexity=_perplexity(nll / known),
            accuracy=hits / known,
            hidden_error=unlike / known,
            learning_rate=learning_rate(self.config, self.step - 1),
            residues_per_second=known / seconds,
            seconds_left=steps_left * seconds / (self.step - self.first_step),
            validation=next((p for p in self.curve[-1:] if p.step > self.first_step), None),
        )
        self._start_report()
        return report

    def card(self) -> dict[str, Any]:
        """Where the weights come from."""
        settings = dataclasses.asdict(self.config)
        places = {name: Path(settings.pop(name)).name for name in ("data", "weights")}
        kept = settings["targets"] is not None
        left_out = [
            *("state", "targets", "device", "save_every", "report_every"),
            *("validation", "validate_every"),
            *(() if kept else ("teacher_orders", "teacher_rounds")),
        ]
        for name in left_out:
            del settings[name]
        if settings["teacher"] is not None:
            settings["answers"] = "kept" if kept else "asked for every crop"
        settings["teacher"] = settings["teacher"] and Path(settings["teacher"]).stem
        stems = [Path(name).stem for name in self.config.origins]
        settings["begin_from"] = stems if len(stems) > 1 else next(iter(stems), None)
        return {
            "name": Path(places["weights"]).stem,
            "training": {**settings, "data": places["data"]},
            "residues_seen": self.residues,
            "curve": {"columns": list(CURVE), "rows": [_curve_row(point) for point in self.curve]},
        }

    def save(self) -> None:
        """Replaces the state file whole."""
        state = {
            "config": dataclasses.asdict(self.config),
            "draws": DRAWS,
            "chains": self.chains.digest.hex(),
            "model": self.model.state_dict(),
            "match": None if self.match is None else self.match.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": [self.step, self.drawn, self.residues],
            "curve": [list(point) for point in self.curve],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self.config.state, buffer.getvalue())

    def write_weights(self) -> None:
        """Replaces the file of weights whole."""
        save_checkpoint(self.config.weights, self.model, self.card())

    def begin(self) -> None:
        """Takes up the state file where there is one, else the weights to begin from.

        A run that goes on from its end writes its weights again; one without a state fits the maps
        of its hidden vectors to what it begins from.

        Raises:
            InputError: the file is no state, or that of another run; see `_take_over`.
        """
        if Path(self.config.state).exists():
            self._restore(Path(self.config.state))
            if self.ended:
                self.write_weights()
            return
        if self.config.origins:
            self._take_over([find_weights(name) for name in self.config.origins])
        if self.match is not None and self.match.maps:
            self._fit(self.match)

    @torch.no_grad()
    def _fit(self, match: HiddenMatch) -> None:
        """Begins the maps of hidden vectors on the first crops of the run."""
        assert self.teacher is not None
        config = self.config
        drawn, _ = draws_for_step(self.chains, config.draws, self.drawn, config.tokens)
        crops = next(packed(drawn, config.micro_tokens))
        batch = self._batch(crops)
        with match.listening():
            S, _ = self.teacher.answer(crops)
            self._log_probs(crops, dataclasses.replace(batch, S=S))
        match.fit(batch.neighbor_mask)

    def _take_over(self, paths: Sequence[Path]) -> None:
        """Gives the network the mean of the weights of others that were trained here.

        Raises:
            InputError: they are not from here, or their shapes differ.
        """
        found = [self._weights_to_begin_from(path) for path in paths]
        self.model.load_state_dict(
            {name: sum(weights[name] for weights in found) / len(found) for name in found[0]}
        )

    def _weights_to_begin_from(self, path: Path) -> dict[str, Tensor]:
        if path.suffix != ".safetensors":
            raise InputError(f"begin_from is {path}: {OWN_WEIGHTS_ONLY}")
        other, card = load_checkpoint(path)
        if "training" not in card:
            raise InputError(
                f"begin_from is {path}, whose card tells of no training: {OWN_WEIGHTS_ONLY}"
            )
        ours, theirs = self.model.state_dict(), other.state_dict()
        differ = [
            name
            for name in sorted(ours.keys() | theirs.keys())
            if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
        ]
        if differ:
            raise InputError(
                f"begin_from is {path}, a {other.config}; {self.config.architecture} is a "
                f"{self.model.config}: {len(differ)} tensors differ in shape, the first is "
                f"{differ[0]}; take weights of the same layers and width"
            )
        return theirs

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.config.device, weights_only=True)
            before = TrainConfig(**state["config"])  # where a setting is new, at its default
            self._check_same_run(path, before, state)
            self.model.load_state_dict(state["model"])
            if self.match is not None:
                self.match.load_state_dict(state["match"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.step, self.drawn, self.residues = state["counters"]
            self.curve = [CurvePoint(*point) for point in state["curve"]]
            self._check_length(path, before)
        except InputError:
            raise
        except (OSError, MemoryError, torch.OutOfMemoryError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        except Exception as error:  # whatever a damaged file leads to
            raise InputError(
                f"{path}: not the state of a training run; remove it, or name another file"
            ) from error
        self._start_report()

    def _check_same_run(self, path: Path, before: TrainConfig, state: dict[str, Any]) -> None:
        """Refuses the state of a run that another configuration, or other chains, began."""
        ours, theirs = dataclasses.asdict(self.config), dataclasses.asdict(before)
        differ = [k for k in ours if k not in MAY_CHANGE and theirs[k] != ours[k]]
        if (ours["targets"] is None) != (theirs["targets"] is None):  # another way to teach
            differ.append("targets")
        if differ:
            raise InputError(
                f"{path}: the state of another run ({', '.join(differ)} differ); "
                "give the same settings, or name another file"
            )
        if state.get("draws") != DRAWS:
            raise InputError(
                f"{path}: begun by a version that drew crops in another way; name another file, "
                f"and begin_from = {self.config.weights!r} to go on from weights"
            )
        if state["chains"] != self.chains.digest.hex():
            raise InputError(
                f"{path}: the state of a run on other chains than those of {self.config.data}; "
                "give the same, or name another file"
            )

    def _check_length(self, path: Path, before: TrainConfig) -> None:
        """Refuses an end that is over, and a learning rate that would rise after it has fallen."""
        config = self.config
        if self.step > config.steps:
            raise InputError(
                f"{path}: has {self.step} steps already, steps is {config.steps}; give "
                "as many at least, or name another file"
            )
        if self.ended and (config.steps, config.decay_steps) != (before.steps, before.decay_steps):
            raise InputError(
                f"{path}: has no step left for steps = {config.steps} and decay_steps = "
                f"{config.decay_steps}, which are not those it was trained with; give more steps"
            )
        begun = self.step - 1 > before.steps - before.decay_steps
        falling, wanted = (learning_rate(c, self.step) for c in (before, config))
        if begun and wanted > falling:
            raise InputError(
                f"{path}: its learning rate falls to {falling:.2g} and would rise to "
                f"{wanted:.2g}; give the same steps and decay_steps, or let it end and begin "
                "another run, with begin_from and a state of its own"
            )


def _teacher(config: TrainConfig, chains: TrainingChains) -> AnyTeacher | None:
    """Who answers for the run's crops."""
    if config.teacher is None:
        return None
    if config.targets is None:
        return PresentTeacher(
            config.teacher,
            config.mutations,
            config.teacher_sees,
            config.device,
            config.precision,
        )
    return Teacher(
        config.teacher,
        chains,
        config.teacher_orders,
        config.targets,
        config.mutations,
        config.device,
    )


def _nll(batch: RaggedBatch, log_probs: Tensor) -> Tensor:
    """−log p [R] of the batch's letters, from log-probabilities [R, 21]."""
    return -log_probs.gather(1, batch.S[:, None])[:, 0]


def _perplexity(nll: float) -> float:
    """exp(nll), infinite where a run has diverged beyond what a float holds."""
    return math.inf if nll > math.log(sys.float_info.max) else math.exp(nll)


def _curve_row(point: CurvePoint) -> list[float]:
    return [point.step, point.residues, round(point.perplexity, 3), round(100 * point.accuracy, 2)]
