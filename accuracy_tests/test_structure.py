"""Reading PDB and mmCIF files, and the `Backbone` record."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpnn.config import ALPHABET
from mpnn.errors import InputError
from mpnn.structure import ATOMS, MAX_GAP, Backbone, Chain, assemble, read_structure
from mpnn.synthetic import synthetic_backbone

Read = Callable[..., Backbone]
SHAPE = synthetic_backbone(120).coords  # residues of ideal geometry to place atoms by


def residue(
    number: int,
    name: str = "ALA",
    *,
    chain: str = "A",
    code: str = " ",
    alt: str = " ",
    occupancy: float = 1.0,
    record: str = "ATOM",
    atoms: tuple[str, ...] = ATOMS,
    shift: float = 0.0,
) -> str:
    """PDB lines of one residue of a long chain, moved along x by `shift`."""
    lines = ""
    for atom in atoms:
        x, y, z = SHAPE[number % len(SHAPE), ATOMS.index(atom)] + [shift, 0, 0]
        lines += (
            f"{record:6}    1  {atom:3}{alt}{name:>3} {chain}{number:4}{code}   "
            f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}  0.00           {atom[0]}\n"
        )
    return lines


def text_of(backbone: Backbone) -> str:
    """A backbone as PDB text, to which residues may be added."""
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    for index, name in enumerate(backbone.chain_ids):
        chain = structure[0].add_chain(gemmi.Chain(name))
        for i in np.flatnonzero((backbone.chain_index == index) & backbone.mask):
            one = gemmi.Residue()
            one.name = gemmi.expand_one_letter(backbone.sequence[i], gemmi.ResidueKind.AA)
            one.seqid = gemmi.SeqId(int(backbone.numbers[i]), backbone.insertion_codes[i] or " ")
            for atom_name, position in zip(ATOMS, backbone.coords[i].tolist(), strict=True):
                atom = gemmi.Atom()
                atom.name, atom.pos = atom_name, gemmi.Position(*position)
                atom.element = gemmi.Element(atom_name[0])
                one.add_atom(atom)
            chain.add_residue(one)
    structure.setup_entities()
    return structure.make_pdb_string(gemmi.PdbWriteOptions(end_record=False))


def as_mmcif(text: str) -> str:
    structure = gemmi.read_pdb_string(text)
    structure.setup_entities()
    return structure.make_mmcif_document().as_string()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(text: str, **options: object) -> Backbone:
        path = tmp_path / "made.pdb"
        path.write_text(text)
        return read_structure(path, **options)

    return write_and_read


def assert_equal(a: Backbone, b: Backbone) -> None:
    for name in ("coords", "mask", "chain_index", "numbers", "insertion_codes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert (a.sequence, a.chain_ids, a.notes) == (b.sequence, b.chain_ids, b.notes)


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_chains_bonded_end_to_end_are_named(order: str) -> None:
    """A chain that goes on in another is said, whichever of the two is written first."""
    parts = {"A": range(1, 4), "B": range(4, 7)}
    text = "".join(residue(number, chain=name) for name in order for number in parts[name])
    assert read_structure(text + "END\n").notes == ("chains bonded end to end (1): A3–B4",)


class TestReading:
    """What is kept of good files."""

    def test_pdb_gives_back_what_was_written(self, read):
        """A backbone written as PDB comes back with its letters, chains and numbers, to 1e-3 Å."""
        made = synthetic_backbone(60, 3)
        back = read(text_of(made))
        np.testing.assert_allclose(back.coords, made.coords, atol=6e-4)
        assert_equal(back, dataclasses.replace(made, coords=back.coords))

    def test_format_is_told_by_content(self, tmp_path):
        """PDB, mmCIF, and either gzipped are read alike, whatever the file is called."""
        text = text_of(synthetic_backbone(40, 2)) + residue(90, "HOH", record="HETATM")
        contents = [text.encode(), as_mmcif(text).encode()]
        contents += [gzip.compress(content) for content in contents]
        read = []
        for place, content in enumerate(contents):
            path = tmp_path / str(place) / "x.pdb.gz"
            path.parent.mkdir()
            path.write_bytes(content)
            read.append(read_structure(path))
        for backbone in read:
            assert_equal(backbone, read[0])
            assert backbone.name == "x"

    @pytest.mark.parametrize(
        ("name", "letter"),
        [
            *[("MSE", "M"), ("SEP", "S"), ("DAL", "A"), ("SEC", "X"), ("UNK", "X"), ("QQQ", "X")],
            *[("HIE", "H"), ("HSP", "H"), ("CYX", "C"), ("ASH", "D"), ("GLH", "E"), ("LYN", "K")],
        ],
    )
    @pytest.mark.parametrize("record", ["ATOM", "HETATM"])
    def test_modified_residues(self, read, name, letter, record):
        """Modified residues in a chain have their parent's letter, X where it is not standard."""
        ends = [residue(n) for n in (1, 2, 4, 5)]
        backbone = read("".join([*ends[:2], residue(3, name, record=record), *ends[2:]]))
        assert backbone.sequence == f"AA{letter}AA"
        assert backbone.mask.all()
        unknown = "unknown residues read as X"
        kind = unknown if letter == "X" else "modified residues mapped to their parent amino acid"
        as_letter = "" if letter == "X" else f" as {letter}"
        assert backbone.notes == (f"{kind} (1): A3 {name}{as_letter}",)

    def test_atoms_that_lie_on_one_another_are_none(self, read):
        """Atoms at 0 0 0 stand for unknown ones; their residue is masked, not designed."""
        lines = [residue(n) for n in range(1, 5)]
        zeros = [line[:30] + f"{0:8.3f}" * 3 + line[54:] for line in lines[1].splitlines(True)]
        backbone = read("".join([lines[0], *zeros, *lines[2:]]))
        assert backbone.mask.tolist() == [True, False, True, True]
        assert backbone.notes == ("incomplete residues masked (1): A2",)

    @pytest.mark.parametrize(
        "xyz",
        [
            "********   2.000   3.000",
            "   1.000  abc      3.000",
            "   1.000   2.000        ",
            "   1.000  1_2.00   3.000",
            "-1000.123   2.000   3.000",
            "   1.000-1000.123   3.000",
            "   1.000   12345   3.000",
            "   1.00012345.6781234.567",
        ],
    )
    @pytest.mark.parametrize("record", ["ATOM", "HETATM", "atom"])
    def test_a_coordinate_that_cannot_be_read_masks_its_residue(self, read, xyz, record):
        """Stars, words, blanks and numbers that shift the next one are not taken for numbers."""
        first, *others = residue(2, "MSE", record=record).splitlines(True)
        bad = residue(1) + first[:30] + xyz + first[54:] + "".join(others) + residue(3)
        backbone = read(bad)
        assert backbone.mask.tolist() == [True, False, True]
        assert backbone.notes[0] == "incomplete residues masked (1): A2"

    @pytest.mark.parametrize(
        "x", ["9999.999", "-1000.12", "1       ", "   +1.e1", "-1.5e-05", " .5"]
    )
    def test_a_coordinate_in_its_columns_is_read(self, read, x):
        """A number of up to four digits before the point is read, however it is written."""
        first, *others = residue(2).splitlines(True)
        backbone = read(residue(1) + f"{first[:30]}{x:8}{first[38:]}" + "".join(others))
        assert backbone.mask.all()
        assert backbone.coords[1, 0, 0] == np.float32(x)

    def test_a_ligands_unreadable_atom_costs_nothing(self, read):
        """A file is read whole although an atom beside the protein has no coordinates."""
        ligand = residue(300, "HEM", record="HETATM", atoms=("C",))
        backbone = read(residue(1) + ligand[:30] + "*" * 24 + ligand[54:])
        assert (backbone.sequence, backbone.notes) == ("A", ())

    def test_a_byte_order_mark_is_no_part_of_the_first_line(self, tmp_path):
        """A mark that some editors put in front costs no atom."""
        path = tmp_path / "x.pdb"
        path.write_bytes(codecs.BOM_UTF8 + "".join(residue(n) for n in (1, 2)).encode())
        assert read_structure(path).mask.all()

    @pytest.mark.parametrize("end", ["", "TER\n"])
    def test_what_is_not_protein_is_left_out(self, read, end):
        """Free amino acids, waters and nucleic acids are left out, with TER records or without."""
        chain = "".join(residue(n) for n in range(1, 6)) + end
        others = residue(201, "GLY", record="HETATM") + residue(202, "HOH", record="HETATM")
        dna = "".join(residue(n, " DA", chain="B", atoms=("C",)) for n in range(1, 5))
        backbone = read(chain + dna + end + others)
        assert (backbone.sequence, backbone.chain_ids) == ("AAAAA", ("A",))

    def test_chains_in_the_order_asked_for(self, read):
        """Chains are kept in the order asked for, as a list or as a string with commas."""
        text = text_of(synthetic_backbone(30, 3))
        backbone = read(text, chains=["C", "A"])
        assert_equal(backbone, read(text).select_chains(["C", "A"]))
        assert_equal(backbone, read(text, chains="C,A"))
        assert_equal(backbone, read(text, chains=" C, A"))

    def test_chain_without_a_name(self, read):
        """A chain without a name is called "_"."""
        assert read(residue(1, chain=" ")).chain_ids == ("_",)

    def test_model_by_its_number(self, read):
        """The first model is read unless another is asked for by its number."""
        models = [f"MODEL     {n:4}\n{residue(1, shift=n)}ENDMDL\n" for n in (3, 7)]
        first, second = read("".join(models)), read("".join(models), model=7)
        assert_equal(first, read("".join(models), model=3))
        np.testing.assert_allclose((second.coords - first.coords)[..., 0], 4, atol=1e-5)

    @pytest.mark.parametrize(
        ("occupancies", "kept"), [((0.4, 0.6), 1), ((0.6, 0.4), 0), ((0.5, 0.5), 0)]
    )
    def test_conformation_of_highest_occupancy(self, read, occupancies, kept):
        """All atoms come from the conformation of highest occupancy, the first where they tie."""
        conformers = [
            residue(1, alt=alt, occupancy=occupancy, shift=shift)
            for alt, occupancy, shift in zip("AB", occupancies, (1, 2), strict=True)
        ]
        by_conformer = "".join(conformers)
        by_atom = "".join(
            a + b for a, b in zip(*(c.splitlines(keepends=True) for c in conformers), strict=True)
        )
        expected = read(residue(1, shift=kept + 1))
        for text in (by_conformer, by_atom):
            np.testing.assert_array_equal(read(text).coords, expected.coords)

    def test_partial_conformation_keeps_common_atoms(self, read):
        """A conformation that moves only some atoms is completed by the atoms that all share."""
        common = residue(1, atoms=("N", "O"))
        moved = [
            residue(1, atoms=("CA", "C"), alt=alt, occupancy=occupancy, shift=shift)
            for alt, occupancy, shift in (("A", 0.3, 0.1), ("B", 0.7, 0.2))
        ]
        coords = read(common + "".join(moved)).coords[0]
        np.testing.assert_array_equal(coords[[0, 3]], read(residue(1)).coords[0, [0, 3]])
        np.testing.assert_array_equal(coords[1:3], read(residue(1, shift=0.2)).coords[0, 1:3])

    def test_complete_conformation_comes_before_occupancy(self, read):
        """A conformation without all four atoms gives way to a complete one of lower occupancy."""
        text = residue(1, alt="A", occupancy=0.7, atoms=("N", "CA"))
        text += residue(1, alt="B", occupancy=0.3)
        assert read(text).mask.all()

    @pytest.mark.parametrize(("occupancy", "letter"), [(0.4, "P"), (0.5, "S"), (0.6, "S")])
    def test_microheterogeneity(self, read, occupancy, letter):
        """Of several residue names at one position the one of highest occupancy is kept."""
        text = residue(1) + residue(2, "SER", alt="A", occupancy=occupancy)
        text += residue(2, "PRO", alt="B", occupancy=1 - occupancy) + residue(3)
        assert read(text).sequence == f"A{letter}A"

    def test_incomplete_residues_are_masked_and_counted(self, read):
        """A residue without all four finite atoms is masked, keeps its letter and is counted."""
        lost = residue(3, "TRP")
        lost = lost.replace(lost[30:38], "     nan", 1)
        backbone = read(residue(1) + residue(2, "LEU", atoms=("N", "CA", "C")) + lost + residue(4))
        assert backbone.sequence == "ALWA"
        assert backbone.mask.tolist() == [True, False, False, True]
        assert not backbone.coords[1:3].any()
        assert backbone.notes == ("incomplete residues masked (2): A2, A3",)

    def test_chain_of_incomplete_residues_beside_a_good_one(self, read):
        """A chain of CA atoms only is masked where another chain is complete."""
        backbone = read(residue(1) + residue(1, chain="B", atoms=("CA",)))
        assert backbone.mask.tolist() == [True, False]

    def test_atoms_too_far_for_float32_count_as_absent(self, tmp_path):
        """A coordinate that float32 cannot resolve to 0.01 Å masks its residue."""
        text = as_mmcif(residue(1) + residue(2, shift=500))
        path = tmp_path / "far.cif"
        path.write_text(text.replace(" 50", " 500000050"))
        assert read_structure(path).mask.tolist() == [True, False]


