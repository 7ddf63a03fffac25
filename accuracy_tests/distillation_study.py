"""What a teacher is worth at equal cost: the same student without one, and taught in three ways.

    OMP_NUM_THREADS=1 python accuracy_tests/distillation_study.py

Each arm trains one architecture from the same random weights: `plain` on the native letters alone;
`kept` on a teacher's kept answers too; `asked` on those of a teacher that is asked about every crop
and replaces some letters by its own; `hidden` on the same and on its hidden vectors. Each may use
as many CPU seconds of this process, and a teacher's work is paid for out of them. An arm is stable
until 70 % of its training seconds are spent; its decay then has as many steps as fill the rest at
the pace so far. All are measured on TS50 as `recovery_study` does, which is not charged, and the
result is stored in baselines/.

Waiting for other work costs no CPU seconds, but sharing caches with it slowed a training by a
fifth: close it first. The table shows the pace of each arm; those of `plain` and `kept` should be
the same, a teacher that is asked on the way slows its student.

An interrupted study goes on where it was, in steps and in seconds, from what it keeps in --folder.
Needs train.npz and ts50.npz in MPNN_DATA and, for a published teacher, MPNN_WEIGHTS. It takes four
times --seconds, and more on a busy machine. --arms picks some, of which nothing is stored; a whole
study takes those done with the same settings as they are.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from recovery_study import SAMPLES, SET, Row, outcomes

from mpnn.datasets import find_data
from mpnn.errors import InputError
from mpnn.output import write_whole
from mpnn.recovery import compare, summarize
from mpnn.regression.machine import this_machine
from mpnn.studies.tables import ARMS
from mpnn.training import TrainConfig, train
from mpnn.training.data import TrainingChains, draw
from mpnn.training.distillation import Teacher
from mpnn.training.settings import PRECISIONS
from mpnn.ts50 import ts50
from mpnn.weights import load_checkpoint

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "baselines" / "distillation.json"
FOLDER = ROOT / "runs" / "distillation"
DECAY = 0.3  # share of an arm's training seconds in which the learning rate falls
EVERY = 50  # steps after which state and seconds are kept
PLACES = ("data", "weights", "state", "targets")
FAR = 10**9  # steps of a run whose end is not known yet


class DecayDue(Exception):  # noqa: N818 – no error
    """Ends the stable part of a run."""


class Account:
    """What an arm has used so far, in a file beside its state so that an interruption costs none.

    What a process does once is charged to the arm that it begins with, about two seconds.

    Attributes:
        used: CPU seconds of "answers" and "training"; draws "asked" about; "steps" and
            "decay_steps" of the whole run, 0 until the decay begins.
    """

    def __init__(self, path):
        """Takes up the file where there is one; seconds count from here on."""
        self.path = path
        self.used = {"answers": 0.0, "training": 0.0, "asked": 0, "steps": 0, "decay_steps": 0}
        if path.exists():
            self.used |= json.loads(path.read_text(encoding="utf-8"))
        self.mark = time.process_time()

    def charge(self, purpose, **counts):
        """Adds the CPU seconds since the last charge to `purpose`, and keeps them with `counts`."""
        now = time.process_time()
        self.used |= {purpose: self.used[purpose] + now - self.mark, **counts}
        self.mark = now
        write_whole(self.path, json.dumps(self.used) + "\n")


def account_of(config):
    """The account of the arm that `config` describes."""
    return Account(Path(config.state).with_suffix(".json"))


def arms(architecture, teacher, precision, folder):
    """The runs by name: they differ in how they are taught, and kept answers fix the draws."""

    def files(name):
        return {"weights": str(folder / f"{name}.safetensors"), "state": str(folder / f"{name}.pt")}

    plain = TrainConfig(
        data=str(find_data("train.npz")),
        **files("plain"),
        architecture=architecture,
        learning_rate=3e-3,
        optimizer="muon",
        tokens=512,
        micro_tokens=512,
        precision=precision,
        save_every=EVERY,
        report_every=EVERY,
    )
    taught = replace(plain, teacher=teacher, teacher_weight=0.8)
    kept = replace(taught, **files("kept"), targets=str(folder / "targets"))
    asked = replace(taught, **files("asked"), mutations=0.3)
    hidden = replace(asked, **files("hidden"), hidden_weight=1.0)
    return {"plain": plain, "kept": kept, "asked": asked, "hidden": hidden}


def of_settings(folder, configs):
    """A folder below `folder` for arms of these settings, whatever files they name."""
    told = {name: {**vars(c), **dict.fromkeys(PLACES)} for name, c in configs.items()}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{configs['plain'].architecture}-{digest}"


def run_arm(config, seconds):
    """Trains an arm to its end, or goes on with it, within CPU seconds; returns what it used.

    Raises:
        InputError: the teacher's answers alone use up the seconds.
    """
    account = account_of(config)
    if Path(config.weights).exists():
        return account.used
    if config.targets is not None:
        ask(config, account)
    left = seconds - account.used["answers"]
    if left <= 0:
        raise InputError(
            f"the teacher's answers took {account.used['answers']:.0f} CPU seconds of {seconds:g} "
            "for each arm: give more --seconds"
        )
    if not account.used["steps"]:
        train_stable(config, left, account)
    length = {name: account.used[name] for name in ("steps", "decay_steps")}
    train(replace(config, **length), lambda _: account.charge("training"))
    account.charge("training")
    return account.used


def ask(config, account):
    """Has the teacher answer for every chain that the run will draw."""
    chains = TrainingChains(config.data)
    rest = range(account.used["asked"], config.teacher_rounds * len(chains.clusters))
    if rest:
        teacher = Teacher(config.teacher, chains, config.teacher_orders, config.targets)
        for number in rest:
            teacher.log_probs(draw(chains, config.draws, number))
            account.charge("answers", asked=number + 1)


def train_stable(config, seconds, account):
    """Trains until the decay is due, and settles the steps with which the run fills `seconds`."""

    def watch(progress):
        account.charge("training")
        spent = account.used["training"]
        if spent >= (1 - DECAY) * seconds:
            steps = max(progress.step + 1, round(progress.step * seconds / spent))
            account.charge("training", steps=steps, decay_steps=steps - progress.step)
            raise DecayDue

    with contextlib.suppress(DecayDue):
        train(replace(config, steps=FAR, decay_steps=0), watch)


def study(architecture, teacher, precision, seconds, folder, only=()):
    """The arms trained and measured, or those named in `only`, as it is stored."""
    settings = architecture, teacher, precision
    place = of_settings(folder / f"{seconds:g}-seconds", arms(*settings, folder))
    configs = arms(*settings, place)
    backbones = ts50()
    found, measured = {}, {}
    for name in [name for name in configs if name in only or not only]:
        used = run_arm(configs[name], seconds)
        measured[name] = outcomes(Row(configs[name].weights), backbones)
        found[name] = {
            "answers_seconds": used["answers"],
            "training_seconds": used["training"],
            "steps": used["steps"],
            "residues": load_checkpoint(configs[name].weights)[1]["residues_seen"],
            "mutations": configs[name].mutations,
            **asdict(summarize(measured[name])),
        }
        if name != "plain" and "plain" in measured:
            found[name]["difference"] = asdict(compare(measured[name], measured["plain"]))
        sys.stderr.write(f"{name}: {found[name]['recovery']['mean']:.1%} with {used}\n")
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
        "arms": found,
    }


def main():
    """Runs or goes on with the study, and stores it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=480.0, help="CPU seconds for each arm")
    parser.add_argument("--architecture", default="fast")
    parser.add_argument("--teacher", default="v_48_002", help="name or path of weights")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=(), help="some alone")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of states and answers")
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
