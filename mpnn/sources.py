"""Reads a file, text, or an object of gemmi or biotite as gemmi's tree of a structure."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import gemmi
import numpy as np
from numpy.typing import NDArray

from mpnn.errors import InputError
from mpnn.pdb_text import clean_pdb

_FIRST_LINE = re.compile(r"^[ \t]*([^#\s].*)", re.M)

BINARY_FORMATS = {b"dataBlocks": "BinaryCIF", b"mmtfVersion": "MMTF"}
"""A key that files of a binary format hold, and the format's name."""


class AtomArray(Protocol):
    """What is read of biotite's `AtomArray` [A] or `AtomArrayStack` [M, A].

    The annotations `ins_code`, `hetero`, `altloc_id` and `occupancy` are read where they exist.
    """

    coord: NDArray[np.float32]
    chain_id: NDArray[np.str_]
    res_id: NDArray[np.int_]
    res_name: NDArray[np.str_]
    atom_name: NDArray[np.str_]


Source: TypeAlias = str | Path | IO[str] | IO[bytes] | gemmi.Structure | AtomArray
"""A path, the text itself (with a line break in it), an open file, or a structure in memory."""


@dataclass(frozen=True)
class Tree:
    """A structure as gemmi holds it, entity types set.

    Attributes:
        structure: the caller's own to change.
        name: what the structure is called in reports.
        where: what messages call its source.
        notes: what was done to the text.
    """

    structure: gemmi.Structure
    name: str
    where: str
    notes: list[str]


def read_tree(source: Source) -> Tree:
    """Any source as gemmi's tree.

    Raises:
        InputError: the source cannot be read, is not a structure or holds no atoms.
    """
    name, where, notes = "structure", "structure", list[str]()
    if isinstance(source, gemmi.Structure):
        structure = source.clone()
        name = where = source.name or name
    elif hasattr(source, "atom_name"):
        where = "AtomArray"
        try:
            structure = _from_atom_array(source)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{where}: not a readable structure: {error}") from None
    else:
        name, where, data = _contents(source)
        structure, notes = _parse(_as_text(data, where), where)
    structure.merge_chain_parts()
    structure.setup_entities()
    if not any(len(model) for model in structure):
        raise InputError(
            f"{where}: no atoms found; a structure has ATOM records (PDB) or an _atom_site table "
            "with type_symbol, label_alt_id and Cartn_x, _y, _z among its columns (mmCIF)"
        )
    return Tree(structure, name, where, notes)


def name_of(path: Path) -> str:
    """What a structure is called: its file's name without the ending, and without .gz."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _contents(source: Any) -> tuple[str, str, bytes]:
    """Name of the structure, name of the source for messages, and bytes."""
    if hasattr(source, "read"):
        path = getattr(source, "name", None)
        where = path if isinstance(path, str) else "open file"
        try:
            data = source.read()
        except (OSError, ValueError) as error:
            raise InputError(f"{where}: cannot be read ({error})") from None
        name = name_of(Path(path)) if isinstance(path, str) else "structure"
    elif isinstance(source, str) and "\n" in source:
        name, where, data = "structure", "text", source
    elif isinstance(source, str | Path):
        name, where, data = name_of(Path(source)), str(source), _read_file(Path(source))
    else:
        raise InputError(
            f"a {type(source).__name__} is not a structure; give a path, PDB or mmCIF text, an "
            "open file, a gemmi.Structure or a biotite AtomArray"
        )
    return name, where, data.encode(errors="replace") if isinstance(data, str) else data


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a PDB or mmCIF file in it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _as_text(data: bytes, where: str) -> str:
    """The text, unzipped; characters beyond ASCII become "?", which keeps PDB's columns."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{where}: damaged gzip file ({error}); fetch it again") from None
    if not data.strip():
        raise InputError(f"{where}: is empty; a PDB or mmCIF file is needed")
    if data[0] >= 0x80 or b"\0" in data:
        binary = [name for key, name in BINARY_FORMATS.items() if key in data]
        if binary or b"\0" in data:
            kind = f"a {binary[0]} file" if binary else "a binary file"
            raise InputError(f"{where}: is {kind}; PDB, mmCIF or mmJSON text is needed")
    text = data.removeprefix(codecs.BOM_UTF8).decode("ascii", errors="replace")
    if "\r" in text:  # of Windows and of old Macs
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\ufffd", "?")


def _parse(text: str, where: str) -> tuple[gemmi.Structure, list[str]]:
    """Text in the format that its first line tells of."""
    first = _FIRST_LINE.search(text)
    start = first[1][:5].lower() if first else ""
    try:
        if start == "data_":
            return _first_block(gemmi.cif.read_string(text))
        if start.startswith("{"):
            return _first_block(gemmi.cif.read_mmjson_string(text))
        text, notes = clean_pdb(text, where)
        return gemmi.read_pdb_string(text), notes
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: not a readable PDB or mmCIF file: {reason}") from None


def _first_block(document: gemmi.cif.Document) -> tuple[gemmi.Structure, list[str]]:
    """The first data block that has atoms."""
    blocks = [block for block in document if len(block.find_values("_atom_site.Cartn_x"))]
    if not blocks:
        return gemmi.Structure(), []
    notes = []
    if len(blocks) > 1:
        notes = [f"data block {blocks[0].name} read, the first of {len(blocks)} with atoms"]
    return gemmi.make_structure_from_block(blocks[0]), notes


def _from_atom_array(atoms: Any) -> gemmi.Structure:
    """Converts an `AtomArray` or `AtomArrayStack` to gemmi's tree."""
    structure = gemmi.Structure()
    coords = np.asarray(atoms.coord, dtype=np.float64)
    coords = coords.reshape(-1, *coords.shape[-2:])
    size = coords.shape[1]
    annotations = (
        atoms.chain_id,
        atoms.res_id,
        getattr(atoms, "ins_code", [""] * size),
        atoms.res_name,
        getattr(atoms, "hetero", [False] * size),
        atoms.atom_name,
        getattr(atoms, "altloc_id", [""] * size),
        getattr(atoms, "occupancy", [1.0] * size),
    )
    columns = [np.asarray(column).tolist() for column in annotations]
    for number, positions in enumerate(coords.tolist(), 1):
        structure.add_model(_as_model(number, list(zip(*columns, positions, strict=True))))
    return structure


def _as_model(number: int, atoms: Sequence[tuple[Any, ...]]) -> gemmi.Model:
    """A model of atoms given as the annotations above and a position each."""
    model = gemmi.Model(number)
    for chain_name, part in groupby(atoms, key=lambda row: row[0]):
        chain = gemmi.Chain(chain_name)
        for (residue_number, code, name, hetero), rows in groupby(part, key=lambda row: row[1:5]):
            residue = gemmi.Residue()
            residue.name, residue.het_flag = name, "H" if hetero else "A"
            residue.seqid = gemmi.SeqId(residue_number, code.strip() or " ")
            for *_, atom_name, label, occupancy, position in rows:
                atom = gemmi.Atom()
                atom.name, atom.pos, atom.occ = atom_name, gemmi.Position(*position), occupancy
                atom.altloc = label if label.strip(" .?") else "\0"
                residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
    return model
