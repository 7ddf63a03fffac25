"""Designs as structures: new residue names on the input's backbone, as gemmi, PDB or mmCIF.

A redesigned residue keeps N, CA, C, O, CB (unless it became glycine) and OXT of the conformation
that was read, and becomes a standard residue in ATOM records. Fixed residues, hetero atoms, waters
and remarks stay as they are. The B-factor of a protein residue's atoms is its −log p in nats;
it is 0 where nothing was computed: hetero atoms and residues that lack backbone atoms.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from mpnn.backbone import ATOMS, Backbone
from mpnn.errors import InputError
from mpnn.results import Design, Target
from mpnn.sources import read_tree

FORMS = ("pdb", "cif")
"""Formats that designs are written in, and the endings of their files."""

BESIDES_BACKBONE = ("CB", "OXT")
"""Atoms of a redesigned residue that are kept where the input has them."""

HEADER = ("HEADER", "TITLE", "EXPDTA", "REMARK", "CRYST1")
"""Records kept of a PDB file's header; those of the sequence would be wrong for a design."""

LARGEST_PDB = 9999.9995, -999.9995
"""Å; coordinates of PDB's eight columns lie between."""


def read_source(path: str | os.PathLike[str]) -> gemmi.Structure:
    """The file that a backbone was read from, with its hetero atoms, side chains and remarks.

    Raises:
        InputError: the file cannot be read as a structure.
    """
    path = Path(path)
    found = read_tree(path).structure
    if found.input_format == gemmi.CoorFormat.Pdb:
        _add_header(found, path)
    return found


class Template:
    """A structure with the designed residues stripped of their side chains, ready for sequences.

    Args:
        target: what the designs are of.
        source: the structure that the backbone was read from; it is not changed. None gives the
            backbone atoms alone.

    Raises:
        InputError: the source lacks residues of the backbone.
    """

    def __init__(self, target: Target, source: gemmi.Structure | None = None) -> None:
        self.backbone, self.designed = target.backbone, target.designed
        if source is None:
            self.made = _bare(self.backbone)
            self.places = _places(self.made[0], self.backbone)
            return
        number = _model_of(source, self.backbone)
        self.made = source.clone()
        self.made.name = self.backbone.name
        for other in reversed([n for n in range(len(self.made)) if n != number]):
            del self.made[other]
        _reset(self.made)
        _drop_variants(self.made[0], _places(self.made[0], self.backbone), self.designed)
        self.places = _places(self.made[0], self.backbone)
        for i in np.flatnonzero(self.designed):
            self._strip(self.made, int(i))

    def with_design(self, design: Design) -> gemmi.Structure:
        """The structure with the residue types and scores of one design."""
        made = self.made.clone()
        scores = np.nan_to_num(design.residue_scores).tolist()
        for i, (place, letter) in enumerate(zip(self.places, design.sequence, strict=True)):
            if place is None:
                continue
            if self.designed[i] or letter != self.backbone.sequence[i]:
                if not self.designed[i]:  # lacks atoms, and gets the type of its copies
                    self._strip(made, i)
                residue = made[0][place[0]][place[1]]
                residue.name = _residue_name(letter)
                if letter == "G":
                    for n in reversed([n for n, a in enumerate(residue) if a.name == "CB"]):
                        del residue[n]
            for atom in made[0][place[0]][place[1]]:
                atom.b_iso = scores[i]
        _renew_records(made)
        return made

    def _strip(self, made: gemmi.Structure, i: int) -> None:
        """Leaves the residue at position i the backbone that was read, CB and OXT."""
        place = self.places[i]
        if place is not None:
            coords = self.backbone.coords[i] if self.backbone.mask[i] else None
            _strip(made[0][place[0]][place[1]], coords)


def form_of(source: gemmi.Structure) -> str:
    """The format of `FORMS` that a structure was read from; pdb where it is another."""
    return "cif" if source.input_format == gemmi.CoorFormat.Mmcif else "pdb"


