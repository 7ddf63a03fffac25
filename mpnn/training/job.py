"""What `mpnn train` and `mpnn distill` do: a settings file, changes to it, and progress."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mpnn.errors import InputError
from mpnn.files import log_console
from mpnn.training.run import Progress, train_together
from mpnn.training.settings import TrainConfig


def train(paths: Sequence[str], changes: Sequence[str], distill: bool) -> None:
    """Runs, or goes on with, the trainings that settings files describe, in lockstep if several.

    Args:
        paths: TOML files with fields of `TrainConfig`.
        changes: NAME=VALUE, each in place of the files'.
        distill: whether a teacher must be, or must not be, among the settings.

    Raises:
        InputError: a setting is unknown, missing or of the wrong type; see
            `mpnn.training.train_together`.
    """
    configs = [read_config(path, changes) for path in paths]
    for path, config in zip(paths, configs, strict=True):
        if distill != (config.teacher is not None):
            wanted = "distill needs a teacher" if distill else "a teacher is for mpnn distill"
            raise InputError(f"{path}: {wanted}; its setting is {config.teacher!r}")
    console = log_console()

    def tell(config: TrainConfig, progress: Progress) -> None:
        name = f"{config.weights}  " if len(configs) > 1 else ""
        console.print(name + _line(progress))

    train_together(configs, tell)
    for config in configs:
        console.print(f"{config.steps} steps done -> {config.weights}")


def read_config(path: str, changes: Sequence[str] = ()) -> TrainConfig:
    """The settings of a TOML file, with changes NAME=VALUE.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, missing or of another type.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: settings in TOML are needed ({error})") from error
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator:
            raise InputError(f"--set {change}: write NAME=VALUE")
        settings[name.strip()] = _value(value.strip())
    _check_settings(path, settings)
    return TrainConfig(**settings)


def _value(text: str) -> Any:
    """A TOML value; what is none is a string, so that quotes can be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_settings(path: str, settings: dict[str, Any]) -> None:
    types = get_type_hints(TrainConfig)
    if unknown := sorted(set(settings) - set(types)):
        raise InputError(f"{path}: no setting {', '.join(unknown)}; there are {', '.join(types)}")
    required = [f.name for f in dataclasses.fields(TrainConfig) if f.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in settings]:
        raise InputError(f"{path}: settings {', '.join(missing)} are missing")
    for name, value in settings.items():
        allowed = tuple(
            get_origin(kind) or kind for kind in get_args(types[name]) or (types[name],)
        )
        if float in allowed and type(value) is int and abs(value) < 2**53:
            settings[name] = value = float(value)
        if isinstance(value, bool) or not isinstance(value, allowed):
            kinds = " or ".join(kind.__name__ for kind in allowed)
            raise InputError(f"{path}: {name} is {value!r}; {kinds} is needed")


def _line(progress: Progress) -> str:
    kept_aside = progress.validation
    curve = (
        f"  validation perplexity {kept_aside.perplexity:.2f} accuracy {kept_aside.accuracy:.1%}"
        if kept_aside
        else ""
    )
    hidden = f"hidden error {progress.hidden_error:.3f}  " if progress.hidden_error else ""
    return (
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  "
        f"perplexity {progress.perplexity:.2f}  accuracy {progress.accuracy:.1%}  {hidden}"
        f"{progress.residues_per_second:.0f} residues/s  "
        f"{progress.seconds_left / 60:.0f} min left{curve}"
    )
