"""Results as FASTA, JSON, CSV, npz and plain dicts."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic_files import made_model

from mpnn.backbone import Backbone
from mpnn.errors import InputError
from mpnn.files import read_fasta
from mpnn.output import (
    DESIGN_COLUMNS,
    SCORE_COLUMNS,
    design_fasta,
    probabilities,
    render_designs,
    render_scores,
)
from mpnn.results import Designs, Score, Scores
from mpnn.synthetic import synthetic_backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Chains A, B and C of 10 residues; C2 is a gap and C5 lacks atoms."""
    made = synthetic_backbone(30, chains=3)
    mask = np.ones(30, bool)
    mask[[21, 24]] = False
    coords = np.where(mask[:, None, None], made.coords, np.float32(0))
    letters = made.sequence[:21] + "X" + made.sequence[22:]
    return dataclasses.replace(made, mask=mask, coords=coords, sequence=letters, name="made")


@pytest.fixture(scope="module")
def designs(backbone: Backbone) -> Designs:
    """Chains A and C designed, B fixed, two seeds, two temperatures, two samples of each."""
    return made_model().design(backbone, 2, [0.1, 1.0], seed=[37, 38], chains="C,A", fixed="A1")


@pytest.fixture(scope="module")
def scores(backbone: Backbone) -> Scores:
    return made_model().score_many(backbone, [backbone.sequence, "A" * 30], seed=[1, 2])


def test_fasta_has_the_published_form(designs: Designs) -> None:
    """Headers have the published fields in their order; sequences show designed chains alone."""
    lines = render_designs(designs, "fasta", "made", "mpnn-1").splitlines()
    number = r"\d+\.\d{4}"
    native = re.compile(
        rf">made, score={number}, global_score={number}, fixed_chains=\['B'\], "
        rf"designed_chains=\['A', 'C'\], model_name=made, git_hash=mpnn-1, seed=3[78], "
        rf"confidence={number}"
    )
    sample = re.compile(
        rf">T=(0\.1|1\.0), sample=[12], score={number}, global_score={number}, "
        rf"seq_recovery={number}, confidence={number}"
    )
    for i, line in enumerate(lines[::2]):
        assert (sample if i % 5 else native).fullmatch(line)
    assert len(lines) == 20
    own = designs.backbone.sequence
    assert lines[1] == f"{own[:10]}/{own[10:20]}"
    assert lines[1][12] == "X"
    assert all(re.fullmatch(r"[A-Y]{10}/[A-Y]X[A-Y]{8}", line) for line in lines[1::2])


def test_fasta_reads_back(designs: Designs, tmp_path: Path) -> None:
    """Names and sequences of a written FASTA file are read back."""
    path = tmp_path / "made.fa"
    path.write_text(render_designs(designs, "fasta", "made", "mpnn-1"))
    records = read_fasta(str(path))
    assert records[0] == ("made", designs.printed(designs.native[0].sequence))
    assert [name for name, _ in records[1:3]] == ["T=0.1, sample=1", "T=0.1, sample=2"]
    assert [s for name, s in records if not name.startswith("made")] == [
        designs.printed(d.sequence) for d in designs
    ]


def test_json_reads_back(designs: Designs) -> None:
    """JSON has every design with its scores and chains, on one line."""
    text = render_designs(designs, "json", "made", "mpnn-1")
    assert text.count("\n") == 1
    record = json.loads(text)
    assert record["name"] == "made"
    assert (record["designed_chains"], record["fixed_chains"]) == (["A", "C"], ["B"])
    assert record["fixed_residues"] == ["A1"]
    assert [n["seed"] for n in record["native"]] == [37, 38]
    for found, design in zip(record["designs"], designs, strict=True):
        assert (found["seed"], found["sample"]) == (design.seed, design.sample)
        assert found["temperature"] == design.temperature
        assert found["score"] == pytest.approx(design.score, abs=1e-6)
        assert found["seq_recovery"] == pytest.approx(design.recovery, abs=1e-6)
        assert "".join(found["chains"].values()) == design.sequence


def test_csv_reads_back(designs: Designs) -> None:
    """CSV has a heading and one row for each design."""
    heading, *rows = csv.reader(io.StringIO(render_designs(designs, "csv", "made", "mpnn-1")))
    assert heading == list(DESIGN_COLUMNS)
    assert [row[7] for row in rows] == [designs.printed(d.sequence) for d in designs]
    assert [float(row[2]) for row in rows] == [d.temperature for d in designs]


