"""Rules in other tools' files: what ProteinMPNN's helper scripts, LigandMPNN and Rosetta write."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_files import pdb_text, with_gaps, write_pdb

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET
from mpnn.constraints import constraints
from mpnn.errors import InputError
from mpnn.labels import fixed_labels
from mpnn.published import recognize
from mpnn.rulebook import RuleBook
from mpnn.rules import Rules
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone

DIMER = synthetic_backbone(12, chains=2)


@pytest.fixture(scope="module")
def gapped(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Chains A and B of 6 residues as read from a file in which A3 is missing."""
    folder = tmp_path_factory.mktemp("gapped")
    return read_structure(write_pdb(folder / "5TTA.pdb", with_gaps(DIMER, 2)))


def rules_from(
    folder: Path, backbone: Backbone, *contents: object, **options: Any
) -> tuple[Rules, list[str]]:
    """The rules and notes of 5TTA that published files with these contents give."""
    published = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.jsonl"
        path.write_text(json.dumps(content) + "\n")
        published.append(str(path))
    files = [Path("5TTA.pdb"), Path("in/3LIS.pdb.gz")]
    return RuleBook(files, options, published).rules(files[0], backbone)


def test_chain_id(tmp_path: Path, gapped: Backbone) -> None:
    """assign_fixed_chains.py: the first list is designed, the second is context."""
    content = {"5TTA": [["B"], ["A"]], "3LIS": [["A"], ["B"]]}
    rules, notes = rules_from(tmp_path, gapped, content)
    target, _ = constraints(gapped, rules)
    assert (target.designed_chains, target.fixed_chains) == (("B",), ("A",))
    assert not notes


def test_fixed_positions(tmp_path: Path, gapped: Backbone) -> None:
    """make_fixed_positions_dict.py: positions count along the chain, gaps included."""
    content = {"5TTA": {"A": [1, 4], "B": [6]}, "3LIS": {"A": [], "B": []}}
    rules, _ = rules_from(tmp_path, gapped, content)
    assert rules == Rules(fixed="A1,A4,B6")


def test_positions_are_not_residue_numbers(tmp_path: Path) -> None:
    """In a chain that starts at 43, position 1 is residue 43."""
    text = pdb_text(synthetic_backbone(6))
    lines = [f"{line[:22]}{int(line[22:26]) + 42:4d}{line[26:]}" for line in text.split("\n")[:-2]]
    (tmp_path / "5TTA.pdb").write_text("\n".join(lines))
    backbone = read_structure(tmp_path / "5TTA.pdb")
    rules, _ = rules_from(tmp_path, backbone, {"5TTA": {"A": [1, 6]}})
    assert rules.fixed == "A43,A48"


def test_tied_positions_of_a_homo_oligomer(tmp_path: Path, gapped: Backbone) -> None:
    """make_tied_positions_dict.py --homooligomer 1: residues without coordinates are left out."""
    content = {"5TTA": [{"A": [i], "B": [i]} for i in range(1, 7)], "3LIS": []}
    rules, notes = rules_from(tmp_path, gapped, content)
    assert rules.tied == "|".join(f"A{i}=1.0,B{i}=1.0" for i in (1, 2, 4, 5, 6))
    assert notes == ["residues without coordinates left out of their ties (1): A3"]


def test_tied_positions_with_weights(tmp_path: Path, gapped: Backbone) -> None:
    """make_pos_neg_tied_positions_dict.py: the second list holds weights."""
    content = {"5TTA": [{"A": [[1], [1.0]], "B": [[2], [-0.5]]}]}
    rules, _ = rules_from(tmp_path, gapped, content)
    _, limits = constraints(gapped, rules)
    assert limits.tie_group[[0, 7]].tolist() == [0, 0]
    assert limits.tie_weight[[0, 7]].tolist() == [1.0, -0.5]


def test_omit_aa(tmp_path: Path, gapped: Backbone) -> None:
    """make_omit_AA.py: several lists of positions, each with its amino acids."""
    content = {"5TTA": {"A": [[[1, 2], "GPL"], [[2], "WC"]], "B": []}}
    rules, _ = rules_from(tmp_path, gapped, content)
    assert rules == Rules(omit_per_residue={"A1": "GPL", "A2": "GPLWC"})


