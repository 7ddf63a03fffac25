"""Rules applied to a structure: what is designed, what is tied, and what is said about it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from synthetic_files import made_model, with_gaps

import mpnn
from mpnn.backbone import Backbone
from mpnn.constraints import constraints
from mpnn.design import Model
from mpnn.errors import InputError
from mpnn.rules import Rules
from mpnn.synthetic import synthetic_backbone


@pytest.fixture(scope="module")
def model() -> Model:
    return made_model()


@pytest.fixture(scope="module")
def dimer() -> Backbone:
    return synthetic_backbone(24, chains=2)


def continuing(backbone: Backbone) -> Backbone:
    """The same chains with numbers that continue from each to the next."""
    return dataclasses.replace(backbone, numbers=np.arange(1, len(backbone) + 1))


def designed(backbone: Backbone, **rules: Any) -> list[str]:
    """Addresses of the designed residues."""
    target, _ = constraints(backbone, Rules(**rules))
    return [target.backbone.address(int(i)) for i in np.flatnonzero(target.designed)]


def test_redesigned_residues_alone_are_designed(dimer: Backbone) -> None:
    """All residues but the named ones are fixed, on every chain."""
    assert designed(dimer, redesigned="A10-12,B5") == ["A10", "A11", "A12", "B5"]
    assert designed(dimer, redesigned="A1-3", chains="A") == ["A1", "A2", "A3"]
    assert designed(dimer, redesigned="A1-3", fixed="A4-12,B") == ["A1", "A2", "A3"]


def test_redesigned_residues_change_no_other(model: Model, dimer: Backbone) -> None:
    """Sequences differ from the native one at the named residues only."""
    for design in model.design(dimer, 8, 1.0, redesigned="A10-12,B5"):
        changed = [i for i in range(24) if design.sequence[i] != dimer.sequence[i]]
        assert set(changed) <= {9, 10, 11, 16}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"fixed": "A5-8", "redesigned": "A1-5,B2"}, "residue A5 is to be redesigned, but fixed"),
        ({"chains": "A", "redesigned": "A1,B2"}, r"B2 is .* not in a chain to design \(A\)"),
        ({"redesigned": "A99"}, "'A99' selects nothing"),
        ({"redesigned": "A1-4", "tied": "A1-4,B1-4"}, "A1, B1, B1 is fixed; fix the whole group"),
        ({"tied": "A1-4,B1-3"}, "equal lengths, but A1-4 has 4 residues and B1-3 has 3"),
        ({"tied": "A1-4,A3-6"}, "names residue A3 twice"),
        ({"redesigned": None}, "redesigned is None; write text such as"),
        ({"homo_oligomer": 1}, "homo_oligomer is 1; write True or False"),
        ({"pssm_multi": True}, "pssm_multi is True; write a number from 0 to 1"),
        ({"omit": None}, 'omit is None; write text such as "CM"'),
        ({"rules": Rules(), "fixed": "A1"}, "rules and fixed: pass a Rules object or its fields"),
    ],
)
def test_contradictions_are_refused(
    model: Model, dimer: Backbone, rules: dict[str, Any], message: str
) -> None:
    """Rules that contradict each other or the structure are an error that names the residue."""
    with pytest.raises(InputError, match=message):
        model.design(dimer, **rules)


def test_redesigned_residue_without_coordinates_is_a_note(dimer: Backbone) -> None:
    """It cannot be sampled, and that is said."""
    target, _ = constraints(with_gaps(dimer, 4), Rules(redesigned="A4-6"))
    assert target.designed.sum() == 2
    assert target.backbone.notes[-1] == (
        "redesigned residues without coordinates left as they are (1): A5"
    )


def test_tied_ranges_get_one_sequence(model: Model, dimer: Backbone) -> None:
    """Residues of tied ranges have one type place by place, those outside do not."""
    designs = model.design(dimer, 8, 1.0, tied="A2-6,B7-11=0.5|A12,B12=-0.5")
    for design in designs:
        a, b = design.sequence[:12], design.sequence[12:]
        assert a[1:6] == b[6:11]
        assert a[11] == b[11]
    assert any(d.sequence[0] != d.sequence[12] for d in designs)


def test_tied_range_over_a_gap(model: Model, dimer: Backbone) -> None:
    """A residue without coordinates takes the type of the residue it is tied to, with a note."""
    designs = model.design(with_gaps(dimer, 2, 15, 8, 20), 4, 1.0, tied="A,B")
    for design in designs:
        a, b = design.sequence[:12], design.sequence[12:]
        assert [i for i in range(12) if a[i] != b[i]] in ([], [8])  # A9 and B9 both lack atoms
    assert designs.backbone.notes[-1] == (
        "tied residues without coordinates take the residue type of the others (2): A3, B4"
    )


def test_homo_oligomer_with_continuing_numbers(model: Model, dimer: Backbone) -> None:
    """Chains 1-12 and 13-24 get one sequence, and a note says how they were tied."""
    backbone = continuing(dimer)
    designs = model.design(backbone, 4, 1.0, homo_oligomer=True)
    assert all(d.sequence[:12] == d.sequence[12:] for d in designs)
    assert designs.backbone.notes == (
        "chains tied by place because their numbers continue (2): A1 to A12, B13 to B24",
    )
    alike = model.design(dimer, 4, 1.0, homo_oligomer=True)
    assert [d.sequence for d in designs] == [d.sequence for d in alike]
    assert alike.backbone.notes == ()


def test_rules_object_or_its_fields(model: Model, dimer: Backbone) -> None:
    """A design takes a Rules object as well as its fields."""
    by_fields = model.design(dimer, 2, redesigned="A1-5", omit="C")
    by_object = model.design(dimer, 2, rules=mpnn.Rules(redesigned="A1-5", omit="C"))
    assert [d.sequence for d in by_fields] == [d.sequence for d in by_object]
    rules = Rules(fixed="A1-5")
    scores = [model.score(dimer, rules=rules).score, model.score(dimer, fixed="A1-5").score]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("separator", ["/", ":"])
def test_chains_of_a_sequence_are_separated(model: Model, dimer: Backbone, separator: str) -> None:
    """Both "/" and ":" stand between the chains of a sequence to score."""
    text = f"{dimer.sequence[:12]}{separator}{dimer.sequence[12:]}"
    assert model.score(dimer, text).score == model.score(dimer).score


def test_every_rule_is_documented() -> None:
    """The docstring of Rules has a line for each field."""
    for rule in dataclasses.fields(Rules):
        assert f"\n        {rule.name}: {rule.metadata['help']}" in str(Rules.__doc__)
