"""Designs written as PDB and mmCIF: read back, they are the design on the input's backbone."""

from __future__ import annotations

import dataclasses
import gzip
import re
from pathlib import Path

import gemmi
import numpy as np
import pytest
from synthetic_files import THREE_LETTERS, made_model

from mpnn.backbone import ATOMS, Backbone
from mpnn.design import Model
from mpnn.design_structure import Template, form_of, read_source, structure_text
from mpnn.errors import InputError
from mpnn.results import Designs
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone

REMARKS = "REMARK   1 MADE FOR A TEST\nREMARK PDBinfo-LABEL:    3 FIXED\n"
MADE = synthetic_backbone(24, chains=2)

ATOM_LINE = re.compile(
    r"(?:ATOM  |HETATM)[ \d]{4}\d "  # 1-12 record, serial number
    r"[ \w'*]{4}[ \w][ \w]{2}\w "  # 13-21 atom, conformation, residue
    r"\w[ \d-]{3}\d[ A-Z] {3}"  # 22-30 chain, number, insertion code
    r"(?:[ \d-]{3}\d\.\d{3}){3}"  # 31-54 coordinates
    r"(?:[ \d]{2}\d\.\d\d){2} {10}"  # 55-76 occupancy, B-factor
    r"[ A-Z][A-Z](?:  |\d[+-])"  # 77-80 element, charge
)


def atom_line(
    atom: str, residue: str, place: str, xyz: np.ndarray, record: str = "ATOM", altloc: str = " "
) -> str:
    """One line of PDB; `place` is chain, number and insertion code in columns 22 to 27."""
    x, y, z = xyz
    occupancy = 1.0 if altloc == " " else {"A": 0.6, "B": 0.4}[altloc]
    return (
        f"{record:6}    1  {atom:3}{altloc}{residue:3} {place:6}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f} 30.00          {atom[0]:>2}"
    )


def rich_pdb() -> str:
    """Two chains with side chains, and what files have besides.

    A3 is MSE in HETATM records, A5 has two conformations, A7 two residue types, B2 lacks its O, B4
    is missing; a zinc ion, a water and an ANISOU line follow.
    """
    lines = [REMARKS.rstrip(), "CRYST1   50.000   60.000   70.000  90.00  90.00  90.00 P 1"]
    for i, letter in enumerate(MADE.sequence):
        chain, number = "AB"[i // 12], i % 12 + 1
        place, name = f"{chain}{number:4d} ", THREE_LETTERS[letter]
        site = f"{chain}{number}"
        coords = dict(zip(ATOMS, MADE.coords[i], strict=True))
        cb = MADE.coords[i, 1] + np.float32([0.5, 1.2, -0.8])
        atoms = {**coords, "CB": cb, "CG": cb + 1}
        if site == "B4":
            continue
        if site == "B2":
            del atoms["O"]
        if site == "A3":
            lines += [atom_line(a, "MSE", place, xyz, "HETATM") for a, xyz in atoms.items()]
        elif site == "A5":
            for altloc, shift in (("A", 0.0), ("B", 0.3)):
                lines += [
                    atom_line(a, "LYS", place, xyz + np.float32(shift), altloc=altloc)
                    for a, xyz in atoms.items()
                ]
        elif site == "A7":
            for altloc, kind, shift in (("A", "SER", 0.0), ("B", "THR", 0.2)):
                lines += [
                    atom_line(a, kind, place, xyz + np.float32(shift), altloc=altloc)
                    for a, xyz in atoms.items()
                ]
        else:
            lines += [atom_line(a, name, place, xyz) for a, xyz in atoms.items()]
            lines.append(atom_line("HA", name, place, cb - 1))
        if number == 12:
            lines += [atom_line("OXT", name, place, coords["C"] - 1), "TER"]
    lines += [
        atom_line("ZN", "ZN", "A 101 ", np.float32([30, 30, 30]), "HETATM"),
        atom_line("O", "HOH", "A 201 ", np.float32([33, 30, 30]), "HETATM"),
        "END",
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def model() -> Model:
    return made_model()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "rich.pdb"
    path.write_text(rich_pdb())
    return path


@pytest.fixture(scope="module")
def designs(model: Model, source: Path) -> Designs:
    """Two hot designs of all but A9 to A11."""
    return model.design(read_structure(source), 2, 2.0, fixed="A9-11")


def residue(structure: gemmi.Structure, chain: str, number: str) -> gemmi.Residue:
    (found,) = structure[0][chain][number]
    return found


@pytest.mark.parametrize("form", ["pdb", "cif"])
def test_reads_back_as_the_design(
    model: Model, designs: Designs, source: Path, tmp_path: Path, form: str
) -> None:
    """A written structure has the design's sequence and the input's backbone, so its scores."""
    template = Template(designs, read_source(source))
    for n, design in enumerate(designs):
        path = tmp_path / f"{n}.{form}"
        path.write_text(structure_text(template.with_design(design), form))
        back = read_structure(path)
        backbone = designs.backbone
        assert back.sequence == design.sequence
        assert back.chain_ids == backbone.chain_ids
        np.testing.assert_array_equal(back.mask, backbone.mask)
        np.testing.assert_array_equal(back.coords, backbone.coords)
        np.testing.assert_array_equal(back.numbers, backbone.numbers)
        again = model.score(back, seed=3, fixed="A9-11")
        assert again.score == model.score(backbone, design.sequence, seed=3, fixed="A9-11").score
        repeated = model.design(back, 2, 2.0, fixed="A9-11")[n]
        assert repeated.sequence == design.sequence
        assert repeated.score == design.score


def test_pdb_columns(designs: Designs, source: Path) -> None:
    """Every atom stands in the columns of the PDB format, numbered without gaps."""
    text = structure_text(Template(designs, read_source(source)).with_design(designs[0]), "pdb")
    atoms = [line for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))]
    assert len(atoms) > 100
    for line in atoms:
        assert ATOM_LINE.fullmatch(line), line
        assert line[17:20].strip() in {*THREE_LETTERS.values(), "ZN", "HOH"}
        float(line[30:38]), float(line[38:46]), float(line[46:54]), float(line[60:66])
    assert not re.search("^(ANISOU|MODRES|SSBOND)", text, re.M)
    assert text.rstrip().endswith("END")


