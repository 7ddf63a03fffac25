"""Designing and scoring through the library: rules, splits, scores that agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_files import made_model

import mpnn
from mpnn.backbone import Backbone
from mpnn.config import ALPHABET, ModelConfig
from mpnn.constraints import constraints, parse_bias
from mpnn.design import Model
from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import ENGINES, load_engine
from mpnn.rules import Rules
from mpnn.sampling import noise
from mpnn.schedule import decoding_order, rank_of
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights


@pytest.fixture(scope="module")
def model() -> Model:
    return made_model()


@pytest.fixture(scope="module")
def dimer() -> Backbone:
    """Two chains, A and B, of 20 residues each, numbered from 1."""
    return synthetic_backbone(40, chains=2)


@pytest.fixture(scope="module")
def gapped(dimer: Backbone) -> Backbone:
    """The dimer with residues A3, A4 and B2 lacking atoms, A4 in a numbering gap."""
    mask = dimer.mask.copy()
    mask[[2, 3, 21]] = False
    letters = dimer.sequence[:3] + "X" + dimer.sequence[4:]
    coords = np.where(mask[:, None, None], dimer.coords, np.float32(0))
    return dataclasses.replace(dimer, mask=mask, sequence=letters, coords=coords)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_changes_no_design(model: Model, dimer: Backbone, batch_size: int) -> None:
    """The same designs come whatever the number drawn side by side."""
    expected = model.design(dimer, 8, [0.1, 1.0], seed=5, batch_size=16)
    found = model.design(dimer, 8, [0.1, 1.0], seed=5, batch_size=batch_size)
    assert [d.sequence for d in found] == [d.sequence for d in expected]
    np.testing.assert_allclose(
        [d.score for d in found], [d.score for d in expected], rtol=0, atol=1e-5
    )


def test_split_changes_no_design(model: Model, dimer: Backbone) -> None:
    """Several seeds and temperatures at once give what one call each gives, in order."""
    together = model.design(dimer, 2, [0.2, 0.9], seed=[3, 4])
    alone = [d for s in (3, 4) for t in (0.2, 0.9) for d in model.design(dimer, 2, t, s)]
    assert [(d.seed, d.temperature, d.sample) for d in together] == [
        (s, t, n) for s in (3, 4) for t in (0.2, 0.9) for n in (1, 2)
    ]
    assert [d.sequence for d in together] == [d.sequence for d in alone]
    assert [n.seed for n in together.native] == [3, 4]
    assert len({d.sequence for d in together}) == len(together) == 8


@pytest.mark.parametrize("engine", [name for name in ENGINES if name in ("exact", "reference")])
def test_sampler_and_scorer_agree(dimer: Backbone, engine: str) -> None:
    """A design's scores are those of its sequence, scored under the order it was drawn in."""
    runner = made_model(engine)
    designs = runner.design(dimer, 2, 0.5, seed=1, fixed="A1-4")
    task = runner.engine.encode(Flat.from_backbones([designs.backbone]))
    for design in designs:
        order = decoding_order(designs.designed, noise(1, design.sample, 40)[1])
        S = np.array([ALPHABET.index(c) for c in design.sequence])
        log_probs = runner.engine.log_probs(task, S[None], rank_of(order)[None])[0]
        at = -log_probs[np.arange(40), S]
        assert design.score == pytest.approx(at[designs.designed].mean(), abs=1e-5)
        assert design.global_score == pytest.approx(at.mean(), abs=1e-5)


def test_recovery_counts_designed_residues(model: Model, dimer: Backbone) -> None:
    """Recovery is the share of designed residues that have the native letter."""
    designs = model.design(dimer, 3, 1.0, chains="B")
    native = designs.backbone.sequence
    for design in designs:
        same = [a == b for a, b in zip(design.sequence, native, strict=True)]
        assert design.recovery == pytest.approx(np.mean(np.array(same)[designs.designed]))


