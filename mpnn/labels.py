"""Residues that a PDB file itself labels as fixed, as RFdiffusion's pipelines do."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from mpnn.backbone import Backbone
from mpnn.errors import InputError

_LABEL = re.compile(rb"^REMARK\s+PDBinfo-LABEL:\s*(\d+)\s+(.*)$", re.MULTILINE)


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
    labels = [int(n) for n, words in _LABEL.findall(data) if b"FIXED" in words.split()]
    pose = _pose(data, backbone)
    for number in labels:
        if not 1 <= number <= len(pose):
            raise InputError(
                f"{path}: REMARK PDBinfo-LABEL: {number} FIXED, but the file has {len(pose)} "
                "protein residues; labels count from 1 over all residues in file order"
            )
    places = [pose[number - 1] for number in dict.fromkeys(labels)]
    shown = ", ".join(places[:8]) + (", …" if len(places) > 8 else "")
    return places, [f"residues fixed by REMARK labels ({len(places)}): {shown or 'none'}"]


def _pose(data: bytes, backbone: Backbone) -> list[str]:
    """Addresses of the protein residues of a PDB file's first model, in file order."""
    chains = np.array(backbone.chain_ids)[backbone.chain_index].tolist()
    keys = zip(chains, backbone.numbers.tolist(), backbone.insertion_codes.tolist(), strict=True)
    addresses = {key: backbone.address(position) for position, key in enumerate(keys)}
    pose: dict[str, None] = {}
    for line in data.decode("ascii", "replace").splitlines():
        if line.startswith("ENDMDL"):
            break
        number = line[22:26].strip()
        if line.startswith(("ATOM", "HETATM")) and number.lstrip("-").isdigit():
            key = (line[21].strip() or "_", int(number), line[26:27].strip())
            if key in addresses:
                pose[addresses[key]] = None
    return list(pose)