def test_b_factors_are_the_scores_of_residues(designs: Designs, source: Path) -> None:
    """All atoms of a residue, designed or fixed, have its −log p; others have 0."""
    made = designs.to_gemmi(0, source)
    backbone = designs.backbone
    for i, score in enumerate(designs[0].residue_scores):
        name = backbone.chain_ids[backbone.chain_index[i]]
        for found in made[0][name][str(backbone.numbers[i])]:
            expected = 0.0 if np.isnan(score) else score
            assert all(atom.b_iso == pytest.approx(expected, abs=1e-6) for atom in found)
    assert residue(made, "B", "2")[0].b_iso == 0
    assert residue(made, "A", "101")[0].b_iso == residue(made, "A", "201")[0].b_iso == 0


def test_side_chains(designs: Designs, source: Path) -> None:
    """Designed residues keep backbone, CB unless glycine, and OXT; fixed ones keep all atoms."""
    made = designs.to_gemmi(0, source)
    sequence = dict(zip(range(1, 13), designs[0].sequence, strict=False))
    for number, letter in sequence.items():
        names = [atom.name for atom in residue(made, "A", str(number))]
        if number in (9, 10, 11):
            assert names == [*ATOMS, "CB", "CG", "HA"]
        else:
            assert names == [*ATOMS, *["CB"] * (letter != "G"), *["OXT"] * (number == 12)]
    assert [atom.name for atom in residue(made, "B", "2")] == ["N", "CA", "C", "CB", "CG", "HA"]


def test_glycine_has_no_cb(designs: Designs, source: Path) -> None:
    """A residue that becomes glycine loses its CB, one that was glycine has none to keep."""
    letters = "G" * 8 + designs.backbone.sequence[8:]
    made = Template(designs, read_source(source)).with_design(
        dataclasses.replace(designs[0], sequence=letters)
    )
    for number in range(1, 9):
        found = residue(made, "A", str(number))
        assert found.name == "GLY"
        assert [atom.name for atom in found] == list(ATOMS)


