"""TS50: read from MPNN_DATA, or fetched by PDB id and checked against the shipped list."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest
from file_server import closed_address, serving
from synthetic_files import pdb_text
from training_helpers import write_chains

from mpnn import ts50 as module
from mpnn.datasets import ChainSet
from mpnn.errors import InputError, UnreachableError
from mpnn.studies import recovery as recovery_study
from mpnn.synthetic import synthetic_backbone
from mpnn.ts50 import Member, fetch_chain, members, sequence_digest, ts50

LENGTHS = {"1aaa_A": 30, "2bbb_A": 41}
HTML = b"<!DOCTYPE html><html><body>Log in to this network</body></html>"


def entry(text: str) -> bytes:
    """PDB text as the gzipped mmCIF file that the PDB serves."""
    structure = gemmi.read_pdb_string(text)
    structure.setup_entities()
    structure.assign_label_seq_id()
    return gzip.compress(structure.make_mmcif_document().as_string().encode())


def member(name: str, sequence: str) -> Member:
    return Member(name, len(sequence), sequence_digest(sequence))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """No test sees the machine's cache or data."""
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache" / "weights")
    monkeypatch.delenv("MPNN_DATA", raising=False)


@pytest.fixture
def server(monkeypatch):
    """A server of two entries, which are the whole set."""
    made = {name: synthetic_backbone(length, seed=length) for name, length in LENGTHS.items()}
    listed = [member(name, backbone.sequence) for name, backbone in made.items()]
    monkeypatch.setattr(module, "members", lambda: listed)
    with serving() as running:
        running.files = {
            f"{name[:4].upper()}.cif.gz": entry(pdb_text(backbone))
            for name, backbone in made.items()
        }
        yield running


def stored(tmp_path: Path) -> list[str]:
    """Names of the files in the cache, in alphabetical order."""
    return sorted(path.name for path in (tmp_path / "cache" / "structures").iterdir())


def test_entries_are_fetched_once(server, tmp_path):
    """Each chain is requested by its PDB id once, and read from the cache from then on."""
    for source in (server.address, closed_address()):
        found = ts50(source)
        assert [backbone.name for backbone in found] == list(LENGTHS)
        for backbone in found:
            made = synthetic_backbone(LENGTHS[backbone.name], seed=LENGTHS[backbone.name])
            np.testing.assert_allclose(backbone.coords, made.coords, atol=6e-4)
            assert backbone.sequence == made.sequence
            assert backbone.chain_ids == ("A",)
    assert server.paths == ["1AAA.cif.gz", "2BBB.cif.gz"]
    assert stored(tmp_path) == server.paths


def test_chains_are_as_the_set_has_them(server):
    """Complete residues from 1 on, MSE as M, one alternate conformation, author chain names."""
    made = synthetic_backbone(30, seed=30)
    sequence = made.sequence[:5] + "M" + made.sequence[6:29]
    lines = []
    for line in pdb_text(made).splitlines():
        number = int(line[22:26] or 0)
        other = f"{line[:21]}V{number + 100:4d}{line[26:]}"  # numbered from 101
        if number == 6:
            other = f"HETATM{other[6:17]}MSE{other[20:]}"
        if number == 12:
            lines.append(f"{other[:16]}B{other[17:38]}   0.000{other[46:54]}  0.30{other[60:]}")
            other = f"{other[:16]}A{other[17:]}".replace("  1.00", "  0.70")
        if number == 30 and line[13:15] == "O ":
            continue  # the last residue lacks its O
        lines.append(other if number else line)
    server.files["9XYZ.cif.gz"] = entry("\n".join(lines))
    found = fetch_chain(member("9xyz_V", sequence), server.address)
    assert found.sequence == sequence
    assert found.mask.all()
    assert found.numbers.tolist() == list(range(1, 30))
    np.testing.assert_allclose(found.coords, made.coords[:29], atol=6e-4)


def test_a_gap_is_closed_as_in_the_set(server):
    """Missing residues leave no masked residues behind."""
    made = synthetic_backbone(20, seed=1)
    text = "\n".join(line for line in pdb_text(made).splitlines() if line[22:26] != "   9")
    server.files["9XYZ.cif.gz"] = entry(text)
    sequence = made.sequence[:8] + made.sequence[9:]
    found = fetch_chain(member("9xyz_A", sequence), server.address)
    assert (found.sequence, found.numbers[-1]) == (sequence, 19)


@pytest.mark.parametrize(
    "content",
    [HTML, gzip.compress(HTML), gzip.compress(b"data_1AAA\n#\n"), b"", b"\x1f\x8b damaged"],
    ids=["HTML", "gzipped HTML", "no atoms", "nothing", "damaged"],
)
def test_content_that_is_not_an_entry_is_refused(server, tmp_path, content):
    """It is named and not stored, and the next attempt fetches it again."""
    right, server.files["1AAA.cif.gz"] = server.files["1AAA.cif.gz"], content
    with pytest.raises(InputError, match=r"1AAA\.cif\.gz: chain 1aaa_A cannot be read: ") as caught:
        ts50(server.address)
    assert not isinstance(caught.value, UnreachableError)
    assert stored(tmp_path) == []
    server.files["1AAA.cif.gz"] = right
    assert len(ts50(server.address)) == 2


def test_a_damaged_file_of_the_cache_is_replaced(server, tmp_path):
    """A file that cannot be read is fetched again."""
    ts50(server.address)
    (tmp_path / "cache" / "structures" / "2BBB.cif.gz").write_bytes(HTML)
    assert len(ts50(server.address)) == 2
    assert server.paths[2:] == ["2BBB.cif.gz"]


