"""Results in the files of other pipelines: one function for each layout.

What a pipeline reads was taken from its own reader (late 2026); the tests hold a reader of each.

* `ligandmpnn`: LigandMPNN's folders `seqs/` and `backbones/`. ProtFlow's `collect_scores` and OVO's
  pipeline of sequence design read them.
* `proteindj`: a PDB per design, `NAME_seq_N.pdb`, beside `mpnn_NAME_seq_N.json` with its sequence
  and score. ProteinDJ's `filter_mpnn.py` and `metadata_converter.py` read them, and tell folds from
  sequences by names such as `fold_12_seq_3`.
* `foundry`: Foundry's `NAME_b0_dN.cif` with a category `mpnn_output`, and a FASTA file each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gemmi

from mpnn.design_structure import Template, read_source, structure_text
from mpnn.results import Design, Designs

Files = dict[str, str]
"""Content of files by their paths below the output folder; the last one is named in the log."""


def ligandmpnn(designs: Designs, path: Path, model_name: str) -> Files:
    """`backbones/NAME_N.pdb` for each design, and `seqs/NAME.fa` with all of them.

    Headers have LigandMPNN's keys. Without ligands its `ligand_confidence` is 1. Sequences are of
    all chains, in alphabetical order, with ":" between them.
    """
    name = designs.backbone.name
    native = designs.native[0]
    lines = [
        f">{name}, T={designs.designs[0].temperature}, seed={native.seed}, "
        f"num_res={int(designs.designed.sum())}, num_ligand_res=0, model_path={model_name}",
        _all_chains(designs, native.sequence),
    ]
    files = {}
    for number, design, structure in _with_structures(designs, path):
        files[f"backbones/{name}_{number}.pdb"] = structure_text(structure, "pdb")
        lines += [
            f">{name}, id={number}, T={design.temperature}, seed={design.seed}, "
            f"overall_confidence={design.confidence:.4f}, ligand_confidence=1.0000, "
            f"seq_rec={design.recovery:.4f}",
            _all_chains(designs, design.sequence),
        ]
    return {**files, f"seqs/{name}.fa": "\n".join(lines) + "\n"}


def proteindj(designs: Designs, path: Path, _model_name: str) -> Files:
    """`NAME_seq_N.pdb` and `mpnn_NAME_seq_N.json` for each design, N from 0."""
    files = {}
    for number, design, structure in _with_structures(designs, path):
        name = f"{designs.backbone.name}_seq_{number - 1}"
        record = {
            "design": name,
            "sequence": designs.printed(design.sequence),
            "score": round(design.score, 6),
            "confidence": round(design.confidence, 6),
            "seq_recovery": round(design.recovery, 6),
        }
        files[f"mpnn_{name}.json"] = json.dumps(record) + "\n"
        files[f"{name}.pdb"] = structure_text(structure, "pdb")
    return files


def foundry(designs: Designs, path: Path, model_name: str) -> Files:
    """`NAME_b0_dN.cif` and `.fa` for each design, N from 0.

    The CIF's category `mpnn_output` has Foundry's items, and `confidence` and `score` besides;
    B-factors are −log p of each residue.
    """
    files = {}
    for number, design, structure in _with_structures(designs, path):
        name = f"{designs.backbone.name}_b0_d{number - 1}"
        output = {
            "batch_idx": "0",
            "design_idx": str(number - 1),
            "designed_sequence": designs.printed(design.sequence).replace("/", ""),
            "sequence_recovery": f"{design.recovery:.6f}",
            "model_type": "protein_mpnn",
            "checkpoint_path": model_name,
            "confidence": f"{design.confidence:.6f}",
            "score": f"{design.score:.6f}",
        }
        header = f">{name}, sequence_recovery={design.recovery:.4f}"
        files[f"{name}.fa"] = (
            f"{header}, confidence={design.confidence:.4f}\n{output['designed_sequence']}\n"
        )
        files[f"{name}.cif"] = _with_category(structure, "mpnn_output", output)
    return files


LAYOUTS: Mapping[str, Callable[[Designs, Path, str], Files]] = {
    f.__name__: f for f in (ligandmpnn, proteindj, foundry)
}
"""Layouts by the name that --format takes. Arguments: designs, the file that their structure was
read from, and the name of the weights."""


def _with_structures(designs: Designs, path: Path) -> Iterator[tuple[int, Design, gemmi.Structure]]:
    """Designs numbered from 1, each on the input's backbone with its hetero atoms and remarks."""
    template = Template(designs, read_source(path))
    for number, design in enumerate(designs, start=1):
        yield number, design, template.with_design(design)


def _all_chains(designs: Designs, sequence: str) -> str:
    chains = designs.by_chain(sequence)
    return ":".join(chains[name] for name in sorted(chains))


def _with_category(structure: gemmi.Structure, name: str, items: Mapping[str, str]) -> str:
    """A structure as mmCIF text with one more category."""
    document = structure.make_mmcif_document()
    for item, value in items.items():
        document.sole_block().set_pair(f"_{name}.{item}", gemmi.cif.quote(value))
    return document.as_string()