def test_scores_as_a_table(scores: Scores) -> None:
    """Score tables have a row for each residue with coordinates; probabilities sum to one."""
    text = render_scores(scores, ["own", "poly-A"], "csv", "made", "mpnn-1")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(SCORE_COLUMNS)
    assert len(rows) == 4 * 28
    assert [row["record"] for row in rows[::28]] == ["own", "poly-A"] * 2
    assert [row["seed"] for row in rows[::28]] == ["1", "1", "2", "2"]
    for row in rows:
        probabilities = [float(row[c]) for c in SCORE_COLUMNS if c.startswith("p_")]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert float(row[f"p_{row['letter']}"]) == pytest.approx(
            np.exp(float(row["log_p"])), rel=1e-4
        )
    mean = -np.mean([float(row["log_p"]) for row in rows[:28]])
    assert mean == pytest.approx(scores.scores[0].score, abs=1e-5)


def test_scores_as_json(scores: Scores, backbone: Backbone) -> None:
    """Score JSON has log-probabilities by residue, null where there are none."""
    record = json.loads(render_scores(scores, ["own", "poly-A"], "json", "made", "mpnn-1"))
    assert record["residues"][:2] == ["A1", "A2"]
    assert [s["record"] for s in record["scores"]] == ["own", "poly-A"] * 2
    for found, score in zip(record["scores"], scores.scores, strict=True):
        assert found["perplexity"] == pytest.approx(score.perplexity, rel=1e-5)
        for i, row in enumerate(found["log_probs"]):
            if backbone.mask[i]:
                np.testing.assert_allclose(row, score.log_probs[i], atol=1e-6)
            else:
                assert row is None


def test_conditional_scores_leave_out_what_was_not_computed(backbone: Backbone) -> None:
    """Conditional output has designed residues alone, and no global score."""
    found = made_model().score_many(backbone, mode="conditional", chains="A", fixed="A1-4")
    table = render_scores(found, ["own"], "csv", "made", "mpnn-1")
    assert len(table.splitlines()) == 1 + 6
    record = json.loads(render_scores(found, ["own"], "json", "made", "mpnn-1"))
    assert record["scores"][0]["global_score"] is None
    assert [row is not None for row in record["scores"][0]["log_probs"]] == [
        bool(x) for x in found.designed
    ]


def test_scores_as_fasta(scores: Scores) -> None:
    """Score FASTA has a record for each sequence with its scores."""
    text = render_scores(scores, ["own", "poly-A"], "fasta", "made", "mpnn-1")
    first = text.splitlines()[0]
    assert first.startswith(f">own, score={scores.scores[0].score:.4f}, global_score=")
    assert "mode=ordered, model_name=made, git_hash=mpnn-1, seed=1, confidence=" in first


def test_score_of_nothing_is_null(scores: Scores) -> None:
    """A score over no residues is null in JSON, which has no NaN."""
    nan = float("nan")
    nothing = Score("A" * 30, 0, np.zeros((30, 21)), nan, nan, np.full(30, nan))
    found = dataclasses.replace(scores, scores=(nothing,))
    record = json.loads(render_scores(found, ["x"], "json", "made", "mpnn-1"))
    assert record["scores"][0]["score"] is None
    assert record["scores"][0]["perplexity"] is None
    assert record["scores"][0]["confidence"] is None
    assert record["scores"][0]["residue_scores"] == dict.fromkeys("ABC", [None] * 10)


def test_confidence_is_the_mean_probability(designs: Designs, scores: Scores) -> None:
    """Confidence is exp(−score) in records, JSON, CSV and FASTA."""
    for record in (*designs, *designs.native, *scores.scores):
        assert record.confidence == pytest.approx(np.exp(-record.score))
    expected = [d.confidence for d in designs]
    found = json.loads(render_designs(designs, "json", "made", "mpnn-1"))
    assert [d["confidence"] for d in found["designs"]] == pytest.approx(expected, abs=1e-6)
    assert [n["confidence"] for n in found["native"]] == pytest.approx(
        [n.confidence for n in designs.native], abs=1e-6
    )
    table = csv.DictReader(io.StringIO(render_designs(designs, "csv", "made", "mpnn-1")))
    assert [float(row["confidence"]) for row in table] == pytest.approx(expected, abs=1e-6)
    headers = re.findall(r"seq_recovery=.*confidence=(.*)", design_fasta(designs, "made", "1"))
    assert [float(x) for x in headers] == pytest.approx(expected, abs=1e-4)
    table = csv.DictReader(io.StringIO(render_scores(scores, ["a", "b"], "csv", "made", "1")))
    assert {row["confidence"] for row in table} == {
        f"{round(s.confidence, 6)}" for s in scores.scores
    }


