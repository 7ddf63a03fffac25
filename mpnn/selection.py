"""Residues as users write them: selections such as "A10-20,B5", ties, homo-oligomers.

Grammar, with author chain names, numbers and insertion codes::

    selection   part,part,…
    part        A            chain A, whole
                A52A         residue 52A of chain A
                A10-20       residues 10 to 20; A-3--1 runs from -3 to -1
                AA:10-20     chains of more than one letter, or like a number, need the colon;
                             it may always be written, and AA: is chain AA, whole

A number without a code is that residue alone, and codes follow their number in the order of the
alphabet: A52-53 leaves out 53A, and A52-53A has it. Numbers beyond the ends of a chain are allowed
as long as a part selects something.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import Backbone, check_chain_names
from mpnn.errors import InputError

_NUMBER = r"(-?[0-9]{1,9})([A-Za-z]?)"
_RANGE = re.compile(rf"{_NUMBER}(?:-{_NUMBER})?")


@dataclass(frozen=True)
class Tie:
    """Positions that get one letter by one draw.

    Attributes:
        positions: two or more different positions of a backbone.
        weights: what each one's logits weigh in the mean; negative ones count against.
    """

    positions: tuple[int, ...]
    weights: tuple[float, ...]


def parse_selection(text: str, backbone: Backbone) -> NDArray[np.bool_]:
    """The residues that a selection names, bool [L]; residues in numbering gaps count too.

    Raises:
        InputError: a part is malformed, ambiguous or selects nothing.
    """
    selected = np.zeros(len(backbone), dtype=bool)
    for part in text.split(","):
        selected |= _select_part(part.strip(), backbone)
    return selected


def parse_ties(text: str, backbone: Backbone) -> list[Tie]:
    """Groups such as "A1,B1|A2=0.5,B2": separated by "|", a member's weight (1) after "=".

    Raises:
        InputError: a member is not one residue, a group has fewer than two, a residue is named
            twice, or a weight is not a number or all weights of a group are 0.
    """
    ties = [_parse_tie(group.strip(), backbone) for group in text.split("|")]
    positions = [position for tie in ties for position in tie.positions]
    for position in positions:
        if positions.count(position) > 1:
            raise InputError(
                f"{backbone.name}: tie {text!r} names residue {backbone.address(position)} twice; "
                "a residue belongs to one group"
            )
    return ties


def homo_oligomer_ties(backbone: Backbone, chains: Sequence[str]) -> list[Tie]:
    """One tie for each residue of the named chains, which must be numbered alike.

    Raises:
        InputError: fewer than two chains, or their residue numbers differ.
    """
    check_chain_names(backbone.name, chains, backbone.chain_ids)
    if len(chains) < 2:
        raise InputError(f"{backbone.name}: a homo-oligomer has two chains or more, not {chains}")
    members = [np.flatnonzero(_chain_mask(backbone, chain)) for chain in chains]
    first = _numbering(backbone, members[0])
    for chain, rows in zip(chains, members, strict=True):
        if (other := _numbering(backbone, rows)) != first:
            odd = sorted(f"{number}{code}" for number, code in set(first) ^ set(other))
            raise InputError(
                f"{backbone.name}: chains {chains[0]} ({len(first)} residues) and {chain} "
                f"({len(other)}) must have the same residue numbers; they differ in "
                f"{', '.join(odd[:6]) or 'their order'}; cut or renumber them, or write ties"
            )
    weights = (1.0,) * len(chains)
    return [Tie(tuple(map(int, column)), weights) for column in zip(*members, strict=True)]


def _select_part(part: str, backbone: Backbone) -> NDArray[np.bool_]:
    chain, residues = _split_part(part, backbone)
    on_chain = _chain_mask(backbone, chain)
    if not residues:
        return on_chain
    match = _RANGE.fullmatch(residues)
    if match is None:
        raise _error(backbone, part, "is malformed; write A10, A10-20, A52A or A for chain A")
    number, code, last_number, last_code = match.groups()
    first = _keys(np.array(int(number)), np.array(code))
    last = first if last_number is None else _keys(np.array(int(last_number)), np.array(last_code))
    if last < first:
        raise _error(backbone, part, "ends before it starts")
    keys = _keys(backbone.numbers, backbone.insertion_codes)
    selected = on_chain & (keys >= first) & (keys <= last)
    if not selected.any():
        here = [backbone.address(int(i)) for i in np.flatnonzero(on_chain)[[0, -1]]]
        raise _error(
            backbone, part, f"selects nothing; chain {chain} runs from {' to '.join(here)}"
        )
    return selected


def _split_part(part: str, backbone: Backbone) -> tuple[str, str]:
    """Chain and residues ("" for all) of a part of a selection."""
    if ":" in part:
        chain, _, residues = part.rpartition(":")
        whole, split = False, chain in backbone.chain_ids
    else:
        chain, residues = part[:1], part[1:]
        whole = part in backbone.chain_ids
        split = bool(residues) and chain in backbone.chain_ids
    if whole and split and _RANGE.fullmatch(residues):
        raise _error(backbone, part, f"may mean two things; write {chain}:{residues} or {part}:")
    if whole:
        return part, ""
    if split:
        return chain, residues
    chains = ", ".join(backbone.chain_ids)
    raise _error(backbone, part, f"names no chain; there are {chains} (colon after long names)")


def _error(backbone: Backbone, part: str, what: str) -> InputError:
    return InputError(f"{backbone.name}: selection {part!r} {what}")


def _chain_mask(backbone: Backbone, chain: str) -> NDArray[np.bool_]:
    on_chain: NDArray[np.bool_] = backbone.chain_index == backbone.chain_ids.index(chain)
    return on_chain


def _keys(numbers: NDArray[np.int64], codes: NDArray[np.str_]) -> NDArray[np.int64]:
    """One integer for each number and code, in their order; no code comes first."""
    return numbers * 128 + codes.astype("<U1").view(np.uint32)


def _numbering(backbone: Backbone, rows: NDArray[np.int64]) -> list[tuple[int, str]]:
    return list(
        zip(backbone.numbers[rows].tolist(), backbone.insertion_codes[rows].tolist(), strict=True)
    )


def _parse_tie(group: str, backbone: Backbone) -> Tie:
    members = [member.partition("=") for member in group.split(",")]
    positions = []
    for residue, _, _ in members:
        selected = np.flatnonzero(_select_part(residue.strip(), backbone))
        if len(selected) != 1:
            raise _error(backbone, residue, f"has {len(selected)} residues; a tie's member is one")
        positions.append(int(selected[0]))
    weights = tuple(_weight(text, group) if equals else 1.0 for _, equals, text in members)
    if len(members) < 2 or not any(weights):
        raise InputError(
            f"{backbone.name}: tie {group!r} needs two residues or more, not all of weight 0"
        )
    return Tie(tuple(positions), weights)


def _weight(text: str, group: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InputError(f"tie {group!r}: weight {text!r} is not a number; write it as in A1=0.5")
    return weight
