"""TS50, a benchmark of inverse folding: 50 chains without gaps, of complete residues only.

`ts50.csv` beside this file lists the set as used in the literature: name of each chain (PDB id and
author chain name), number of its complete residues, and the first 16 hexadecimal digits of the
SHA-256 of their sequence. A chain fetched from the PDB must agree in both. Coordinates are not
checked: they may differ from those of the literature where an entry has alternate locations or was
refined again. The list agrees with `ts50.npz`; whether today's PDB still gives all 50 chains has
not been tested.
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
        digest: of their sequence, see `sequence_digest`.
    """

    name: str
    residues: int
    digest: str


def members() -> list[Member]:
    """The chains of the set, in its order."""
    with LIST.open(encoding="ascii", newline="") as file:
        return [
            Member(row["name"], int(row["residues"]), row["letters"])
            for row in csv.DictReader(file)
        ]


def ts50(source: str = RCSB) -> list[Backbone]:
    """All backbones of the set.

    They are read from `ts50.npz` in the folder MPNN_DATA. Without that variable, PDB entries are
    read from the user's cache, and downloaded if missing, with progress on a terminal.

    Args:
        source: URL that serves entries as ID.cif.gz.

    Raises:
        UnreachableError: an entry is missing and the server cannot be reached.
        InputError: MPNN_DATA lacks the file, a download fails, or a chain differs from the list.
    """
    if os.environ.get("MPNN_DATA"):
        chains = ChainSet(find_data(FILE))
        return [chains[i] for i in range(len(chains))]
    with progress_bar(log_console()) as progress:
        return [fetch_chain(member, source) for member in progress.track(members())]


def fetch_chain(member: Member, source: str = RCSB) -> Backbone:
    """A chain of the set from its PDB entry, which is stored in the cache.

    Raises:
        UnreachableError: the entry is missing and the server cannot be reached.
        InputError: the download fails, lacks the chain, or the chain differs from the list.
    """
    entry, _, chain = member.name.partition("_")
    file_name = f"{entry.upper()}.cif.gz"
    url = f"{source}/{file_name}"

    def read(path: Path) -> Backbone:
        try:
            found = complete_part(read_structure(path, chains=[chain]), member.name)
        except InputError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{url}: chain {member.name} cannot be read: {reason}") from error
        _check(found, member, url)
        return found

    return fetch_file(url, cache_folder().with_name("structures") / file_name, read)


def complete_part(backbone: Backbone, name: str) -> Backbone:
    """The complete residues of a single chain, numbered from 1 without gaps."""
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


def sequence_digest(sequence: str) -> str:
    """The first hexadecimal digits of the SHA-256 of a sequence."""
    return hashlib.sha256(sequence.encode("ascii")).hexdigest()[:DIGITS]


def _check(found: Backbone, member: Member, url: str) -> None:
    """Refuses a chain that differs from the list."""
    if len(found) != member.residues:
        differs = f"has {len(found)} complete residues instead of {member.residues}"
    elif (digest := sequence_digest(found.sequence)) != member.digest:
        differs = f"has another sequence (digest {digest} instead of {member.digest})"
    else:
        return
    raise InputError(
        f"{url}: chain {member.name} {differs}, so that the set would not be TS50; set MPNN_DATA "
        f"to a folder with {FILE}"
    )
