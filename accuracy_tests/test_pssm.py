"""Sequence profiles: the published probabilities, through the noise of any engine."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_files import made_model

from mpnn.backbone import Backbone
from mpnn.config import ALPHABET
from mpnn.design import Model
from mpnn.errors import InputError
from mpnn.results import Designs
from mpnn.synthetic import synthetic_backbone

SAMPLES = 2000


@pytest.fixture(scope="module")
def model() -> Model:
    return made_model()


@pytest.fixture(scope="module")
def dimer() -> Backbone:
    return synthetic_backbone(16, chains=2)


def pssm(length: int = 8, coefficient: float = 1.0) -> dict[str, object]:
    """A profile of one chain: half W, the rest K and F; log-odds favor A, C and D."""
    types, odds = np.zeros((length, 21)), np.full((length, 21), -1.0)
    types[:, [ALPHABET.index(a) for a in "WKF"]] = 0.5, 0.3, 0.2
    odds[:, [ALPHABET.index(a) for a in "ACD"]] = 2.0
    return {
        "pssm_coef": [coefficient] * length,
        "pssm_bias": types.tolist(),
        "pssm_log_odds": odds.tolist(),
    }


def frequencies(designs: Designs, position: int) -> np.ndarray:
    """Share of each residue type at a position, [21]."""
    sampled = [ALPHABET.index(design.sequence[position]) for design in designs]
    return np.bincount(sampled, minlength=21) / len(sampled)


def network(model: Model, backbone: Backbone, temperature: float) -> np.ndarray:
    """Probabilities of the network at A3 with all other residues known, X omitted, [21]."""
    log_probs = model.score(backbone, mode="conditional").log_probs[2].astype(float)
    p = np.exp(log_probs / temperature) * (np.arange(21) < 20)
    return p / p.sum()


@pytest.mark.parametrize(
    ("rules", "temperature"),
    [
        ({"pssm_multi": 0.6}, 1.0),
        ({"pssm_multi": 0.6}, 0.3),
        ({"pssm_threshold": 0.0}, 1.0),
        ({"pssm_threshold": 0.0}, 0.3),
        ({"pssm_multi": 1.0, "pssm_threshold": -2.0}, 0.1),
    ],
)
def test_published_probabilities(
    model: Model, dimer: Backbone, rules: dict[str, float], temperature: float
) -> None:
    """Frequencies at one designed residue are the published mixture and the published factor."""
    profile = pssm(coefficient=0.5 if rules.get("pssm_multi") == 0.6 else 1.0)
    designs = model.design(
        dimer, SAMPLES, temperature, batch_size=500, redesigned="A3", pssm={"A": profile}, **rules
    )
    p, q = network(model, dimer, temperature), np.array(profile["pssm_bias"])[2]
    share = rules.get("pssm_multi", 0) * profile["pssm_coef"][2]
    expected = (1 - share) * p + share * q
    odds = np.array(profile["pssm_log_odds"])[2]
    expected *= (odds > rules.get("pssm_threshold", -np.inf)) + 0.001
    expected /= expected.sum()
    sigma = np.sqrt(expected * (1 - expected) / SAMPLES)
    assert (abs(frequencies(designs, 2) - expected) <= 4.5 * sigma + 1e-9).all()


def test_a_coefficient_of_0_changes_nothing(model: Model, dimer: Backbone) -> None:
    """Without weight the profile leaves every sequence as it is."""
    rules = {"pssm": {"A": pssm(coefficient=0.0)}, "pssm_multi": 0.9}
    plain, unchanged = model.design(dimer, 4, 1.0), model.design(dimer, 4, 1.0, **rules)
    assert [d.sequence for d in plain] == [d.sequence for d in unchanged]


def test_profile_does_not_depend_on_the_batch(model: Model, dimer: Backbone) -> None:
    """The choice between network and profile is keyed by (seed, sample, residue)."""
    rules = {"pssm": {"B": pssm()}, "pssm_multi": 0.5, "seed": [1, 2]}
    together = model.design(dimer, 6, 1.0, batch_size=12, **rules)
    alone = model.design(dimer, 6, 1.0, batch_size=1, **rules)
    assert [d.sequence for d in together] == [d.sequence for d in alone]
    assert {a for d in together for a in d.sequence[8:]} & set("WKF")


def test_engines_agree_on_a_profile(model: Model, dimer: Backbone) -> None:
    """The profile is in the noise, so the reference samples the same sequences."""
    rules = {"pssm": {"A": pssm(), "B": pssm()}, "pssm_multi": 0.5, "pssm_threshold": 0.0}
    designs = model.design(dimer, 6, 0.5, tied="A1-3,B1-3", **rules)
    reference = made_model("reference").design(dimer, 6, 0.5, tied="A1-3,B1-3", **rules)
    assert [d.sequence for d in designs] == [d.sequence for d in reference]


def test_scores_leave_the_profile_out(model: Model, dimer: Backbone) -> None:
    """The score of a design is the network's, as without a profile."""
    (design,) = model.design(dimer, 1, 1.0, redesigned="A3", pssm={"A": pssm()}, pssm_multi=1)
    (plain,) = model.design(dimer, 1, 1.0, redesigned="A3", bias_per_residue={
        "A3": {design.sequence[2]: 900.0}
    })  # fmt: skip
    assert plain.sequence == design.sequence
    assert design.score == pytest.approx(plain.score, abs=1e-5)


