"""From a PDB or mmCIF file to a `Backbone`.

Author chain names and author residue numbers are used throughout. The rules:

* Residues of protein chains are kept in file order, modified ones such as MSE included; ligands
  (free amino acids too), waters and nucleic acids are left out.
* One conformer per residue: most of the four atoms, then the highest mean occupancy, then first in
  the file. Several residue names at one position are conformers in this sense.
* A modified residue has its parent's letter where gemmi's table names a standard one, else X; names
  that force fields give to states of protonation (HIE, CYX, …) count as their residues'.
* A residue without finite N, CA, C and O is masked and keeps its letter; a coordinate that cannot
  be read, or runs over its columns, is not finite, and atoms that lie on one another are none.
* A number missing between two residues in file order becomes a masked X, once per number and only
  if it occurs nowhere in the chain; where numbering runs backwards nothing is filled. A jump is
  filled whatever its length, up to `MAX_GAP` positions a chain; beyond that the file is refused.

What was masked, mapped, chosen or filled is counted in `Backbone.notes`.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import gemmi
import numpy as np

from mpnn.backbone import ATOMS, MAX_GAP, Backbone, Chain, assemble, check_chain_names
from mpnn.config import ALPHABET
from mpnn.errors import InputError

__all__ = ["ATOMS", "MAX_GAP", "Backbone", "Chain", "assemble", "read_structure"]

PROTONATION = {
    **dict.fromkeys(("HID", "HIE", "HIP", "HSD", "HSE", "HSP"), "HIS"),
    **dict.fromkeys(("CYM", "CYX"), "CYS"),
    "ASH": "ASP",
    "GLH": "GLU",
    "LYN": "LYS",
}
"""Names of Amber and CHARMM, and the residues they are of."""

COINCIDENT = 0.1
"""Å below which two backbone atoms of a residue cannot both be where the file says."""

MAX_COORDINATE = 1e5
"""Å from the origin, per axis; float32 resolves 0.01 Å up to here. Atoms beyond count as absent."""

_ATOM = r"^((?:ATOM..|HETATM).{24})"
_USUAL = r"(?:(?=[ \d-]{4}\.) *-?\d+\.\d{3}){3}"
"""Three coordinates as nearly all are: passed over before anything is taken apart."""
_UNUSUAL_LINE = re.compile(_ATOM + rf"(?!{_USUAL})(.{{8}})(.{{8}})(.{{8}})", re.M | re.I)
_COORDINATE = re.compile(r"\s*[-+]?(\d{1,4}(\.\d*)?|\.\d+)(e[-+]?\d+)?\s*", re.I)  # of %8.3f
_END_LINE = re.compile(r"^END(?![A-Z0-9])", re.M | re.I)
_USUAL_LINE = re.compile(_ATOM + _USUAL, re.M | re.I)


def read_structure(
    path: str | Path, chains: Sequence[str] | None = None, model: int | None = None
) -> Backbone:
    """Read a PDB or mmCIF file, plain or gzipped; the content says which, not the name.

    Args:
        path: the file.
        chains: author names of the chains to keep, in this order; all protein chains if None.
            A chain without a name in the file is called "_".
        model: number of the model to read; the first in the file if None.

    Raises:
        InputError: the file cannot be read as a structure, holds no protein chain or only CA atoms,
            lacks a chain or the model asked for, names two residues alike, or has atoms after END.
    """
    path = Path(path)
    structure = _parse(path)
    picked = _pick_model(structure, model, path)
    found = _protein_chains(picked, path)
    if chains is not None:
        names = chains.split(",") if isinstance(chains, str) else chains
        order = [name.strip() for name in names]
        check_chain_names(str(path), order, list(found))
        found = {name: found[name] for name in order}
    sites = {f"{chain}:{site.number}{site.code}": site for chain in found for site in found[chain]}
    _check_atoms(sites, path)
    notes = _notes(sites)
    if len(structure) > 1:
        notes.append(f"model {picked.num} read, of {len(structure)}")
    return assemble(name_of(path), [_as_chain(*item) for item in found.items()], notes)


def name_of(path: Path) -> str:
    """What a structure is called: its file's name without the ending, and without .gz."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _parse(path: Path) -> gemmi.Structure:
    """The file as gemmi's tree, entity types set."""
    text = _read_text(path)
    start = next((line for line in text.splitlines() if line.strip() and line[0] != "#"), "")
    is_mmcif = start[:5].lower() == "data_"
    if not is_mmcif:
        text = _checked_pdb(text, path)
    try:
        if is_mmcif:
            blocks = map(gemmi.make_structure_from_block, gemmi.cif.read_string(text))
            structure = next((s for s in blocks if len(s)), gemmi.Structure())
        else:
            structure = gemmi.read_pdb_string(text)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable PDB or mmCIF file: {reason}") from None
    structure.merge_chain_parts()
    structure.setup_entities()
    if not any(len(model) for model in structure):
        raise InputError(
            f"{path}: no atoms found; a structure has ATOM records (PDB) or an _atom_site table "
            "with type_symbol, label_alt_id and Cartn_x, _y, _z among its columns (mmCIF)"
        )
    return structure


