"""The command line as a user meets it: what comes out when all is well."""

from __future__ import annotations

import csv
import gzip
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli_runs import DIMER, run, sequences
from synthetic_files import pdb_text, write_pdb

import mpnn
from mpnn import tasks
from mpnn.backbone import Backbone
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone

pytest_plugins = ["cli_fixtures"]


def test_design_writes_fasta(here: Path) -> None:
    """Design writes one FASTA file per structure and says which weights it used."""
    result = run("design", "dimer.pdb", "--chains", "B", "--num-seqs", 3, "--seed", 5)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "3 designs by made" in result.stderr
    assert [p.name for p in (here / "seqs").iterdir()] == ["dimer.fa"]
    lines = (here / "seqs" / "dimer.fa").read_text().splitlines()
    assert re.fullmatch(
        r">dimer, score=[\d.]+, global_score=[\d.]+, fixed_chains=\['A'\], "
        r"designed_chains=\['B'\], model_name=made, git_hash=mpnn-[\d.]+, seed=5, "
        r"confidence=[\d.]+",
        lines[0],
    )
    assert lines[1] == DIMER.sequence[12:]
    assert [line.split(",")[1] for line in lines[2::2]] == [" sample=1", " sample=2", " sample=3"]


def test_batch_size_changes_no_file(here: Path) -> None:
    """Files are the same whatever the batch size."""
    for size in (1, 3, 8):
        run("design", "dimer.pdb", "--num-seqs", 8, "--batch-size", size, "--out", f"by{size}")
    assert sequences(here / "by1/dimer.fa") == sequences(here / "by3/dimer.fa")
    assert sequences(here / "by1/dimer.fa") == sequences(here / "by8/dimer.fa")


def test_split_changes_no_file(here: Path) -> None:
    """Files together in one folder give what each one alone gives."""
    write_pdb(here / "other.pdb", synthetic_backbone(15))
    (here / "in").mkdir()
    for name in ("dimer", "other"):
        (here / "in" / f"{name}.pdb").write_text((here / f"{name}.pdb").read_text())
        assert run("design", f"{name}.pdb", "--num-seqs", 2, "--out", "alone").exit_code == 0
    assert run("design", "in", "--num-seqs", 2, "--out", "together").exit_code == 0
    for name in ("dimer", "other"):
        alone, together = (here / folder / f"{name}.fa" for folder in ("alone", "together"))
        assert alone.read_bytes() == together.read_bytes()


def test_all_rules_at_once(here: Path) -> None:
    """Fixed, tied, omitted and biased residues are as asked in the written sequences."""
    (here / "bias.json").write_text('{"A2": {"W": 60}}')
    (here / "omit.json").write_text('{"B": "ACDEF"}')
    result = run(
        *("design", "dimer.pdb", "--num-seqs", 4, "--temperature", "0.5,1", "--fixed", "A5-6"),
        *("--tied", "A1,B1", "--omit", "GH", "--bias", "K:0.3,L:-1"),
        *("--bias-per-residue", "bias.json", "--omit-per-residue", "omit.json"),
    )
    assert result.exit_code == 0
    found = sequences(here / "seqs" / "dimer.fa")[1:]
    assert len(found) == 8
    for sequence in found:
        a, b = sequence.split("/")
        assert a[4:6] == DIMER.sequence[4:6]
        assert a[0] == b[0]
        assert a[1] == "W"
        assert not set(a[:4] + a[6:] + b) & set("GHX")
        assert not set(b) & set("ACDEFGH")


def test_byte_order_marks(here: Path) -> None:
    """A mark that some editors put in front of JSON and FASTA is no part of them."""
    (here / "omit.json").write_text('{"B": "ACDEF"}', encoding="utf-8-sig")
    assert run("design", "dimer.pdb", "--omit-per-residue", "omit.json").exit_code == 0
    fasta = here / "seqs" / "dimer.fa"
    fasta.write_text(fasta.read_text(), encoding="utf-8-sig")
    assert run("score", "dimer.pdb", "--fasta", fasta, "--format", "fasta").exit_code == 0
    assert (here / "scores" / "dimer.fa").read_text().startswith(">dimer,")


def test_homo_oligomer(here: Path) -> None:
    """Chains of a homo-oligomer get equal sequences."""
    assert run("design", "dimer.pdb", "--homo-oligomer", "--temperature", 1).exit_code == 0
    a, b = sequences(here / "seqs" / "dimer.fa")[1].split("/")
    assert a == b