def test_omitted_amino_acids_are_not_taken_from_the_profile(model: Model, dimer: Backbone) -> None:
    """An omission holds for the profile, too."""
    designs = model.design(
        dimer, 40, 1.0, omit="W", omit_per_residue={"A1": "K"}, pssm={"A": pssm()}, pssm_multi=1
    )
    assert {d.sequence[0] for d in designs} == {"F"}
    assert {a for d in designs for a in d.sequence[:8]} == {"K", "F"}


def test_tied_residues_share_the_mean_profile(model: Model, dimer: Backbone) -> None:
    """With a profile for one of two tied chains, half its share goes to both."""
    designs = model.design(
        dimer, 1000, 1.0, batch_size=250, tied="A3,B3", redesigned="A3,B3",
        pssm={"A": pssm()}, pssm_multi=1,
    )  # fmt: skip
    plain = model.design(dimer, 1000, 1.0, batch_size=250, tied="A3,B3", redesigned="A3,B3")
    assert all(d.sequence[2] == d.sequence[10] for d in designs)
    expected = 0.5 * frequencies(plain, 2) + 0.5 * np.array(pssm()["pssm_bias"])[2]
    assert abs(frequencies(designs, 2) - expected).max() < 0.06


@pytest.mark.parametrize(
    ("profile", "rules", "message"),
    [
        ({"Z": pssm()}, {}, "the PSSM has chain Z; the structure's chains are A, B"),
        ({"A": pssm(7)}, {}, r"pssm_coef needs 8 finite numbers.* not shape \(7,\)"),
        ({"A": {"pssm_coef": [1.0] * 8}}, {}, "its PSSM has no pssm_bias"),
        ({"A": pssm() | {"pssm_coef": ["x"] * 8}}, {}, "pssm_coef needs 8 finite numbers"),
        ({"A": pssm() | {"pssm_bias": [[1.0] * 21] * 8}}, {}, "A1: .* sum to 1, not 21.000"),
        ({"A": pssm(coefficient=3.0)}, {}, "pssm_coef must lie between 0 and 1"),
        ({"A": pssm()}, {"omit": "WKF"}, "every amino acid of the PSSM is omitted at A1"),
        ({"A": pssm()}, {"pssm_multi": 0}, "no effect without --pssm-multi or --pssm-threshold"),
        ({"A": pssm()}, {"pssm_multi": 2}, "pssm_multi is 2; write a number from 0 to 1"),
        ({}, {}, "need a PSSM"),
    ],
)
def test_profiles_refused(
    model: Model, dimer: Backbone, profile: object, rules: dict[str, object], message: str
) -> None:
    """A profile that does not fit the structure or has no effect is an error."""
    with pytest.raises(InputError, match=message):
        model.design(dimer, **{"pssm": profile, "pssm_multi": 0.5, **rules})