class TestNumbering:
    """Author numbers, insertion codes and gaps."""

    def test_insertion_codes_in_file_order(self, read):
        """Residues with insertion codes are residues of their own, in the order of the file."""
        places = [(51, " "), (52, "B"), (52, "A"), (52, " "), (53, " ")]
        backbone = read("".join(residue(number, code=code) for number, code in places))
        assert list(zip(backbone.numbers, backbone.insertion_codes, strict=True)) == [
            (number, code.strip()) for number, code in places
        ]
        assert backbone.mask.all()

    @pytest.mark.parametrize(
        ("numbers", "filled"),
        [
            ([1, 2, 5], [1, 2, -3, -4, 5]),
            ([5, 6, 1, 2], [5, 6, 1, 2]),
            ([5, 8, 1, 3, 6], [5, -7, 8, 1, -2, 3, -4, 6]),
            ([7, 7, 9], [7, 7, -8, 9]),
            ([1, 9, 2, 8], [1, -3, -4, -5, -6, -7, 9, 2, 8]),
        ],
    )
    def test_gaps(self, numbers, filled):
        """A number missing between two residues in a row is filled in once (here: negative)."""
        chain = assemble("made", [chain_of(numbers)])
        assert np.where(chain.mask, chain.numbers, -chain.numbers).tolist() == filled
        assert chain.sequence == "".join("X" if number < 0 else "G" for number in filled)

    @given(st.lists(st.integers(-40, 400), min_size=1, max_size=40))
    def test_filling_gaps_loses_and_repeats_nothing(self, numbers):
        """Filling keeps residues in order and adds each missing number at most once."""
        filled = assemble("made", [chain_of(numbers)])
        added = filled.numbers[~filled.mask].tolist()
        assert filled.numbers[filled.mask].tolist() == numbers
        assert len(set(added)) == len(added)
        assert not set(added) & set(numbers)
        if numbers == sorted(numbers):
            assert set(filled.numbers.tolist()) == set(range(numbers[0], numbers[-1] + 1))

    def test_a_long_jump_is_filled(self, read):
        """A chain numbered 1 to 100 and then 5000 has 4,899 masked positions, and says so."""
        backbone = read("".join(residue(n) for n in (*range(1, 101), 5000)))
        assert len(backbone) == 5000
        assert backbone.notes == ("missing residue numbers filled in as masked X (4899)",)

    @pytest.mark.parametrize("numbers", [[1, MAX_GAP + 3], [1, 2**60], [1, 9000, 1, 2, 20000]])
    def test_an_absurd_jump_is_refused(self, numbers):
        """Gaps beyond `MAX_GAP` positions in one chain are refused, naming chain and residues."""
        with pytest.raises(InputError, match=rf"made: chain Q jumps .* to {max(numbers)}: "):
            assemble("made", [chain_of(numbers)])

    def test_the_largest_gap_is_filled(self):
        """`MAX_GAP` missing numbers are filled in."""
        assert len(assemble("made", [chain_of([1, MAX_GAP + 2])])) == MAX_GAP + 2


