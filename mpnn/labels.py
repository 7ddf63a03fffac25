"""Residues that a PDB file itself labels as fixed, as RFdiffusion's pipelines do."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from mpnn.backbone import Backbone
from mpnn.errors import InputError

_LABEL = re.compile(r"^REMARK\s+PDBinfo-LABEL:\s*(\d+)\s+(.*)$", re.MULTILINE)
_ATOM_RECORDS = ("ATOM  ", "HETATM")


def fixed_labels(path: Path, backbone: Backbone) -> tuple[list[str], list[str]]:
    """Reads the residues that "REMARK PDBinfo-LABEL: n FIXED" lines of a PDB file name.

    Rosetta and dl_binder_design number residues as in a pose: from 1 over all residues in file
    order, whatever their chain and number.

    Args:
        path: the file that the backbone was read from, plain or gzipped.
        backbone: its protein residues; others in the file are not counted.

    Returns:
        Addresses of the residues, and a note that counts them.

    Raises:
        InputError: a label's number exceeds the number of residues.
    """
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    text = data.decode("ascii", "replace")
    labels = [int(n) for n, words in _LABEL.findall(text) if "FIXED" in words.split()]
    pose = _pose(text, backbone) if labels else []
    for number in labels:
        if not 1 <= number <= len(pose):
            raise InputError(
                f"{path}: REMARK PDBinfo-LABEL: {number} FIXED, but the file has {len(pose)} "
                "protein residues; labels count from 1 over all residues in file order"
            )
    places = [backbone.address(pose[number - 1]) for number in dict.fromkeys(labels)]
    shown = ", ".join(places[:8]) + (", …" if len(places) > 8 else "")
    return places, [f"residues fixed by REMARK labels ({len(places)}): {shown or 'none'}"]


def _pose(text: str, backbone: Backbone) -> list[int]:
    """Positions of the protein residues of a PDB file's first model, in file order.

    A residue is found by the coordinates of its CA, since reading may have renamed its chain; a
    residue without coordinates by its chain, number and code, or by the latter two in a new chain.
    """
    lines = [line for line in text.split("\nENDMDL")[0].splitlines() if line[:6] in _ATOM_RECORDS]
    thousandths = np.round(backbone.coords[:, 1].astype(np.float64) * 1000).astype(int).tolist()
    in_file = {line[21] for line in lines}
    positions: dict[tuple[object, ...], int] = {}
    for i in range(len(backbone)):
        chain = backbone.chain_ids[backbone.chain_index[i]]
        site = (str(backbone.numbers[i]), backbone.insertion_codes[i])
        known = chain.replace("_", " ") if chain.replace("_", " ") in in_file else None
        positions[tuple(thousandths[i]) if backbone.mask[i] else (known, *site)] = i
    pose: dict[int, None] = {}
    for line in lines:
        site = (line[22:26].strip(), line[26:27].strip())
        for key in (_thousandths(line), (line[21], *site), (None, *site)):
            if key in positions:
                pose[positions[key]] = None
                break
    return list(pose)


def _thousandths(line: str) -> tuple[int, ...]:
    """Coordinates of a CA in 0.001 Å; empty for other atoms."""
    if line[12:16].strip() != "CA":
        return ()
    try:
        return tuple(round(float(line[start : start + 8]) * 1000) for start in (30, 38, 46))
    except (ValueError, OverflowError):
        return ()
