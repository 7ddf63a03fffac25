"""The settings of a run, what they may be, and the learning rate that follows from them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpnn.config import ARCHITECTURES, SSMConfig
from mpnn.download import PUBLISHED
from mpnn.errors import InputError
from mpnn.training.data import DrawConfig

MAY_CHANGE = (
    *("data", "weights", "state", "targets", "device", "precision"),  # where and how it runs
    *("steps", "decay_steps", "tokens", "micro_tokens", "save_every", "report_every"),
    *("validation", "validate_every"),  # measured, never learnt from
)
"""Settings that may differ when a run is resumed, as long as chains and targets are the same."""

TOGETHER = (
    *("data", "seed", "noise", "max_length", "tokens", "micro_tokens"),  # the crops
    *("teacher", "mutations", "teacher_sees"),  # the answers
    *("targets", "teacher_orders", "teacher_rounds"),
    *("device", "precision"),
)
"""Settings in which runs in lockstep agree."""

OWN_WEIGHTS_ONLY = "a run begins with random weights or with .safetensors that were trained here"
PRECISIONS = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "muon")
LETTERS = ("shown", "native")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        InputError: a setting is out of its range.
    """

    data: str  # .npz of training chains, see mpnn.datasets
    weights: str  # .safetensors file for the trained weights
    state: str  # file that keeps the run's state
    architecture: str = "minimal"  # a name in ARCHITECTURES
    steps: int = 10_000
    warmup_steps: int = 200
    decay_steps: int = 2_000  # the last steps, in which the learning rate falls to 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    optimizer: str = "adamw"  # of the matrices of layers, adamw or muon; the rest is AdamW's
    tokens: int = 512  # residues of a step, at most
    micro_tokens: int = 256  # residues that pass through the network at once
    max_length: int = 256  # residues of a crop
    noise: float = 0.02  # Å on every coordinate
    neighbors_shown: float = 1.0  # share of a residue's neighbors that a step shows it, by lot
    label_smoothing: float = 0.0
    begin_from: str | list[str] | None = None  # weights trained here, or several, for their mean
    teacher: str | None = None  # name or path of weights; None: the native letters alone
    teacher_weight: float = 0.7  # share of the teacher's distribution in the target
    teacher_orders: int = 2  # decoding orders of each chain, of kept answers
    teacher_rounds: int = 1  # rounds over all clusters in which chains are new
    targets: str | None = None  # folder that keeps the teacher's answers; None: asked each time
    mutations: float = 0.0  # share of letters that are replaced by draws from the teacher's answers
    teacher_sees: str = "shown"  # letters as the student is shown them, or native ones
    hidden_weight: float = 0.0  # of hidden vectors unlike a teacher's that is asked each time
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"  # of products: float32, or bfloat16 where the machine is fast at it
    save_every: int = 200  # steps
    report_every: int = 20  # steps
    validation: str | None = None  # .npz of chains kept aside, on which the curve is measured
    validate_every: int = 500  # steps

    def __post_init__(self) -> None:
        self._check_choices()
        if not self.weights.endswith(".safetensors"):
            raise InputError(f"{self.weights}: trained weights are written as .safetensors")
        self._check_numbers()
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2^63, not {self.seed}")
        if self.decay_steps > self.steps:
            raise InputError(
                f"decay_steps is {self.decay_steps}, of {self.steps} steps: the learning rate is "
                "never reached; give as many steps or more, or a shorter decay"
            )
        self._check_teacher()

    def _check_numbers(self) -> None:
        for name in (
            *("steps", "tokens", "micro_tokens", "max_length", "teacher_orders", "teacher_rounds"),
            *("save_every", "report_every", "validate_every"),
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup_steps", "decay_steps", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "noise", "hidden_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("label_smoothing", "teacher_weight", "mutations"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if not 0 < self.neighbors_shown <= 1:
            raise InputError(
                f"neighbors_shown must lie above 0 and be 1 at most, not {self.neighbors_shown}"
            )

    def _check_choices(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"no architecture {self.architecture!r}; there are: {', '.join(ARCHITECTURES)}"
            )
        for name, known in (
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
            ("teacher_sees", LETTERS),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {' or '.join(known)}, not {getattr(self, name)!r}")
        if self.begin_from == []:
            raise InputError("begin_from names no weights; leave it out for random ones")
        for name in self.origins:
            if not isinstance(name, str):
                raise InputError(f"begin_from names weights, not {name!r}")
            if name in PUBLISHED:
                raise InputError(f"begin_from is {name}: {OWN_WEIGHTS_ONLY}")

    def _check_teacher(self) -> None:
        of_kept = self.teacher_orders, self.teacher_rounds
        defaults = TrainConfig.teacher_orders, TrainConfig.teacher_rounds
        if self.targets is None and of_kept != defaults:
            raise InputError("teacher_orders, teacher_rounds are of kept answers: give `targets`")
        if self.teacher_sees == "native" and not self.mutations:
            raise InputError(
                "teacher_sees is native: mutations must be above 0, for else no letter is replaced"
            )
        kept = self.targets is not None
        if self.hidden_weight and (self.teacher is None or kept):
            raise InputError(
                "hidden_weight above 0 needs a teacher that is asked each time, without `targets`"
            )
        if self.hidden_weight and self.neighbors_shown < 1:
            raise InputError(
                "hidden_weight above 0 needs neighbors_shown = 1: hidden vectors of edges are "
                "compared neighbor by neighbor"
            )
        if self.mutations and self.teacher is None:
            raise InputError("mutations above 0 needs a teacher, from whose answers they are drawn")
        if self.mutations and kept and self.teacher_sees == "shown":
            raise InputError(
                "mutations above 0 with kept answers, which are for native letters, needs "
                'teacher_sees = "native"; or leave `targets` out'
            )
        if self.hidden_weight and isinstance(ARCHITECTURES[self.architecture], SSMConfig):
            raise InputError(
                f"hidden_weight must be 0 for {self.architecture}, whose layers are of another "
                "kind than its teacher's"
            )

    def validates(self, step: int) -> bool:
        """Whether the curve has a point after this step: at intervals, and in the end."""
        return step % self.validate_every == 0 or step == self.steps

    @property
    def origins(self) -> list[str]:
        """Names or paths of the weights that a run begins from; none: it begins at random."""
        if self.begin_from is None:
            return []
        return [self.begin_from] if isinstance(self.begin_from, str) else self.begin_from

    @property
    def draws(self) -> DrawConfig:
        """How this run draws its crops."""
        if self.teacher is None or self.targets is None:
            return DrawConfig(self.seed, self.noise, self.max_length)
        limits = self.teacher_orders, self.teacher_rounds
        return DrawConfig(self.seed, self.noise, self.max_length, *limits)


def check_together(configs: Sequence[TrainConfig]) -> None:
    """Refuses runs that cannot be in lockstep.

    Raises:
        InputError: they differ in a setting of `TOGETHER`, a file is to be written twice, or one
            begins from, or is taught by, what another is to write.
    """
    first = configs[0]
    for other in configs[1:]:
        for name in TOGETHER:
            if getattr(first, name) != getattr(other, name):
                raise InputError(
                    f"{first.weights} and {other.weights} cannot be trained together: {name} is "
                    f"{getattr(first, name)!r} and {getattr(other, name)!r}"
                )
    written = [Path(name).resolve() for c in configs for name in (c.weights, c.state)]
    for path, times in Counter(written).items():
        if times > 1:
            raise InputError(f"{path}: two runs, or weights and state of one, are to be this file")
    for config, other in itertools.permutations(configs, 2):
        needed = [("begin_from", place) for place in config.origins]
        if config.teacher is not None:
            needed.append(("teacher", config.teacher))
        for name, place in needed:
            if Path(place).resolve() == Path(other.weights).resolve():
                raise InputError(
                    f"{config.weights}: its {name} {place} is still to be written; "
                    "let that run end first, and start this one then"
                )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then stable, then 1 − √ of the share of the decay that is over."""
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    over = (step - (config.steps - config.decay_steps)) / max(1, config.decay_steps)
    return config.learning_rate * rise * (1 - math.sqrt(min(1.0, max(0.0, over))))