def chain_of(numbers: list[int]) -> Chain:
    return Chain(
        name="Q",
        coords=np.ones((len(numbers), 4, 3), dtype=np.float32),
        complete=np.ones(len(numbers), dtype=bool),
        letters="G" * len(numbers),
        numbers=np.array(numbers, dtype=np.int64),
        insertion_codes=np.full(len(numbers), "", dtype="<U1"),
    )


TWICE = residue(1) + residue(2) + residue(1, shift=9) + residue(2, shift=9)


class TestErrors:
    """Files that cannot be used."""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b" \n\n", "is empty"),
            (b"\x7fELF\0\0\1", "is a binary file"),
            (b"A shopping list:\neggs\n", "no atoms found"),
            (b"data_x\nloop_\n_atom_site.id\n_a.b 1\n", "not a readable PDB or mmCIF file"),
            (b"data_x\n_cell.length_a 1\n", "no atoms found"),
            (gzip.compress(residue(1).encode())[:-9], "damaged gzip file"),
            (residue(1, " DA", atoms=("C",)).encode(), "no protein chain; .*nucleic acid"),
            (residue(1, "HOH", record="HETATM").encode(), "no protein chain; .*HOH"),
            (residue(1, atoms=("CA",)).encode(), "a CA-only trace; .*N, CA, C and O"),
            (residue(1, atoms=("N", "CA", "C")).encode(), "no residue has all of N, CA, C and O"),
            (
                TWICE.encode(),
                "chain A, residue 1 occurs twice; give each chain a name .*--split-breaks",
            ),
            (
                (residue(1) + residue(2) + residue(1, "GLY", shift=9)).encode(),
                "chain A, residue 1 occurs twice",
            ),
        ],
    )
    def test_unusable_content(self, tmp_path, content, message):
        """A file that is no protein structure is refused with its name and what is wrong."""
        path = tmp_path / "bad.pdb"
        path.write_bytes(content)
        with pytest.raises(InputError, match=message) as error:
            read_structure(path)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("end", ["END", "END   ", "END."])
    def test_atoms_after_the_end(self, read, end):
        """Atoms that follow END are not left out in silence; other lines may follow it."""
        text = residue(1) + f"{end}\n"
        prose = "Atoms of another program were left out of this file by whoever wrote it first"
        assert len(read(f"{text}{prose}\n")) == 1
        with pytest.raises(
            InputError, match=r"made\.pdb: line 5: END ends .* but other atoms follow"
        ):
            read(text + residue(1, chain="B"))

    @pytest.mark.parametrize(
        ("name", "message"),
        [("none.pdb", "there is no such file"), ("", "is a folder"), ("n" * 300, "cannot be read")],
    )
    def test_unusable_path(self, tmp_path, name, message):
        """A path that cannot be opened is refused with the reason."""
        with pytest.raises(InputError, match=message):
            read_structure(tmp_path / name)

    @pytest.mark.parametrize("chains", [["Z"], ["A", "A"], [], "A,Z", ["B"]])
    def test_chain_that_is_not_there(self, read, chains):
        """A chain that is absent, no protein or named twice is refused; those there are listed."""
        text = text_of(synthetic_backbone(12)) + residue(1, " DA", chain="B", atoms=("C",))
        with pytest.raises(InputError, match=r"name one or more of A, each once"):
            read(text, chains=chains)

    def test_model_that_is_not_there(self, read):
        """A model that is not there is refused, listing those that are."""
        with pytest.raises(InputError, match=r"no model 2; it has 1 \(1 in all\)"):
            read(residue(1), model=2)