def _checked_pdb(text: str, path: Path) -> str:
    """PDB text with nan for coordinates that cannot be read, where gemmi would take what it can.

    Raises:
        InputError: atoms follow an END, where gemmi would stop.
    """
    if (end := _END_LINE.search(text)) and _USUAL_LINE.search(text, end.end()):
        line = text.count("\n", 0, end.start()) + 1
        raise InputError(
            f"{path}: line {line}: END ends a PDB file, but atoms follow; take out the line, or "
            "all after it (models are parted by MODEL and ENDMDL)"
        )
    return _UNUSUAL_LINE.sub(_with_nan, text)


def _with_nan(line: re.Match[str]) -> str:
    start, *fields = line.groups()
    return start + "".join(x if _COORDINATE.fullmatch(x) else "     nan" for x in fields)


def _read_text(path: Path) -> str:
    """The file's text, unzipped; characters beyond ASCII become "?", which keeps PDB's columns."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a PDB or mmCIF file in it") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not data.strip():
        raise InputError(f"{path}: is empty; a PDB or mmCIF file is needed")
    data = data.removeprefix(codecs.BOM_UTF8)
    if b"\0" in data:
        raise InputError(f"{path}: is a binary file; PDB or mmCIF text is needed")
    return data.decode("ascii", errors="replace").replace("\ufffd", "?")


def _pick_model(structure: gemmi.Structure, number: int | None, path: Path) -> gemmi.Model:
    if number is None:
        return structure[0]
    there = [model.num for model in structure]
    if number not in there:
        raise InputError(
            f"{path}: there is no model {number}; it has {_listed(there)} ({len(there)} in all)"
        )
    return structure[there.index(number)]


@dataclass(frozen=True)
class _Site:
    """One residue position of a file, its conformer chosen."""

    number: int
    code: str
    residue: str  # name in the file, such as MSE
    atoms: dict[str, list[float]]  # of the backbone atoms there are, x, y, z in Å
    num_conformers: int

    @property
    def letter(self) -> str:
        letter = _tabulated(self.residue).one_letter_code.upper()
        return letter if letter in ALPHABET else "X"


def _protein_chains(model: gemmi.Model, path: Path) -> dict[str, list[_Site]]:
    """Protein residues of each chain that has some, by chain name, in file order."""
    found = {chain.name or "_": _sites(chain, path) for chain in model}
    if len(found) < len(model):
        raise InputError(f"{path}: two chains have the same name; there are {_listed(list(found))}")
    proteins = {name: sites for name, sites in found.items() if sites}
    if not proteins:
        names = {residue.name for chain in model for residue in chain}
        nucleic = any(gemmi.find_tabulated_residue(name).is_nucleic_acid() for name in names)
        kind = "nucleic acid" if nucleic else "no polymer of amino acids"
        held = f"chains {_listed(list(found))} hold {kind} ({_listed(sorted(names))})"
        raise InputError(f"{path}: no protein chain; {held}")
    return proteins


def _sites(chain: gemmi.Chain, path: Path) -> list[_Site]:
    groups = groupby(_protein_residues(chain), key=lambda r: (r.seqid.num, r.seqid.icode.strip()))
    sites = []
    seen = set()
    for (number, code), group in groups:
        where = f"{path}: chain {chain.name or '_'}, residue {number}{code}"
        if number is None:
            raise InputError(f"{where}: a residue needs a number")
        if (number, code) in seen:
            raise InputError(f"{where} occurs twice; give each chain a name of its own")
        seen.add((number, code))
        conformers = [c for residue in group for c in _conformers(residue, where)]
        residue, atoms, _ = max(conformers, key=lambda c: (len(c[1]), c[2]))
        sites.append(_Site(number, code, residue, atoms, len(conformers)))
    return sites


def _protein_residues(chain: gemmi.Chain) -> list[gemmi.Residue]:
    """Amino acids of the polymer, not free ones.

    Without TER records gemmi ends a polymer at the first odd residue: one that stands before an
    amino acid in ATOM records is in the chain all the same.
    """
    amino_acids = [residue for residue in chain if _is_amino_acid(residue)]
    in_atom_records = [i for i, residue in enumerate(amino_acids) if residue.het_flag == "A"]
    end = max(in_atom_records, default=-1)
    polymer = gemmi.EntityType.Polymer
    return [r for i, r in enumerate(amino_acids) if i <= end or r.entity_type == polymer]


def _tabulated(name: str) -> gemmi.ResidueInfo:
    """What gemmi's table says of a residue, states of protonation included."""
    return gemmi.find_tabulated_residue(PROTONATION.get(name, name))