def test_fixed_chains_and_residues_keep_their_letters(model: Model, dimer: Backbone) -> None:
    """Only residues of designed chains that are not fixed change; designed chains stand first."""
    designs = model.design(dimer, 4, 1.0, chains="B", fixed="B1-5,B20")
    assert designs.backbone.chain_ids == ("B", "A")
    assert (designs.designed_chains, designs.fixed_chains) == (("B",), ("A",))
    held = ~designs.designed
    assert held.sum() == 26
    native = np.array(list(designs.backbone.sequence))
    changed = np.array([list(d.sequence) for d in designs]) != native
    assert not changed[:, held].any()
    assert changed[:, ~held].any(0).all()


def test_residues_without_atoms_keep_their_letters(model: Model, gapped: Backbone) -> None:
    """Masked residues are not drawn: gaps stay X, incomplete residues keep their letter."""
    designs = model.design(gapped, 3, 1.0)
    for design in designs:
        assert [design.sequence[i] for i in (2, 3, 21)] == [gapped.sequence[i] for i in (2, 3, 21)]
        assert design.sequence.count("X") == 1
        assert math.isfinite(design.global_score)


@given(seed=st.integers(0, 2**63 - 1), temperature=st.floats(1e-6, 100))
def test_omitted_letters_are_never_drawn(
    model: Model, dimer: Backbone, seed: int, temperature: float
) -> None:
    """Letters omitted everywhere or at a place never occur there, at any temperature."""
    designs = model.design(
        dimer, 2, temperature, seed, omit="CWM", omit_per_residue={"A2-3": "ADEFGHIK", "B": "L"}
    )
    for design in designs:
        assert not set(design.sequence) & set("CWMX")
        assert not set(design.sequence[1:3]) & set("ADEFGHIK")
        assert "L" not in design.sequence[20:]


def test_bias_shifts_the_draw(model: Model, dimer: Backbone) -> None:
    """A strong bias makes its letter certain, everywhere or at a place, and scores ignore it."""
    everywhere = model.design(dimer, 2, 1.0, bias="W:50")
    assert {d.sequence for d in everywhere} == {"W" * 40}
    native_scale = model.score(dimer, "W" * 40, mode="unconditional").score
    assert everywhere[0].score == pytest.approx(native_scale, rel=0.5)
    placed = model.design(dimer, 3, 1.0, bias_per_residue={"A7": {"P": 60}, "B": {"G": 50}})
    for design in placed:
        assert design.sequence[6] == "P"
        assert design.sequence[20:] == "G" * 20
        assert set(design.sequence[:20]) > {"P"}


def test_per_residue_bias_adds_to_the_general_one(dimer: Backbone) -> None:
    """Bias at a place is added to the bias everywhere, and an omission outweighs both."""
    rules = Rules(bias="F:1,C:900", omit="C", bias_per_residue={"A1": {"F": 0.5}})
    bias = constraints(dimer, rules)[1].bias
    assert bias[0, ALPHABET.index("F")] == 1.5
    assert bias[1, ALPHABET.index("F")] == 1.0
    assert (bias[:, ALPHABET.index("C")] == -1e8).all()


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(2), Fraction(1, 2)], ids=repr)
def test_any_real_number_is_a_bias(dimer: Backbone, number: float) -> None:
    """Numbers of numpy are taken as Python's are."""
    bias = constraints(dimer, Rules(bias={"f": number}))[1].bias
    assert (bias[:, ALPHABET.index("F")] == float(number)).all()


def test_tied_residues_get_one_letter(model: Model, dimer: Backbone) -> None:
    """Members of a group share their letter, others stay free."""
    designs = model.design(dimer, 6, 1.0, tied="A1,B1|A5,A9=0.5,B9")
    rows = [d.sequence for d in designs]
    assert all(row[0] == row[20] and row[4] == row[8] == row[28] for row in rows)
    assert any(row[1] != row[21] for row in rows)


def test_ties_as_arrays(dimer: Backbone) -> None:
    """A group is named by its first residue and keeps its weights; the others stand alone."""
    limits = constraints(dimer, Rules(tied="B9,A5=0.5|A1,B1=-1"))[1]
    assert limits.tie_group[[4, 28, 0, 20]].tolist() == [4, 4, 0, 0]
    assert limits.tie_weight[[4, 28, 0, 20]].tolist() == [0.5, 1, 1, -1]
    alone = np.delete(np.arange(40), [4, 28, 0, 20])
    np.testing.assert_array_equal(limits.tie_group[alone], alone)
    assert (limits.tie_weight[alone] == 1).all()