def test_scores_of_residues_average_to_the_score(designs: Designs, scores: Scores) -> None:
    """A residue's score is −log p of its type, NaN where masked; their means are the scores."""
    pairs = [(designs.backbone, d) for d in designs] + [(scores.backbone, s) for s in scores.scores]
    for backbone, record in pairs:
        np.testing.assert_array_equal(np.isnan(record.residue_scores), ~backbone.mask)
        assert np.nanmean(record.residue_scores) == pytest.approx(record.global_score, abs=1e-5)
    for design in designs:
        mean = design.residue_scores[designs.designed].mean()
        assert mean == pytest.approx(design.score, abs=1e-5)


def test_scores_of_residues_in_files(designs: Designs) -> None:
    """JSON gives them by chain with null where masked, CSV one for each character."""
    found = json.loads(render_designs(designs, "json", "made", "mpnn-1"))["designs"]
    table = csv.DictReader(io.StringIO(render_designs(designs, "csv", "made", "mpnn-1")))
    for design, record, row in zip(designs, found, table, strict=True):
        by_chain = record["residue_scores"]
        assert list(by_chain) == list(record["chains"]) == ["A", "C", "B"]
        flat = np.array([np.nan if x is None else x for part in by_chain.values() for x in part])
        np.testing.assert_allclose(flat, design.residue_scores, atol=1e-6)
        words = row["residue_scores"].split()
        assert len(words) == len(row["sequence"])
        assert [c for c, w in zip(row["sequence"], words, strict=True) if w == "/"] == ["/"]
        values = [float(w) for w in words if w != "/"]
        np.testing.assert_allclose(values, design.residue_scores[:20], atol=1e-4)


def test_results_as_plain_dicts(designs: Designs, scores: Scores) -> None:
    """Dicts hold what JSON can, and what the JSON files hold."""
    for found, written in (
        (designs.to_dict(), render_designs(designs, "json", "made", "1")),
        (scores.to_dict(["a", "b"]), render_scores(scores, ["a", "b"], "json", "made", "1")),
    ):
        record = json.loads(written)
        assert (record.pop("model_name"), record.pop("version")) == ("made", "1")
        assert found == record
    labels = [score["record"] for score in scores.to_dict()["scores"]]
    assert labels == ["sequence 1", "sequence 2"] * 2


def test_probabilities_of_designs(backbone: Backbone) -> None:
    """An npz of designs has the log-probabilities as sampled, which give the scores back."""
    designs = made_model().design(
        backbone, 3, [0.1, 1.0], [7, 8], batch_size=4, keep_log_probs=True, chains="C,A"
    )
    content = np.load(io.BytesIO(probabilities(designs)))
    assert content["log_probs"].shape == (12, 30, 21)
    assert content["log_probs"].dtype == np.float32
    np.testing.assert_allclose(np.exp(content["log_probs"]).sum(-1), 1, atol=1e-5)
    alphabet, mask = str(content["alphabet"]), content["mask"]
    assert ["".join(alphabet[x] for x in row) for row in content["S"]] == [
        design.sequence for design in designs
    ]
    of_types = np.take_along_axis(content["log_probs"], content["S"][..., None], -1)[..., 0]
    np.testing.assert_allclose(
        -of_types[:, mask].mean(1), [design.global_score for design in designs], atol=1e-6
    )
    np.testing.assert_array_equal(content["temperature"], [d.temperature for d in designs])
    np.testing.assert_array_equal(content["seed"], [d.seed for d in designs])
    ordered = designs.backbone
    assert content["chain"].tolist() == ["A"] * 10 + ["C"] * 10 + ["B"] * 10
    np.testing.assert_array_equal(content["residue_number"], ordered.numbers)
    np.testing.assert_array_equal(content["insertion_code"], ordered.insertion_codes)
    np.testing.assert_array_equal(mask, ordered.mask)


def test_probabilities_of_scores(scores: Scores, backbone: Backbone) -> None:
    """An npz of scores has their log-probabilities; its mask leaves out what was not computed."""
    content = np.load(io.BytesIO(probabilities(scores)))
    expected = np.stack([score.log_probs for score in scores.scores])
    np.testing.assert_array_equal(content["log_probs"], expected)
    assert content["seed"].tolist() == [1, 1, 2, 2]
    assert np.isnan(content["temperature"]).all()
    found = made_model().score_many(backbone, mode="conditional", chains="A", fixed="A1-4")
    mask = np.load(io.BytesIO(probabilities(found)))["mask"]
    np.testing.assert_array_equal(mask, found.designed)


def test_probabilities_that_were_not_kept(designs: Designs) -> None:
    """Designs without log-probabilities say how to keep them."""
    with pytest.raises(InputError, match="keep_log_probs=True"):
        probabilities(designs)
