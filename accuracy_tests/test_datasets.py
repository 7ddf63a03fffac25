"""Chain sets in `.npz` files, and the folder MPNN_DATA."""

from __future__ import annotations

import numpy as np
import pytest

from mpnn.datasets import ChainSet, find_data
from mpnn.errors import InputError
from mpnn.structure import read_structure
from mpnn.synthetic import synthetic_backbone


def arrays(*lengths: int) -> dict[str, np.ndarray]:
    """The arrays of a file with synthetic chains."""
    chains = [synthetic_backbone(length, 1, seed) for seed, length in enumerate(lengths)]
    coords = np.rint(np.concatenate([chain.coords for chain in chains]) * 1000).astype(np.int32)
    letters = "".join(chain.sequence for chain in chains)
    return {
        "ca": coords[:, 1],
        "nco": (coords[:, [0, 2, 3]] - coords[:, [1]]).astype(np.int16),
        "complete": np.ones(len(coords), bool),
        "sequence": np.frombuffer(letters.encode(), np.uint8),
        "residue_number": np.concatenate([chain.numbers for chain in chains]).astype(np.int32),
        "offsets": np.cumsum([0, *lengths]),
        "name": np.array([f"{i}abc_{'QZ'[i % 2]}" for i in range(len(lengths))]),
        "cluster": np.arange(len(lengths), dtype=np.int32) // 2,
    }


@pytest.fixture
def save(tmp_path):
    def write(**columns: np.ndarray):
        path = tmp_path / "chains.npz"
        np.savez_compressed(path, **columns)
        return path

    return write


def test_chains_are_read_back(save):
    """Each chain has its name, sequence and numbering, and its coordinates to 1e-3 Å."""
    chains = ChainSet(save(**arrays(30, 5, 17)))
    assert len(chains) == 3
    assert chains.names == ["0abc_Q", "1abc_Z", "2abc_Q"]
    assert chains.cluster.tolist() == [0, 0, 1]
    for seed, chain in enumerate(chains):
        made = synthetic_backbone((30, 5, 17)[seed], 1, seed)
        np.testing.assert_allclose(chain.coords, made.coords, atol=6e-4)
        assert chain.sequence == made.sequence
        assert chain.numbers.tolist() == made.numbers.tolist()
        assert chain.chain_ids == ("QZQ"[seed],)


def test_gaps_and_incomplete_residues_are_masked(save):
    """Numbering gaps become masked X, repeated numbers do not, incomplete residues are masked."""
    columns = arrays(5)
    columns["residue_number"] = np.array([1, 2, 2, 5, 6])
    columns["complete"][4] = False
    chain = ChainSet(save(**columns))[0]
    assert chain.numbers.tolist() == [1, 2, 2, 3, 4, 5, 6]
    assert chain.mask.tolist() == [True, True, True, False, False, True, False]
    letters = synthetic_backbone(5).sequence
    assert chain.sequence == letters[:3] + "XX" + letters[3:]
    assert not chain.coords[~chain.mask].any()


def test_an_index_beyond_the_end_is_an_index_error(save):
    """Iteration over a set relies on it."""
    with pytest.raises(IndexError, match="no chain 1 among 1"):
        ChainSet(save(**arrays(3)))[1]


