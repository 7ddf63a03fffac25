"""The settings of a training run, their allowed values, and the learning-rate schedule."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mpnn.config import ARCHITECTURES, SSMConfig
from mpnn.download import PUBLISHED
from mpnn.errors import InputError
from mpnn.training.data import CropConfig

MAY_CHANGE = (
    *("data", "weights", "state", "targets", "device", "precision"),  # where and how it runs
    *("steps", "decay_steps", "tokens", "micro_tokens", "save_every", "report_every"),
    *("validation", "validate_every"),  # measured, never trained on
)
"""Settings that may differ when a run is resumed, as long as chains and targets are the same."""

OWN_WEIGHTS_ONLY = (
    "a run begins with random weights, or with .safetensors weights trained by this package"
)
CHOICES: Mapping[str, Collection[str]] = {
    "architecture": ARCHITECTURES,
    "precision": ("float32", "bfloat16"),
    "optimizer": ("adamw", "muon"),
    "teacher_sees": ("shown", "native"),
}
MOST = sys.float_info.max
RANGES = {
    **dict.fromkeys(("steps", "tokens", "micro_tokens", "max_length"), (1, MOST)),
    **dict.fromkeys(("teacher_orders", "teacher_rounds"), (1, MOST)),
    **dict.fromkeys(("save_every", "report_every", "validate_every"), (1, MOST)),
    **dict.fromkeys(("warmup_steps", "decay_steps"), (0, MOST)),
    **dict.fromkeys(("learning_rate", "noise", "hidden_weight"), (0, MOST)),
    **dict.fromkeys(("teacher_weight", "mutations"), (0, 1)),
    "seed": (0, 2**63 - 1),
}
"""Lowest and highest value of each numeric setting."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        InputError: a setting is out of its range, or two settings exclude each other.
    """

    data: str  # .npz of training chains, see mpnn.datasets
    weights: str  # .safetensors file for the trained weights
    state: str  # file with the run's state, from which it resumes
    architecture: str = "minimal"  # a name in ARCHITECTURES
    steps: int = 10_000
    warmup_steps: int = 200
    decay_steps: int = 2_000  # the last steps, in which the learning rate falls to 0
    learning_rate: float = 2e-3
    optimizer: str = "adamw"  # for the matrices of layers, adamw or muon; AdamW for the rest
    tokens: int = 512  # residues of a step, at most
    micro_tokens: int = 256  # residues in one forward and backward pass
    max_length: int = 256  # residues of a crop
    noise: float = 0.02  # Å, standard deviation on every coordinate
    begin_from: str | None = None  # weights trained by this package; None: random weights
    teacher: str | None = None  # name or path of weights; None: no distillation
    teacher_weight: float = 0.7  # share of the teacher's distribution in the target
    teacher_orders: int = 2  # decoding orders of each chain in cached teacher outputs
    teacher_rounds: int = 1  # rounds over all clusters before chains repeat (cached outputs only)
    targets: str | None = None  # folder of cached teacher outputs; None: online teacher
    mutations: float = 0.0  # share of residues replaced by samples from the teacher
    teacher_sees: str = "shown"  # residues as the student sees them, or the native ones
    hidden_weight: float = 0.0  # weight of the hidden-state error against an online teacher
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"  # of matmuls; bfloat16 where the machine is fast at it
    save_every: int = 200  # steps
    report_every: int = 20  # steps
    validation: str | None = None  # .npz of held-out chains, on which the curve is measured
    validate_every: int = 500  # steps

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}"
                )
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                limits = f"at least {low}" if high == MOST else f"from {low} to {high}"
                raise InputError(f"{name} is {getattr(self, name)}; it must be {limits}, finite")
        for message, broken in (self._file_rules() | self._teacher_rules()).items():
            if broken:
                raise InputError(message)

    def _file_rules(self) -> dict[str, bool]:
        """Whether each rule for files and steps is broken, by its message."""
        return {
            f"weights is {self.weights}; weights are written as .safetensors": (
                not self.weights.endswith(".safetensors")
            ),
            f"begin_from is {self.begin_from}, published weights: {OWN_WEIGHTS_ONLY}": (
                self.begin_from in PUBLISHED
            ),
            f"decay_steps is {self.decay_steps}, more than the {self.steps} steps of a run; raise "
            "steps or lower decay_steps": self.decay_steps > self.steps,
        }

    def _teacher_rules(self) -> dict[str, bool]:
        """Whether each rule for the teacher's settings is broken, by its message."""
        online = self.teacher is not None and self.targets is None
        of_cache = self.teacher_orders, self.teacher_rounds
        defaults = TrainConfig.teacher_orders, TrainConfig.teacher_rounds
        state_space = isinstance(ARCHITECTURES[self.architecture], SSMConfig)
        return {
            "teacher_orders and teacher_rounds apply to cached teacher outputs; set targets to "
            "their folder": self.targets is None and of_cache != defaults,
            'teacher_sees = "native" has no effect while mutations = 0': (
                self.teacher_sees == "native" and not self.mutations
            ),
            "hidden_weight above 0 needs an online teacher; set teacher and leave targets out": (
                self.hidden_weight > 0 and not online
            ),
            "mutations above 0 needs a teacher, from which replacements are sampled": (
                self.mutations > 0 and self.teacher is None
            ),
            "cached teacher outputs are computed from native residues; with mutations above 0 set "
            'teacher_sees = "native", or leave targets out': (
                self.mutations > 0 and not online and self.teacher_sees == "shown"
            ),
            f"hidden_weight must be 0 for {self.architecture}: its layers do not correspond to "
            "those of its teacher": self.hidden_weight > 0 and state_space,
        }

    @property
    def crops(self) -> CropConfig:
        """How this run samples its crops."""
        if self.teacher is None or self.targets is None:
            return CropConfig(self.seed, self.noise, self.max_length)
        limits = self.teacher_orders, self.teacher_rounds
        return CropConfig(self.seed, self.noise, self.max_length, *limits)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, constant, then 1 − √(share of the decay done)."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    over = (step - (config.steps - config.decay_steps)) / max(1, config.decay_steps)
    return config.learning_rate * rise * (1 - math.sqrt(min(1.0, max(0.0, over))))
