"""The library's face: weights are loaded once, then design and score as often as asked.

Shapes: N samples, L residues, V = 21 letters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET, NUM_LETTERS, NetworkConfig
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import Engine, check_device, load_engine
from mpnn.results import Design, Designs, Mode, Score, Scores, Target
from mpnn.rules import Rules, constraints, sources_of_letters
from mpnn.sampling import (
    Constraints,
    Key,
    Samples,
    check_sampling,
    check_seeds,
    make_job,
    negative_log_likelihood,
    noise,
    with_graph_coloring,
)
from mpnn.schedule import FloatArray, IntArray, Order, decoding_order, rank_of
from mpnn.weights import Card, default_weights, load_weights

NATIVE = 0  # sample number that keys the order for given sequences; designs are numbered from 1
CONDITIONAL_ROWS = 8  # residues whose conditional passes run at once; bounds memory

Progress = Callable[[float], None]
"""Called with the share of the work just done; shares add up to 1."""


def _no_progress(_: float) -> None:
    """Tells nobody."""


def load(name: str | Path | None = None, engine: str | None = None, device: str = "cpu") -> Model:
    """Loads weights into an engine.

    Args:
        name: a shipped or published name or the path of a checkpoint; None takes a shipped one.
        engine: what `mpnn.optimizations.load_engine` takes; None takes the network's usual one.
        device: cpu, mps or cuda.

    Raises:
        InputError: the weights cannot be found or used, the engine or device is not there, or the
            engine runs networks of another kind.
    """
    check_device(device)
    network, card = load_weights(default_weights() if name is None else name)
    return Model(load_engine(network, engine, device), network.config, card)


@dataclass(frozen=True, eq=False)
class _Task:
    """A structure ready for work."""

    target: Target
    constraints: Constraints
    S: IntArray  # [L] native letters
    encoding: Any


class Model:
    """A network in an engine; `load` makes one.

    Attributes:
        name: what the weights are called.
        card: what is known about them.
        config: size of the network.
        engine: how it is run.
    """

    def __init__(self, engine: Engine, config: NetworkConfig, card: Card) -> None:
        self.engine, self.config, self.card = engine, config, card
        self.name = str(card["name"])

    def design(
        self,
        backbone: Backbone,
        num_seqs: int = 1,
        temperature: float | Sequence[float] = 0.1,
        seed: int | Sequence[int] = 0,
        batch_size: int = 8,
        progress: Progress = _no_progress,
        order: Order = "random",
        **rules: Any,
    ) -> Designs:
        """Draws sequences for a structure.

        Every draw depends on (seed, sample, residue) alone, so neither `batch_size` nor a split of
        the work into several calls changes a sequence.

        Args:
            backbone: the structure.
            num_seqs: samples for each seed and temperature, numbered from 1.
            temperature: one or several.
            seed: one or several.
            batch_size: samples drawn side by side; bounds memory.
            progress: called after each batch with its share of the work; shares add up to 1.
            order: "random" as published, or "graph-coloring": about half the steps, another
                distribution over orders (`mpnn.schedule.graph_coloring`), no ties.
            rules: fields of `mpnn.Rules`: chains, fixed, tied, omit, bias, …

        Raises:
            InputError: a value or rule cannot be used, or nothing is left to design.
        """
        if order not in get_args(Order):
            raise InputError(f"order {order!r} is unknown; take {', '.join(get_args(Order))}")
        temperatures, seeds = check_sampling(num_seqs, temperature, seed, batch_size)
        asked = Rules(**rules)
        task = self._task(backbone, asked, "design")
        source = sources_of_letters(task.target, asked)
        native = tuple(self._score(task, task.S, s, "ordered") for s in dict.fromkeys(seeds))
        samples = range(1, num_seqs + 1)
        keys = (Key(s, n, t) for s in seeds for t in temperatures for n in samples)
        total = len(seeds) * len(temperatures) * num_seqs
        designs: list[Design] = []
        while some := list(islice(keys, batch_size)):
            job = make_job(task.S, [task.constraints], some)
            if order == "graph-coloring":
                job = with_graph_coloring(job, [self.engine.neighbors(task.encoding, 0)])
            designs += _as_designs(task, some, self.engine.sample(task.encoding, job), source)
            progress(len(some) / total)
        return Designs(**vars(task.target), native=native, designs=tuple(designs))

    def score(
        self,
        backbone: Backbone,
        sequence: str | None = None,
        seed: int = 0,
        mode: Mode = "ordered",
        **rules: Any,
    ) -> Score:
        """Scores one sequence on a structure.

        Args:
            backbone: the structure.
            sequence: letters of all chains, or of the designed ones alone, in the order of results
                (`mpnn.results`). "/" parts chains, and may be left out where the chains have this
                order in the structure too. None takes the structure's own.
            seed: keys the random order of decoding.
            mode: "ordered" sees the letters before in the order, "conditional" all others (one pass
                per residue), "unconditional" none; the same for a network that sees no letters.
            rules: fields of `mpnn.Rules`; `chains` and `fixed` say which residues count.

        Raises:
            InputError: a value or rule cannot be used, or the sequence does not fit.
        """
        given = None if sequence is None else [sequence]
        return self.score_many(backbone, given, seed, mode, **rules).scores[0]

    def score_many(
        self,
        backbone: Backbone,
        sequences: Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        mode: Mode = "ordered",
        progress: Progress = _no_progress,
        labels: Sequence[str] | None = None,
        **rules: Any,
    ) -> Scores:
        """Scores some sequences on one structure, which is encoded once; see `score`.

        `progress` is called now and then with the share of the work just done; `labels` are what
        errors call the sequences, "sequence 1" and so on if None.
        """
        if mode not in get_args(Mode):
            raise InputError(f"mode {mode!r} is unknown; take {', '.join(get_args(Mode))}")
        seeds = check_seeds(seed)
        task = self._task(backbone, Rules(**rules), "score")
        as_in_file = backbone.chain_ids
        given = [task.S]
        if sequences is not None:
            labels = labels or [f"sequence {n}" for n in range(1, len(sequences) + 1)]
            given = [
                _letters(task.target, text, as_in_file, label)
                for text, label in zip(sequences, labels, strict=True)
            ]
        parts = len(seeds) * len(given)

        def step(share: float) -> None:
            progress(share / parts)

        scores = tuple(self._score(task, S, s, mode, step) for s in seeds for S in given)
        return Scores(**vars(task.target), mode=mode, scores=scores)

    def _task(self, backbone: Backbone, rules: Rules, what: str) -> _Task:
        """Encodes a structure for what is to be done with it, in a word."""
        target, limits = constraints(backbone, rules)
        if not target.designed.any():
            raise InputError(
                f"{backbone.name}: nothing to {what}, all residues are fixed or lack atoms"
            )
        flat = Flat.from_backbones([target.backbone])
        return _Task(target, limits, flat.S, self.engine.encode(flat))

    def _score(
        self, task: _Task, S: IntArray, seed: int, mode: Mode, progress: Progress = _no_progress
    ) -> Score:
        normal = noise(seed, NATIVE, len(S))[1]
        if mode == "conditional" and self.config.autoregressive:
            log_probs = self._conditional(task, S, normal, progress)
        else:
            rank = np.zeros(len(S), np.int64)  # nothing is before anything
            if mode == "ordered":
                order = decoding_order(task.target.designed, normal)
                rank = rank_of(order, task.constraints.tie_group)
            log_probs = self.engine.log_probs(task.encoding, S[None], rank[None])[0]
            progress(1)
        score = negative_log_likelihood(log_probs, S, task.target.designed)
        everywhere = negative_log_likelihood(log_probs, S, task.target.backbone.mask)
        overall = math.nan if mode == "conditional" else float(everywhere)
        return Score(_text(S), seed, log_probs, float(score), overall)

    def _conditional(
        self, task: _Task, S: IntArray, normal: FloatArray, progress: Progress
    ) -> NDArray[np.floating]:
        """Row i [21] of the pass in which i comes last and sees every other letter, all i."""
        result = np.zeros((len(S), NUM_LETTERS), np.float32)
        designed = np.flatnonzero(task.target.designed)
        for start in range(0, len(designed), CONDITIONAL_ROWS):
            rows = designed[start : start + CONDITIONAL_ROWS]
            last = rows[:, None] == np.arange(len(S))  # [N, L]
            rank = np.stack([rank_of(decoding_order(row, normal)) for row in last])
            letters = np.tile(S, (len(rows), 1))
            log_probs = self.engine.log_probs(task.encoding, letters, rank)
            result[rows] = log_probs[np.arange(len(rows)), rows]
            progress(len(rows) / len(designed))
        return result


def _as_designs(
    task: _Task, keys: Sequence[Key], samples: Samples, source: IntArray
) -> list[Design]:
    S, target = samples.S, task.target
    score = negative_log_likelihood(samples.log_probs, S, target.designed)
    everywhere = negative_log_likelihood(samples.log_probs, S, target.backbone.mask)
    recovery = (S == task.S)[:, target.designed].mean(1)
    return [
        Design(
            sequence=_text(S[n, source]),
            seed=key.seed,
            sample=key.sample,
            temperature=key.temperature,
            score=float(score[n]),
            global_score=float(everywhere[n]),
            recovery=float(recovery[n]),
        )
        for n, key in enumerate(keys)
    ]


def _text(S: IntArray) -> str:
    return "".join(ALPHABET[letter] for letter in S)


def _letters(target: Target, sequence: str, as_in_file: Sequence[str], label: str) -> IntArray:
    """A user's sequence as L letters; chains that it leaves out keep the structure's own."""
    parts = sequence.upper().split("/")
    name, native = target.backbone.name, target.by_chain(target.backbone.sequence)
    sizes = [len(native[chain]) for chain in native]
    designed = sizes[: len(target.designed_chains)]
    text = "".join(parts)
    if unknown := sorted(set(sequence) - set(f"{ALPHABET}{ALPHABET.lower()}/")):
        raise InputError(f"{name}: letters {', '.join(unknown)} in {label}; use {ALPHABET}")
    fits = [s for s in (sizes, designed) if [sum(s)] == [len(text)]]
    if not fits or (len(parts) > 1 and [len(part) for part in parts] not in fits):
        raise InputError(
            f"{name}: {label} has {'/'.join(str(len(part)) for part in parts)} residues; the "
            f"designed chains {', '.join(target.designed_chains)} have "
            f"{'/'.join(map(str, designed))}, all chains {'/'.join(map(str, sizes))}"
        )
    chains = [*native] if fits[0] is sizes else [*target.designed_chains]
    found = [chain for chain in as_in_file if chain in chains]
    if len(parts) == 1 and found != chains:
        raise InputError(
            f"{name}: {label} is taken for chains {', '.join(chains)}, which the structure has in "
            f"the order {', '.join(found)}: part them by /"
        )
    rest = target.backbone.sequence[len(text) :]
    return np.array([ALPHABET.index(letter) for letter in text + rest], np.int64)
