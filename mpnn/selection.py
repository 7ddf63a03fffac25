"""Residues as users write them: selections such as "A10-20,B5", ties, homo-oligomers.

Grammar, with author chain names, residue numbers and insertion codes::

    selection   part,part,…      (spaces separate parts, too)
    part        A            all of chain A
                A52A         residue 52A of chain A
                A10-20       residues 10 to 20; A-3--1 runs from -3 to -1
                AA:10-20     chain names of several letters, or like a number, need the colon;
                             AA: is all of chain AA
    ties        tie|tie|…
    tie         part,part,…      parts of equal length are tied by place: A10-40,B10-40
                part=0.5         a weight for all residues of a part; 1 by default

A number without a code is that residue alone, and codes follow their number in alphabetical order:
A52-53 leaves out 53A, and A52-53A includes it. A range may exceed the ends of its chain as long as
it selects a residue.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
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
    """Positions that share one residue type, sampled once.

    Attributes:
        positions: two or more different positions of a backbone.
        weights: weight of each position's logits in the mean; negative ones count against.
        by_range: whether the tie comes from ranges or chains; such a tie may include residues
            without coordinates, which take the residue type of the others.
    """

    positions: tuple[int, ...]
    weights: tuple[float, ...]
    by_range: bool = False


def parse_selection(text: str, backbone: Backbone) -> NDArray[np.bool_]:
    """Returns the residues that a selection names, bool [L]; residues in numbering gaps count too.

    Raises:
        InputError: a part is malformed, ambiguous or selects nothing.
    """
    selected = np.zeros(len(backbone), dtype=bool)
    for part in text.split(","):
        for word in part.split() or [""]:
            selected |= _select_part(word, backbone)
    return selected


def parse_ties(text: str, backbone: Backbone) -> list[Tie]:
    """Parses ties such as "A1,B1|A2=0.5,B2|A10-40,B10-40"; ranges are tied by place.

    Raises:
        InputError: the parts of a tie differ in length, a tie has fewer than two parts, a residue
            is named twice, a weight is not a number, or all weights of a tie are 0.
    """
    ties = [tie for part in text.split("|") for tie in _parse_tie(part.strip(), backbone)]
    times = Counter(position for tie in ties for position in tie.positions)
    if twice := [position for position, count in times.items() if count > 1]:
        raise InputError(
            f"{backbone.name}: --tied {_shortened(text)!r} names residue "
            f"{backbone.address(twice[0])} twice; a residue belongs to one tie"
        )
    return ties


def homo_oligomer_ties(backbone: Backbone, chains: Sequence[str]) -> tuple[list[Tie], str]:
    """Ties the named chains residue by residue.

    Chains are tied by residue number where their numbers agree. Otherwise they are tied by place
    where each continues the numbering pattern of the first at later numbers, as in chains 1-54 and
    55-108 of one symmetric design.

    Returns:
        One tie for each residue of a chain, and a note where chains are tied by place, else "".

    Raises:
        InputError: there are fewer than two chains, or they match neither way.
    """
    check_chain_names(backbone.name, chains, backbone.chain_ids)
    if len(chains) < 2:
        raise InputError(
            f"{backbone.name}: a homo-oligomer has two chains or more, but the chain to design is "
            f"{chains[0]} alone"
        )
    members = [np.flatnonzero(_chain_mask(backbone, chain)) for chain in chains]
    first = _numbering(backbone, members[0])
    note = ""
    if odd := [rows for rows in members if _numbering(backbone, rows) != first]:
        if not _numbers_continue(backbone, members):
            raise _not_alike(backbone, members[0], odd[0])
        chains_text = ", ".join(_ends(backbone, rows) for rows in members)
        note = f"chains tied by place because their numbers continue ({len(chains)}): {chains_text}"
    weights = (1.0,) * len(chains)
    columns = zip(*(rows.tolist() for rows in members), strict=True)
    return [Tie(column, weights, by_range=True) for column in columns], note


def _numbers_continue(backbone: Backbone, members: Sequence[NDArray[np.int64]]) -> bool:
    """Whether the chains have one numbering pattern, each at numbers of its own."""
    first, *_ = (_numbering(backbone, rows) for rows in members)
    for rows in members:
        shift = int(backbone.numbers[rows[0]]) - first[0][0]
        if [(number + shift, code) for number, code in first] != _numbering(backbone, rows):
            return False
    spans = sorted((backbone.numbers[rows].min(), backbone.numbers[rows].max()) for rows in members)
    return all(end < start for (_, end), (start, _) in itertools.pairwise(spans))


def _not_alike(
    backbone: Backbone, first: NDArray[np.int64], other: NDArray[np.int64]
) -> InputError:
    names = [backbone.chain_ids[backbone.chain_index[rows[0]]] for rows in (first, other)]
    one, two = (_numbering(backbone, rows) for rows in (first, other))
    odd = sorted(f"{number}{code}" for number, code in set(one) ^ set(two))
    way_out = f'tie them by place with --tied "{names[0]}:,{names[1]}:"'
    if len(one) != len(two):
        way_out = 'tie the ranges that match, as in --tied "A10-40,B10-40"'
    return InputError(
        f"{backbone.name}: chains {names[0]} ({len(one)} residues) and {names[1]} ({len(two)}) "
        f"of a homo-oligomer need the same residue numbers; they differ in "
        f"{', '.join(odd[:6]) or 'their order'}; renumber them, or {way_out}"
    )


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
        here = _ends(backbone, np.flatnonzero(on_chain))
        raise _error(backbone, part, f"selects nothing; chain {chain} runs from {here}")
    return selected


def _split_part(part: str, backbone: Backbone) -> tuple[str, str]:
    """Splits a part of a selection into its chain and its residues ("" for all)."""
    if ":" in part:
        chain, _, residues = part.rpartition(":")
        whole, split = False, chain in backbone.chain_ids
    else:
        chain, residues = part[:1], part[1:]
        whole = part in backbone.chain_ids
        split = bool(residues) and chain in backbone.chain_ids
    if whole and split and _RANGE.fullmatch(residues):
        raise _error(backbone, part, f"is ambiguous; write {chain}:{residues} or {part}:")
    if whole:
        return part, ""
    if split:
        return chain, residues
    chains = ", ".join(backbone.chain_ids)
    raise _error(
        backbone,
        part,
        f"names no chain of the structure; its chains are {chains} (long names need a colon)",
    )


def _error(backbone: Backbone, part: str, what: str) -> InputError:
    return InputError(f"{backbone.name}: selection {part!r} {what}")


def _chain_mask(backbone: Backbone, chain: str) -> NDArray[np.bool_]:
    on_chain: NDArray[np.bool_] = backbone.chain_index == backbone.chain_ids.index(chain)
    return on_chain


def _keys(numbers: NDArray[np.int64], codes: NDArray[np.str_]) -> NDArray[np.int64]:
    """Returns one integer for each number and code, in sorting order; no code comes first."""
    return numbers * 128 + codes.astype("<U1").view(np.uint32)


def _numbering(backbone: Backbone, rows: NDArray[np.int64]) -> list[tuple[int, str]]:
    return list(
        zip(backbone.numbers[rows].tolist(), backbone.insertion_codes[rows].tolist(), strict=True)
    )


def _ends(backbone: Backbone, rows: NDArray[np.int64]) -> str:
    return f"{backbone.address(int(rows[0]))} to {backbone.address(int(rows[-1]))}"


def _parse_tie(text: str, backbone: Backbone) -> list[Tie]:
    members = [member.partition("=") for member in text.split(",")]
    parts = [part.strip() for part, _, _ in members]
    rows = [np.flatnonzero(_select_part(part, backbone)).tolist() for part in parts]
    odd = next((i for i, some in enumerate(rows) if len(some) != len(rows[0])), None)
    if odd is not None:
        raise InputError(
            f"{backbone.name}: tied parts need equal lengths, but {parts[0]} has {len(rows[0])} "
            f"residues and {parts[odd]} has {len(rows[odd])}"
        )
    weights = tuple(_weight(number, text) if equals else 1.0 for _, equals, number in members)
    if len(members) < 2 or not any(weights):
        raise InputError(
            f"{backbone.name}: tie {_shortened(text)!r} needs two residues or ranges, not all of "
            "weight 0"
        )
    by_range = len(rows[0]) > 1
    return [Tie(column, weights, by_range) for column in zip(*rows, strict=True)]


def _weight(text: str, tie: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InputError(
            f"tie {_shortened(tie)!r}: weight {text!r} is not a number; write it as in A1=0.5"
        )
    return weight


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