def _is_amino_acid(residue: gemmi.Residue) -> bool:
    info = _tabulated(residue.name)
    like_one = not info.found() and {"N", "CA", "C"} <= {atom.name for atom in residue}
    return info.is_amino_acid() or like_one


def _conformers(
    residue: gemmi.Residue, where: str
) -> Iterator[tuple[str, dict[str, list[float]], float]]:
    """Residue name, usable backbone atoms and mean occupancy of each conformer, in file order."""
    atoms = [atom for atom in residue if atom.name in ATOMS]
    if len({(atom.name, atom.altloc) for atom in atoms}) < len(atoms):
        raise InputError(f"{where} has an atom twice; give each chain a name of its own")
    atoms = [a for a in atoms if all(abs(x) <= MAX_COORDINATE for x in a.pos.tolist())]
    labels = dict.fromkeys(atom.altloc for atom in atoms if atom.altloc != "\0")
    for label in labels or ["\0"]:
        # Atoms without a label belong to every conformer; a labeled one comes last and wins.
        chosen = {
            a.name: a
            for a in sorted(atoms, key=lambda a: a.altloc == label)
            if a.altloc in ("\0", label)
        }
        chosen = _apart(chosen)
        occupancy = sum(atom.occ for atom in chosen.values()) / max(len(chosen), 1)
        yield residue.name, {name: a.pos.tolist() for name, a in chosen.items()}, occupancy


def _apart(atoms: dict[str, gemmi.Atom]) -> dict[str, gemmi.Atom]:
    """The atoms that lie on no other."""
    return {
        name: atom
        for name, atom in atoms.items()
        if all(atom.pos.dist(b.pos) > COINCIDENT for other, b in atoms.items() if other != name)
    }


def _check_atoms(sites: dict[str, _Site], path: Path) -> None:
    """Refuse a structure without a single complete residue."""
    if any(len(site.atoms) == len(ATOMS) for site in sites.values()):
        return
    if {atom for site in sites.values() for atom in site.atoms} == {"CA"}:
        raise InputError(
            f"{path}: a CA-only trace; the network needs N, CA, C and O of each residue, so "
            "rebuild the backbone first"
        )
    raise InputError(f"{path}: no residue has all of the atoms N, CA, C and O, which are needed")


def _as_chain(name: str, sites: Sequence[_Site]) -> Chain:
    complete = np.array([len(site.atoms) == len(ATOMS) for site in sites])
    coords = np.zeros((len(sites), len(ATOMS), 3), dtype=np.float32)
    for row, site in enumerate(sites):
        if complete[row]:
            coords[row] = [site.atoms[atom] for atom in ATOMS]
    return Chain(
        name=name,
        coords=coords,
        complete=complete,
        letters="".join(site.letter for site in sites),
        numbers=np.array([site.number for site in sites], dtype=np.int64),
        insertion_codes=np.array([site.code for site in sites], dtype="<U1"),
    )


def _notes(sites: dict[str, _Site]) -> list[str]:
    """What was done to the residues as they were read, one sentence per kind."""
    lacking = [key for key, site in sites.items() if len(site.atoms) < len(ATOMS)]
    chosen = [key for key, site in sites.items() if site.num_conformers > 1]
    unknown = [f"{key} {site.residue}" for key, site in sites.items() if site.letter == "X"]
    modified = [
        f"{key} {site.residue} as {site.letter}"
        for key, site in sites.items()
        if site.letter != "X"
        and gemmi.expand_one_letter(site.letter, gemmi.ResidueKind.AA) != site.residue
    ]
    kinds = {
        "incomplete residues masked": lacking,
        "modified residues read by their parents": modified,
        "unknown residues read as X": unknown,
        "residues with several conformers, one kept": chosen,
    }
    return [f"{kind} ({len(keys)}): {_listed(keys)}" for kind, keys in kinds.items() if keys]


def _listed(items: Sequence[object], limit: int = 8) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown}, …"
