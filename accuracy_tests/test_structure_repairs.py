"""Files as other programs write them: read as they are meant, with a note, or refused."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from types import SimpleNamespace

import gemmi
import numpy as np
import pytest
from synthetic_files import pdb_text

from mpnn.backbone import Backbone
from mpnn.errors import InputError
from mpnn.residues import PARENTS, one_letter
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone

LENGTH = 60
LETTERS = "".join("PEDKHCRYMA"[i % 10] for i in range(LENGTH))
CHAIN = dataclasses.replace(synthetic_backbone(LENGTH), sequence=LETTERS)
LINES = pdb_text(CHAIN).splitlines()[:-1]
CLEAN = read_structure("\n".join(LINES))
PAIR = synthetic_backbone(2 * LENGTH, 2)


def lines_of(*numbers: int) -> list[str]:
    """The lines of some residues of `CHAIN`, in the order given."""
    return [line for number in numbers for line in LINES[4 * number - 4 : 4 * number]]


def without(*numbers: int) -> list[str]:
    return lines_of(*(n for n in range(1, LENGTH + 1) if n not in numbers))


def with_columns(lines: Iterable[str], start: int, text: str) -> list[str]:
    """Lines with a text from a column (the first is 1) on."""
    return [line[: start - 1] + text + line[start - 1 + len(text) :] for line in lines]


def moved(lines: Iterable[str], shift: float) -> list[str]:
    """Atoms moved along x, in Å."""
    return [f"{line[:30]}{float(line[30:38]) + shift:8.3f}{line[38:]}" for line in lines]


def hetero(lines: Iterable[str], name: str) -> list[str]:
    return with_columns(with_columns(lines, 1, "HETATM"), 18, name)


def read(lines: Iterable[str], **options: object) -> Backbone:
    return read_structure("\n".join([*lines, ""]), **options)


def assert_same_design(backbone: Backbone, expected: Backbone = CLEAN) -> None:
    for field in ("coords", "mask", "chain_index"):
        np.testing.assert_array_equal(getattr(backbone, field), getattr(expected, field), field)
    assert backbone.sequence == expected.sequence


class TestResidueNames:
    """Names that force fields give."""

    @pytest.mark.parametrize("chain", ["A", " "])
    @pytest.mark.parametrize(
        "names",
        [
            {"D": "ASPP", "E": "GLUP", "K": "LSN "},
            {"D": "ASPH", "E": "GLUH", "K": "LYSH", "H": "HISE", "R": "ARGN", "C": "CYS2"},
            {"P": "NPRO", "A": "CALA", "H": "HIE "},
        ],
    )
    def test_four_letter_names_do_not_part_the_chain(self, names, chain):
        """Names of CHARMM, GROMACS and Amber that run into column 21 stay in one chain."""
        lines = with_columns(LINES, 22, chain)
        renamed = [
            with_columns([line], 18, names.get(LETTERS[i // 4], line[17:21]))[0]
            for i, line in enumerate(lines)
        ]
        backbone = read(renamed)
        assert_same_design(backbone)
        assert backbone.chain_ids == (chain.replace(" ", "_"),)
        (note,) = [n for n in backbone.notes if n.startswith("four-letter residue names mapped")]
        assert all(name in note for name in names.values() if " " not in name)

    @pytest.mark.parametrize("chain", ["HA", "PA", "EA", "A1"])
    def test_two_letter_chain_names_in_the_same_columns(self, chain):
        """A chain whose name takes columns 21 and 22 keeps it."""
        backbone = read([*LINES, *moved(with_columns(LINES, 21, chain), 90)])
        assert backbone.chain_ids == ("A", chain)
        assert backbone.sequence == 2 * LETTERS
        assert backbone.notes == ()

    def test_peptide_that_could_be_four_letter_names(self):
        """A chain HA of lysines alone is none of LYSH where chain A has its numbers already."""
        lysines = with_columns(with_columns(lines_of(1, 2, 3), 18, "LYSHA"), 18, "LYSHA")
        backbone = read([*LINES, *moved(lysines, 90)])
        assert backbone.chain_ids == ("A", "HA")

    @pytest.mark.parametrize(
        ("name", "letter"),
        [
            *[("LSN", "K"), ("HIZ", "H"), ("CYSH", "C"), ("ASPH", "D"), ("ARGN", "R")],
            *[("TYM", "Y"), ("NHIE", "H"), ("CCYX", "C"), ("NLYP", "K"), ("GL4", "E")],
        ],
    )
    def test_names_in_mmcif(self, name, letter):
        """States of protonation and Amber's ends of chains have their residues' letters."""
        structure = gemmi.read_pdb_string("\n".join(LINES))
        structure[0]["A"][9].name = name
        backbone = read_structure(structure.make_mmcif_document().as_string())
        assert backbone.sequence == LETTERS[:9] + letter + LETTERS[10:]
        assert backbone.notes[0].endswith(f"(1): A10 {name} as {letter}")

    @pytest.mark.parametrize("number", [1, 30, 60])
    def test_a_backbone_under_a_name_of_no_amino_acid(self, number):
        """ATOM records with a backbone are a residue, X, although the name is water's."""
        lines = [*lines_of(*range(1, number)), *with_columns(lines_of(number), 18, "HOH")]
        backbone = read([*lines, *LINES[4 * number :]])
        assert backbone.sequence == LETTERS[: number - 1] + "X" + LETTERS[number:]
        assert backbone.notes == (f"unknown residues read as X (1): A{number} HOH",)

    def test_no_name_of_a_force_field_is_another_component(self):
        """The table maps to standard amino acids, and shadows no name that gemmi tabulates."""
        assert {one_letter(name) for name in PARENTS.values()} == set("ACDEFGHIKLMNPQRSTVWY")
        assert not [name for name in PARENTS if gemmi.find_tabulated_residue(name).found()]