def test_homo_oligomer_chains_are_equal(model: Model, dimer: Backbone, gapped: Backbone) -> None:
    """Chains of a homo-oligomer have one sequence; where one lacks atoms the other's is drawn."""
    for backbone, drawn in ((dimer, 40), (gapped, 37)):
        designs = model.design(backbone, 3, 1.0, homo_oligomer=True)
        assert designs.designed.sum() == drawn
        for design in designs:
            assert design.sequence[:20] == design.sequence[20:]
            assert "X" not in design.sequence


def test_homo_oligomer_with_a_fixed_group(model: Model, dimer: Backbone) -> None:
    """Residues fixed in every chain of a homo-oligomer keep their residue types."""
    designs = model.design(dimer, 2, 1.0, homo_oligomer=True, fixed="A1-5,B1-5")
    for design in designs:
        assert design.sequence[:5] == dimer.sequence[:5]
        assert design.sequence[20:25] == dimer.sequence[20:25]
        assert design.sequence[5:20] == design.sequence[25:]


@pytest.mark.parametrize("fixed", ["A3", "B3", "A1-20", "B4"])
def test_homo_oligomer_with_a_residue_fixed_alone(gapped: Backbone, fixed: str) -> None:
    """A group is fixed as a whole or not at all, whether or not its members have atoms."""
    with pytest.raises(InputError, match="is fixed; fix the whole group"):
        constraints(gapped, Rules(homo_oligomer=True, fixed=fixed))


def test_homo_oligomer_with_a_fixed_group_without_atoms(model: Model, gapped: Backbone) -> None:
    """Residues of a fixed group keep their types, one that lacks atoms included."""
    for design in model.design(gapped, 2, 1.0, homo_oligomer=True, fixed="A3,B3"):
        assert [design.sequence[i] for i in (2, 22)] == [gapped.sequence[i] for i in (2, 22)]


def test_rules_of_a_residue_without_atoms_are_its_groups(model: Model, gapped: Backbone) -> None:
    """Omissions and bias at a member without atoms count for the letter that the group gets."""
    kept = "".join(set(ALPHABET) - set("WX"))
    for rules in ({"omit_per_residue": {"A3": kept}}, {"bias_per_residue": {"A3": {"W": 200}}}):
        for design in model.design(gapped, 2, 1.0, homo_oligomer=True, **rules):
            assert design.sequence[2] == design.sequence[22] == "W"
    with pytest.raises(InputError, match="every amino acid is omitted at B3"):
        model.design(gapped, homo_oligomer=True, omit="W", omit_per_residue={"A3": kept})


def test_bias_of_a_group_is_its_mean(dimer: Backbone, gapped: Backbone) -> None:
    """A bias at a member weighs as much where another lacks atoms as where all have theirs."""
    rules = Rules(homo_oligomer=True, bias="F:3", bias_per_residue={"A3": {"W": 2}})
    for backbone in (dimer, gapped):
        bias = constraints(backbone, rules)[1].bias
        assert [bias[22, ALPHABET.index(letter)] for letter in "FW"] == [3, 1]


