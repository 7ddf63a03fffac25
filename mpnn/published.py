"""Rules in ProteinMPNN's jsonl files, recognized by their content.

Its helper scripts (https://github.com/dauparas/ProteinMPNN, helper_scripts/) write one object of
structure name -> rules. Positions count from 1 along each chain of the parsed structure, numbering
gaps included.

    chain_id          {"5TTA": [["A"], ["B"]]}                        chains to design, the others
    fixed_positions   {"5TTA": {"A": [1, 2, 3], "B": []}}
    tied_positions    {"5TTA": [{"A": [1], "B": [1]}, …]}             or weighted: "A": [[1], [0.5]]
    omit_AA           {"5TTA": {"A": [[[1, 2, 3], "GPL"], …], "B": []}}
    bias_by_res       {"5TTA": {"A": [[0.0, …], …]}}                  [L, 21]
    pssm              {"5TTA": {"A": {"pssm_coef": […], "pssm_bias": […], "pssm_log_odds": […]}}}
    bias_AA           {"A": -0.01, "G": 0.02}                         for every structure

Biases of tied residues are averaged, where the published script takes those of the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET
from mpnn.errors import InputError

Fields = dict[str, Any]
"""Some fields of `mpnn.Rules` by name."""


@dataclass(frozen=True)
class Published:
    """The rules of one published file.

    Attributes:
        form: name of the form, such as "fixed_positions".
        by_structure: what the file holds for each structure; empty for "bias_AA".
        everywhere: fields of `Rules` for every structure.
    """

    form: str
    by_structure: Mapping[str, Any]
    everywhere: Fields

    @property
    def translate(self) -> Callable[[Any, Backbone], tuple[Fields, list[str]]]:
        """Translates one structure's entry into fields of `Rules`, and notes.

        It raises InputError where the entry names a chain or position that the structure lacks.
        """
        return _TRANSLATORS[self.form]


def recognize(content: Mapping[str, Any]) -> Published:
    """Recognizes the form of a ProteinMPNN file.

    Raises:
        InputError: the content has none of the forms above, or several.
    """
    if content and all(map(_is_number, content.values())):
        return Published("bias_AA", {}, {"bias": dict(content)})
    forms = [*_TRANSLATORS]
    for name, entry in content.items():
        forms = [form for form in forms if _FORMS[form](entry)]
        if not forms:
            raise InputError(
                f"the entry {name!r} does not have the form of the others, or none of the forms "
                f"{', '.join([*_TRANSLATORS, 'bias_AA'])} that ProteinMPNN's helper scripts write "
                "(files of LigandMPNN go to --fixed, --redesigned, --bias-per-residue and "
                "--omit-per-residue)"
            )
    return Published(forms[0], content, {})  # any of several forms: then all entries are empty


Check = Callable[[Any], bool]
"""Tells whether a value parsed from JSON has a form."""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _pair_of(first: Check, second: Check) -> Check:
    return lambda value: (
        isinstance(value, list) and len(value) == 2 and first(value[0]) and second(value[1])
    )


def _by_chain(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_tie_member(value: Any) -> bool:
    positions = _list_of(_is_whole)
    return positions(value) or _pair_of(positions, _list_of(_is_number))(value)


def _is_pssm(value: Any) -> bool:
    return isinstance(value, dict) and (not value or "pssm_coef" in value)


_FORMS: dict[str, Check] = {
    "chain_id": _pair_of(_list_of(_is_text), _list_of(_is_text)),
    "fixed_positions": _by_chain(_list_of(_is_whole)),
    "tied_positions": _list_of(_by_chain(_is_tie_member)),
    "omit_AA": _by_chain(_list_of(_pair_of(_list_of(_is_whole), _is_text))),
    "bias_by_res": _by_chain(_list_of(_list_of(_is_number))),
    "pssm": _by_chain(_is_pssm),
}


def _chain_id(entry: Any, backbone: Backbone) -> tuple[Fields, list[str]]:
    designed, others = entry
    for chain in [*designed, *others]:
        if chain not in backbone.chain_ids:
            raise _no_chain(chain, backbone)
    if not designed:
        raise InputError(f"{backbone.name}: no chain to design")
    if left_out := [c for c in backbone.chain_ids if c not in {*designed, *others}]:
        return {"chains": designed}, [
            f"chains that the chain_id file does not name are context ({len(left_out)}): "
            f"{', '.join(left_out)}"
        ]
    return {"chains": designed}, []


def _fixed_positions(entry: Any, backbone: Backbone) -> tuple[Fields, list[str]]:
    present, notes = _chains_present(entry, backbone)
    places = [place for chain, some in present.items() for place in _places(chain, some, backbone)]
    return ({"fixed": ",".join(places)} if places else {}), notes


def _tied_positions(entry: Any, backbone: Backbone) -> tuple[Fields, list[str]]:
    """Ties; residues without coordinates are left out of them, and ties of one residue dropped."""
    ties, lacking = [], []
    for tie in entry:
        members = [m for chain, value in tie.items() for m in _tie_members(chain, value, backbone)]
        lacking += [place for place, _, complete in members if not complete]
        complete = [f"{place}={weight}" for place, weight, complete in members if complete]
        if len(complete) > 1:
            ties.append(",".join(complete))
    notes = []
    if lacking:
        shown = ", ".join(lacking[:8]) + (", …" if len(lacking) > 8 else "")
        notes = [f"residues without coordinates left out of their ties ({len(lacking)}): {shown}"]
    return ({"tied": "|".join(ties)} if ties else {}), notes


def _tie_members(chain: str, value: Any, backbone: Backbone) -> list[tuple[str, float, bool]]:
    """Address, weight and completeness of the residues of one chain in a tie."""
    positions, weights = value, [1.0] * len(value)
    if value and isinstance(value[0], list):
        positions, weights = value
        if len(positions) != len(weights):
            raise InputError(
                f"{backbone.name}: a tie of chain {chain} has {len(positions)} positions and "
                f"{len(weights)} weights"
            )
    places = _places(chain, positions, backbone)
    start = _start(chain, backbone)
    complete = [bool(backbone.mask[start + position - 1]) for position in positions]
    return list(zip(places, weights, complete, strict=True))


def _omit_aa(entry: Any, backbone: Backbone) -> tuple[Fields, list[str]]:
    present, notes = _chains_present(entry, backbone)
    omitted: dict[str, str] = {}
    for chain, items in present.items():
        for positions, letters in items:
            for place in _places(chain, positions, backbone):
                omitted[place] = omitted.get(place, "") + letters
    return ({"omit_per_residue": omitted} if omitted else {}), notes


def _bias_by_res(entry: Any, backbone: Backbone) -> tuple[Fields, list[str]]:
    present, notes = _chains_present(entry, backbone)
    bias: dict[str, dict[str, float]] = {}
    for chain, rows in present.items():
        length = backbone.chain_index.tolist().count(backbone.chain_ids.index(chain))
        if len(rows) != length or any(len(row) != len(ALPHABET) for row in rows):
            raise InputError(
                f"{backbone.name}: the bias of chain {chain} has {len(rows)} rows; {length} rows "
                f"of {len(ALPHABET)} numbers are needed, gaps counted"
            )
        for place, row in zip(_places(chain, range(1, length + 1), backbone), rows, strict=True):
            if any(row):
                bias[place] = {a: value for a, value in zip(ALPHABET, row, strict=True) if value}
    return ({"bias_per_residue": bias} if bias else {}), notes


def _pssm(entry: Any, backbone: Backbone) -> tuple[Fields, list[str]]:
    present, notes = _chains_present(entry, backbone)
    return {"pssm": present}, notes


_TRANSLATORS: dict[str, Callable[[Any, Backbone], tuple[Fields, list[str]]]] = {
    "chain_id": _chain_id,
    "fixed_positions": _fixed_positions,
    "tied_positions": _tied_positions,
    "omit_AA": _omit_aa,
    "bias_by_res": _bias_by_res,
    "pssm": _pssm,
}


def _chains_present(entry: Any, backbone: Backbone) -> tuple[dict[str, Any], list[str]]:
    """The chains of an entry that say something and that the structure has, and a note.

    The published script passes over chains that a structure lacks, since its helper scripts write
    one list of chains for all structures.
    """
    spoken = {chain: value for chain, value in entry.items() if value}
    absent = [chain for chain in spoken if chain not in backbone.chain_ids]
    notes = [f"chains with rules that the structure lacks ({len(absent)}): {', '.join(absent)}"]
    present = {chain: value for chain, value in spoken.items() if chain not in absent}
    return present, notes if absent else []


def _start(chain: str, backbone: Backbone) -> int:
    if chain not in backbone.chain_ids:
        raise _no_chain(chain, backbone)
    return int(np.searchsorted(backbone.chain_index, backbone.chain_ids.index(chain)))


def _places(chain: str, positions: Sequence[int], backbone: Backbone) -> list[str]:
    """Addresses of positions that count from 1 along a chain."""
    start = _start(chain, backbone)
    length = int((backbone.chain_index == backbone.chain_ids.index(chain)).sum())
    for position in positions:
        if not 1 <= position <= length:
            raise InputError(
                f"{backbone.name}: position {position} of chain {chain}, which has {length} "
                "residues; positions count from 1 along the chain, gaps included"
            )
    return [backbone.address(start + position - 1) for position in positions]


def _no_chain(chain: str, backbone: Backbone) -> InputError:
    return InputError(
        f"{backbone.name}: no chain {chain}; the structure's chains are "
        f"{', '.join(backbone.chain_ids)}"
    )
