"""Rules per structure of a run: files of rules, and LigandMPNN's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpnn.errors import InputError
from mpnn.rulebook import RuleBook
from mpnn.rules import Rules
from mpnn.synthetic import synthetic_backbone

BACKBONE = synthetic_backbone(12, chains=2)
FILES = [Path("in/5TTA.pdb"), Path("in/3LIS.cif.gz")]


def rules_of(
    folder: Path, content: object, options: dict[str, Any] | None = None, name: str = "rules.json"
) -> list[Rules]:
    """Rules of both files under a file of rules."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    book = RuleBook(FILES, options or {}, rules=str(path))
    return [book.rules(file, BACKBONE)[0] for file in FILES]


@pytest.mark.parametrize("name", ["in/5TTA.pdb", "./in/5TTA.pdb", "5TTA.pdb", "5TTA", "old/5TTA"])
def test_names_of_structures(tmp_path: Path, name: str) -> None:
    """A structure is named by its path, its file name, or that without the ending."""
    assert rules_of(tmp_path, {name: {"fixed": "A1"}}) == [Rules(fixed="A1"), Rules()]


def test_fields_of_a_file_replace_the_options(tmp_path: Path) -> None:
    """What an entry sets counts for its structure; the rest comes from the options."""
    content = {"3LIS": {"chains": ["B"], "homo_oligomer": False, "bias_per_residue": {"A1": {}}}}
    plain, special = rules_of(tmp_path, content, {"chains": "A", "omit": "C"})
    assert plain == Rules(chains="A", omit="C")
    assert special == Rules(chains=["B"], omit="C", bias_per_residue={"A1": {}})


def test_table_of_rules(tmp_path: Path) -> None:
    """A CSV file has a column called file and one for each rule; empty cells set nothing."""
    text = "file,redesigned,homo-oligomer,omit\n5TTA,A1-3 B2,,\n3LIS,,true,CM\n"
    assert rules_of(tmp_path, text, name="rules.csv") == [
        Rules(redesigned="A1-3 B2"),
        Rules(homo_oligomer=True, omit="CM"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1ABC": {}}, "no structure of this run is called 1ABC; name files as .* such as '5TTA'"),
        ({"5TTA": {}, "in/5TTA.pdb": {}}, "in/5TTA.pdb has several entries: 5TTA"),
        ({"5TTA": {}, "5TTA.pdb": {}}, "has several entries: 5TTA.pdb, 5TTA"),
        ({"5TTA": "A1 A2"}, "5TTA has 'A1 A2'; write fields such as"),
        ({"5TTA": {"fix": "A1"}}, "no rule fix; the rules are chains, fixed, redesigned, tied"),
        ({"5TTA": {"fixed": ["A1"]}}, r"fixed is \['A1'\]; write text such as \"A1-10,B5\""),
        ({"5TTA": {"homo_oligomer": "yes"}}, "homo_oligomer is 'yes'; write True or False"),
        ({"5TTA": {"pssm_multi": 0.5}}, "need a PSSM"),
        ({"5TTA": {"chains": 3}}, 'chains is 3; write text such as "A,C"'),
        ("{", "is not JSON"),
    ],
)
def test_rules_refused(tmp_path: Path, content: object, message: str) -> None:
    """A name without a structure, two for one, or a field that cannot be used, is an error."""
    with pytest.raises(InputError, match=message):
        rules_of(tmp_path, content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,fixed\n5TTA,A1\n", "one of them called file"),
        ("file,fixed\n5TTA,A1,B1\n", "each line needs a cell for each column"),
        ("file,fixed\n5TTA\n", "each line needs a cell for each column"),
        ("file,fixed\n5TTA,A1\n5TTA,A2\n", "5TTA has two lines"),
        ("file,fix\n5TTA,A1\n", "no rule fix"),
        ("file,homo_oligomer\n5TTA,maybe\n", "'maybe'; write true or false"),
        ("file,pssm_multi\n5TTA,much\n", "'much'; write a number"),
        ("file,bias_per_residue\n5TTA,x\n", "does not fit into a table"),
        ('file,fixed\n5TTA,"A1\n', "is not CSV"),
    ],
)
def test_tables_refused(tmp_path: Path, text: str, message: str) -> None:
    """A table without names, with odd lines or with cells that cannot be used is an error."""
    with pytest.raises(InputError, match=message):
        rules_of(tmp_path, text, name="rules.csv")


def option_of(folder: Path, name: str, content: object) -> Rules:
    """Rules of 5TTA where an option names a JSON file."""
    path = folder / "option.json"
    path.write_text(json.dumps(content))
    return RuleBook(FILES[:1], {name: str(path)}).rules(FILES[0], BACKBONE)[0]


@pytest.mark.parametrize("name", ["fixed", "redesigned"])
def test_residues_of_ligandmpnn(tmp_path: Path, name: str) -> None:
    """--fixed_residues_multi and --redesigned_residues_multi: path -> "A7 A8 B3"."""
    content = {"./inputs/1BC8.pdb": "C1 C2", "./inputs/5TTA.pdb": "A1 A2 B3"}
    assert option_of(tmp_path, name, content) == Rules(**{name: "A1,A2,B3"})
    assert option_of(tmp_path, name, {"5TTA": ["A1", "B3"]}) == Rules(**{name: "A1,B3"})
    assert option_of(tmp_path, name, {"5TTA": ""}) == Rules()


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("bias_per_residue", {"A1": {"A": 3.0, "P": -2.0}, "A2": {"W": 10.0}}),
        ("omit_per_residue", {"A1": "ACDEF", "A2": "GHI"}),
    ],
)
def test_rules_by_residue_of_ligandmpnn(
    tmp_path: Path, name: str, rules: dict[str, object]
) -> None:
    """Files of --bias_AA_per_residue and --omit_AA_per_residue are read, _multi or not."""
    assert option_of(tmp_path, name, rules) == Rules(**{name: rules})
    assert option_of(tmp_path, name, {"./in/5TTA.pdb": rules, "x": {}}) == Rules(**{name: rules})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1BC8": "A1"}, "no entry for in/5TTA.pdb; add '5TTA'"),
        ({"5TTA": 3}, 'has 3; write residues such as "A12 A13 B2-5"'),
        ({"5TTA": [1]}, "write residues"),
    ],
)
def test_files_of_ligandmpnn_refused(tmp_path: Path, content: object, message: str) -> None:
    """A file without the structure, or without residues, is an error."""
    with pytest.raises(InputError, match=message):
        option_of(tmp_path, "fixed", content)