def test_temperature_sharpens(model: Model, dimer: Backbone) -> None:
    """Cold designs have better scores than hot ones, and nearly no variety."""
    designs = model.design(dimer, 8, [1e-6, 1.0])
    cold, hot = list(designs)[:8], list(designs)[8:]
    assert np.mean([d.score for d in cold]) < np.mean([d.score for d in hot])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"chains": "Z"}, "chains Z"),
        ({"fixed": "A500"}, "A500"),
        ({"fixed": "A1-"}, "A1-"),
        ({"fixed": "A,B"}, "nothing to design"),
        ({"tied": "A1"}, "A1"),
        ({"tied": "A1,B1", "fixed": "B1"}, "is fixed"),
        ({"tied": "A1,B1", "chains": "A"}, "is fixed"),
        ({"homo_oligomer": True, "fixed": "A1"}, "is fixed"),
        ({"homo_oligomer": True, "tied": "A1,B1"}, "exclude"),
        ({"homo_oligomer": True, "chains": "A"}, "two chains"),
        ({"omit": "ACDEFGHIKLMNPQRSTVWY"}, "every amino acid is omitted at A1"),
        ({"omit": "ACDEFGHIKLMNPQRSTVW", "omit_per_residue": {"B3": "Y"}}, "omitted at B3"),
        ({"omit": "B"}, "B"),
        ({"omit_per_residue": {"A99": "C"}}, "A99"),
        ({"bias": "A"}, "LETTER:NUMBER"),
        ({"bias": "A:nan"}, "LETTER:NUMBER"),
        ({"bias": "A:1,a:2"}, "once"),
        ({"bias": ":1"}, "not one letter"),
        ({"bias": "AC:1"}, "not one letter"),
        ({"chains": ","}, "chains"),
        ({"bias": "A:1e9"}, "1000"),
        ({"bias": {"J": 1.0}}, "J"),
        ({"bias": {"F": 1, "f": -3}}, "F and f are one letter"),
        ({"bias": {"F": True}}, "F has True"),
        ({"bias": {"F": np.float32("nan")}}, "F has .*nan"),
        ({"bias": {5: 1.0}}, "5 is not one letter"),
        ({"fixed": ["A1"]}, r"fixed is \['A1'\]; write text"),
        ({"tied": None}, "tied is None; write text"),
        ({"omit_per_residue": None}, "omit_per_residue is None; write a mapping"),
        ({"bias_per_residue": "A1"}, "bias_per_residue is 'A1'; write a mapping"),
        ({"bias_per_residue": {"A1": {"A": "x"}}}, "'x'"),
        ({"bias_per_residue": {"A1": 3}}, "A1"),
        ({"omit_per_residue": {"A1": 3}}, "A1"),
    ],
)
def test_rules_that_cannot_be_kept(
    model: Model, dimer: Backbone, rules: dict[str, object], message: str
) -> None:
    """Each rule that cannot be kept is refused with a message that names it."""
    with pytest.raises(InputError, match=message):
        model.design(dimer, 1, **rules)


def test_tied_groups_with_no_common_letter(model: Model, dimer: Backbone) -> None:
    """A tied group is refused where its members' omissions leave no letter between them."""
    half, rest = ALPHABET[:10], ALPHABET[10:20]
    with pytest.raises(InputError, match="every amino acid is omitted at A1"):
        model.design(dimer, tied="A1,B1", omit_per_residue={"A1": half, "B1": rest})


def test_tied_residue_without_atoms(model: Model, gapped: Backbone) -> None:
    """A tie that names a residue without atoms is refused, even where no other is left."""
    for tied in ("A3,B3", "A3,A4", "A3,A5"):
        with pytest.raises(InputError, match="A3 lacks atoms"):
            model.design(gapped, tied=tied, fixed="A5")


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": []},
        {"num_seqs": 0},
        {"num_seqs": 1.5},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": []},
        {"seed": 1.5},
        {"seed": [1.7]},
        {"seed": "1"},
        {"seed": None},
        {"seed": {1}},
        {"seed": np.array([1.0])},
        {"seed": np.array([[1, 2]])},
    ],
    ids=str,
)
def test_values_out_of_range(model: Model, dimer: Backbone, values: dict[str, object]) -> None:
    """Numbers out of range are refused with a message that names them."""
    with pytest.raises(InputError, match=next(iter(values))):
        model.design(dimer, **values)


@pytest.mark.parametrize(
    "seed", [np.array([1, 2]), np.array([1, 2], np.uint8), [np.int64(1), 2], (1, 2), range(1, 3)]
)
def test_seeds_of_any_kind_of_whole_number(
    model: Model, dimer: Backbone, seed: Sequence[int]
) -> None:
    """Arrays and numbers of numpy are seeds as Python's are, and are recorded as those."""
    designs = model.design(dimer, seed=seed)
    assert repr([d.seed for d in designs]) == "[1, 2]"
    assert model.score(dimer, seed=np.int64(1)).score == designs.native[0].score


