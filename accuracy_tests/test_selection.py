"""Residues as users write them: selections, ties, homo-oligomers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpnn.backbone import Backbone
from mpnn.errors import InputError
from mpnn.selection import Tie, homo_oligomer_ties, parse_selection, parse_ties
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone


def numbered(*chains: tuple[str, str]) -> Backbone:
    """A synthetic backbone with chains of these names and residues, such as ("A", "51 52 52A")."""
    residues = [text.split() for _, text in chains]
    parts = [part for chain in residues for part in chain]
    codes = [part[-1] if part[-1].isalpha() else "" for part in parts]
    return dataclasses.replace(
        synthetic_backbone(len(parts)),
        name="made",
        chain_ids=tuple(name for name, _ in chains),
        chain_index=np.repeat(np.arange(len(chains)), [len(chain) for chain in residues]),
        numbers=np.array(
            [int(part.removesuffix(code)) for part, code in zip(parts, codes, strict=True)]
        ),
        insertion_codes=np.array(codes, dtype="<U1"),
    )


ODD = numbered(
    ("A", "-3 -2 -1 0 1 2 51 52 52A 52B 53 53A 54"),
    ("B", "1 2 3"),
    ("BB", "1 2 3 10"),
    ("7", "1 2 3"),
    ("C", "184B 184A 184 185"),
    ("D", "1 2"),
    ("D1", "5 6"),
)


RANGES = (("B", "1 2 3"), ("BB", "1 2 3"), ("7", "1 2"), ("D", "1 2"), ("D1", "5 6"))


def selected(text: str, backbone: Backbone = ODD) -> list[str]:
    return [backbone.address(i) for i in np.flatnonzero(parse_selection(text, backbone)).tolist()]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("B", "B1 B2 B3"),
        ("B:", "B1 B2 B3"),
        ("B2", "B2"),
        ("B:2-3", "B2 B3"),
        ("B2-99", "B2 B3"),
        (" B1 , A1-2 ", "A1 A2 B1"),
        ("B1 B3 A1-2", "A1 A2 B1 B3"),
        ("A-3", "A-3"),
        ("A-3-1", "A-3 A-2 A-1 A0 A1"),
        ("A-3--1", "A-3 A-2 A-1"),
        ("A:-3--1", "A-3 A-2 A-1"),
        ("A52", "A52"),
        ("A52A", "A52A"),
        ("A52-53", "A52 A52A A52B A53"),
        ("A52A-53A", "A52A A52B A53 A53A"),
        ("A52B-54", "A52B A53 A53A A54"),
        ("BB", "BB:1 BB:2 BB:3 BB:10"),
        ("BB:1-2", "BB:1 BB:2"),
        ("71-2", "71 72"),
        ("C184-185", "C184B C184A C184 C185"),
        ("D1:", "D1:5 D1:6"),
        ("D:1", "D:1"),
        ("D2", "D2"),
        ("D1:6", "D1:6"),
    ],
)
def test_selections(text, addresses):
    """Chains, residues, ranges, insertion codes, negative numbers and long names are understood."""
    assert selected(text) == addresses.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no chain of the structure; its chains are A, B, BB"),
        ("B1,", "names no chain"),
        ("Z5", "'Z5' names no chain of the structure; its chains are A, B, BB"),
        ("ZZ:5", "names no chain"),
        ("B1-", "'B1-' is malformed"),
        ("Bx", "'Bx' is malformed"),
        ("B1_2", "malformed"),
        ("B:1:2", "names no chain"),
        ("BB1", "'BB1' is malformed"),
        ("B3-1", "ends before it starts"),
        ("A53-52B", "ends before it starts"),
        ("B9", "selects nothing; chain B runs from B1 to B3"),
        ("A52C", "selects nothing; chain A runs from A-3 to A54"),
        ("B99999999999999999999", "malformed"),
        ("D1", r"is ambiguous; write D:1 or D1:"),
    ],
)
def test_selections_refused(text, message):
    """A malformed, ambiguous or empty selection is refused, naming the part and what there is."""
    with pytest.raises(InputError, match=f"made: selection .*{message}"):
        parse_selection(text, ODD)


@pytest.mark.parametrize("backbone", [ODD, synthetic_backbone(30, 3), synthetic_backbone(60, 30)])
def test_addresses_select_their_residue(backbone):
    """The address of a position selects that position and no other."""
    for position in range(len(backbone)):
        chosen = np.flatnonzero(parse_selection(backbone.address(position), backbone))
        assert chosen.tolist() == [position]


@given(st.data())
def test_a_selection_is_the_union_of_its_parts(data):
    """Ranges between any two residues of a chain select those in between, and parts add up."""
    backbone = synthetic_backbone(50, 2)
    expected = np.zeros(len(backbone), dtype=bool)
    parts = []
    for _ in range(data.draw(st.integers(1, 4))):
        chain = data.draw(st.sampled_from([0, 25]))
        first, last = sorted(data.draw(st.tuples(st.integers(0, 24), st.integers(0, 24))))
        expected[chain + first : chain + last + 1] = True
        parts.append(f"{'AB'[chain // 25]}{first + 1}-{last + 1}")
    np.testing.assert_array_equal(parse_selection(",".join(parts), backbone), expected)


@settings(max_examples=300)
@given(st.text("ABCD7xZ0123456789-:,|=. _", max_size=20) | st.text(max_size=12))
@pytest.mark.parametrize("parse", [parse_selection, parse_ties])
def test_only_input_errors(parse, text):
    """Whatever is written, the answer is a selection of something or an InputError."""
    try:
        chosen = parse(text, ODD)
    except InputError:
        return
    assert any(chosen)


def test_ties():
    """Groups are separated by a bar, members by a comma, and weights follow an equals sign."""
    ties = parse_ties("B1, BB:1 | B2=0.5,BB:2,71=-2", ODD)
    assert [[ODD.address(i) for i in tie.positions] for tie in ties] == [
        ["B1", "BB:1"],
        ["B2", "BB:2", "71"],
    ]
    assert [tie.weights for tie in ties] == [(1, 1), (0.5, 1, -2)]


def test_ties_of_ranges():
    """Ranges and chains are tied by place, each with one weight, beside single residues."""
    ties = parse_ties("B1-2, BB:2-3=-0.5 | 7:,D1:5-6,D:|B3,BB:1", numbered(*RANGES))
    backbone = numbered(*RANGES)
    assert [[backbone.address(i) for i in tie.positions] for tie in ties] == [
        ["B1", "BB:2"],
        ["B2", "BB:3"],
        ["71", "D1:5", "D:1"],
        ["72", "D1:6", "D2"],
        ["B3", "BB:1"],
    ]
    assert [tie.weights for tie in ties] == [(1, -0.5)] * 2 + [(1, 1, 1)] * 2 + [(1, 1)]
    assert [tie.by_range for tie in ties] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("B1", "tie 'B1' needs two residues or ranges"),
        ("B1,BB:1|", "names no chain"),
        ("B1,B1", "names residue B1 twice"),
        ("B1,B2|BB:1,B2", "names residue B2 twice"),
        ("B1-2,BB:1", "equal lengths, but B1-2 has 2 residues and BB:1 has 1"),
        ("B,71-3,BB", "equal lengths, but B has 3 residues and BB has 4"),
        ("B1-2,B2-3", "names residue B2 twice"),
        ("B1-2", "tie 'B1-2' needs two residues or ranges"),
        ("B1-2=x,BB:1-2", "weight 'x' is not a number"),
        ("B1=x,BB:1", "weight 'x' is not a number"),
        ("B1=nan,BB:1", "weight 'nan' is not a number"),
        ("B1=,BB:1", "weight '' is not a number"),
        ("B1=0,BB:1=0", "not all of weight 0"),
    ],
)
def test_ties_refused(text, message):
    """A tie of one part, unequal ranges or one residue twice, or a bad weight, is an error."""
    with pytest.raises(InputError, match=message):
        parse_ties(text, ODD)


def test_homo_oligomer():
    """Chains numbered alike are tied residue by residue, whatever order they are named in."""
    backbone = numbered(("A", "1 2 2A"), ("Q", "7"), ("B", "1 2 2A"))
    assert homo_oligomer_ties(backbone, ["B", "A"]) == (
        [Tie(pair, (1.0, 1.0), by_range=True) for pair in ((4, 0), (5, 1), (6, 2))],
        "",
    )


def test_homo_oligomer_is_what_its_ties_say():
    """Tying a homo-oligomer equals tying its chains as ranges."""
    backbone = synthetic_backbone(30, 3)
    assert homo_oligomer_ties(backbone, ["A", "B", "C"]) == (parse_ties("A,B,C", backbone), "")


def test_homo_oligomer_whose_numbers_continue():
    """Chains with one numbering pattern at later numbers are tied by place, with a note."""
    backbone = numbered(("A", "1 2 2A"), ("B", "11 12 12A"), ("C", "5 6 6A"))
    ties, note = homo_oligomer_ties(backbone, ["A", "B", "C"])
    assert [tie.positions for tie in ties] == [(0, 3, 6), (1, 4, 7), (2, 5, 8)]
    assert note == (
        "chains tied by place because their numbers continue (3): A1 to A2A, B11 to B12A, C5 to C6A"
    )


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        (["A"], "two chains or more"),
        (["A", "Z"], "name one or more of A, B, C, D, E, F"),
        (["A", "B"], r"A \(3 residues\) and B \(2\) .* they differ in 3;"),
        (["A", "C"], "they differ in 1, 4;"),
        (["A", "D"], "they differ in their order"),
        (["A", "E"], "they differ in 2, 2A"),
        (["A", "C"], 'tie them by place with --tied "A:,C:"'),
        (["A", "F"], "they differ in 1, 11, 12, 14, 2, 3;"),
    ],
)
def test_homo_oligomer_refused(chains, message):
    """Chains whose residue numbers differ are refused, saying in what."""
    backbone = numbered(
        ("A", "1 2 3"),
        ("B", "1 2"),
        ("C", "2 3 4"),
        ("D", "1 3 2"),
        ("E", "1 2A 3"),
        ("F", "11 12 14"),
    )
    with pytest.raises(InputError, match=message):
        homo_oligomer_ties(backbone, chains)


@pytest.mark.data
@pytest.mark.parametrize(("entry", "length", "members"), [("6EHB", 320, 3), ("4GYT", 177, 2)])
def test_real_homo_oligomers(data_dir, entry, length, members):
    """Real homo-oligomers tie by number although residues are missing in some of their chains."""
    backbone = read_structure(data_dir / f"pdb/{entry}.pdb")
    ties, note = homo_oligomer_ties(backbone, backbone.chain_ids)
    assert not note
    assert len(ties) == length
    for tie in ties:
        letters = {backbone.sequence[i] for i in tie.positions} - {"X"}
        assert len(tie.positions) == members
        assert len(letters) == 1