class TestConformations:
    """Alternate conformations, with labels and without."""

    @pytest.mark.parametrize(
        ("main", "kept"), [(0.7, "without label"), (0.5, "without label"), (0.4, "B")]
    )
    def test_the_unlabeled_one_is_a_candidate(self, main, kept):
        """Atoms without a label compete by occupancy with labeled ones; the first wins a tie."""
        unlabeled = with_columns(lines_of(20), 55, f"{main:6.2f}")
        other = with_columns(with_columns(lines_of(20), 17, "B"), 55, f"{1 - main:6.2f}")
        shifted = moved(other, 0.3)
        backbone = read([*lines_of(*range(1, 20)), *unlabeled, *shifted, *LINES[80:]])
        moved_by = backbone.coords[19] - CLEAN.coords[19]
        assert np.allclose(moved_by[:, 0], 0.3 if kept == "B" else 0, atol=1e-3)
        kind = "alternate conformations, the one with the highest occupancy kept"
        assert backbone.notes == (f"{kind} (1): A20 {kept}",)

    def test_conformations_in_blocks(self):
        """A chain written once per conformation is one chain with two conformations."""
        first = with_columns(with_columns(LINES, 17, "A"), 55, "  0.40")
        second = with_columns(with_columns(LINES, 17, "B"), 55, "  0.60")
        backbone = read([*moved(first, 0.3), *second])
        assert_same_design(backbone)
        assert backbone.notes[0].startswith("alternate conformations, the one with the highest")
        block = [*LINES[:76], *moved(first[76:88], 0.3), *second[76:88], *LINES[88:]]
        assert_same_design(read(block))

    def test_the_most_complete_conformation(self):
        """A conformation that lacks an atom gives way, and the note says that it was for that."""
        partial = with_columns(with_columns(lines_of(20)[:3], 17, "A"), 55, "  0.90")
        whole = with_columns(with_columns(lines_of(20), 17, "B"), 55, "  0.10")
        backbone = read([*lines_of(*range(1, 20)), *partial, *whole, *LINES[80:]])
        assert_same_design(backbone)
        kind = "alternate conformations, the most complete one kept"
        assert backbone.notes == (f"{kind} (1): A20 B",)

    def test_labels_that_were_lost(self):
        """Atoms that lie beside each other under one name are conformations of one residue."""
        lower = moved(with_columns(lines_of(20), 55, "  0.30"), 0.3)
        interleaved = [line for pair in zip(lower, lines_of(20), strict=True) for line in pair]
        backbone = read([*lines_of(*range(1, 20)), *interleaved, *LINES[80:]])
        assert_same_design(backbone)
        assert backbone.notes[0].endswith("(1): A20 ALA without label")

    @pytest.mark.parametrize("same_name", [False, True])
    def test_insertion_codes_that_were_lost(self, same_name):
        """Residues that share a number without labels are residues, and get codes of their own."""
        lines = [
            *LINES[:80],
            *with_columns(LINES[80:88], 23, "  20"),
            *(with_columns([line], 23, f"{int(line[22:26]) - 2:4}")[0] for line in LINES[88:]),
        ]
        if same_name:
            lines = with_columns(lines, 18, "GLY")
        backbone = read(lines)
        np.testing.assert_array_equal(backbone.coords, CLEAN.coords)
        assert backbone.sequence == ("G" * LENGTH if same_name else LETTERS)
        assert backbone.insertion_codes[18:23].tolist() == ["", "", "A", "B", ""]
        kind = "residues that share a number told apart by new insertion codes"
        names = ("GLY", "GLY") if same_name else ("PRO", "GLU")
        assert backbone.notes == (f"{kind} (2): A20A {names[0]}, A20B {names[1]}",)

    def test_a_second_atom_far_off(self):
        """An atom that occurs twice in two places is refused, naming its residue."""
        with pytest.raises(InputError, match=r"chain A, residue 20 has atoms twice"):
            read([*LINES, *moved(lines_of(20)[1:2], 9)])