def test_bias_aa(tmp_path: Path, gapped: Backbone) -> None:
    """make_bias_AA.py: one bias for every structure."""
    rules, _ = rules_from(tmp_path, gapped, {"A": -0.01, "G": 0.02})
    assert rules == Rules(bias={"A": -0.01, "G": 0.02})


def test_bias_by_res(tmp_path: Path, gapped: Backbone) -> None:
    """make_bias_per_res_dict.py: [L, 21] for each chain, X included."""
    rows = np.zeros((6, 21))
    rows[3, [ALPHABET.index("G"), 20]] = 100.5, -100.5
    content = {"5TTA": {"A": rows.tolist(), "B": np.zeros((6, 21)).tolist()}}
    rules, _ = rules_from(tmp_path, gapped, content)
    assert rules == Rules(bias_per_residue={"A4": {"G": 100.5, "X": -100.5}})


def test_pssm(tmp_path: Path, gapped: Backbone) -> None:
    """make_pssm_input_dict.py: three arrays for each chain; an empty chain has no profile."""
    arrays = {
        "pssm_coef": [1.0] * 6,
        "pssm_bias": np.full((6, 21), 1 / 21).tolist(),
        "pssm_log_odds": np.ones((6, 21)).tolist(),
    }
    content = {"5TTA": {"A": arrays, "B": {}}}
    rules, _ = rules_from(tmp_path, gapped, content, pssm_multi=0.3, pssm_threshold=0.0)
    assert rules == Rules(pssm={"A": arrays}, pssm_multi=0.3, pssm_threshold=0.0)
    without, notes = rules_from(tmp_path, gapped, {"5TTA": {"A": {}, "B": {}}}, pssm_multi=0.3)
    assert (without, notes) == (Rules(), ["no PSSM for this structure"])


def test_several_files_add_up(tmp_path: Path, gapped: Backbone) -> None:
    """Files of different forms hold together, and fixed residues add up with the option's."""
    rules, _ = rules_from(
        tmp_path,
        gapped,
        {"5TTA": [["A", "B"], []]},
        {"5TTA": {"A": [1]}},
        {"C": -2.0},
        fixed="B2",
        omit="W",
    )
    assert rules == Rules(chains=["A", "B"], fixed="B2,A1", bias={"C": -2.0}, omit="W")


def test_chains_that_a_structure_lacks(tmp_path: Path, gapped: Backbone) -> None:
    """One list of chains for all structures is usual: positions of an absent chain are a note."""
    rules, notes = rules_from(tmp_path, gapped, {"5TTA": {"A": [1], "C": [2, 3], "D": []}})
    assert rules.fixed == "A1"
    assert notes == ["chains with rules that the structure lacks (1): C"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"3LIS": {"A": [1]}}, "0.jsonl: no entry for 5TTA.pdb; add '5TTA'"),
        ({"5TTA": {"A": [7]}}, "position 7 of chain A, which has 6 residues; positions count from"),
        ({"5TTA": {"A": [0]}}, "position 0 of chain A"),
        ({"5TTA": [["C"], ["A"]]}, "no chain C; the structure's chains are A, B"),
        ({"5TTA": [[], ["A", "B"]]}, "no chain to design"),
        ({"5TTA": [{"A": [1], "C": [1]}]}, "no chain C"),
        ({"5TTA": [{"A": [[1, 2], [1.0]], "B": [1]}]}, "2 positions and 1 weights"),
        ({"5TTA": {"A": [[0.0] * 21] * 5}}, "bias of chain A has 5 rows; 6 rows of 21"),
        ({"5TTA": {"A": [[0.0] * 20] * 6}}, "6 rows of 21 numbers"),
        ({"5TTA": {"A": [1]}, "3LIS": [["A"], []]}, "the entry '3LIS' does not have the form"),
        ({"5TTA": {"A": [1.5]}}, "the entry '5TTA' .* none of the forms chain_id, fixed_positions"),
        ({"5TTA": "A1 A2"}, r"files of LigandMPNN go to --fixed, --redesigned"),
        ([], "a JSON object is needed"),
    ],
)
def test_published_files_refused(
    tmp_path: Path, gapped: Backbone, content: object, message: str
) -> None:
    """A file of no known form, or one that does not fit the structure, is an error."""
    with pytest.raises(InputError, match=message):
        rules_from(tmp_path, gapped, content)