@given(st.text(alphabet="ABXYZ:,.-+1e 9n", max_size=12))
def test_bias_text_is_read_or_refused(text: str) -> None:
    """Any text is either read as finite-or-infinite numbers by letter, or refused politely."""
    try:
        bias = parse_bias(text)
    except InputError:
        return
    assert all(not math.isnan(value) for value in bias.values())


def test_score_of_the_native_sequence(model: Model, dimer: Backbone) -> None:
    """Scoring without a sequence scores the structure's own; designs report the same number."""
    own = model.score(dimer, seed=7)
    assert own.sequence == dimer.sequence
    assert model.score(dimer, dimer.sequence, seed=7).score == own.score
    assert model.design(dimer, seed=7).native[0].score == own.score
    assert own.perplexity == pytest.approx(math.exp(own.score))
    assert own.log_probs.shape == (40, 21)
    np.testing.assert_allclose(np.exp(own.log_probs).sum(-1), 1, atol=1e-5)
    assert model.score(dimer, seed=8).score != own.score


def test_score_of_designed_chains_alone(model: Model, dimer: Backbone) -> None:
    """Letters of the designed chains alone are taken with the other chains' own."""
    design = model.design(dimer, chains="B")[0]
    printed = design.sequence[:20]
    whole = model.score(dimer, f"{printed}/{dimer.sequence[:20]}", chains="B")
    for text in (printed, printed.lower()):
        assert model.score(dimer, text, chains="B").score == whole.score


def test_letters_of_chains_in_another_order_are_parted(model: Model, dimer: Backbone) -> None:
    """Results go by the names of chains; a text in the structure's own order is not mistaken."""
    swapped = dataclasses.replace(dimer, chain_ids=("B", "A"))
    one, other = dimer.sequence[:20], dimer.sequence[20:]
    with pytest.raises(InputError, match=r"for chains A, B, .* in the order B, A: part them by /"):
        model.score(swapped, one + other)
    assert model.score(swapped, f"{other}/{one}").score == model.score(swapped).score
    assert model.score(swapped, one, chains="B").score == model.score(swapped, chains="B").score


def test_nothing_to_score(model: Model, dimer: Backbone) -> None:
    """A score over no residue is refused, as a design of none is."""
    with pytest.raises(InputError, match="nothing to score"):
        model.score(dimer, fixed="A,B")


@pytest.mark.parametrize("text", ["", "A", "A" * 41, "A" * 19 + "B", "A" * 19 + "/A", "ß" * 10])
def test_sequences_that_do_not_fit(model: Model, dimer: Backbone, text: str) -> None:
    """A sequence of the wrong length, with unknown letters or wrongly parted is refused."""
    with pytest.raises(InputError, match="synthetic"):
        model.score(dimer, text, chains="B")


def test_a_sequence_that_does_not_fit_is_named(model: Model, dimer: Backbone) -> None:
    """Of several sequences the one at fault is told, by its number or by its label."""
    texts = ["A" * 40, "A" * 39]
    with pytest.raises(InputError, match=r"synthetic.*: sequence 2 has 39 residues"):
        model.score_many(dimer, texts)
    with pytest.raises(InputError, match=r"synthetic.*: the short one has 39 residues"):
        model.score_many(dimer, texts, labels=["the long one", "the short one"])


def test_unconditional_sees_no_letters(model: Model, dimer: Backbone) -> None:
    """Unconditional probabilities do not depend on the sequence or the seed."""
    one = model.score(dimer, mode="unconditional")
    other = model.score(dimer, "W" * 40, seed=3, mode="unconditional")
    np.testing.assert_array_equal(one.log_probs, other.log_probs)


def test_conditional_sees_all_other_letters(model: Model, dimer: Backbone) -> None:
    """Row i of conditional probabilities depends on all residue types but its own."""
    base = model.score(dimer, "A" * 40, mode="conditional", fixed="A1-10")
    changed = model.score(dimer, "A" * 19 + "W" + "A" * 20, mode="conditional", fixed="A1-10")
    differs = (base.log_probs != changed.log_probs).any(1)
    assert not differs[19]
    assert differs[10:].any()
    assert not base.log_probs[:10].any()
    assert math.isnan(base.global_score)
    assert math.isfinite(base.score)