class TestMembers:
    """Which amino acids are in a chain."""

    @pytest.mark.parametrize("ter", [["TER"], []])
    @pytest.mark.parametrize("numbers", [(25,), (25, 26), (25, 40), (1,), (60,), (59, 60)])
    def test_modified_residues_at_the_end_of_the_file(self, numbers, ter):
        """MSE written as HETATM behind the chain goes where its number and its bonds put it."""
        parts = [hetero(lines_of(number), "MSE") for number in numbers]
        backbone = read([*without(*numbers), *ter, *(line for part in parts for line in part)])
        expected = list(LETTERS)
        for number in numbers:
            expected[number - 1] = "M"
        assert_same_design(backbone, dataclasses.replace(CLEAN, sequence="".join(expected)))
        kind = f"HETATM residues bonded into the chain ({len(numbers)}): "
        in_place = not ter and numbers in ((60,), (59, 60))
        assert any(note.startswith(kind) for note in backbone.notes) != in_place

    @pytest.mark.parametrize("number", [61, 201])
    def test_a_free_amino_acid_before_the_chain(self, number):
        """A ligand that is written first is one all the same."""
        ligand = moved(hetero(with_columns(lines_of(9), 23, f"{number:4}"), "GLY"), 50)
        backbone = read([*ligand, *LINES])
        assert_same_design(backbone)
        assert backbone.notes == (f"amino acids outside the chain left out (1): A{number} GLY",)

    @pytest.mark.parametrize("ter", [["TER"], []])
    @pytest.mark.parametrize("number", [25, 61, 201])
    def test_a_free_amino_acid_stays_out(self, number, ter):
        """An amino acid that no bond joins to the chain is a ligand, whatever its number."""
        ligand = moved(hetero(with_columns(lines_of(9), 23, f"{number:4}"), "GLY"), 50)
        gap = (25,) if number == 25 else ()
        backbone = read([*without(*gap), *ter, *ligand])
        assert_same_design(backbone, read(without(*gap)))
        assert f"amino acids outside the chain left out (1): A{number} GLY" in backbone.notes

    def test_a_ligand_bonded_to_the_last_residue(self):
        """An amino acid of a far number that continues the chain is not in it."""
        ligand = hetero(with_columns(lines_of(60), 23, " 301"), "GLY")
        backbone = read([*without(60), "TER", *ligand])
        assert len(backbone) == LENGTH - 1
        assert backbone.notes == ("amino acids outside the chain left out (1): A301 GLY",)

    @pytest.mark.parametrize("name", ["OXT", "OT1", "O1", "OC1"])
    def test_terminal_oxygen(self, name):
        """The last residue's oxygen stands for O under its other names."""
        last = with_columns(LINES[-1:], 13, f" {name:3}")
        second = moved(with_columns(LINES[-1:], 13, " OT2"), 2)
        backbone = read([*LINES[:-1], *last, *second])
        assert_same_design(backbone)
        assert backbone.notes == (f"C-terminal oxygen of another name read as O (1): A60 {name}",)

    def test_an_oxygen_elsewhere_is_not_terminal(self):
        """An atom of such a name that is not bonded to C is no backbone oxygen."""
        backbone = read([*LINES[:-1], *moved(with_columns(LINES[-1:], 13, " O1 "), 3)])
        assert not backbone.mask[-1]
        assert backbone.notes == ("incomplete residues masked (1): A60",)


