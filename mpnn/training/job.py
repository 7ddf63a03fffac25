"""What `mpnn train` and `mpnn distill` do: a settings file, changes to it, and progress."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mpnn.errors import InputError
from mpnn.files import log_console
from mpnn.training.run import Progress
from mpnn.training.run import train as train_network
from mpnn.training.settings import TrainConfig


def train(path: str, changes: Sequence[str], distill: bool) -> None:
    """Begins or resumes the training that a settings file describes.

    Args:
        path: TOML file with fields of `TrainConfig`.
        changes: NAME=VALUE, each replacing a setting of the file.
        distill: whether the settings must name a teacher, or must not.

    Raises:
        InputError: a setting is unknown, missing or of the wrong type; see
            `mpnn.training.train`.
    """
    config = read_config(path, changes)
    if distill != (config.teacher is not None):
        rule = "mpnn distill needs a teacher" if distill else "mpnn train takes no teacher"
        other = "mpnn train" if distill else "mpnn distill"
        raise InputError(f"{path}: teacher is {config.teacher!r}, and {rule}; use {other}")
    console = log_console()
    train_network(config, lambda progress: console.print(_line(progress)))
    console.print(f"{config.steps} steps done -> {config.weights}")


def read_config(path: str, changes: Sequence[str] = ()) -> TrainConfig:
    """The settings of a TOML file, with changes NAME=VALUE.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, missing or of another type.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a TOML file of settings ({error})") from error
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator:
            raise InputError(f"--set {change}: write NAME=VALUE")
        settings[name.strip()] = _value(value.strip())
    _check_settings(path, settings)
    return TrainConfig(**settings)


def _value(text: str) -> Any:
    """A TOML value; other text is a string, so that quotes can be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_settings(path: str, settings: dict[str, Any]) -> None:
    types = get_type_hints(TrainConfig)
    if unknown := sorted(set(settings) - set(types)):
        raise InputError(
            f"{path}: unknown settings {', '.join(unknown)}; known are {', '.join(types)}"
        )
    required = [f.name for f in dataclasses.fields(TrainConfig) if f.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in settings]:
        raise InputError(f"{path}: settings {', '.join(missing)} are missing")
    for name, value in settings.items():
        allowed = get_args(types[name]) or (types[name],)
        if float in allowed and type(value) is int and abs(value) < 2**53:
            settings[name] = value = float(value)
        if isinstance(value, bool) or not isinstance(value, allowed):
            kind = allowed[0].__name__
            raise InputError(f"{path}: {name} is {value!r}; it must be of type {kind}")


def _line(progress: Progress) -> str:
    """One line of the log."""
    p, held_out = progress, progress.validation
    parts = [
        f"step {p.step}/{p.steps}",
        f"loss {p.loss:.3f}",
        f"perplexity {p.perplexity:.2f}",
        f"accuracy {p.accuracy:.1%}",
        f"hidden error {p.hidden_error:.3f}" if p.hidden_error else "",
        f"{p.residues_per_second:.0f} residues/s",
        f"{p.seconds_left / 60:.0f} min left",
    ]
    if held_out:
        figures = f"perplexity {held_out.perplexity:.2f} accuracy {held_out.accuracy:.1%}"
        parts.append(f"validation {figures}")
    return "  ".join(filter(None, parts))