def structure_text(made: gemmi.Structure, form: str) -> str:
    """A structure as text in one of `FORMS`.

    Raises:
        InputError: the format is another, or a name or coordinate is too long for PDB's columns.
    """
    if form not in FORMS:
        raise InputError(f"structures cannot be written as {form!r}; take pdb or cif")
    if form == "cif":
        return made.make_mmcif_document().as_string()
    for chain in made[0]:
        long = [residue.name for residue in chain if len(residue.name) > 3]
        if len(chain.name) > 2 or long:
            what = f"residue name {long[0]}" if long else f"chain name {chain.name}"
            raise InputError(f"{made.name}: {what} is too long for PDB; write mmCIF instead (cif)")
    for atom in _atoms(made[0]):
        if not all(LARGEST_PDB[1] < x < LARGEST_PDB[0] for x in atom.pos.tolist()):
            raise InputError(
                f"{made.name}: coordinates {atom.pos.tolist()} Å do not fit PDB's columns; write "
                "mmCIF instead (cif)"
            )
    return made.make_pdb_string()


def _add_header(found: gemmi.Structure, path: Path) -> None:
    """Gives a structure the header of its PDB file; records among the atoms are remarks too."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("ascii", "replace")
    lines = [line for line in text.replace("\ufffd", "?").splitlines() if line.startswith(HEADER)]
    header = gemmi.read_pdb_string("\n".join(lines))
    found.raw_remarks = [line for line in lines if line.startswith("REMARK")]
    found.cell, found.spacegroup_hm, found.info = header.cell, header.spacegroup_hm, header.info


def _bare(backbone: Backbone) -> gemmi.Structure:
    """The backbone's own atoms as a structure."""
    made = gemmi.Structure()
    made.name = backbone.name
    made.add_model(gemmi.Model(1))
    for name in backbone.chain_ids:
        made[0].add_chain(gemmi.Chain(name))
    for i in np.flatnonzero(backbone.mask):
        residue = gemmi.Residue()
        residue.name, residue.het_flag = _residue_name(backbone.sequence[i]), "A"
        residue.seqid = gemmi.SeqId(int(backbone.numbers[i]), backbone.insertion_codes[i] or " ")
        residue.entity_type = gemmi.EntityType.Polymer
        for name, position in zip(ATOMS, backbone.coords[i].astype(float).tolist(), strict=True):
            residue.add_atom(_atom(name, gemmi.Position(*position), gemmi.Element(name[0])))
        made[0][int(backbone.chain_index[i])].add_residue(residue)
    return made


def _atom(name: str, position: gemmi.Position, element: gemmi.Element) -> gemmi.Atom:
    atom = gemmi.Atom()
    atom.name, atom.pos, atom.element, atom.occ = name, position, element, 1.0
    return atom


def _residue_name(letter: str) -> str:
    return gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA) if letter != "X" else "UNK"


Place = tuple[int, int]
"""A residue of a model: its chain, and its index there."""


def _model_of(source: gemmi.Structure, backbone: Backbone) -> int:
    """Index of the model that the backbone was read from."""
    wanted = {position.tobytes() for position in backbone.coords[backbone.mask, 1]}  # of CA
    for number, model in enumerate(source):
        if wanted <= _atom_places(model).keys():
            return number
    raise InputError(
        f"{backbone.name}: the structure to write designs on lacks atoms of the backbone; give the "
        "one that the backbone was read from"
    )


def _atom_places(model: gemmi.Model) -> dict[bytes, Place]:
    """The residue of each atom by its position, float32 as in a `Backbone`; the first at each."""
    places = [(c, r) for c, chain in enumerate(model) for r, x in enumerate(chain) for _ in x]
    positions = np.array([atom.pos.tolist() for atom in _atoms(model)], np.float32)
    keys = [position.tobytes() for position in positions]
    return dict(zip(reversed(keys), reversed(places), strict=True))