def renumbered(lines: Iterable[str], shift: int) -> list[str]:
    return [with_columns([x], 23, f"{int(x[22:26]) + shift:4}")[0] for x in lines]


class TestOrder:
    """Order of residues, and breaks."""

    @pytest.mark.parametrize(
        "order",
        [
            [*range(1, 25), *range(29, 61), *range(25, 29)],
            [*range(25, 29), *range(1, 25), *range(29, 61)],
            [*range(40, 61), *range(20, 40), *range(1, 20)],
            sorted(range(1, 61), key=str),
            list(range(60, 0, -1)),
        ],
    )
    def test_bonds_decide(self, order):
        """Parts of a chain that were written elsewhere stand where they are bonded."""
        backbone = read(lines_of(*order))
        assert_same_design(backbone)
        np.testing.assert_array_equal(backbone.numbers, CLEAN.numbers)
        assert backbone.notes[0].startswith("residues put in the order of their bonds (")

    def test_the_places_are_named(self):
        """The note names the bonds that were closed."""
        backbone = read(lines_of(*range(1, 25), *range(29, 61), *range(25, 29)))
        kind = "residues put in the order of their bonds"
        assert backbone.notes == (f"{kind} (2): A24–A25, A28–A29",)

    def test_no_bond_says_otherwise(self):
        """Without a bond file order stays, and the note says that numbers run backwards."""
        backbone = read(lines_of(*range(30, 61), *range(1, 29)))
        assert backbone.numbers[0] == 30
        assert backbone.notes == ("numbers run backwards without a bond (1): A60–A1",)

    def test_numbers_that_do_not_count_up(self):
        """A bonded chain keeps its order, as 1NSA's with its insertion codes first."""
        numbers = [*((n, "A") for n in range(5, 10)), *((n, " ") for n in range(4, 59))]
        lines = [
            with_columns([x], 23, f"{numbers[i // 4][0]:4}{numbers[i // 4][1]}")[0]
            for i, x in enumerate(LINES)
        ]
        backbone = read(lines)
        assert_same_design(backbone)
        assert backbone.notes == ()

    def test_a_ring_with_a_gap(self):
        """A bond from the last number to the first does not put the first residues last."""
        lines = without(30)
        first, last = CLEAN.coords[0, 0], CLEAN.coords[-1, 2]
        shift = last + np.array([1.3, 0, 0]) - first
        lines[0] = f"{lines[0][:30]}" + "".join(f"{x:8.3f}" for x in first + shift) + lines[0][54:]
        assert read(lines).numbers.tolist() == list(range(1, 61))

    def test_a_chain_bonded_across_ter_stays_one(self):
        """TER alone parts nothing."""
        backbone = read([*LINES[:100], "TER", *LINES[100:], "TER"], split_breaks=True)
        assert_same_design(backbone)
        assert backbone.notes == ()

    @pytest.mark.parametrize("ter", [["TER"], []])
    @pytest.mark.parametrize("name", ["A", " "])
    def test_chains_merged_under_one_name(self, name, ter):
        """Where numbers hide a break it is named; split_breaks starts a new chain there."""
        a, b = (pdb_text(PAIR.select_chains([c])).splitlines()[:-1] for c in "AB")
        lines = with_columns([*a, *ter, *renumbered(b, LENGTH)], 22, name)
        called = name.replace(" ", "_")
        lengths = np.linalg.norm(PAIR.coords[LENGTH, 0] - PAIR.coords[LENGTH - 1, 2])
        note = f"consecutive numbers, C–N {lengths:.3g} Å: {called}60–{called}61"
        assert read(lines).notes == (note,)
        assert read(lines).chain_ids == (called,)
        parted = read(lines, split_breaks=True)
        assert_same_design(parted, read([*a, *b]))
        new = "B" if name == "A" else "A"
        assert parted.chain_ids == (called, new)
        assert parted.notes == (f"chains parted at breaks (1): {called}61 on is chain {new}",)
        assert read(lines, split_breaks=True, chains=[new]).numbers[0] == 61

    def test_chains_of_one_name_numbered_alike(self):
        """Numbers that begin anew are refused, unless the chain may be split at its breaks."""
        a, b = (
            with_columns(pdb_text(PAIR.select_chains([c])).splitlines()[:-1], 22, "A") for c in "AB"
        )
        with pytest.raises(InputError, match=r"chain A, residue \d+ .*--split-breaks"):
            read([*a, "TER", *b])
        assert read([*a, "TER", *b], split_breaks=True).chain_ids == ("A", "B")

    def test_several_breaks_in_one_line(self):
        """Breaks are counted, with the span of their C–N distances."""
        backbone = read([*LINES[:80], *moved(LINES[80:160], 40), *moved(LINES[160:], 90)])
        (note,) = backbone.notes
        assert note.startswith("consecutive numbers, C–N ")
        assert note.endswith("Å (2): A20–A21, A40–A41")

    def test_too_many_breaks_to_name_chains(self):
        """A chain broken after every residue is not split into thousands of chains."""
        apart = CHAIN.coords[:1] + 20 * np.arange(4000)[:, None, None]
        array = SimpleNamespace(
            coord=apart.reshape(-1, 3),
            chain_id=np.full(16000, "A"),
            res_id=np.repeat(np.arange(4000), 4),
            res_name=np.full(16000, "GLY"),
            atom_name=np.tile(["N", "CA", "C", "O"], 4000),
        )
        assert len(read_structure(array)) == 4000
        with pytest.raises(InputError, match="has 3999 breaks, too many to name a chain"):
            read_structure(array, split_breaks=True)


