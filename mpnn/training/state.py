"""What a run reads and writes: its state file, the weights it begins from, and its card."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpnn.atomic import write_whole
from mpnn.errors import InputError
from mpnn.training.data import SAMPLING_VERSION, TrainingChains
from mpnn.training.hidden import differing_tensors
from mpnn.training.settings import MAY_CHANGE, OWN_WEIGHTS_ONLY, TrainConfig, learning_rate
from mpnn.weights import Network, find_weights, load_weights

State = dict[str, Any]
CURVE = ("step", "residues", "validation perplexity", "validation top-1, %")
NOT_ON_CARD = (
    *("state", "targets", "device", "save_every", "report_every", "validation", "validate_every"),
)


class CurvePoint(NamedTuple):
    """Teacher-forced figures on held-out chains, in one fixed order each."""

    step: int
    residues: int  # trained on so far
    perplexity: float
    accuracy: float  # share of residues whose native type is the most likely


def save_state(config: TrainConfig, chains: TrainingChains, state: State) -> None:
    """Replaces the state file of a run atomically, with `state` and what identifies the run."""
    identity = {
        "config": dataclasses.asdict(config),
        "draws": SAMPLING_VERSION,
        "chains": chains.digest.hex(),
    }
    buffer = io.BytesIO()
    torch.save(identity | state, buffer)
    write_whole(config.state, buffer.getvalue())


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turns whatever reading a damaged or foreign state file leads to into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except Exception as error:
        raise InputError(
            f"{path}: not the state of a training run of this version; remove it, or set state "
            "to another file"
        ) from error


def load_state(config: TrainConfig, chains: TrainingChains) -> State:
    """The state of the run that `config` describes.

    Raises:
        InputError: the file is not a state, is the state of another run, or its run cannot end as
            `config` asks.
    """
    with readable(config.state):
        state: State = torch.load(config.state, map_location=config.device, weights_only=True)
        before = TrainConfig(**state["config"])  # a setting added since then has its default
        _check_same_run(config, before, state, chains)
        _check_length(config, before, int(state["counters"][0]))
    return state


def _check_same_run(
    config: TrainConfig, before: TrainConfig, state: State, chains: TrainingChains
) -> None:
    """Refuses the state of a run with other settings or other chains."""
    path = config.state
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(before)
    differ = [name for name in ours if name not in MAY_CHANGE and theirs[name] != ours[name]]
    if (ours["targets"] is None) != (theirs["targets"] is None):  # cached or online teacher
        differ.append("targets")
    if differ:
        raise InputError(
            f"{path}: the state of another run ({', '.join(differ)} differ); give the same "
            "settings, or set state to another file"
        )
    if state.get("draws") != SAMPLING_VERSION:
        raise InputError(
            f"{path}: written by a version that sampled crops differently; set state to another "
            f"file, and begin_from = {config.weights!r} to continue from weights"
        )
    if state["chains"] != chains.digest.hex():
        raise InputError(
            f"{path}: the state of a run on other chains than those of {config.data}; give the "
            "same chains, or set state to another file"
        )


def _check_length(config: TrainConfig, before: TrainConfig, step: int) -> None:
    """Refuses an end that has passed, and a learning rate that would rise after its decay began."""
    path = config.state
    if step > config.steps:
        raise InputError(
            f"{path}: has {step} steps already, steps is {config.steps}; give at least as many, "
            "or set state to another file"
        )
    ends = (config.steps, config.decay_steps), (before.steps, before.decay_steps)
    if step == config.steps and ends[0] != ends[1]:
        raise InputError(
            f"{path}: no step is left to reach steps = {config.steps} and decay_steps = "
            f"{config.decay_steps}, which differ from the finished run; give more steps"
        )
    begun = step - 1 > before.steps - before.decay_steps
    falling, wanted = (learning_rate(c, step) for c in (before, config))
    if begun and wanted > falling:
        raise InputError(
            f"{path}: the learning rate has fallen to {falling:.2g} and would rise to "
            f"{wanted:.2g}; give the same steps and decay_steps, or let this run end and begin "
            "another with begin_from and its own state"
        )


def weights_to_begin_from(config: TrainConfig, model: Network) -> dict[str, Tensor]:
    """The weights that the setting `begin_from` names, which fit `model`.

    Raises:
        InputError: they were not trained by this package, or differ in shape.
    """
    assert config.begin_from is not None
    path = find_weights(config.begin_from)
    other, card = load_weights(path)
    if "training" not in card:
        raise InputError(
            f"begin_from is {path}, whose card describes no training: {OWN_WEIGHTS_ONLY}"
        )
    if differ := differing_tensors(model, other):
        raise InputError(
            f"begin_from is {path}, a {other.config}, but {config.architecture} is a "
            f"{model.config}: {len(differ)} tensors differ in shape, the first is {differ[0]}; "
            "take weights with the same layers and width"
        )
    weights: dict[str, Tensor] = other.state_dict()
    return weights


def card(config: TrainConfig, residues: int, curve: Sequence[CurvePoint]) -> dict[str, Any]:
    """The card of trained weights: settings, residues seen and learning curve."""
    settings = dataclasses.asdict(config)
    for name in NOT_ON_CARD:
        del settings[name]
    weights = Path(settings.pop("weights"))
    settings["data"] = Path(config.data).name
    settings["begin_from"] = config.begin_from and Path(config.begin_from).stem
    settings["teacher"] = config.teacher and Path(config.teacher).stem
    if config.targets is None:
        del settings["teacher_orders"], settings["teacher_rounds"]
    if config.teacher is not None:  # spelled as on the cards of shipped checkpoints
        settings["answers"] = "asked for every crop" if config.targets is None else "kept"
    rows = [[p.step, p.residues, round(p.perplexity, 3), round(100 * p.accuracy, 2)] for p in curve]
    return {
        "name": weights.stem,
        "training": settings,
        "residues_seen": residues,
        "curve": {"columns": list(CURVE), "rows": rows},
    }
