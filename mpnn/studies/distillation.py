"""Distillation at equal compute: a student without a teacher, and taught in three ways.

    OMP_NUM_THREADS=1 python -m mpnn.studies.distillation

Each arm trains one architecture from the same random weights: `plain` on the native residues;
`kept` with cached teacher outputs; `asked` with an online teacher and mutated residues; `hidden`
with the hidden states of that teacher too. Each has the same budget of CPU seconds of this process,
which includes the teacher's work. The learning rate of an arm stays constant until 70 % of its
training seconds are spent, then decays over as many steps as fill the rest at the pace so far. All
arms are measured on TS50 as in `mpnn.studies.recovery`, outside the budget, and stored in
baselines/.

Waiting for other processes costs no CPU seconds, but sharing caches with them slowed a training by
a fifth: run it on an idle machine. `plain` and `kept` should train at the same pace.

An interrupted study resumes, in steps and in seconds, from its files in --folder. Needs train.npz
and ts50.npz in MPNN_DATA and, for a published teacher, MPNN_WEIGHTS. It takes at least four times
--seconds. --arms runs some arms without storing a result; a later whole study reuses them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mpnn.atomic import write_whole
from mpnn.datasets import find_data
from mpnn.errors import InputError
from mpnn.recovery import compare, summarize
from mpnn.regression.machine import this_machine
from mpnn.studies.recovery import BASELINES, SAMPLES, SET, Row, outcomes
from mpnn.studies.tables import ARMS
from mpnn.training import Progress, TrainConfig, train
from mpnn.training.data import TrainingChains, next_crop
from mpnn.training.distillation import CachedTeacher
from mpnn.training.settings import CHOICES
from mpnn.ts50 import ts50
from mpnn.weights import load_checkpoint

TARGET = BASELINES / "distillation.json"
FOLDER = BASELINES.with_name("runs") / "distillation"
DECAY = 0.3  # share of an arm's training seconds in which the learning rate falls
EVERY = 50  # steps after which state and seconds are saved
TOKENS = 512  # residues of a step
PLACES = ("data", "weights", "state", "targets")
UNKNOWN_END = 10**9  # steps of a run whose end is not known yet


class DecayDue(Exception):  # noqa: N818 – not an error
    """Ends the constant part of a run."""


class Account:
    """What an arm has used, in a file beside its state so that an interruption loses nothing.

    One-off work of the process, some two seconds, is charged to its first arm.

    Attributes:
        used: CPU seconds of "answers" and "training"; crops "asked" about; "steps" and
            "decay_steps" of the whole run, 0 until the decay begins.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Reads the file of the arm that `config` describes, if any; seconds count from now."""
        self.path = Path(config.state).with_suffix(".json")
        self.used = {"answers": 0.0, "training": 0.0, "asked": 0, "steps": 0, "decay_steps": 0}
        if self.path.exists():
            self.used |= json.loads(self.path.read_text(encoding="utf-8"))
        self.mark = time.process_time()

    def charge(self, purpose: str, **counts: int) -> None:
        """Adds the CPU seconds since the last charge to `purpose`, and saves them and `counts`."""
        now = time.process_time()
        self.used |= {purpose: self.used[purpose] + now - self.mark, **counts}
        self.mark = now
        write_whole(self.path, json.dumps(self.used) + "\n")


def arms(architecture: str, teacher: str, precision: str, folder: Path) -> dict[str, TrainConfig]:
    """The runs by name; they differ in how they are taught, and cached outputs repeat crops."""

    def arm(name: str, base: TrainConfig, **changes: Any) -> TrainConfig:
        weights, state = (str(folder / f"{name}{suffix}") for suffix in (".safetensors", ".pt"))
        return replace(base, weights=weights, state=state, **changes)

    start = TrainConfig(
        data=str(find_data("train.npz")),
        weights="plain.safetensors",
        state="plain.pt",
        architecture=architecture,
        learning_rate=3e-3,
        optimizer="muon",
        tokens=TOKENS,
        micro_tokens=TOKENS,
        precision=precision,
        save_every=EVERY,
        report_every=EVERY,
    )
    plain = arm("plain", start)
    taught = {"teacher": teacher, "teacher_weight": 0.8}
    kept = arm("kept", plain, **taught, targets=str(folder / "targets"))
    asked = arm("asked", plain, **taught, mutations=0.3)
    hidden = arm("hidden", asked, hidden_weight=1.0)
    return {"plain": plain, "kept": kept, "asked": asked, "hidden": hidden}


def folder_of(folder: Path, configs: Mapping[str, TrainConfig]) -> Path:
    """A folder below `folder` for arms with these settings, whatever their files are called."""
    settings = {name: {**vars(c), **dict.fromkeys(PLACES)} for name, c in configs.items()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{configs['plain'].architecture}-{digest}"


def run_arm(config: TrainConfig, seconds: float) -> dict[str, Any]:
    """Trains an arm to its end within CPU seconds, or resumes it; returns what it used.

    Raises:
        InputError: the teacher's outputs alone use up the seconds.
    """
    account = Account(config)
    if Path(config.weights).exists():
        return account.used
    if config.targets is not None:
        cache_outputs(config, account)
    left = seconds - account.used["answers"]
    if left <= 0:
        raise InputError(
            f"the teacher's outputs took {account.used['answers']:.0f} CPU seconds of the "
            f"{seconds:g} of each arm; raise --seconds"
        )
    if not account.used["steps"]:
        train_until_decay(config, left, account)
    steps, decay_steps = (int(account.used[name]) for name in ("steps", "decay_steps"))
    whole = replace(config, steps=steps, decay_steps=decay_steps)
    train(whole, lambda _: account.charge("training"))
    account.charge("training")
    return account.used


def cache_outputs(config: TrainConfig, account: Account) -> None:
    """Computes the teacher's outputs for every crop of the run."""
    chains = TrainingChains(config.data)
    rest = range(int(account.used["asked"]), config.teacher_rounds * len(chains.clusters))
    if rest:
        teacher = CachedTeacher(config, chains)
        for number in rest:
            teacher.log_probs(next_crop(chains, config.crops, number))
            account.charge("answers", asked=number + 1)