def continuing(text: str, start: int = 12) -> str:
    """PDB text in which the numbers of chain B continue those of chain A."""
    lines = text.splitlines(keepends=True)
    return "".join(
        f"{line[:22]}{int(line[22:26]) + start:4d}{line[26:]}" if line[21:22] == "B" else line
        for line in lines
    )


def designed_chains(path: Path) -> dict[str, str]:
    """The first design in a JSON file, by chain."""
    chains: dict[str, str] = json.loads(path.read_text())["designs"][0]["chains"]
    return chains


def test_homo_oligomer_whose_numbers_continue(here: Path) -> None:
    """Chains 1-12 and 13-24 are tied by place; the log and the JSON say so."""
    (here / "c2.pdb").write_text(continuing(pdb_text(DIMER)))
    result = run("design", "c2.pdb", "--homo-oligomer", "--temperature", 1, "--format", "json")
    assert "chains tied by place because their numbers continue (2): A1 to A12, B13 to B24" in (
        result.stderr
    )
    chains = designed_chains(here / "seqs" / "c2.json")
    assert chains["A"] == chains["B"]
    notes = json.loads((here / "seqs" / "c2.json").read_text())["notes"]
    assert notes[0].endswith("(2): A1 to A12, B13 to B24")


def test_redesigned(here: Path) -> None:
    """Residues that --redesigned does not name keep their type; with --fixed it may contradict."""
    result = run("design", "dimer.pdb", "--redesigned", "A10-12,B5", "--format", "json")
    assert result.exit_code == 0
    chains = designed_chains(here / "seqs" / "dimer.json")
    assert chains["A"][:9] == DIMER.sequence[:9]
    assert chains["B"][:4] + chains["B"][5:] == DIMER.sequence[12:16] + DIMER.sequence[17:]
    refused = run("design", "dimer.pdb", "--redesigned", "A10-12", "--fixed", "A12")
    assert refused.exit_code == 2
    assert "dimer: residue A12 is to be redesigned, but fixed as well" in refused.stderr


def test_tied_ranges(here: Path) -> None:
    """--tied takes ranges, place by place, with a weight each."""
    result = run("design", "dimer.pdb", "--tied", "A1-6,B1-6|A7-12,B7-12=-0.2", "--temperature", 1)
    assert result.exit_code == 0
    a, b = sequences(here / "seqs" / "dimer.fa")[1].split("/")
    assert a == b


def test_fixed_labels(here: Path) -> None:
    """--fixed-labels adds the residues of FIXED remarks to --fixed, and counts them."""
    labels = "REMARK PDBinfo-LABEL:    3 FIXED\nREMARK PDBinfo-LABEL:   13 FIXED\n"
    (here / "labels.pdb").write_text(pdb_text(DIMER) + labels)
    result = run(
        *("design", "labels.pdb", "--fixed-labels", "--fixed", "B2", "--format", "json"),
    )
    assert "residues fixed by REMARK labels (2)" in result.stderr
    record = json.loads((here / "seqs" / "labels.json").read_text())
    assert record["fixed_residues"] == ["A3", "B1", "B2"]
    assert record["notes"] == ["residues fixed by REMARK labels (2): A3, B1"]


def test_colon_between_chains(here: Path) -> None:
    """A FASTA file as LigandMPNN and ColabFold write it is scored like one with slashes."""
    chains = DIMER.sequence[:12], DIMER.sequence[12:]
    for name, separator in (("colon", ":"), ("slash", "/")):
        (here / f"{name}.fa").write_text(f">design, T=0.1\n{separator.join(chains)}\n")
        scored = run("score", "dimer.pdb", "--fasta", f"{name}.fa", "--out", name)
        assert scored.exit_code == 0
    assert (here / "colon/dimer.csv").read_text() == (here / "slash/dimer.csv").read_text()


def test_rules_per_structure(here: Path) -> None:
    """One run takes rules for each structure from JSON, a published file and a LigandMPNN file."""
    write_pdb(here / "other.pdb", synthetic_backbone(15))
    (here / "rules.json").write_text('{"dimer": {"chains": "B"}, "other": {"omit": "ACDEFG"}}')
    (here / "fixed.jsonl").write_text('{"dimer": {"A": [], "B": [1, 2]}, "other": {"A": [15]}}')
    (here / "omit.json").write_text('{"dimer.pdb": {"B3": "ACDEFGHIKL"}, "other.pdb": {}}')
    result = run(
        *("design", "dimer.pdb", "other.pdb", "--rules", "rules.json", "--format", "json"),
        *("--published-rules", "fixed.jsonl", "--omit-per-residue", "omit.json"),
        *("--temperature", 1),
    )
    assert result.exit_code == 0
    dimer = json.loads((here / "seqs/dimer.json").read_text())
    assert (dimer["designed_chains"], dimer["fixed_residues"]) == (["B"], ["B1", "B2"])
    assert dimer["designs"][0]["chains"]["B"][2] in "MNPQRSTVWY"
    other = json.loads((here / "seqs/other.json").read_text())
    assert other["fixed_residues"] == ["A15"]
    assert not set(other["designs"][0]["chains"]["A"][:14]) & set("ACDEFG")