def test_conditional_is_the_published_rule(model: Model, dimer: Backbone) -> None:
    """Row i is that of a pass in which i comes last and the others keep their order of |r|."""
    found = model.score(dimer, seed=2, mode="conditional").log_probs
    S = np.array([ALPHABET.index(c) for c in dimer.sequence])
    normal = noise(2, 0, 40)[1]
    encoding = model.engine.encode(Flat.from_backbones([dimer]))
    for i in (0, 17, 39):
        order = np.argsort(((np.arange(40) == i) + 1e-4) * np.abs(normal))
        rank = rank_of(order)[None]
        row = model.engine.log_probs(encoding, S[None], rank)[0, i]
        np.testing.assert_allclose(found[i], row, atol=1e-6)


def test_unknown_mode(model: Model, dimer: Backbone) -> None:
    """A mode that does not exist is refused with the list of those that do."""
    with pytest.raises(InputError, match="ordered, conditional, pseudo-likelihood, unconditional"):
        model.score(dimer, mode="both")


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_unusable_device(device: str) -> None:
    """A device that is not there is refused before any weights are looked for."""
    with pytest.raises(InputError, match=device):
        mpnn.load("none.pt", device=device)


def test_progress_adds_up_to_one(model: Model, dimer: Backbone) -> None:
    """Progress is told in shares, one for each batch, that add up to 1."""
    shares: list[float] = []
    model.design(dimer, 5, batch_size=2, progress=shares.append)
    assert shares == [0.4, 0.4, 0.2]
    for mode in ("ordered", "conditional"):
        shares.clear()
        model.score_many(dimer, ["A" * 40] * 2, [1, 2], mode, progress=shares.append)
        assert sum(shares) == pytest.approx(1)
        assert len(shares) >= 4


@pytest.mark.parametrize("name", ["made_short", "made_short_masked"])
def test_scores_are_the_published_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three modes of scoring give the published arrays for the published random numbers."""
    folder = Path(__file__).parent / "parity"
    given, config = np.load(folder / f"{name}.npz"), ModelConfig(2, 2, 64, 48)
    expected = np.load(folder / f"{name}__2x64_k48.npz")
    backbone = Backbone(
        name=name,
        coords=given["X"].astype(np.float32),
        mask=given["mask"] > 0,
        sequence="".join(ALPHABET[letter] for letter in given["S"]),
        chain_ids=("A",),
        chain_index=np.zeros(20, np.int64),
        numbers=np.arange(20),
        insertion_codes=np.full(20, "", "<U1"),
    )
    monkeypatch.setattr("mpnn.design.noise", lambda *_: (None, given["randn"].astype(float)))
    model = Model(load_engine(formula_weights(config), "exact"), config, {"name": "made"})
    for mode, array in (
        ("ordered", "log_probs"),
        ("unconditional", "unconditional_log_probs"),
        ("conditional", "conditional_log_probs"),
    ):
        found, wanted = model.score(backbone, mode=mode).log_probs, expected[array]
        np.testing.assert_allclose(found[backbone.mask], wanted[backbone.mask], rtol=0, atol=1e-5)


def test_the_graph_coloring_order_is_an_option() -> None:
    """Scores differ from the random order's, for any batch; unknown orders and ties fail."""
    backbone = synthetic_backbone(60)
    model = made_model()
    random = model.design(backbone, 4, temperature=1.0)
    coloring = model.design(backbone, 4, temperature=1.0, order="graph-coloring")
    again = model.design(backbone, 4, temperature=1.0, order="graph-coloring", batch_size=3)
    assert [d.sequence for d in coloring.designs] == [d.sequence for d in again.designs]
    assert [d.score for d in coloring.designs] != [d.score for d in random.designs]
    with pytest.raises(InputError, match="graph-coloring"):
        model.design(backbone, order="sorted")
    with pytest.raises(InputError, match="tied"):
        model.design(backbone, order="graph-coloring", tied="A1,A2")