def longer(text: str) -> str:
    return text[:-1] + "AA"


def other(text: str) -> str:
    return text[:-1] + ("A" if text[-1] != "A" else "G")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (longer, "has 41 complete residues instead of 42"),
        (other, "has another sequence"),
    ],
)
def test_a_chain_that_differs_is_refused(server, tmp_path, monkeypatch, change, message):
    """Another number of residues, or another sequence, refuses the whole set."""
    first, second = module.members()
    sequence = change(synthetic_backbone(41, seed=41).sequence)
    monkeypatch.setattr(module, "members", lambda: [first, member(second.name, sequence)])
    with pytest.raises(InputError, match=f"chain 2bbb_A {message}"):
        ts50(server.address)
    assert stored(tmp_path) == ["1AAA.cif.gz"]


def test_a_missing_chain_is_named(server):
    """An entry without the chain is refused, with the chains that it has."""
    with pytest.raises(InputError, match=r"chain 1aaa_B cannot be read: .* of A"):
        fetch_chain(member("1aaa_B", "A"), server.address)


def test_an_entry_that_is_not_served_is_named(server):
    """The server's status is reported, and the server is not called unreachable."""
    server.status = 404
    with pytest.raises(InputError, match=r"1AAA\.cif\.gz: the server answered 404") as caught:
        ts50(server.address)
    assert not isinstance(caught.value, UnreachableError)


def test_mpnn_data_comes_first(server, tmp_path, monkeypatch):
    """Where MPNN_DATA is set its file is the set, and nothing is fetched if it is missing."""
    monkeypatch.setenv("MPNN_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"does not exist; .* should contain ts50\.npz") as caught:
        ts50(server.address)
    assert not isinstance(caught.value, UnreachableError)
    write_chains(tmp_path / "ts50.npz", (30, 25), (1, 2))
    assert [backbone.name for backbone in ts50(server.address)] == ["made_0", "made_1"]
    assert server.paths == []


def test_offline_study_prints_the_stored_figures(tmp_path, monkeypatch, capsys):
    """Without data and network the stored figures are printed as such, and none is changed."""
    before = recovery_study.TARGET.read_bytes()
    monkeypatch.setattr("sys.argv", ["recovery_study.py"])
    monkeypatch.setattr(recovery_study, "ts50", functools.partial(ts50, closed_address()))
    recovery_study.main()
    out, err = capsys.readouterr()
    assert err.startswith("error: http://127.0.0.1")
    assert "1ETE.cif.gz: the download failed" in err
    assert out.startswith("Stored in baselines/recovery.json, not measured here: recovery on TS50")
    assert len([line for line in out.splitlines() if line.startswith(" minimal-fast ")]) == 1
    assert all(len(line) <= 100 for line in out.splitlines())
    assert recovery_study.TARGET.read_bytes() == before
    monkeypatch.setattr(recovery_study, "TARGET", tmp_path / "recovery.json")
    with pytest.raises(UnreachableError):  # no figures are stored
        recovery_study.main()


def test_study_with_a_wrong_mpnn_data_prints_nothing(tmp_path, monkeypatch, capsys):
    """A folder without the set is an error, not a reason to print stored figures."""
    monkeypatch.setattr("sys.argv", ["recovery_study.py"])
    monkeypatch.setenv("MPNN_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"should contain ts50\.npz"):
        recovery_study.main()
    assert capsys.readouterr().out == ""


def test_list_has_the_size_that_tables_state():
    """Fifty chains of fifty entries, 6,861 residues."""
    listed = members()
    assert len({m.name[:4] for m in listed}) == len(listed) == 50
    assert sum(m.residues for m in listed) == 6861


@pytest.mark.data
def test_list_agrees_with_the_file_of_the_set(data_dir):
    """Names, counts and sequences are those of ts50.npz, which has no gaps."""
    chains = list(ChainSet(data_dir / "ts50.npz"))
    assert [member(chain.name, chain.sequence) for chain in chains] == members()
    for chain in chains:
        assert chain.mask.all()
        assert chain.numbers.tolist() == list(range(1, len(chain) + 1))


@pytest.mark.data
def test_fetched_set_equals_the_file_of_the_set(data_dir):
    """Entries made of its 50 chains pass, and give the same backbones in the same order."""
    chains = list(ChainSet(data_dir / "ts50.npz"))
    with serving() as server:
        server.files = {
            f"{chain.name[:4].upper()}.cif.gz": entry(pdb_text(chain)) for chain in chains
        }
        fetched = ts50(server.address)
    for found, chain in zip(fetched, chains, strict=True):
        assert (found.name, found.sequence) == (chain.name, chain.sequence)
        assert (found.chain_ids, found.numbers.tolist()) == (
            chain.chain_ids,
            chain.numbers.tolist(),
        )
        np.testing.assert_array_equal(found.coords, chain.coords)


@pytest.mark.data
@pytest.mark.parametrize("name", ["1a8o_A", "1igy_B"])
def test_a_real_entry_gives_the_chain_of_a_set(data_dir, name):
    """Real mmCIF files, with MSE and insertion codes, give a set's sequence and coordinates."""
    chains = ChainSet(data_dir / "train.npz")
    chain = chains[chains.names.index(name)]
    sequence = "".join(np.array(list(chain.sequence))[chain.mask])
    with serving() as server:
        file = data_dir / "mmcif" / f"{name[:4].upper()}.cif"
        server.content = gzip.compress(file.read_bytes())
        found = fetch_chain(member(name, sequence), server.address)
    assert found.sequence == sequence
    np.testing.assert_array_equal(found.coords, chain.coords[chain.mask])