def test_a_structure_without_its_rules_is_one_failure(here: Path) -> None:
    """Where a published file has no entry for a structure, the others are designed."""
    write_pdb(here / "other.pdb", synthetic_backbone(15))
    (here / "fixed.jsonl").write_text('{"dimer": {"A": [1]}}')
    result = run("design", "dimer.pdb", "other.pdb", "--published-rules", "fixed.jsonl")
    assert result.exit_code == 1
    assert "fixed.jsonl: no entry for other.pdb; add 'other'" in result.stderr
    assert (here / "seqs" / "dimer.fa").exists()


def test_split_breaks_reaches_the_reader(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--split-breaks is passed on to `read_structure`."""
    passed = []

    def read(path: Path, model: int | None = None, split_breaks: bool = False) -> Backbone:
        passed.append(split_breaks)
        return read_structure(path, model=model)

    monkeypatch.setattr(tasks, "read_structure", read)
    for options in ((), ("--split-breaks",)):
        assert run("score", "dimer.pdb", "--out", here / "out", *options).exit_code == 0
    assert passed == [False, True]


@pytest.mark.parametrize("form", ["fasta", "json", "csv"])
@pytest.mark.parametrize("command", ["design", "score"])
def test_standard_output_joins_files(here: Path, command: str, form: str) -> None:
    """`--out -` prints all results: records one after another, one JSON line each, one table."""
    write_pdb(here / "other.pdb", synthetic_backbone(15))
    result = run(command, "dimer.pdb", "other.pdb", "--out", "-", "--format", form)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    if form == "json":
        assert [json.loads(line)["name"] for line in lines] == ["dimer", "other"]
    elif form == "fasta":
        natives = [line.split(",")[0] for line in lines if re.match(">(dimer|other)", line)]
        assert natives == [">dimer", ">other"]
    else:
        assert sum(line.startswith("name,") for line in lines) == 1
        assert {line.split(",")[0] for line in lines[1:]} == {"dimer", "other"}
    assert not [p for p in here.iterdir() if p.is_dir()]


def test_gzip_and_mmcif_names(here: Path) -> None:
    """A gzipped file's results are named without either ending."""
    (here / "zipped.pdb.gz").write_bytes(gzip.compress(pdb_text(DIMER).encode()))
    assert run("design", "zipped.pdb.gz").exit_code == 0
    assert (here / "seqs" / "zipped.fa").exists()


def test_score_round_trip(here: Path) -> None:
    """Sequences written by design are scored by score, native and designs alike."""
    assert run("design", "dimer.pdb", "--num-seqs", 2, "--chains", "A").exit_code == 0
    result = run(
        *("score", "dimer.pdb", "--fasta", "seqs/dimer.fa", "--chains", "A", "--format", "json")
    )
    assert result.exit_code == 0
    assert "3 scores, the first: score " in result.stderr
    record = json.loads((here / "scores" / "dimer.json").read_text())
    header = (here / "seqs" / "dimer.fa").read_text().splitlines()[0]
    assert f"score={record['scores'][0]['score']:.4f}" in header
    assert [s["record"] for s in record["scores"]] == [
        "dimer",
        "T=0.1, sample=1",
        "T=0.1, sample=2",
    ]


def test_records_of_one_name_are_numbered(here: Path) -> None:
    """Designs of two seeds have the same headers; their scores are numbered."""
    assert run("design", "dimer.pdb", "--seed", "1,2").exit_code == 0
    assert run("score", "dimer.pdb", "--fasta", "seqs/dimer.fa").exit_code == 0
    rows = csv.DictReader((here / "scores" / "dimer.csv").read_text().splitlines())
    native, sampled = "dimer", "T=0.1, sample=1"
    found = list(dict.fromkeys(row["record"] for row in rows))
    assert found == [native, sampled, f"{native} #2", f"{sampled} #2"]


@pytest.mark.parametrize("mode", ["conditional", "unconditional"])
def test_score_modes(here: Path, mode: str) -> None:
    """Each mode of scoring is named in the output, and the two exclude each other."""
    assert run("score", "dimer.pdb", f"--{mode}", "--format", "json").exit_code == 0
    assert json.loads((here / "scores" / "dimer.json").read_text())["mode"] == mode
    both = run("score", "dimer.pdb", "--conditional", "--unconditional")
    assert both.exit_code == 2
    assert "exclude" in both.stderr


@pytest.mark.usefixtures("here")
def test_weights_commands(made: str) -> None:
    """Weights are listed with their place, verified with their configuration, or refused."""
    listed = run("weights", "list")
    assert listed.exit_code == 0
    assert re.search(r"^shipped with this package:\n  made +here$", listed.stdout, re.M)
    assert re.search(r"^meilerlab/HyperMPNN \(MIT\):\n  hyper_v_48_002 +to be", listed.stdout, re.M)
    known = run("weights", "info", "pottsmpnn_20", made)
    assert known.exit_code == 0
    for line in (
        "license +MIT", "source +https://github.com/KeatingLab/PottsMPNN", "published_id +de011d0f",
        "file +to be fetched: `mpnn weights fetch pottsmpnn_20`", "network .*hidden_dim=16",
    ):  # fmt: skip
        assert re.search(f"^{line}", known.stdout, re.M)
    verified = run("weights", "verify", made)
    assert verified.exit_code == 0
    first, *card = verified.stdout.splitlines()
    assert "hidden_dim=16" in first
    assert max(map(len, card)) <= 80
    for arguments in (("verify", "dimer.pdb"), ("fetch", "v_48_999"), ("info", "abmpnn")):
        refused = run("weights", *arguments)
        assert refused.exit_code == 2
        assert arguments[1] in refused.stderr


def test_variants_are_listed() -> None:
    """Every variant has a line."""
    result = run("variants")
    assert result.exit_code == 0
    assert "extreme-v2" in result.stdout


@pytest.mark.usefixtures("here")
def test_report_without_runs() -> None:
    """A report without stored runs is refused with what would store one."""
    result = run("report", "nowhere")
    assert result.exit_code == 2
    assert "no stored run" in result.stderr


def test_version_is_the_projects() -> None:
    """The version in the package is the one in pyproject.toml."""
    path = Path(__file__).parents[1] / "pyproject.toml"
    assert tomllib.loads(path.read_text())["project"]["version"] == mpnn.__version__


HEAVY = "{'torch', 'numpy', 'gemmi', 'rich', 'safetensors'}"


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("import mpnn.cli; mpnn.cli.parser().format_help()", HEAVY),
        ("import mpnn.options, mpnn.rules, mpnn.errors", HEAVY),
        ("import mpnn.campaign, mpnn.files, mpnn.selection, mpnn.rulebook", "{'torch', 'rich'}"),
    ],
)
def test_help_and_inputs_import_little(code: str, banned: str) -> None:
    """Help loads none of the heavy packages, and reading inputs does not load torch."""
    check = f"import sys; {code}; found = {banned} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("command", [[], ["design"], ["score"], ["weights"], ["weights", "fetch"]])
