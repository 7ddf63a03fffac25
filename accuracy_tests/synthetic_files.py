"""Structure files, backbones and a network for tests, made from nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mpnn.backbone import ATOMS, Backbone
from mpnn.config import ModelConfig
from mpnn.design import Model
from mpnn.optimizations import load_engine
from mpnn.weights import formula_weights, save_checkpoint

CONFIG = ModelConfig(1, 1, 16, 8)
THREE_LETTERS = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS",
    "I": "ILE", "K": "LYS", "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN",
    "R": "ARG", "S": "SER", "T": "THR", "V": "VAL", "W": "TRP", "Y": "TYR",
}  # fmt: skip


def pdb_text(backbone: Backbone, atoms: tuple[str, ...] = ATOMS) -> str:
    """A structure as PDB text; masked residues are left out."""
    lines = []
    for i, letter in enumerate(backbone.sequence):
        if not backbone.mask[i]:
            continue
        chain = backbone.chain_ids[backbone.chain_index[i]]
        place = f"{THREE_LETTERS[letter]} {chain}{backbone.numbers[i]:4d}"
        for name, (x, y, z) in zip(ATOMS, backbone.coords[i], strict=True):
            if name in atoms:
                lines.append(
                    f"ATOM  {len(lines) % 99999 + 1:5d}  {name:3} {place}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {name[0]}"
                )
    return "\n".join([*lines, "END", ""])


def write_pdb(path: Path, backbone: Backbone) -> Path:
    """Writes `pdb_text` to a file; returns its path."""
    path.write_text(pdb_text(backbone))
    return path


def write_weights(folder: Path, config: ModelConfig = CONFIG) -> Path:
    """A checkpoint with deterministic weights."""
    path = folder / "made.safetensors"
    save_checkpoint(path, formula_weights(config), {"license": "MIT"})
    return path


def published_content(config: ModelConfig = CONFIG) -> dict[str, Any]:
    """What a published file holds."""
    return {
        "num_edges": config.k_neighbors,
        "noise_level": 0.2,
        "model_state_dict": formula_weights(config).state_dict(),
    }


def write_published(path: Path, content: Any) -> Path:
    """Writes content as torch does; returns the path."""
    torch.save(content, path)
    return path


def made_model(engine: str = "exact") -> Model:
    """A small network with deterministic weights in an engine."""
    return Model(load_engine(formula_weights(CONFIG), engine), CONFIG, {"name": "made"})


def with_gaps(backbone: Backbone, *residues: int) -> Backbone:
    """The same backbone with some residues masked."""
    mask, coords = backbone.mask.copy(), backbone.coords.copy()
    mask[list(residues)] = False
    coords[list(residues)] = 0
    return dataclasses.replace(backbone, mask=mask, coords=coords)
