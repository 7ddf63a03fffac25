"""TS50, the benchmark of inverse folding: 50 chains without gaps, of complete residues only.

`ts50.csv` beside this file lists the set as the literature hands it down: name of each chain, PDB
id and author chain name; number of its complete residues; first 16 hexadecimal digits of the
SHA-256 of their letters. A chain fetched from the PDB is one of the set if both agree. They say
nothing about coordinates: where an entry has alternate locations or was refined again, those may
differ from the handed-down ones. The list is checked against the handed-down file; whether today's
PDB still gives all 50 chains has not been tried.
"""

from __future__ import annotations

import csv
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpnn.backbone import Backbone, Chain, assemble
from mpnn.datasets import ChainSet, find_data
from mpnn.download import cache_folder, fetch_file
from mpnn.errors import InputError
from mpnn.files import log_console, progress_bar
from mpnn.structure import read_structure

RCSB = "https://files.rcsb.org/download"
FILE = "ts50.npz"
LIST = Path(__file__).with_suffix(".csv")
DIGITS = 16


@dataclass(frozen=True)
class Member:
    """One chain of the set.

    Attributes:
        name: PDB id and author chain name, such as 1ete_A.
        residues: number of complete residues.
        letters: digest of their letters, as of `letters_digest`.
    """

    name: str
    residues: int
    letters: str


def members() -> list[Member]:
    """The chains of the set, in its order."""
    with LIST.open(encoding="ascii", newline="") as file:
        return [
            Member(row["name"], int(row["residues"]), row["letters"])
            for row in csv.DictReader(file)
        ]


def ts50(source: str = RCSB) -> list[Backbone]:
    """The set's backbones: all of them, or none.

    They come from `ts50.npz` in the folder MPNN_DATA; where that variable is not set, from PDB
    entries in the user's cache, downloaded first if need be, with progress on a terminal.

    Args:
        source: where entries are served as ID.cif.gz.

    Raises:
        UnreachableError: an entry is to be downloaded, and the server cannot be reached.
        InputError: MPNN_DATA is set and lacks the file, a download fails, or a chain differs.
    """
    if os.environ.get("MPNN_DATA"):
        chains = ChainSet(find_data(FILE))
        return [chains[i] for i in range(len(chains))]
    with progress_bar(log_console()) as progress:
        return [fetch_chain(member, source) for member in progress.track(members())]


def fetch_chain(member: Member, source: str = RCSB) -> Backbone:
    """A chain of the set from its PDB entry, which stays in the cache.

    Raises:
        UnreachableError: the server cannot be reached.
        InputError: the download fails, what was sent is no such entry, or its chain differs.
    """
    entry, _, chain = member.name.partition("_")
    file_name = f"{entry.upper()}.cif.gz"
    url = f"{source}/{file_name}"

    def read(path: Path) -> Backbone:
        try:
            found = complete_part(read_structure(path, chains=[chain]), member.name)
        except InputError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{url}: sent no chain {member.name}: {reason}") from error
        _check(found, member, url)
        return found

    return fetch_file(url, cache_folder().with_name("structures") / file_name, read)


def complete_part(backbone: Backbone, name: str) -> Backbone:
    """The complete residues of a single chain, numbered from 1 as if nothing lay between them."""
    known = np.flatnonzero(backbone.mask)
    chain = Chain(
        name=backbone.chain_ids[0],
        coords=backbone.coords[known],
        complete=np.ones(len(known), dtype=bool),
        letters="".join(backbone.sequence[row] for row in known),
        numbers=np.arange(1, len(known) + 1),
        insertion_codes=np.full(len(known), "", dtype="<U1"),
    )
    return assemble(name, [chain], backbone.notes)


def letters_digest(letters: str) -> str:
    """The first hexadecimal digits of the SHA-256 of some letters."""
    return hashlib.sha256(letters.encode("ascii")).hexdigest()[:DIGITS]


def _check(found: Backbone, member: Member, url: str) -> None:
    """Refuse a chain that is not the set's."""
    digest = letters_digest(found.sequence)
    if (len(found), digest) == (member.residues, member.letters):
        return
    differs = (
        f"has {len(found)} complete residues instead of {member.residues}"
        if len(found) != member.residues
        else f"has {len(found)} complete residues as it should, but other letters ({digest} "
        f"instead of {member.letters})"
    )
    raise InputError(
        f"{url}: chain {member.name} is not that of TS50: it {differs}; nothing was kept, and the "
        f"set is whole or not used: set MPNN_DATA to a folder with {FILE}"
    )
