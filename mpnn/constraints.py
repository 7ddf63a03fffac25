"""From (Backbone, Rules) to what a sampler takes: which residues to design, ties and biases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET, NUM_LETTERS, UNKNOWN
from mpnn.errors import InputError
from mpnn.results import Target
from mpnn.rules import Rules
from mpnn.sampling import OMITTED, Constraints
from mpnn.schedule import FloatArray, IntArray
from mpnn.selection import Tie, homo_oligomer_ties, parse_selection, parse_ties

MAX_BIAS = 1000.0
"""Largest absolute bias in units of logits; a larger one could outweigh an omission."""


def constraints(backbone: Backbone, rules: Rules) -> tuple[Target, Constraints]:
    """Applies `rules` to a structure.

    Returns:
        The target, with its chains arranged and notes about the rules, and constraints in its
        order.

    Raises:
        InputError: a chain or residue does not exist, a rule is malformed, two rules contradict
            each other, or every amino acid is omitted at a residue.
    """
    chosen = rules.chains or ()
    names = {name.strip() for name in (chosen.split(",") if isinstance(chosen, str) else chosen)}
    arranged = backbone.arranged(names)
    count = len(names) or len(arranged.chain_ids)
    chains = arranged.chain_ids
    fixed, notes = _fixed(arranged, rules, chains[:count])
    target = Target(arranged, arranged.mask & ~fixed, chains[:count], chains[count:])
    ties, tie_notes = _ties(target, rules)
    notes = [*arranged.notes, *notes, *tie_notes]
    target = dataclasses.replace(target, backbone=dataclasses.replace(arranged, notes=tuple(notes)))
    bias = _shared(_bias(arranged, rules), [tie for tie in ties if tie.by_range])
    group, weight = _tie_arrays(target, ties, fixed)
    limits = Constraints(target.designed, bias, group, weight)
    _check_letters_left(arranged, limits)
    return target, limits


def sources_of_letters(target: Target, rules: Rules) -> IntArray:
    """Returns the residue whose residue type each residue has in a design, [L].

    That is the residue itself, except where one of tied ranges or of a homo-oligomer lacks
    coordinates: nothing is sampled for it, and the ranges are to have one sequence.
    """
    source = np.arange(len(target.backbone))
    for tie in _ties(target, rules)[0]:
        if tie.by_range:
            sampled = [position for position in tie.positions if target.designed[position]]
            lacking = [p for p in tie.positions if not target.backbone.mask[p]]
            source[lacking] = sampled[:1] or lacking
    return source


def _fixed(
    backbone: Backbone, rules: Rules, designed_chains: Sequence[str]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Residues that keep their residue type, bool [L], and notes."""
    others = backbone.chain_index >= len(designed_chains)
    fixed = np.zeros(len(backbone), bool)
    if rules.fixed:
        fixed = parse_selection(rules.fixed, backbone)
    if not rules.redesigned:
        return fixed | others, []
    redesigned = parse_selection(rules.redesigned, backbone)
    for contradicting, why in (
        (fixed, "fixed as well; name it in one of the two"),
        (others, f"not in a chain to design ({', '.join(designed_chains)}); add its chain"),
    ):
        if (both := redesigned & contradicting).any():
            address = backbone.address(int(both.argmax()))
            raise InputError(f"{backbone.name}: residue {address} is to be redesigned, but {why}")
    lacking = np.flatnonzero(redesigned & ~backbone.mask)
    kind = "redesigned residues without coordinates left as they are"
    return ~redesigned, _note(kind, backbone, lacking)


def _ties(target: Target, rules: Rules) -> tuple[list[Tie], list[str]]:
    """The ties that the rules ask for, residues without coordinates included, and notes."""
    if rules.tied and rules.homo_oligomer:
        raise InputError("tied and homo-oligomer exclude each other; use one")
    if rules.homo_oligomer:
        ties, note = homo_oligomer_ties(target.backbone, target.designed_chains)
        return ties, [note] if note else []
    ties = parse_ties(rules.tied, target.backbone) if rules.tied else []
    mask = target.backbone.mask
    partial = [p for tie in ties for p in tie.positions if mask[list(tie.positions)].any()]
    lacking = [position for position in partial if not mask[position]]
    kind = "tied residues without coordinates take the residue type of the others"
    return ties, _note(kind, target.backbone, lacking)


def _note(kind: str, backbone: Backbone, positions: Sequence[int] | IntArray) -> list[str]:
    """One note about some residues, or none where there are none."""
    if not len(positions):
        return []
    shown = ", ".join(backbone.address(int(position)) for position in positions[:8])
    return [f"{kind} ({len(positions)}): {shown}{', …' if len(positions) > 8 else ''}"]


