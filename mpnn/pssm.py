"""Sequence profiles (PSSM) in the sampling, as the published script applies them.

The published probabilities of a residue with coefficient c are

    (1 - multi·c)·p + multi·c·pssm_bias      with multi = pssm_multi, p from the network
    p·0.001 where log-odds <= threshold, else p·1.001, then normalized

Both are exact in Gumbel-max sampling without a change to any engine. The factor is added to the
noise as its logarithm. The mixture is sampled as one: a uniform number keyed by (seed, sample,
residue) decides whether the residue type comes from the profile, and if so, the profile's sample is
forced through the noise. Omissions and the factor apply to the profile and to the network before
they are mixed, where the published script mixes first: `multi·c` is the share of the profile
whatever is omitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpnn.config import NUM_LETTERS
from mpnn.errors import InputError
from mpnn.results import Target
from mpnn.rules import Rules
from mpnn.sampling import OMITTED, WORDS, Constraints, Job, Key
from mpnn.schedule import FloatArray, IntArray

LEAK = 1e-3
"""Added to the 0/1 mask of the log-odds, as published: an excluded amino acid stays possible."""

FORCED = 1e12
"""Noise that outweighs all logits: those at temperature 1e-6 stay below 1e10."""

SHAPES = {"pssm_coef": (), "pssm_bias": (NUM_LETTERS,), "pssm_log_odds": (NUM_LETTERS,)}
"""Arrays of a chain, and their shapes after the axis of its residues."""


@dataclass(frozen=True, eq=False)
class Profile:
    """A PSSM made ready for sampling L residues.

    Attributes:
        share: float64 [L], probability that a residue type is sampled from the profile.
        types: float64 [L, 21], the profile's probabilities; rows sum to 1 where share is above 0.
        log_factor: float64 [L, 21], added to the network's log-probabilities.
        group: int64 [L], row of the first residue of each residue's tied group.
    """

    share: FloatArray
    types: FloatArray
    log_factor: FloatArray
    group: IntArray


def profile_of(target: Target, limits: Constraints, rules: Rules) -> Profile | None:
    """Returns the profile for a design, or None where the rules have no PSSM.

    Residues of a tied group share the mean of their profiles, where the published script takes that
    of the last one.

    Raises:
        InputError: the PSSM does not fit the structure, its rows are no probabilities, or all of
            its amino acids are omitted at a residue.
    """
    if not rules.pssm:
        return None
    arrays = _arrays(target, rules.pssm)
    designed = limits.designed
    share = rules.pssm_multi * arrays["pssm_coef"] * designed
    factor: FloatArray = np.ones((len(share), NUM_LETTERS))
    if rules.pssm_threshold is not None:
        factor = LEAK + (arrays["pssm_log_odds"] > rules.pssm_threshold).astype(np.float64)
    _check_probabilities(target, share, arrays["pssm_bias"])
    types = arrays["pssm_bias"] * factor * (limits.bias > OMITTED)
    total = types.sum(1)
    if (stuck := (share > 0) & (total <= 0)).any():
        where = target.backbone.address(int(stuck.argmax()))
        raise InputError(
            f"{target.backbone.name}: every amino acid of the PSSM is omitted at {where}; omit "
            "fewer there, or set its pssm_coef to 0"
        )
    types /= np.where(total > 0, total, 1)[:, None]
    group = limits.tie_group
    shared = _group_mean(share, group)
    mass = _group_mean(share[:, None] * types, group)
    types = np.divide(mass, shared[:, None], out=np.zeros_like(mass), where=shared[:, None] > 0)
    return Profile(shared, types, _group_mean(np.log(factor), group), group)


def with_profile(job: Job, profile: Profile | None, keys: Sequence[Key]) -> Job:
    """Returns the job with a profile in its noise.

    Args:
        job: N samples of one structure; gumbel [..., N, L, 21].
        profile: of its L residues; None leaves the job as it is.
        keys: one for each sample.
    """
    if profile is None:
        return job
    length = len(profile.share)
    head = profile.group
    gumbel = job.gumbel.reshape(len(keys), length, NUM_LETTERS)[:, head]
    uniform = np.stack([_uniform(key, length) for key in keys])[:, head]  # [N, L]
    with np.errstate(divide="ignore"):
        sampled = (np.log(profile.types) + gumbel).argmax(-1)  # [N, L]
    forced = FORCED * (sampled[..., None] == np.arange(NUM_LETTERS))
    from_profile = uniform < profile.share
    noise = np.where(from_profile[..., None], forced, gumbel + profile.log_factor)
    return dataclasses.replace(job, gumbel=noise.reshape(job.gumbel.shape))


def _uniform(key: Key, length: int) -> FloatArray:
    """Uniform numbers [L] from the word of each residue that `decoding.noise` leaves unused."""
    bits = np.random.Philox(key=np.array([key.seed, key.sample], np.uint64))
    words = bits.random_raw(length * WORDS).reshape(length, WORDS)[:, -1]
    uniform: FloatArray = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return uniform


def _arrays(target: Target, pssm: Mapping[str, Mapping[str, Any]]) -> dict[str, FloatArray]:
    """The PSSM's arrays in the order of the target; elsewhere no share and all allowed."""
    backbone = target.backbone
    arrays = {name: np.zeros((len(backbone), *shape)) for name, shape in SHAPES.items()}
    arrays["pssm_log_odds"] += 1e4  # as published: allows every amino acid
    for chain, values in pssm.items():
        if chain not in backbone.chain_ids:
            raise InputError(
                f"{backbone.name}: the PSSM has chain {chain}; the structure's chains are "
                f"{', '.join(backbone.chain_ids)}"
            )
        rows = backbone.chain_index == backbone.chain_ids.index(chain)
        for name, shape in SHAPES.items():
            wanted = (int(rows.sum()), *shape)
            arrays[name][rows] = _array(values, name, wanted, f"{backbone.name}: chain {chain}")
    return arrays


def _array(values: object, name: str, shape: tuple[int, ...], where: str) -> FloatArray:
    if not isinstance(values, Mapping) or name not in values:
        raise InputError(f"{where}: its PSSM has no {name}; give {', '.join(SHAPES)}")
    try:
        array = np.asarray(values[name], np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise InputError(
            f"{where}: {name} needs {' × '.join(map(str, shape))} finite numbers, one row for each "
            f"residue with gaps counted, not shape {array.shape}"
        )
    return array


def _check_probabilities(target: Target, share: FloatArray, types: FloatArray) -> None:
    used = share != 0
    wrong = used & ((share < 0) | (share > 1) | (types < 0).any(1) | (abs(types.sum(1) - 1) > 0.01))
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{target.backbone.name}: PSSM at {target.backbone.address(row)}: pssm_coef must lie "
            f"between 0 and 1 and pssm_bias be probabilities that sum to 1, not "
            f"{types[row].sum():.3f}"
        )


def _group_mean(values: FloatArray, group: IntArray) -> FloatArray:
    """The mean of values [L, …] over each residue's group, [L, …]."""
    total = np.zeros_like(values)
    np.add.at(total, group, values)
    size = np.bincount(group, minlength=len(group))[group]
    mean: FloatArray = total[group] / size.reshape(-1, *[1] * (values.ndim - 1))
    return mean