class TestWholeFiles:
    """What stands around the atoms."""

    @pytest.mark.parametrize(
        "tail",
        [
            ["pose_score -80.0", "model 1", "mpnn_temperature 0.1"],
            ["# All scores below are weighted", "atom_pair_constraint 1.25", "hetatm_score 3"],
            ["ter 5", "end of the scores", "endmdl 2"],
            [x.replace("ATOM  ", "ANISOU")[:70] for x in LINES[:2]] + ["END"],
        ],
    )
    def test_lines_that_are_no_records(self, tail):
        """Scores of Rosetta and leftover ANISOU lines neither end nor spoil a file."""
        assert_same_design(read([*LINES[:200], *tail[:2], *LINES[200:], "TER", *tail]))

    def test_line_ends_of_old_macs(self):
        """Carriage returns alone end lines too."""
        for end in ("\r", "\r\n"):
            assert_same_design(read_structure(io.StringIO(end.join([*LINES, "END", ""]))))

    def test_records_in_lower_case(self):
        """Atoms in lower case are atoms, whatever stands in upper case beside them."""
        assert_same_design(read([*LINES[:100], *(x.replace("ATOM", "atom") for x in LINES[100:])]))

    def test_model_numbers_used_twice(self):
        """The first of two models of one number is read, with a note."""
        second = ["MODEL        1", *moved(LINES, 5), "ENDMDL"]
        lines = ["MODEL        1", *LINES, "ENDMDL", *second]
        backbone = read(lines)
        assert_same_design(backbone)
        assert backbone.notes == (
            "MODEL numbers used twice: counted from 1 to 2 instead",
            "model 1 read, of 2",
        )
        assert_same_design(read(lines, model=2), read(second))

    def test_an_empty_first_model(self):
        """The first model with atoms is read, and the empty one named."""
        lines = ["MODEL        1", "ENDMDL", "MODEL        2", *LINES, "ENDMDL", "END"]
        backbone = read(lines)
        assert_same_design(backbone)
        assert backbone.notes == ("model 2 read, of 2; without atoms: 1",)
        with pytest.raises(InputError, match=r"no model 1; it has 2 \(1 in all\)"):
            read(lines, model=1)

    def test_models_parted_by_end(self):
        """Frames that VMD parts by END are models."""
        lines = [*LINES, "END", *moved(LINES, 5), "END", *moved(LINES, 9), "END"]
        backbone = read(lines)
        assert_same_design(backbone)
        assert backbone.notes == ("models parted by END records", "model 1 read, of 3")
        assert np.allclose((read(lines, model=3).coords - CLEAN.coords)[..., 0], 9, atol=2e-3)

    @pytest.mark.parametrize("end", ["ENDMDL", "END"])
    def test_models_without_their_ends(self, end):
        """MODEL begins a model although none was ended, and END between models ends nothing."""
        lines = ["MODEL        1", *LINES, end, "END", "MODEL        2", *moved(LINES, 5), "END"]
        backbone = read(lines)
        assert_same_design(backbone)
        assert backbone.notes == ("model 1 read, of 2",)

    def test_a_second_data_block(self):
        """Of several mmCIF blocks the first with atoms is read, with a note."""
        structure = gemmi.read_pdb_string("\n".join(LINES))
        structure.setup_entities()
        one, two = (structure.make_mmcif_document() for _ in range(2))
        one[0].name, two[0].name = "one", "two"
        text = "data_zero\n_cell.length_a 1\n" + one.as_string() + two.as_string()
        backbone = read_structure(text)
        assert_same_design(backbone)
        assert backbone.notes == ("data block one read, the first of 2 with atoms",)

    def test_nanometers(self):
        """Coordinates a tenth of their size are refused, with what was measured."""
        small = [
            x[:30] + "".join(f"{float(x[i : i + 8]) / 10:8.3f}" for i in (30, 38, 46)) + x[54:]
            for x in LINES
        ]
        with pytest.raises(InputError, match=r"N–CA is 0\.14\d and .* in 60 of 60 .*nanometers"):
            read(small)

    def test_a_few_implausible_bonds(self):
        """Bonds that cannot be are named where most are as they should be."""
        lines = [*LINES[:77], *moved(LINES[77:78], 2), *LINES[78:]]
        assert read(lines).notes == ("implausible bonds, N–CA or CA–C not 1.2 to 1.8 Å (1): A20",)

    def test_a_line_cut_off(self):
        """An atom's line that ends too early is refused with its number."""
        with pytest.raises(InputError, match=r"line 9 ends before the atom's coordinates do"):
            read(["REMARK", *LINES[:7], LINES[7][:50]])

    @pytest.mark.parametrize(
        ("content", "name"),
        [
            (b"\x83\xa7encoder\xa3abc\xaadataBlocks\x91\x00", "is a BinaryCIF file"),
            (b"\xde\x00\x1f\xabmmtfVersion\xa51.0.0", "is a MMTF file"),
        ],
    )
    def test_binary_formats_are_named(self, content, name):
        """BinaryCIF and MMTF are refused by their names."""
        with pytest.raises(InputError, match=f"{name}; PDB, mmCIF or mmJSON text is needed"):
            read_structure(io.BytesIO(content))


