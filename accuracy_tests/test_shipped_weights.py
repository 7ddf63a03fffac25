"""Shipped checkpoints: the tensors whose recovery the card states, under the name of their network.

What disturbed weights do to recovery is in `perf_tests/test_stored_outputs.py`.
"""

import json
import shutil

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mpnn import variants, weights
from mpnn.errors import InputError
from mpnn.regression import stored_outputs
from mpnn.regression.stored_outputs import JOBS, differences
from mpnn.variants import Variant
from mpnn.weights import METADATA_KEY, SHIPPED, digest, load_arrays, shipped


def disturb(path, card_kept=True):
    """Replaces 1 % of the weights in a file by others of the same spread."""
    rng = np.random.default_rng(0)
    with safetensors.safe_open(path, "np") as file:
        metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    for x in tensors.values():
        at = rng.random(x.shape) < 0.01
        x[at] = rng.normal(x.mean(), x.std(), at.sum())
    if not card_kept:
        about = json.loads(metadata[METADATA_KEY])
        del about["card"]["measured"]["digest"]
        metadata[METADATA_KEY] = json.dumps(about)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder with copies of two shipped checkpoints, taken for the shipped ones."""
    for name in ("minimal", "fast"):
        shutil.copy(SHIPPED / f"{name}.safetensors", tmp_path)
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", shipped())
def test_card_states_the_digest_of_its_tensors(name):
    """Every shipped card states the digest of the tensors beside it."""
    arrays, _, card = load_arrays(name)
    assert card["measured"]["digest"] == digest(arrays)


def test_disturbed_weights_under_a_kept_card_are_refused(copies):
    """1 % of the weights replaced and the card kept is an error that names the file."""
    disturb(copies / "minimal.safetensors")
    with pytest.raises(InputError, match=r"minimal\.safetensors: its tensors have digest"):
        load_arrays("minimal")


def test_disturbed_weights_without_a_digest_change_stored_scores(copies):
    """Where the digest is gone too, the stored scores of the checkpoint tell."""
    disturb(copies / "minimal.safetensors", card_kept=False)
    stored = stored_outputs.stored_outputs()["score-minimal"]
    assert "nats" in differences(stored_outputs.outputs("score-minimal", "exact"), stored)[0]
    assert JOBS["score-minimal"].weights == "minimal"


def test_swapped_checkpoints_are_refused_by_name(copies):
    """Two shipped files that changed places are an error that says so."""
    (copies / "minimal.safetensors").rename(copies / "x")
    (copies / "fast.safetensors").rename(copies / "minimal.safetensors")
    with pytest.raises(InputError, match=r"minimal\.safetensors: .* have been swapped"):
        load_arrays("minimal")


def test_variant_refuses_weights_of_another_configuration(monkeypatch):
    """A variant runs no network but its own, wherever the weights come from."""
    monkeypatch.setattr(variants, "load_arrays", lambda _: load_arrays("fast"))
    with pytest.raises(InputError, match=r"minimal is .*k_neighbors=48.* weights are of"):
        Variant("minimal").load()
