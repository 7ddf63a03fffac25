"""Results in other pipelines' files, read by a small reader that does what each pipeline does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gemmi
import pytest
from cli_runs import DIMER, run
from synthetic_files import pdb_text

from mpnn.structure import read_structure

pytest_plugins = ["cli_fixtures"]

REMARK = "REMARK PDBinfo-LABEL:    3 FIXED"
SAMPLES = 3


@pytest.fixture
def folder(here: Path) -> Path:
    """`fold_12.pdb` and `fold_7.pdb` in `in`, with a remark as RFdiffusion's pipelines write."""
    (here / "in").mkdir()
    for name in ("fold_12", "fold_7"):
        (here / "in" / f"{name}.pdb").write_text(f"{REMARK}\n{pdb_text(DIMER)}")
    return here


def design(form: str, *arguments: object) -> None:
    done = run("design", "in", "--format", form, "--num-seqs", SAMPLES, "--out", "out", *arguments)
    assert done.exit_code == 0, done.stderr


def sequence_of(path: Path) -> str:
    """Residues of a structure's chains, joined."""
    return read_structure(path).sequence


def records(path: Path) -> list[tuple[str, str]]:
    """Headers and sequences of a FASTA file."""
    lines = path.read_text().splitlines()
    return [(head[1:], text) for head, text in zip(lines[::2], lines[1::2], strict=True)]


def read_as_protflow(folder: Path) -> list[dict[str, Any]]:
    """Every header after the first is numbers by key; structures are named by four digits."""
    rows = []
    for fasta in (folder / "seqs").glob("*.fa"):
        (first, _), *samples = records(fasta)
        name = first.split()[0].replace(",", "")
        for number, (header, sequence) in enumerate(samples, start=1):
            values = {k: float(v) for k, v in (x.split("=") for x in header.split(", ")[1:])}
            assert values.keys() == {
                "id", "T", "seed", "overall_confidence", "ligand_confidence", "seq_rec"
            }  # fmt: skip
            rows.append({"description": f"{name}_{number:04}", "sequence": sequence, **values})
    for path in (folder / "backbones").glob("*.pdb"):
        stem, number = path.stem.rsplit("_", 1)
        path.rename(path.with_name(f"{stem}_{number.zfill(4)}.pdb"))
    return [r | {"location": folder / "backbones" / f"{r['description']}.pdb"} for r in rows]


def test_protflow_reads_the_layout_of_ligandmpnn(folder: Path) -> None:
    """Scores are numbers, and each sequence is that of its structure."""
    design("ligandmpnn")
    rows = read_as_protflow(folder / "out")
    assert len(rows) == 2 * SAMPLES
    for row in rows:
        assert row["sequence"].replace(":", "") == sequence_of(row["location"])
        assert row["sequence"].count(":") == 1
        assert 0 < row["overall_confidence"] < 1


def test_ovo_gives_and_reads_the_layout_of_ligandmpnn(folder: Path) -> None:
    """Its JSON of residues to redesign is an input; structures keep their remarks."""
    residues = {str(folder / "in" / f"fold_{n}.pdb"): "A3 A4 B5" for n in (12, 7)}
    (folder / "redesigned.json").write_text(json.dumps(residues))
    design("ligandmpnn", "--redesigned", "redesigned.json")
    structures = sorted((folder / "out" / "backbones").glob("*.pdb"))
    assert len(structures) == 2 * SAMPLES
    for path in structures:
        assert REMARK in path.read_text().splitlines()
        changed = [i for i, pair in enumerate(zip(sequence_of(path), DIMER.sequence, strict=True))
                   if pair[0] != pair[1]]  # fmt: skip
        assert set(changed) <= {2, 3, 12 + 4}


def read_as_proteindj(folder: Path, most: float | None) -> list[dict[str, Any]]:
    """Filters JSON files by score, takes the PDB of the same name, tells folds from sequences."""
    rows = []
    for path in folder.glob("*.json"):
        data = json.loads(path.read_text().strip())
        score = float(data["score"])
        if most is not None and score > most:
            continue
        assert path.name == f"mpnn_{data['design']}.json"
        match = re.match(r"fold_(\d+)_seq_(\d+)", data["design"])
        assert match is not None
        ids = {"fold_id": int(match[1]), "seq_id": int(match[2])}
        pdb = folder / f"{data['design']}.pdb"
        rows.append({**ids, "score": score, "sequence": data["sequence"], "pdb": pdb})
    return rows


def test_proteindj_reads_its_layout(folder: Path) -> None:
    """A PDB beside each JSON, with the ids of fold and sequence in the name."""
    design("proteindj")
    rows = read_as_proteindj(folder / "out", None)
    assert {(row["fold_id"], row["seq_id"]) for row in rows} == {
        (fold, n) for fold in (12, 7) for n in range(SAMPLES)
    }
    for row in rows:
        assert row["sequence"].replace("/", "") == sequence_of(row["pdb"])
    middle = sorted(row["score"] for row in rows)[2]
    assert 0 < len(read_as_proteindj(folder / "out", middle)) < len(rows)


def read_as_foundry(path: Path) -> dict[str, str]:
    """The category that Foundry stores beside the atoms of a design."""
    table = gemmi.cif.read(str(path)).sole_block().get_mmcif_category("_mpnn_output.")
    return {key: values[0] for key, values in table.items()}


def test_foundry_reads_its_layout(folder: Path) -> None:
    """A CIF and a FASTA file for each design, with confidence, and scores per residue."""
    design("foundry")
    for number in range(SAMPLES):
        cif, fasta = (folder / "out" / f"fold_7_b0_d{number}.{end}" for end in ("cif", "fa"))
        output = read_as_foundry(cif)
        ((header, sequence),) = records(fasta)
        assert output["design_idx"] == str(number)
        assert output["designed_sequence"] == sequence == sequence_of(cif)
        assert header.startswith(f"fold_7_b0_d{number}, sequence_recovery=")
        assert 0 < float(output["confidence"]) < 1
        atoms = gemmi.read_structure(str(cif))[0][0][0]
        assert atoms[0].b_iso > 0


def test_json_lines(folder: Path) -> None:
    """One object a line and design; `cat` joins files."""
    design("jsonl")
    lines = [x for p in (folder / "out").glob("fold*.jsonl") for x in p.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 * SAMPLES
    assert {row["name"] for row in rows} == {"fold_12", "fold_7"}
    assert {row["sample"] for row in rows} == set(range(1, SAMPLES + 1))


@pytest.mark.parametrize("form", ["ligandmpnn", "proteindj", "foundry"])
def test_layouts_need_a_folder_and_resume(folder: Path, form: str) -> None:
    """Several files cannot be printed; a result that lacks one of its files is done again."""
    done = run("design", "in", "--format", form, "--out", "-")
    assert done.exit_code == 2
    assert f"--format {form} cannot be printed to standard output" in done.stderr
    design(form)
    first = next(p for p in (folder / "out").rglob("fold_7*") if p.is_file())
    content = first.read_bytes()
    first.unlink()
    design(form)
    assert first.read_bytes() == content


def test_scores_have_no_layouts(folder: Path) -> None:
    """`mpnn score` refuses them with the formats it has."""
    done = run("score", folder / "in", "--format", "foundry")
    assert done.exit_code == 2
    assert "'foundry'" in done.stderr