def test_modified_residues_become_standard(designs: Designs, source: Path) -> None:
    """A redesigned MSE is a standard residue in ATOM records; a fixed one stays as it is."""
    made = designs.to_gemmi(0, source)
    found = residue(made, "A", "3")
    assert found.name == THREE_LETTERS[designs[0].sequence[2]]
    assert found.het_flag == "A"
    text = structure_text(made, "pdb")
    assert "MSE" not in text
    kept = made_model().design(read_structure(source), fixed="A3").to_gemmi(0, source)
    assert residue(kept, "A", "3").name == "MSE"
    assert "\nHETATM" in structure_text(kept, "pdb").partition("MSE A   3")[0]


def test_conformations(designs: Designs, source: Path) -> None:
    """A designed residue has the one conformation that was read, whole and without a label."""
    made = designs.to_gemmi(0, source)
    for number in ("5", "7"):
        found = residue(made, "A", number)  # one residue, although the file has two types at 7
        assert {atom.altloc for atom in found} == {"\0"}
        assert {atom.occ for atom in found} == {1.0}
        at = designs.backbone.coords[int(number) - 1]
        for atom, expected in zip(found, at, strict=False):
            np.testing.assert_allclose(atom.pos.tolist(), expected, atol=1e-3)


def test_remarks_and_hetero_atoms_are_kept(designs: Designs, source: Path, tmp_path: Path) -> None:
    """Remarks, the unit cell, ions and waters are those of the input, gzipped or not."""
    zipped = tmp_path / "rich.pdb.gz"
    zipped.write_bytes(gzip.compress(source.read_bytes()))
    for path in (source, zipped):
        made = designs.to_gemmi(1, path)
        text = structure_text(made, "pdb")
        assert [line.strip() for line in text.splitlines() if line.startswith("REMARK")] == [
            line.strip() for line in REMARKS.splitlines()
        ]
        assert made.cell.parameters[:3] == (50, 60, 70)
        assert residue(made, "A", "101").name == "ZN"
        assert residue(made, "A", "201").name == "HOH"
        assert residue(made, "A", "201")[0].pos.tolist() == [33, 30, 30]


def test_mmcif_sequences_are_the_designs(designs: Designs, source: Path) -> None:
    """Each designed chain is an entity of its own whose sequence is that of its residues."""
    text = structure_text(designs.to_gemmi(0, source), "cif")
    block = gemmi.cif.read_string(text).sole_block()
    sequence = block.find("_entity_poly_seq.", ["entity_id", "mon_id"])
    found: dict[str, list[str]] = {}
    for entity, name in sequence:
        found.setdefault(entity, []).append(name)
    made = gemmi.make_structure_from_block(block)
    in_chains = [[r.name for r in chain.get_polymer()] for chain in made[0]]
    assert sorted(found.values()) == sorted(in_chains)
    labels = [r.label_seq for r in made[0]["A"].get_polymer()]
    assert labels == list(range(1, 13))


def test_without_a_source_there_is_the_backbone(designs: Designs) -> None:
    """A design alone has N, CA, C and O of the residues with coordinates, whatever was read."""
    made = designs.to_gemmi(0)
    backbone = designs.backbone
    residues = [r for chain in made[0] for r in chain]
    assert len(residues) == backbone.mask.sum()
    for i, found in zip(np.flatnonzero(backbone.mask), residues, strict=True):
        assert found.name == THREE_LETTERS[designs[0].sequence[i]]
        assert [atom.name for atom in found] == list(ATOMS)
        np.testing.assert_allclose([a.pos.tolist() for a in found], backbone.coords[i], atol=1e-6)
    assert structure_text(made, "pdb").count("ATOM") == 4 * len(residues)


def test_unknown_fixed_residues_stay(model: Model) -> None:
    """A fixed X is UNK in a structure without a source."""
    unknown = dataclasses.replace(MADE, sequence="X" + MADE.sequence[1:])
    assert residue(model.design(unknown, fixed="A1").to_gemmi(0), "A", "1").name == "UNK"


def test_homo_oligomer_names_residues_without_atoms(model: Model, source: Path) -> None:
    """A residue that lacks atoms and gets its copies' type is renamed and stripped like them."""
    designs = model.design(read_structure(source), 1, 2.0, homo_oligomer=True)
    made = designs.to_gemmi(0, source)
    found = residue(made, "B", "2")
    assert found.name == residue(made, "A", "2").name == THREE_LETTERS[designs[0].sequence[1]]
    assert {atom.name for atom in found} <= {"N", "CA", "C", "CB"}