def test_invalid_residue_types_are_refused(save):
    """A chain with a code outside the alphabet is named."""
    columns = arrays(3)
    columns["sequence"] = np.array([65, 200, 66], np.uint8)
    with pytest.raises(InputError, match="0abc_Q: letters"):
        ChainSet(save(**columns))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ca": np.zeros((8, 2), int)}, r"array ca must have shape \(8, 3\)"),
        ({"ca": np.zeros((8, 3))}, "array ca must have .* not .* float64"),
        ({"nco": np.zeros((7, 3, 3), int)}, "array nco"),
        ({"complete": np.ones(8, int)}, "array complete"),
        ({"complete": np.array(True)}, "array ca"),
        ({"cluster": np.zeros(3, int)}, "array cluster"),
        ({"offsets": np.array([0, 8])}, "array offsets"),
        ({"offsets": np.array([0, 5, 9])}, "offsets must rise from 0 to the 8 residues"),
        ({"offsets": np.array([0, 8, 8])}, "offsets must rise"),
        ({"name": np.array([1, 2])}, "array name"),
    ],
)
def test_arrays_are_checked(save, change, message):
    """An array of another shape or dtype is refused, naming the file and the array."""
    path = save(**(arrays(5, 3) | change))
    with pytest.raises(InputError, match=rf"chains\.npz: {message}"):
        ChainSet(path)


def test_a_missing_array_is_named(save):
    """A file without one of the arrays is refused."""
    columns = arrays(4)
    del columns["nco"]
    with pytest.raises(InputError, match=r"arrays nco are missing; ca, nco, .* are needed"):
        ChainSet(save(**columns))


@pytest.mark.parametrize("kind", [b"", b"text", b"PK\3\4 not really", "missing", "cut", "single"])
def test_unreadable_files_are_refused(tmp_path, save, kind):
    """A file that is missing, cut off, a single array or no archive at all is named."""
    path = tmp_path / "bad.npz"
    if kind == "cut":
        content = save(**arrays(40)).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "single":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind != "missing":
        path.write_bytes(kind)
    with pytest.raises(InputError, match=r"bad\.npz: cannot be read as \.npz"):
        ChainSet(path)


def test_data_are_found_in_the_folder_mpnn_data(monkeypatch, tmp_path):
    """Without the variable, or the file, the error says what to set."""
    monkeypatch.delenv("MPNN_DATA", raising=False)
    with pytest.raises(InputError, match=r"train\.npz: set MPNN_DATA"):
        find_data("train.npz")
    monkeypatch.setenv("MPNN_DATA", str(tmp_path))
    with pytest.raises(
        InputError, match=r"does not exist; MPNN_DATA is .* should contain train\.npz"
    ):
        find_data("train.npz")
    (tmp_path / "train.npz").touch()
    assert find_data("train.npz") == tmp_path / "train.npz"


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "chains", "residues", "clusters"),
    [("ts50", 50, 6861, 50), ("validation", 150, 22575, 150), ("train", 6280, 997091, 3056)],
)
def test_real_sets_are_complete(data_dir, file, chains, residues, clusters):
    """They have the known numbers of chains, residues and clusters, and valid geometry."""
    chain_set = ChainSet(data_dir / f"{file}.npz")
    assert (len(chain_set), chain_set.offsets[-1]) == (chains, residues)
    assert len(set(chain_set.cluster.tolist())) == clusters
    for index in range(0, chains, 1 + chains // 50):
        backbone = chain_set[index]
        recorded = chain_set.offsets[index + 1] - chain_set.offsets[index]
        filled = len(backbone) - recorded
        assert filled >= 0
        assert (~backbone.mask).sum() >= filled
        CA = backbone.coords[backbone.mask, 1]
        assert np.median(np.linalg.norm(np.diff(CA, axis=0), axis=-1)) == pytest.approx(
            3.8, abs=0.1
        )


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file"),
    [("1a8o_A", "mmcif/1A8O.cif"), ("1igy_A", "pdb/1IGY.pdb"), ("1igy_B", "mmcif/1IGY.cif")],
)
def test_a_set_and_a_file_agree(data_dir, name, file):
    """A chain is the same in a set and in its structure file, gaps included."""
    chain_set = ChainSet(data_dir / "train.npz")
    recorded = chain_set[chain_set.names.index(name)]
    read = read_structure(data_dir / file, chains=[name[-1]])
    np.testing.assert_array_equal(recorded.coords, read.coords)
    np.testing.assert_array_equal(recorded.numbers, read.numbers)
    assert recorded.sequence == read.sequence