def atom_array(coords: np.ndarray | None = None) -> SimpleNamespace:
    """`CHAIN` as biotite holds it, without optional annotations."""
    return SimpleNamespace(
        coord=CHAIN.coords.reshape(-1, 3) if coords is None else coords,
        chain_id=np.full(4 * LENGTH, "A"),
        res_id=np.repeat(np.arange(1, LENGTH + 1), 4),
        res_name=np.array([line[17:20] for line in LINES]),
        atom_name=np.array([line[12:16].strip() for line in LINES]),
    )


class TestSources:
    """What `read_structure` takes."""

    def test_every_source_gives_the_same(self, tmp_path):
        """A path, text, an open file and gemmi's structure are read alike."""
        path = tmp_path / "made.pdb"
        path.write_text("\n".join(LINES))
        structure = gemmi.read_pdb(str(path))
        structure.setup_entities()
        mmjson = structure.make_mmcif_document().as_json(mmjson=True)
        before = structure.make_pdb_string()
        with path.open() as text, path.open("rb") as binary:
            sources: list[object] = [path, str(path), text, binary, structure, mmjson + "\n"]
            for source in sources:
                backbone = read_structure(source)
                assert_same_design(backbone)
                assert backbone.notes == ()
                assert backbone.name == ("structure" if source == mmjson + "\n" else "made")
        assert structure.make_pdb_string() == before

    def test_a_name(self):
        """The caller may say what the structure is called."""
        assert read(LINES, name="mine").name == "mine"

    def test_atom_array(self):
        """A biotite AtomArray is read by its annotations; those that are optional may lack."""
        backbone = read_structure(atom_array())
        np.testing.assert_array_equal(backbone.coords, CHAIN.coords)
        assert (backbone.sequence, backbone.notes) == (LETTERS, ())
        array = atom_array()
        array.ins_code = np.where(array.res_id == 20, "A", "")
        array.altloc_id = np.where(array.res_id == 21, "B", ".")
        array.occupancy = np.ones(4 * LENGTH)
        array.hetero = array.res_id == 22
        backbone = read_structure(array)
        np.testing.assert_array_equal(backbone.coords, CHAIN.coords)
        assert backbone.insertion_codes[19] == "A"

    def test_atom_array_stack(self):
        """The models of an AtomArrayStack are counted from 1."""
        flat = CHAIN.coords.reshape(-1, 3)
        stack = atom_array(np.stack([flat, flat + np.float32(1)]))
        assert read_structure(stack).notes == ("model 1 read, of 2",)
        second = read_structure(stack, model=2)
        np.testing.assert_allclose(second.coords, CHAIN.coords + 1, atol=1e-5)

    def test_atom_array_of_unequal_columns(self):
        """Annotations that do not belong together are refused."""
        array = atom_array()
        array.res_id = array.res_id[1:]
        with pytest.raises(InputError, match="AtomArray: not a readable structure"):
            read_structure(array)

    def test_open_files_that_cannot_be_read(self, tmp_path):
        """A closed file, and text that is not a structure, are refused with the reason."""
        path = tmp_path / "bad.pdb"
        path.write_bytes(b"\xff\xfe\x81")
        with (
            path.open(encoding="utf-8") as file,
            pytest.raises(InputError, match=r"bad\.pdb: cannot be read \("),
        ):
            read_structure(file)
        with pytest.raises(InputError, match=r"bad\.pdb: cannot be read \("):
            read_structure(file)
        with pytest.raises(InputError, match="text: no atoms found"):
            read_structure("\udcff\n")

    @pytest.mark.parametrize("source", [5, None, ["ATOM"], np.zeros(3)])
    def test_anything_else_is_refused(self, source):
        """What is no structure is refused with what would be."""
        with pytest.raises(InputError, match=r"is not a structure; give a path, PDB or mmCIF"):
            read_structure(source)