def test_help(command: list[str]) -> None:
    """Every command prints its help with exit code 0."""
    shown = run(*command, "--help")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("usage: mpnn")
    assert shown.stderr == ""


def test_no_command_shows_help() -> None:
    """Without a command the help goes to standard error, with exit code 2."""
    shown = run()
    assert shown.exit_code == 2
    assert "usage: mpnn" in shown.stderr


def test_names_of_the_package() -> None:
    """Every name that the package offers can be had from it."""
    assert all(getattr(mpnn, name).__name__ == name for name in mpnn.__all__)


def test_unknown_name_in_the_package() -> None:
    """A name that the package lacks is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="designn"):
        _ = mpnn.designn


@pytest.mark.data
@pytest.mark.usefixtures("here")
def test_published_example(data_dir: Path) -> None:
    """3HTN with A and C designed has the published native record: chains, letters, X at gaps."""
    path = data_dir / "pdb" / "3HTN.pdb"
    assert run("design", path, "--chains", "A,C", "--num-seqs", 2, "--seed", 37).exit_code == 0
    lines = Path("seqs", "3HTN.fa").read_text().splitlines()
    assert "fixed_chains=['B'], designed_chains=['A', 'C']" in lines[0]
    assert lines[1].startswith("NMYSYKKIGNKYIVSINNHTEIVKALNAFCKEKGILSGSINGIGAIGELTLRFFNPKTKAYDDKTF")
    assert lines[1].count("/") == 1
    assert all(len(line) == len(lines[1]) for line in lines[1::2])