PDB = text_of(synthetic_backbone(30, 2)) + residue(40, "MSE", record="HETATM", alt="A")
SOURCES = [PDB.encode(), as_mmcif(PDB).encode()]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A structure file with some bytes replaced, cut out or repeated, and perhaps cut off."""
    content = bytearray(draw(st.sampled_from(SOURCES)))
    for _ in range(draw(st.integers(0, 12))):
        at = draw(st.integers(0, len(content)))
        width = draw(st.integers(0, 30))
        patch = draw(
            st.binary(max_size=8)
            | st.text("0123456789.- \nABCX?'", max_size=12).map(str.encode)
            | st.just(bytes(content[at : at + 160]))
        )
        content[at : at + width] = patch
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


class TestDamage:
    """Files damaged at random."""

    @settings(max_examples=120)
    @given(damaged() | st.binary(max_size=400) | damaged().map(gzip.compress))
    def test_only_input_errors(self, tmp_path_factory, content):
        """Whatever a file holds, reading gives a checked backbone or an InputError."""
        path = tmp_path_factory.getbasetemp() / "damaged"
        path.write_bytes(content)
        try:
            backbone = read_structure(path)
        except InputError:
            return
        assert backbone.mask.any()


class TestBackbone:
    """The record itself."""

    def test_network_indices(self):
        """residue_idx jumps by 100 between chains, and chain_encoding counts from 1."""
        backbone = synthetic_backbone(5, 2)
        assert backbone.residue_idx.tolist() == [0, 1, 102, 103, 104]
        assert backbone.chain_encoding.tolist() == [1, 1, 2, 2, 2]
        assert len(backbone) == 5

    def test_arranged(self):
        """Designed chains come first, then the others, each group in alphabetical order."""
        backbone = synthetic_backbone(24, 4).select_chains(["D", "B", "A", "C"])
        arranged = backbone.arranged({"D", "C"})
        assert arranged.chain_ids == ("C", "D", "A", "B")
        assert_equal(arranged, synthetic_backbone(24, 4).select_chains("CDAB"))
        assert backbone.arranged([]).chain_ids == ("A", "B", "C", "D")

    def test_select_chains_keeps_residues_together(self):
        """Selecting chains moves coordinates, letters and numbers alike."""
        backbone = synthetic_backbone(31, 3)
        chosen = backbone.select_chains(["C", "A"])
        rows = [*range(20, 31), *range(10)]
        np.testing.assert_array_equal(chosen.coords, backbone.coords[rows])
        assert chosen.sequence == "".join(backbone.sequence[row] for row in rows)
        assert chosen.numbers.tolist() == backbone.numbers[rows].tolist()
        assert_equal(chosen.select_chains(["A", "C"]), backbone.select_chains(["A", "C"]))

    @pytest.mark.parametrize("names", [["E"], [], ["A", "A"]])
    def test_select_chains_refuses(self, names):
        """Chains that are not there, repeated, or none at all are refused."""
        with pytest.raises(InputError, match="name one or more of A, B"):
            synthetic_backbone(8, 2).select_chains(names)

    def test_arranged_refuses_unknown_chains(self):
        """A designed chain that is not there is refused."""
        with pytest.raises(InputError, match="chains Q asked for"):
            synthetic_backbone(8, 2).arranged(["Q"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"coords": np.zeros((4, 3, 3), np.float32)},
                r"coords must be float32 of shape \(4, 4",
            ),
            ({"coords": np.zeros((4, 4, 3))}, "coords must be float32"),
            ({"coords": np.full((4, 4, 3), np.nan, np.float32)}, "must be finite"),
            ({"mask": np.zeros(4, bool)}, "0 where masked"),
            ({"mask": np.ones(4)}, "mask must be bool"),
            ({"sequence": "ACB?"}, r"letters \['\?', 'B'\]"),
            ({"sequence": ""}, "at least one residue"),
            ({"chain_index": np.array([0, 1, 0, 1])}, "chain_index must count up"),
            ({"chain_index": np.zeros(4, np.int64)}, "chain_index must count up"),
            ({"chain_ids": ("A", "A")}, "must differ"),
            ({"numbers": np.arange(3)}, "numbers must be int64"),
            ({"insertion_codes": np.full(4, "AB")}, "insertion_codes must be <U1"),
        ],
    )
    def test_checked_on_construction(self, change, message):
        """Arrays of another shape or type, unknown letters and odd chains are refused."""
        with pytest.raises(InputError, match=message):
            dataclasses.replace(synthetic_backbone(4, 2), **change)


@pytest.mark.data
class TestRealFiles:
    """Real entries of the Protein Data Bank."""

    @pytest.mark.parametrize(
        ("file", "lengths", "masked"),
        [
            ("pdb/5L33.pdb", {"A": 106}, 0),
            ("pdb/6MRR.pdb", {"A": 68}, 0),
            ("pdb/3HTN.pdb", {"A": 143, "B": 143, "C": 143}, 4),
            ("pdb/4YOW.pdb", {"A": 227, "C": 227, "E": 227}, 0),
            ("pdb/4GYT.pdb", {"A": 177, "B": 177}, 0),
            ("pdb/6EHB.pdb", {"A": 320, "B": 320, "C": 320}, 5),
            ("pdb/1L2Y.pdb", {"A": 20}, 0),
            ("pdb/1IGY.pdb", {"A": 213, "B": 477, "C": 213, "D": 477}, 86),
            ("mmcif/1A8O.cif", {"A": 70}, 0),
        ],
    )
    def test_chains_and_lengths(self, data_dir, file, lengths, masked):
        """Real entries have the protein chains, lengths and gaps that are known of them."""
        backbone = read_structure(data_dir / file)
        counts = np.bincount(backbone.chain_index).tolist()
        assert dict(zip(backbone.chain_ids, counts, strict=True)) == lengths
        assert (~backbone.mask).sum() == masked
        assert set(backbone.sequence) <= set(ALPHABET)

    @pytest.mark.parametrize("entry", ["1IGY", "1L2Y"])
    def test_both_formats_agree(self, data_dir, entry):
        """PDB and mmCIF of an entry give one backbone, author numbers and notes included."""
        pdb = read_structure(data_dir / f"pdb/{entry}.pdb")
        assert_equal(pdb, read_structure(data_dir / f"mmcif/{entry}.cif"))

    def test_models_of_an_ensemble(self, data_dir):
        """The 38 models of 1L2Y share letters and differ in coordinates, in either format."""
        models = [read_structure(data_dir / "pdb/1L2Y.pdb", model=n) for n in (1, 2, 38)]
        cif = read_structure(data_dir / "mmcif/1L2Y.cif", model=38)
        assert_equal(models[2], cif)
        assert models[0].sequence == models[1].sequence
        assert np.abs(models[0].coords - models[1].coords).max() > 0.1

    def test_selenomethionine(self, data_dir):
        """The four MSE residues of 1A8O, the first one included, are read as M."""
        backbone = read_structure(data_dir / "mmcif/1A8O.cif")
        at = [backbone.numbers.tolist().index(number) for number in (151, 185, 214, 215)]
        assert "".join(backbone.sequence[i] for i in at) == "MMMM"
        assert backbone.mask[at].all()

    def test_antibody_insertion_codes(self, data_dir):
        """1IGY's heavy chain has residues 82, 82A, 82B, 82C in a row."""
        backbone = read_structure(data_dir / "pdb/1IGY.pdb", chains=["B"])
        codes = backbone.insertion_codes[backbone.numbers == 82]
        assert codes.tolist() == ["", "A", "B", "C"]
