"""The library: load weights once, then design and score any number of structures.

Shapes: N samples, L residues, V = 21 residue types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET, NUM_LETTERS, ModelConfig, NetworkConfig
from mpnn.constraints import constraints, sources_of_letters
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.pssm import profile_of, with_profile
from mpnn.results import Design, Designs, Mode, Score, Scores, Target
from mpnn.rules import Rules
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
from mpnn.weights import Card, default_weights, load_arrays

if TYPE_CHECKING:
    from mpnn.optimizations import Engine

NATIVE = 0  # sample number that keys the order for given sequences; designs are numbered from 1
CONDITIONAL_ROWS = 8  # residues whose conditional passes run at once; bounds memory
ROWS_PER_CALL = 1 << 14
"""N·L of one call to an engine where no batch size is given. At about 10 kB a row in the exact
engine it takes 160 MB; at L = 106, 64 samples at once take half the time of 8 at once for each."""

Progress = Callable[[float], None]
"""Called with the share of the work just done; shares add up to 1."""


def _no_progress(_: float) -> None:
    """Default progress callback: does nothing."""


def load(name: str | Path | None = None, engine: str | None = None, device: str = "cpu") -> Model:
    """Loads weights into an engine.

    Args:
        name: a shipped or published name or the path of a checkpoint; None takes a shipped one.
        engine: what `mpnn.optimizations.load_engine` takes; None takes the network's usual one.
        device: cpu, mps or cuda.

    Raises:
        InputError: the weights cannot be found or used, the engine or device does not exist, or the
            engine runs networks of another kind.
    """
    from mpnn.optimizations import check_device, exact_form, load_engine

    check_device(device)
    weights = load_arrays(default_weights() if name is None else name)
    notes = []
    if engine in (None, "exact") and device == "cpu" and isinstance(weights.config, ModelConfig):
        _, reason = exact_form(weights, device)
        notes += [f"engine exact runs in torch, which takes longer: {reason}"] if reason else []
    return Model(load_engine(weights, engine, device), weights.config, weights.card, notes)


@dataclass(frozen=True, eq=False)
class _Task:
    """A structure ready for work."""

    target: Target
    constraints: Constraints
    flat: Flat
    encoding: Any

    @property
    def S(self) -> IntArray:  # noqa: N802 – as in `Flat`
        """Native residue types [L]."""
        return self.flat.S


class Model:
    """A network in an engine; `load` makes one.

    Attributes:
        name: what the weights are called.
        card: what is known about them.
        config: size of the network.
        engine: how it is run.
        notes: what a user should know about that, one sentence each.
    """

    def __init__(
        self, engine: Engine, config: NetworkConfig, card: Card, notes: Sequence[str] = ()
    ) -> None:
        self.engine, self.config, self.card = engine, config, card
        self.notes = tuple(notes)
        self.name = str(card["name"])

    def design(
        self,
        backbone: Backbone,
        num_seqs: int = 1,
        temperature: float | Sequence[float] = 0.1,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        progress: Progress = _no_progress,
        order: Order = "random",
        keep_log_probs: bool = False,
        **rules: Any,
    ) -> Designs:
        """Samples sequences for a structure.

        Every residue type depends on (seed, sample, residue) alone, so neither `batch_size` nor a
        split of the work into several calls changes a sequence.

        Args:
            backbone: the structure.
            num_seqs: samples for each seed and temperature, numbered from 1.
            temperature: one or several.
            seed: one or several.
            batch_size: samples per call of the engine; bounds memory. None chooses by length:
                `ROWS_PER_CALL` residues, 64 samples or more for up to 256 residues.
            progress: called after each batch with its share of the work; shares add up to 1.
            order: "random" as published, or "graph-coloring": about half the steps, another
                distribution over orders (`mpnn.schedule.graph_coloring`), no ties.
            keep_log_probs: return `Designs.log_probs`, 84 bytes for each residue of each design.
            rules: fields of `mpnn.Rules` (chains, fixed, tied, omit, bias, …), or rules=Rules(…).

        Raises:
            InputError: a value or rule cannot be used, or nothing is left to design.
        """
        if order not in get_args(Order):
            raise InputError(f"order {order!r} is unknown; take {', '.join(get_args(Order))}")
        temperatures, seeds = check_sampling(num_seqs, temperature, seed, batch_size)
        asked = Rules.of(**rules)
        task = self._task(backbone, asked, "design")
        source = sources_of_letters(task.target, asked)
        profile = profile_of(task.target, task.constraints, asked)
        native = tuple(self._score(task, task.S, s, "ordered") for s in dict.fromkeys(seeds))
        batch_size = batch_size or self._samples_per_call(len(backbone))
        samples = range(1, num_seqs + 1)
        keys = (Key(s, n, t) for s in seeds for t in temperatures for n in samples)
        total = len(seeds) * len(temperatures) * num_seqs
        designs: list[Design] = []
        kept: list[NDArray[np.floating]] = []
        while some := list(islice(keys, batch_size)):
            job = with_profile(make_job(task.S, [task.constraints], some), profile, some)
            if order == "graph-coloring":
                job = with_graph_coloring(job, [self.engine.neighbors(task.encoding, 0)])
            drawn = self.engine.sample(task.encoding, job)
            designs += _as_designs(task, some, drawn, source)
            if keep_log_probs:
                kept.append(drawn.log_probs)
            progress(len(some) / total)
        log_probs = np.concatenate(kept) if kept else None
        return Designs(
            **vars(task.target), native=native, designs=tuple(designs), log_probs=log_probs
        )

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
            sequence: residues of all chains, or of the designed ones alone, in the order of results
                (`mpnn.results`). "/" or ":" separates chains, and may be left out where the
                chains have this order in the structure too. None takes the structure's own.
            seed: keys the random decoding order.
            mode: what each residue sees of the sequence. All are the same for a network that sees
                no residue types.

                - "ordered": the residue types before it in the decoding order.
                - "conditional": all others, in one pass for each residue, in which it is decoded
                  last. Exact: its own type has no influence.
                - "pseudo-likelihood": all others, in one pass for all residues, as Foundry's
                  conditional_minus_self. In every decoder layer a residue reads the types and the
                  decoder states of all its neighbors, and not its own type. But its neighbors read
                  its type, so from the second layer on their states carry some of it: an
                  approximation of the conditional mode at about the cost of five passes.
                - "unconditional": none.
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
        task = self._task(backbone, Rules.of(**rules), "score")
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
        return _Task(target, limits, flat, self.engine.encode(flat))

    def _samples_per_call(self, length: int) -> int:
        """How many samples keep one call of the engine within its rows, at least 1."""
        return max(1, getattr(self.engine, "rows_per_call", ROWS_PER_CALL) // length)

    def _score(
        self, task: _Task, S: IntArray, seed: int, mode: Mode, progress: Progress = _no_progress
    ) -> Score:
        normal = noise(seed, NATIVE, len(S))[1]
        config = self.config
        if mode == "conditional" and config.autoregressive:
            log_probs = self._conditional(task, S, normal, progress)
        elif (
            mode == "pseudo-likelihood"
            and isinstance(config, ModelConfig)
            and config.autoregressive
        ):
            log_probs = self._pseudo_likelihood(task, S, config.num_decoder_layers)
            progress(1)
        else:
            rank = np.zeros(len(S), np.int64)  # nothing is before anything
            if mode == "ordered":
                order = decoding_order(task.target.designed, normal)
                rank = rank_of(order, task.constraints.tie_group)
            log_probs = self.engine.log_probs(task.encoding, S[None], rank[None])[0]
            progress(1)
        target = task.target
        known = target.designed if mode == "conditional" else target.backbone.mask
        score = negative_log_likelihood(log_probs, S, target.designed)
        everywhere = negative_log_likelihood(log_probs, S, target.backbone.mask)
        return Score(
            sequence=_text(S),
            seed=seed,
            log_probs=log_probs,
            score=float(score),
            global_score=math.nan if mode == "conditional" else float(everywhere),
            residue_scores=_residue_scores(log_probs, S, known),
        )

    def _conditional(
        self, task: _Task, S: IntArray, normal: FloatArray, progress: Progress
    ) -> NDArray[np.floating]:
        """Row i [21] of the pass in which i is decoded last and sees all other types, for all i."""
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

    def _pseudo_likelihood(self, task: _Task, S: IntArray, layers: int) -> NDArray[np.floating]:
        """Log-probabilities [L, 21] where every residue sees all others, in one pass.

        That everybody sees everybody is not a matter of ranks, but the decoder's layers can be
        unrolled: of copies 0 … `layers` of the structure, each with the previous copy's residues
        for neighbors and with its number for a rank, copy n has the states that all-visible
        neighbors give up to layer n.
        """
        E_idx, real = self.engine.neighbors(task.encoding, 0)
        unrolled = _unrolled(task.flat, E_idx[:, : int(real[0].sum())], layers + 1)
        rank = np.repeat(np.arange(layers + 1), len(S))
        copies = np.tile(S, layers + 1)
        log_probs = self.engine.log_probs(self.engine.encode(unrolled), copies[None], rank[None])
        return log_probs[0, -len(S) :]


def _unrolled(flat: Flat, E_idx: IntArray, copies: int) -> Flat:
    """Copies of a structure as one; edges lead to the copy before, those of copy 0 stay in it.

    A residue's edge to itself stays within its copy, where it is invisible. Copies have the same
    coordinates and numbers, so the encoder gives all of them what it gives the structure.

    Args:
        flat: one structure of L residues.
        E_idx: [L, K] its neighbors.
        copies: how many.
    """
    L = flat.size
    copy = np.arange(copies)[:, None, None]
    is_self = E_idx == np.arange(L)[:, None]
    leads_to = np.where(is_self, copy, np.maximum(copy - 1, 0))  # [copies, L, K]
    return replace(
        flat.repeat(copies),
        lengths=(copies * L,),
        E_idx=(E_idx + leads_to * L).reshape(copies * L, -1),
    )


def _as_designs(
    task: _Task, keys: Sequence[Key], samples: Samples, source: IntArray
) -> list[Design]:
    S, target = samples.S, task.target
    score = negative_log_likelihood(samples.log_probs, S, target.designed)
    everywhere = negative_log_likelihood(samples.log_probs, S, target.backbone.mask)
    recovery = (S == task.S)[:, target.designed].mean(1)
    residue_scores = _residue_scores(samples.log_probs, S, target.backbone.mask)
    return [
        Design(
            sequence=_text(S[n, source]),
            seed=key.seed,
            sample=key.sample,
            temperature=key.temperature,
            score=float(score[n]),
            global_score=float(everywhere[n]),
            recovery=float(recovery[n]),
            residue_scores=residue_scores[n],
        )
        for n, key in enumerate(keys)
    ]


def _residue_scores(
    log_probs: NDArray[np.floating], S: IntArray, known: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """−log p of each residue's type in nats, [..., L], NaN where not known [L]."""
    nll: NDArray[np.floating] = -np.take_along_axis(log_probs, S[..., None], -1)[..., 0]
    return np.where(known, nll, np.float32(np.nan))


def _text(S: IntArray) -> str:
    return "".join(ALPHABET[residue] for residue in S)


def _letters(target: Target, sequence: str, as_in_file: Sequence[str], label: str) -> IntArray:
    """A user's sequence as residue types [L]; chains that it lacks keep the structure's own."""
    sequence = sequence.replace(":", "/")
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