def train_until_decay(config: TrainConfig, seconds: float, account: Account) -> None:
    """Trains until the decay is due, and fixes the number of steps that fill `seconds`."""

    def watch(progress: Progress) -> None:
        account.charge("training")
        spent = account.used["training"]
        if spent >= (1 - DECAY) * seconds:
            steps = max(progress.step + 1, round(progress.step * seconds / spent))
            account.charge("training", steps=steps, decay_steps=steps - progress.step)
            raise DecayDue

    with contextlib.suppress(DecayDue):
        train(replace(config, steps=UNKNOWN_END, decay_steps=0), watch)


def study(
    architecture: str,
    teacher: str,
    precision: str,
    seconds: float,
    folder: Path,
    only: Collection[str] = (),
) -> dict[str, Any]:
    """Trains and measures all arms, or those in `only`; returns the study as it is stored."""
    settings = architecture, teacher, precision
    configs = arms(*settings, folder_of(folder / f"{seconds:g}-seconds", arms(*settings, folder)))
    backbones = ts50()
    rows, measured = {}, {}
    for name in [name for name in configs if name in only or not only]:
        used = run_arm(configs[name], seconds)
        measured[name] = outcomes(Row(configs[name].weights), backbones)
        rows[name] = {
            "answers_seconds": used["answers"],
            "training_seconds": used["training"],
            "steps": used["steps"],
            "residues": load_checkpoint(configs[name].weights)[1]["residues_seen"],
            "mutations": configs[name].mutations,
            **asdict(summarize(measured[name])),
        }
        if name != "plain" and "plain" in measured:
            rows[name]["difference"] = asdict(compare(measured[name], measured["plain"]))
        sys.stderr.write(f"{name}: {rows[name]['recovery']['mean']:.1%} with {used}\n")
    return {
        "set": SET,
        "samples": SAMPLES,
        "architecture": architecture,
        "teacher": Path(teacher).stem,
        "precision": precision,
        "seconds": seconds,
        "optimizer": configs["plain"].optimizer,
        "orders": configs["kept"].teacher_orders,
        "hardware": this_machine().id,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "arms": rows,
    }


def main() -> None:
    """Runs or resumes the study, and stores it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=480.0, help="CPU seconds of each arm")
    parser.add_argument("--architecture", default="fast")
    parser.add_argument("--teacher", default="v_48_002", help="name or path of weights")
    parser.add_argument("--precision", choices=CHOICES["precision"], default="bfloat16")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=(), help="some arms only")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of states and weights")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = options.architecture, options.teacher, options.precision, options.seconds
    result = study(*settings, options.folder, options.arms)
    if set(result["arms"]) == set(ARMS):
        write_whole(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