def test_the_model_that_was_read(model: Model, tmp_path: Path) -> None:
    """Of several models the one with the backbone's coordinates is written, as the only one."""
    atoms = "".join(x for x in rich_pdb().splitlines(True) if x.startswith(("ATOM", "HETATM")))
    shifted = re.sub(
        r"^(.{30})(.{8})", lambda m: f"{m[1]}{float(m[2]) + 5:8.3f}", atoms, flags=re.M
    )
    path = tmp_path / "models.pdb"
    path.write_text(f"MODEL        1\n{atoms}ENDMDL\nMODEL        2\n{shifted}ENDMDL\nEND\n")
    designs = model.design(read_structure(path, model=2))
    made = designs.to_gemmi(0, path)
    assert len(made) == 1
    assert residue(made, "A", "1")["CA"][0].pos.tolist() == pytest.approx(
        designs.backbone.coords[0, 1].tolist(), abs=1e-3
    )


def test_another_structure_is_refused(designs: Designs, tmp_path: Path) -> None:
    """A source that lacks the backbone's atoms, or cannot be read, is named."""
    other = model_text = rich_pdb().replace("ATOM      1  CA  ", "ATOM      1  CX  ", 1)
    path = tmp_path / "other.pdb"
    path.write_text(other)
    moved = re.sub(
        r"^(ATOM.{9}CA .{14})(.{8})", lambda m: f"{m[1]}   9.999", model_text, flags=re.M
    )
    path.write_text(moved)
    with pytest.raises(InputError, match="the one that the backbone was read from"):
        designs.to_gemmi(0, path)
    with pytest.raises(InputError, match=r"missing\.pdb"):
        designs.to_gemmi(0, tmp_path / "missing.pdb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m[0][0], "name", "LONG"), "chain name LONG is too long"),
        (lambda m: setattr(m[0][0][0], "name", "A1LU6"), "residue name A1LU6 is too long"),
        (
            lambda m: setattr(m[0][0][0][0], "pos", gemmi.Position(0, -1000, 0)),
            r"-1000.0, 0.0\] Å do not fit",
        ),
    ],
)
def test_what_pdb_cannot_hold(designs: Designs, change, message: str) -> None:
    """Names and coordinates too long for PDB are refused with the way out; mmCIF takes them."""
    made = designs.to_gemmi(0)
    change(made)
    with pytest.raises(InputError, match=message):
        structure_text(made, "pdb")
    assert structure_text(made, "cif").startswith("data_rich")
    with pytest.raises(InputError, match="take pdb or cif"):
        structure_text(made, "xyz")


def test_format_of_a_source(source: Path, designs: Designs, tmp_path: Path) -> None:
    """The format of an input is found from its content."""
    assert form_of(read_source(source)) == "pdb"
    path = tmp_path / "really.pdb"
    path.write_text(structure_text(designs.to_gemmi(0), "cif"))
    assert form_of(read_source(path)) == "cif"


@pytest.mark.data
@pytest.mark.parametrize("name", ["pdb/3HTN.pdb", "pdb/4YOW.pdb", "mmcif/1IGY.cif", "pdb/1L2Y.pdb"])
def test_real_structures(model: Model, data_dir: Path, tmp_path: Path, name: str) -> None:
    """Real files with MSE, ions, insertion codes, gaps and models read back in both formats."""
    backbone: Backbone = read_structure(data_dir / name)
    designs = model.design(backbone, 1, 2.0, chains=backbone.chain_ids[0])
    made = designs.to_gemmi(0, data_dir / name)
    for form in ("pdb", "cif"):
        path = tmp_path / f"made.{form}"
        path.write_text(structure_text(made, form))
        back = read_structure(path).arranged(designs.designed_chains)
        assert back.sequence == designs[0].sequence
        np.testing.assert_array_equal(back.coords, designs.backbone.coords)
        np.testing.assert_array_equal(back.insertion_codes, designs.backbone.insertion_codes)
        if form == "pdb":
            lines = [x for x in path.read_text().splitlines() if x.startswith(("ATOM", "HETATM"))]
            assert [line for line in lines if not ATOM_LINE.fullmatch(line)] == []