def test_one_rule_from_two_places(tmp_path: Path, gapped: Backbone) -> None:
    """A rule that a file and an option both set is an error that names both."""
    with pytest.raises(InputError, match=r"chains is set twice, by an option and by .*0.jsonl"):
        rules_from(tmp_path, gapped, {"5TTA": [["A"], ["B"]]}, chains="B")


def test_empty_entries_say_nothing(tmp_path: Path, gapped: Backbone) -> None:
    """Files whose entries are all empty leave the design as it is."""
    for content in ({"5TTA": []}, {"5TTA": {"A": [], "B": []}}, {"5TTA": {}}):
        assert rules_from(tmp_path, gapped, content) == (Rules(), [])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats(allow_subnormal=False)
    | st.sampled_from(["A", "GP", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ABC"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["5TTA", "A"]), json_values, max_size=2))
def test_any_content_is_recognized_or_refused(content: dict[str, Any]) -> None:
    """Whatever JSON a file holds, the answer is rules for the structure or an InputError."""
    try:
        found = recognize(content)
        for entry in found.by_structure.values():
            constraints(DIMER, Rules(**found.translate(entry, DIMER)[0]))
    except InputError:
        pass


LABELS = "REMARK PDBinfo-LABEL:    3 FIXED\nREMARK PDBinfo-LABEL:    8 FIXED\n"


@pytest.mark.parametrize("zipped", [False, True])
def test_labels_count_residues_in_file_order(tmp_path: Path, zipped: bool) -> None:
    """Label 3 is the third residue of the file, 8 the eighth, whatever their numbers and gaps."""
    text = LABELS + pdb_text(with_gaps(DIMER, 1)) + "REMARK PDBinfo-LABEL:    1 HOTSPOT\n"
    path = tmp_path / "labeled.pdb"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    places, notes = fixed_labels(path, read_structure(path))
    assert places == ["A4", "B3"]
    assert notes == ["residues fixed by REMARK labels (2): A4, B3"]


def test_labels_do_not_count_other_molecules(tmp_path: Path) -> None:
    """Waters and ligands between the chains have no place in the count."""
    water = "HETATM   99  O   HOH W   1       1.000   2.000   3.000  1.00  0.00           O\n"
    (tmp_path / "x.pdb").write_text(water + pdb_text(DIMER).replace("END\n", "") + LABELS)
    assert fixed_labels(tmp_path / "x.pdb", read_structure(tmp_path / "x.pdb"))[0] == ["A3", "B2"]


def test_labels_after_a_chain_was_split(tmp_path: Path) -> None:
    """Labels count the file's residues where reading gave part of a chain a new name."""
    lines = pdb_text(with_gaps(DIMER, 1)).splitlines()[:-1]
    second = [f"{s[:21]}A{int(s[22:26]) + 6:4d}{s[26:]}" for s in lines[20:]]  # chain B
    path = tmp_path / "merged.pdb"
    path.write_text(LABELS + "\n".join(lines[:20] + second) + "\n")
    split = read_structure(path, split_breaks=True)
    assert len(split.chain_ids) == 2
    assert fixed_labels(path, split)[0] == ["A4", f"{split.chain_ids[1]}9"]


def test_no_labels_is_a_note(tmp_path: Path) -> None:
    """A file without labels gets a note that says so."""
    path = write_pdb(tmp_path / "x.pdb", DIMER)
    assert fixed_labels(path, DIMER) == ([], ["residues fixed by REMARK labels (0): none"])


def test_a_label_beyond_the_residues(tmp_path: Path) -> None:
    """A label that counts further than the file's residues is an error."""
    (tmp_path / "x.pdb").write_text(pdb_text(DIMER) + "REMARK PDBinfo-LABEL:   13 FIXED\n")
    with pytest.raises(InputError, match="LABEL: 13 FIXED, but the file has 12 protein residues"):
        fixed_labels(tmp_path / "x.pdb", DIMER)