def _places(model: gemmi.Model, backbone: Backbone) -> list[Place | None]:
    """The model's residue at each of L positions, None in gaps.

    Residues are found by the position of their CA, whatever they are called in the file; those that
    lack backbone atoms by chain and number, where these are unique.
    """
    by_position = _atom_places(model)
    by_name: dict[tuple[str, int | None, str], list[Place]] = {}
    for c, chain in enumerate(model):
        for r, residue in enumerate(chain):
            key = chain.name or "_", residue.seqid.num, residue.seqid.icode.strip()
            by_name.setdefault(key, []).append((c, r))
    found: list[Place | None] = []
    for i, known in enumerate(backbone.mask):
        if known:
            found.append(by_position[backbone.coords[i, 1].tobytes()])
            continue
        chain_name = backbone.chain_ids[backbone.chain_index[i]]
        key = chain_name, int(backbone.numbers[i]), str(backbone.insertion_codes[i])
        named = by_name.get(key, [])
        found.append(named[0] if len(named) == 1 else None)
    return found


def _reset(made: gemmi.Structure) -> None:
    """Clears what is to hold scores, and what tells of the old sequence."""
    for chain in made[0]:
        for residue in chain:
            residue.entity_id = ""
    for atom in _atoms(made[0]):
        atom.b_iso = 0.0
        if atom.aniso.nonzero():
            atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    made.renumber_models()
    made.mod_residues.clear()
    made.cispeps.clear()
    made.entities.clear()


def _drop_variants(
    model: gemmi.Model, places: list[Place | None], designed: NDArray[np.bool_]
) -> None:
    """Removes other residues that the file has in the place of a designed one."""
    kept = set(places)
    numbers = {
        (place[0], str(model[place[0]][place[1]].seqid))
        for place, is_designed in zip(places, designed, strict=True)
        if is_designed and place is not None
    }
    for c, chain in enumerate(model):
        there = [(c, str(residue.seqid)) in numbers for residue in chain]
        for r in reversed(range(len(there))):
            if there[r] and (c, r) not in kept:
                del chain[r]


def _strip(residue: gemmi.Residue, coords: NDArray[np.float32] | None) -> None:
    """Leaves a residue its backbone, CB and OXT in one conformation, as a standard residue.

    Args:
        residue: the residue.
        coords: [4, 3] of N, CA, C and O, which tell the conformation; None where they are unknown.
    """
    atoms = list(residue)
    if coords is None:
        backbone = {atom.name: atom for atom in reversed(atoms) if atom.name in ATOMS}
        altloc = next((atom.altloc for atom in backbone.values()), "\0")
    else:
        at = {np.array(a.pos.tolist(), np.float32).tobytes(): a for a in reversed(atoms)}
        backbone = {name: at[place.tobytes()] for name, place in zip(ATOMS, coords, strict=True)}
        altloc = backbone["CA"].altloc
    kept = [_atom(name, atom.pos, atom.element) for name, atom in backbone.items()]
    for name in BESIDES_BACKBONE:
        others = [a for a in atoms if a.name == name and a.altloc in (altloc, "\0")]
        if others and all(others[0].pos.dist(atom.pos) > 0 for atom in kept):
            kept.append(_atom(name, others[0].pos, others[0].element))
    while len(residue):
        del residue[0]
    for atom in kept:
        residue.add_atom(atom)
    residue.het_flag, residue.entity_type = "A", gemmi.EntityType.Polymer


def _atoms(model: gemmi.Model) -> Iterator[gemmi.Atom]:
    return (atom for chain in model for residue in chain for atom in residue)


def _renew_records(made: gemmi.Structure) -> None:
    """Makes the records of sequence, bonds and secondary structure agree with the residues."""
    model = made[0]
    for n in reversed(range(len(made.connections))):
        ends = made.connections[n].partner1, made.connections[n].partner2
        if any(model.find_cra(end).atom is None for end in ends):
            del made.connections[n]
    strands = [strand for sheet in made.sheets for strand in sheet.strands]
    for part in (*made.helices, *strands):
        for end in (part.start, part.end):
            if chain := model.find_chain(end.chain_name):
                end.res_id.name = next(
                    (r.name for r in chain[str(end.res_id.seqid)]), end.res_id.name
                )
    made.assign_subchains(force=True, fail_if_unknown=False)
    made.ensure_entities()
    for entity in made.entities:
        if entity.entity_type == gemmi.EntityType.Polymer:
            entity.full_sequence = [r.name for r in model.get_subchain(entity.subchains[0])]
            entity.polymer_type = gemmi.PolymerType.PeptideL
    made.deduplicate_entities()
    made.assign_label_seq_id(force=True)
