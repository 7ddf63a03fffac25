"""What a user asks of a design, in the user's words, made into arrays for one structure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET, NUM_LETTERS, UNKNOWN
from mpnn.errors import InputError
from mpnn.results import Target
from mpnn.sampling import OMITTED, Constraints
from mpnn.schedule import FloatArray, IntArray
from mpnn.selection import Tie, homo_oligomer_ties, parse_selection, parse_ties

MAX_BIAS = 1000.0
"""Largest size of a bias in units of logits; larger ones could outweigh an omission."""


@dataclass(frozen=True)
class Rules:
    """The rules of one design; positions are written as in `mpnn.selection`.

    That positions are text, and rules by residue mappings, is checked on construction.

    Attributes:
        chains: names of the chains to design, "A,C" or a list; all where none is given.
        fixed: residues that keep their letter, such as "A1-10,B5".
        tied: groups that share one draw, with weights if wanted: "A1,B1|A2,B2=0.5".
        homo_oligomer: tie the designed chains residue by residue.
        omit: letters never to be drawn, such as "CM"; X never is.
        bias: added to the logits of letters, "A:-1.1,F:0.7" or a mapping.
        omit_per_residue: letters never to be drawn at a place, by place: {"A12": "CP"}.
        bias_per_residue: bias at a place, added to the general one: {"A12": {"F": 1.5}}.
    """

    chains: str | Sequence[str] = ()
    fixed: str = ""
    tied: str = ""
    homo_oligomer: bool = False
    omit: str = ""
    bias: str | Mapping[str, float] = ""
    omit_per_residue: Mapping[str, str] = field(default_factory=dict)
    bias_per_residue: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mapping = Mapping, 'a mapping such as {"A12": …}'
        kinds = {
            "fixed": (str, 'text such as "A1-10,B5"'),
            "tied": (str, 'text such as "A1,B1|A2,B2"'),
            "omit_per_residue": mapping,
            "bias_per_residue": mapping,
        }
        for name, (kind, example) in kinds.items():
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(f"{name} is {value!r}; write {example}")


def constraints(backbone: Backbone, rules: Rules) -> tuple[Target, Constraints]:
    """Applies `rules` to a structure.

    Returns:
        The target, chains arranged, and constraints in its order.

    Raises:
        InputError: a chain or residue is not there, a rule is malformed, fixed and tied overlap, or
            a residue has no letter left.
    """
    asked = rules.chains or ()
    names = {name.strip() for name in (asked.split(",") if isinstance(asked, str) else asked)}
    arranged = backbone.arranged(names)
    count = len(names) or len(arranged.chain_ids)
    chains = arranged.chain_ids
    in_chains = arranged.chain_index < count
    fixed = ~in_chains
    if rules.fixed:
        fixed |= parse_selection(rules.fixed, arranged)
    target = Target(arranged, arranged.mask & ~fixed, chains[:count], chains[count:])
    ties, bias = _ties(target, rules), _bias(arranged, rules)
    if rules.homo_oligomer:
        bias = _shared(bias, ties)
    group, weight = _tie_arrays(target, ties, fixed, rules.homo_oligomer)
    limits = Constraints(target.designed, bias, group, weight)
    _check_letters_left(arranged, limits)
    return target, limits


def sources_of_letters(target: Target, rules: Rules) -> IntArray:
    """The residue whose letter each residue has in a design, [L].

    It is the residue itself, but where one of a homo-oligomer's lacks atoms: nothing is drawn for
    it, and the chains are to have one sequence.
    """
    source = np.arange(len(target.backbone))
    if rules.homo_oligomer:
        for tie in homo_oligomer_ties(target.backbone, target.designed_chains):
            drawn = [position for position in tie.positions if target.designed[position]]
            lacking = [p for p in tie.positions if not target.backbone.mask[p]]
            source[lacking] = drawn[:1] or lacking
    return source


def _ties(target: Target, rules: Rules) -> list[Tie]:
    """The ties asked for, residues without atoms included."""
    if rules.tied and rules.homo_oligomer:
        raise InputError("tied and homo-oligomer exclude each other; give one")
    if rules.homo_oligomer:
        return homo_oligomer_ties(target.backbone, target.designed_chains)
    return parse_ties(rules.tied, target.backbone) if rules.tied else []


def _tie_arrays(
    target: Target, ties: Sequence[Tie], fixed: NDArray[np.bool_], may_lack: bool
) -> tuple[IntArray, FloatArray]:
    """Group and weight of every residue, both [L]; groups that are fixed as a whole need no tie.

    Where members may lack atoms, the others are drawn without them.
    """
    backbone = target.backbone
    group, weight = np.arange(len(backbone)), np.ones(len(backbone))
    for tie in ties:
        if fixed[list(tie.positions)].all():
            continue
        drawn = [position for position in tie.positions if target.designed[position]]
        held = [p for p in tie.positions if fixed[p] or not (may_lack or target.designed[p])]
        if held:
            why = "is fixed" if fixed[held[0]] else "lacks atoms, so no letter is drawn for it"
            group_text = ", ".join(backbone.address(position) for position in tie.positions)
            raise InputError(
                f"{backbone.name}: of the tied residues {group_text}, {backbone.address(held[0])} "
                f"{why}; fix the whole group or untie it"
            )
        group[drawn] = min(drawn, default=0)
        weight[list(tie.positions)] = tie.weights
    return group, weight


def parse_bias(text: str) -> dict[str, float]:
    """Reads "A:-1.1,F:0.7".

    Raises:
        InputError: an item is not LETTER:NUMBER, or a letter comes twice.
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
    """Bias [L, 21] where all members of a tie, drawn or not, have their mean and all omissions."""
    shared = bias.copy()
    for tie in ties:
        members = bias[list(tie.positions)]
        omitted = (members <= OMITTED).any(0)
        shared[list(tie.positions)] = np.where(omitted, OMITTED, members.mean(0))
    return shared


def _bias_row(letters: object, what: str) -> FloatArray:
    if not isinstance(letters, Mapping):
        raise InputError(f'{what}: {letters!r} is no mapping from letters to numbers: {{"F": 1.5}}')
    row = np.zeros(NUM_LETTERS)
    for letter, value in letters.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not abs(value) <= MAX_BIAS:
            raise InputError(f"{what}: {letter} has {value!r}; give a number up to ±{MAX_BIAS:g}")
        if not isinstance(letter, str) or len(letter) != 1:
            raise InputError(f"{what}: {letter!r} is not one letter; there are {ALPHABET}")
        if letter != letter.upper() and letter.upper() in letters:
            raise InputError(f"{what}: {letter.upper()} and {letter} are one letter; give it once")
        row[_letter_indices(letter, what)] = value
    return row


def _letter_indices(letters: object, what: str) -> list[int]:
    if not isinstance(letters, str):
        raise InputError(f"{what}: {letters!r} is not a string of letters")
    unknown = sorted(set(letters.upper()) - set(ALPHABET))
    if unknown:
        raise InputError(f"{what}: no letter {', '.join(unknown)}; there are {ALPHABET}")
    return [ALPHABET.index(letter) for letter in letters.upper()]


def _check_letters_left(backbone: Backbone, limits: Constraints) -> None:
    """Refuses a residue, or a tied group, of which every letter is omitted."""
    left = np.ones_like(limits.bias, bool)
    np.logical_and.at(left, limits.tie_group, limits.bias > OMITTED)
    stuck = limits.designed & ~left[limits.tie_group].any(1)
    if stuck.any():
        raise InputError(
            f"{backbone.name}: every letter is omitted at "
            f"{backbone.address(int(stuck.argmax()))}; leave at least one"
        )