def _tie_arrays(
    target: Target, ties: Sequence[Tie], fixed: NDArray[np.bool_]
) -> tuple[IntArray, FloatArray]:
    """Group and weight of every residue, both [L]; a group that is fixed as a whole needs no tie.

    Residues of tied ranges may lack coordinates; the others are sampled without them.
    """
    backbone = target.backbone
    group, weight = np.arange(len(backbone)), np.ones(len(backbone))
    for tie in ties:
        if fixed[list(tie.positions)].all():
            continue
        sampled = [position for position in tie.positions if target.designed[position]]
        held = [p for p in tie.positions if fixed[p] or not (tie.by_range or target.designed[p])]
        if held:
            why = "is fixed" if fixed[held[0]] else "lacks atoms, so it cannot be sampled"
            members = ", ".join(backbone.address(position) for position in tie.positions)
            raise InputError(
                f"{backbone.name}: of the tied residues {members}, {backbone.address(held[0])} "
                f"{why}; fix the whole group or untie it"
            )
        group[sampled] = min(sampled, default=0)
        weight[list(tie.positions)] = tie.weights
    return group, weight


def parse_bias(text: str) -> dict[str, float]:
    """Parses "A:-1.1,F:0.7".

    Raises:
        InputError: an item is not LETTER:NUMBER, or a letter occurs twice.
    """
    bias: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        letter, _, number = (word.strip() for word in item.upper().partition(":"))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if math.isnan(value) or letter in bias:
            raise InputError(f"bias {item!r}: write LETTER:NUMBER, each letter once: A:-1.1,F:0.7")
        bias[letter] = value
    return bias


def _bias(backbone: Backbone, rules: Rules) -> FloatArray:
    """Bias and omissions of every residue, [L, 21]."""
    general = parse_bias(rules.bias) if isinstance(rules.bias, str) else rules.bias
    bias = np.tile(_bias_row(general, "bias"), (len(backbone), 1))
    for place, letters in rules.bias_per_residue.items():
        bias[parse_selection(place, backbone)] += _bias_row(letters, f"bias at {place}")
    omitted = np.zeros(bias.shape, bool)
    omitted[:, [UNKNOWN, *_letter_indices(rules.omit, "omit")]] = True
    for place, text in rules.omit_per_residue.items():
        forbidden = np.isin(np.arange(NUM_LETTERS), _letter_indices(text, f"omit at {place}"))
        omitted |= np.outer(parse_selection(place, backbone), forbidden)
    return np.where(omitted, OMITTED, bias)


def _shared(bias: FloatArray, ties: Sequence[Tie]) -> FloatArray:
    """Bias [L, 21] with the mean bias and all omissions of a tie at each of its members."""
    shared = bias.copy()
    for tie in ties:
        members = bias[list(tie.positions)]
        omitted = (members <= OMITTED).any(0)
        shared[list(tie.positions)] = np.where(omitted, OMITTED, members.mean(0))
    return shared


def _bias_row(letters: object, what: str) -> FloatArray:
    if not isinstance(letters, Mapping):
        raise InputError(f'{what}: {letters!r} must map letters to numbers, as in {{"F": 1.5}}')
    row = np.zeros(NUM_LETTERS)
    for letter, value in letters.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not abs(value) <= MAX_BIAS:
            raise InputError(f"{what}: {letter} has {value!r}; use a number up to ±{MAX_BIAS:g}")
        if not isinstance(letter, str) or len(letter) != 1:
            raise InputError(f"{what}: {letter!r} is not one letter of {ALPHABET}")
        if letter != letter.upper() and letter.upper() in letters:
            raise InputError(f"{what}: {letter.upper()} and {letter} are one letter; use it once")
        row[_letter_indices(letter, what)] = value
    return row


def _letter_indices(letters: object, what: str) -> list[int]:
    if not isinstance(letters, str):
        raise InputError(f"{what}: {letters!r} must be text of one-letter codes")
    unknown = sorted(set(letters.upper()) - set(ALPHABET))
    if unknown:
        raise InputError(f"{what}: no letter {', '.join(unknown)}; use {ALPHABET}")
    return [ALPHABET.index(letter) for letter in letters.upper()]


def _check_letters_left(backbone: Backbone, limits: Constraints) -> None:
    """Raises an error for a residue or tied group whose amino acids are all omitted."""
    left = np.ones_like(limits.bias, bool)
    np.logical_and.at(left, limits.tie_group, limits.bias > OMITTED)
    stuck = limits.designed & ~left[limits.tie_group].any(1)
    if stuck.any():
        raise InputError(
            f"{backbone.name}: every amino acid is omitted at "
            f"{backbone.address(int(stuck.argmax()))}; leave at least one"
        )
