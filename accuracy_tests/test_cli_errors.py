"""The command line on bad input, damaged files and Ctrl-C: one sentence, an exit code, no loss."""

from __future__ import annotations

import functools
import gzip
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import DIMER, run, sequences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_files import pdb_text, write_pdb

from mpnn import campaign, cli, weights
from mpnn.errors import InputError
from mpnn.options import SOME_FAILED, DesignOptions, taken
from mpnn.synthetic import synthetic_backbone
from mpnn.tasks import Result

pytest_plugins = ["cli_fixtures"]

DNA = (
    "ATOM      1  P    DA A   1       1.000   2.000   3.000  1.00  0.00           P\n"
    "ATOM      2  C1'  DA A   1       2.000   2.000   3.000  1.00  0.00           C\n"
)


def bad_structures() -> dict[str, bytes]:
    """Files that hold no usable backbone, by name."""
    return {
        "empty.pdb": b"",
        "words.pdb": b"once upon a time\n",
        "bytes.pdb": b"\x00\x01\x02",
        "dna.pdb": DNA.encode(),
        "trace.pdb": pdb_text(DIMER, ("CA",)).encode(),
        "broken.pdb.gz": gzip.compress(pdb_text(DIMER).encode())[:60],
    }


@pytest.mark.parametrize("name", [*bad_structures(), "missing.pdb"])
def test_bad_file_alone(here: Path, name: str) -> None:
    """A file that cannot be used is named in one line, with exit code 2 and no output."""
    if name in bad_structures():
        (here / name).write_bytes(bad_structures()[name])
    result = run("design", name)
    assert result.exit_code == 2
    assert f"error: {name}" in result.stderr
    assert "Traceback" not in result.output
    assert not list((here / "seqs").iterdir())


def test_bad_files_among_good_ones(here: Path) -> None:
    """Bad files of a folder are reported, good ones are done, and the exit code is 1."""
    (here / "in").mkdir()
    for name, content in bad_structures().items():
        (here / "in" / name).write_bytes(content)
    write_pdb(here / "in" / "good.pdb", DIMER)
    write_pdb(here / "in" / "zgood.pdb", DIMER)
    (here / "in" / "notes.txt").write_text("not looked at")
    result = run("design", "in", "missing.pdb")
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 7
    assert "7 of 9 files failed" in result.stderr
    assert sorted(p.name for p in (here / "seqs").glob("*.fa")) == ["good.fa", "zgood.fa"]


@pytest.mark.parametrize(
    "names", [("a/x.pdb", "b/x.pdb"), ("x.pdb", "x.cif"), ("x.pdb", "X.pdb.gz")]
)
def test_duplicate_names_are_refused_before_work(here: Path, names: tuple[str, str]) -> None:
    """Two files whose results would have one name are refused, and nothing is written."""
    for name in names:
        (here / name).parent.mkdir(exist_ok=True)
        write_pdb(here / name, DIMER)
    result = run("design", *names)
    assert result.exit_code == 2
    assert names[0] in result.stderr
    assert names[1] in result.stderr
    assert not (here / "seqs").exists()


def test_names_may_be_alike_on_standard_output(here: Path) -> None:
    """Where nothing is written by name, no name is in the way."""
    (here / "a").mkdir()
    write_pdb(here / "a" / "dimer.pdb", DIMER)
    result = run("design", "dimer.pdb", "a/dimer.pdb", "--out", "-")
    assert result.exit_code == 0
    assert result.stdout.count(">dimer") == 2


def test_a_name_too_long_is_one_failure(here: Path) -> None:
    """A path that the file system refuses to look at is reported, and the rest go on."""
    result = run("design", f"{'n' * 300}.pdb", "dimer.pdb")
    assert result.exit_code == 1
    assert "1 of 2 files failed" in result.stderr
    assert (here / "seqs" / "dimer.fa").exists()


def test_a_broken_link_in_a_folder_is_one_failure(here: Path) -> None:
    """A dangling link in a folder is reported as one failure."""
    (here / "in").mkdir()
    write_pdb(here / "in" / "good.pdb", DIMER)
    (here / "in" / "link.pdb").symlink_to("nowhere.pdb")
    result = run("design", "in")
    assert result.exit_code == 1
    assert "in/link.pdb: there is no such file" in result.stderr
    assert (here / "seqs" / "good.fa").exists()


def test_an_empty_name_is_refused(here: Path) -> None:
    """No name does not stand for the current folder."""
    result = run("design", "dimer.pdb", "")
    assert result.exit_code == 2
    assert "a FILE or --out is empty" in result.stderr
    assert not (here / "seqs").exists()


@pytest.mark.usefixtures("here")
def test_numbers_are_checked_before_weights_are_looked_for() -> None:
    """A number out of range is reported once, before any other work."""
    result = run("design", "dimer.pdb", "b.pdb", "--batch-size", 0, "--weights", "none")
    assert result.exit_code == 2
    assert result.stderr == "error: batch_size is 0; it must be a whole number, at least 1\n"


def test_an_engine_that_cannot_be_imported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed import in an engine's module is reported in one line."""
    (here / "my_engine.py").write_text("from os import nothing\n")
    monkeypatch.syspath_prepend(here)
    result = run("design", "dimer.pdb", "--engine", "my_engine:Engine")
    assert result.exit_code == 2
    assert "engine my_engine:Engine: cannot import name 'nothing'" in result.stderr


def run_work(monkeypatch: pytest.MonkeyPatch, work: Callable[..., Result], *arguments: str) -> int:
    """Exit code of `mpnn design` with other work in place of its own."""
    monkeypatch.setattr(campaign, "work_of", lambda _options: lambda _model: work)
    values = vars(cli.parser().parse_args(["design", *arguments]))
    paths, options = values.pop("files"), taken(DesignOptions, values)
    del values["command"]
    return campaign.run(paths, values, options).exit_code


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_file_that_needs_too_much_memory_is_one_failure(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It says what would need less, and the rest go on."""

    def work(path: Path, *_: object) -> Result:
        if path.name == "big":
            raise error
        return Result({f"{path.name}.fa": "text"}, "done")

    assert run_work(monkeypatch, work, "big", "small", "--out", "out") == SOME_FAILED
    assert [path.name for path in (here / "out").glob("*.fa")] == ["small.fa"]


@pytest.mark.usefixtures("here")
def test_a_defect_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no file can be blamed for ends the run as it is."""

    def work(path: Path, *_: object) -> Result:
        raise RuntimeError(f"shapes differ in {path}")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_work(monkeypatch, work, "one", "--out", "out")


@pytest.mark.usefixtures("here")
def test_a_closed_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be printed, no work is done."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(InputError, match="standard output is closed; name a folder with --out"):
        run_work(monkeypatch, lambda *_: Result({"text.fa": "text"}, "done"), "one", "--out", "-")


@pytest.mark.usefixtures("here")
def test_a_name_that_standard_output_cannot_take(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A result with letters beyond the encoding is one failure, and the rest are printed."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    made = {Path("é"): Result({"é": "é"}, "done"), Path("e"): Result({"e": "e"}, "done")}
    code = run_work(monkeypatch, lambda path, *_: made[path], "é", "e", "--out", "-")
    assert code == SOME_FAILED
    assert sys.stdout.buffer.getvalue() == b"e"
    assert "cannot be printed ('ascii' codec" in capfd.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output(here: Path, made: str) -> None:
    """What cannot be printed is said in a sentence."""
    command = [sys.executable, "-m", "mpnn", "design", "dimer.pdb", "--weights", made, "--out", "-"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=here, check=False
        )
    assert done.returncode == 2
    assert "standard output cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_closes_the_pipe(here: Path, made: str) -> None:
    """A command such as head may stop reading: the run ends without a traceback."""
    command = [sys.executable, "-m", "mpnn", "design", "dimer.pdb", "--weights", made, "--out", "-"]
    command += ["--engine", "exact-torch"]  # without a note on the engine
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chains", "Z"], "chains Z"),
        (["--fixed", "A99"], "A99"),
        (["--fixed", "!"], "!"),
        (["--fixed", "A,B"], "nothing to design"),
        (["--tied", "A1,B1", "--fixed", "A1"], "is fixed"),
        (["--omit", "ACDEFGHIKLMNPQRSTVWY"], "every amino acid is omitted"),
        (["--omit", "1"], "no letter 1"),
        (["--bias", "A=1"], "LETTER:NUMBER"),
        (["--temperature", "0"], "temperature 0"),
        (["--temperature", "-1"], "temperature -1"),
        (["--temperature", "nan"], "temperature nan"),
        (["--temperature", "warm"], "--temperature 'warm'"),
        (["--temperature", ","], "--temperature ','"),
        (["--seed", "one"], "--seed 'one'"),
        (["--seed", "-3"], "seed [-3]"),
        (["--num-seqs", "0"], "num_seqs is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--engine", "steam"], "no engine is called 'steam'"),
        (["--engine", ".steam:Engine"], "no engine is called '.steam:Engine'"),
        (["--engine", "os:path"], "engine os:path is not an engine"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--weights", "none"], "none: no such weights"),
        (["--weights", "dimer.pdb"], "cannot be read as a checkpoint"),
        (["--structure-model", "7"], "no model 7"),
        (["--bias-per-residue", "none.json"], "none.json: cannot be read"),
        (["--bias-per-residue", "dimer.pdb"], "dimer.pdb: is not JSON"),
        (["--bias-per-residue", "deep.json"], "deep.json: is not JSON"),
        (["--omit-per-residue", "twice.json"], "twice.json: is not JSON ('A1' occurs twice)"),
        (["--omit-per-residue", "list.json"], "list.json: a JSON object is needed"),
        (["--rules", "none.json"], "none.json: cannot be read"),
        (["--rules", "names.json"], "no structure of this run is called other"),
        (["--published-rules", "names.json"], "no entry for dimer.pdb"),
        (["--published-rules", "dimer.pdb"], "dimer.pdb: is not JSON"),
        (["--published-rules", "list.json"], "list.json: a JSON object"),
        (["--fixed", "names.json"], "names.json: no entry for dimer.pdb; add 'dimer'"),
        (["--pssm-multi", "0.5"], "need a PSSM"),
        (["--pssm-multi", "much"], "invalid float value: 'much'"),
        (["--homo-oligomer", "--tied", "A1,B1"], "exclude each other"),
        (["--num-seqs", "many"], "invalid int value: 'many'"),
        (["--order", "odd"], "--order: 'odd' is not one of random, graph-coloring"),
        (["--redesign", "A1"], "unrecognized arguments: --redesign A1; see mpnn --help"),
        (["--out", ""], "--out is empty"),
        (["--out", "dimer.pdb"], "--out dimer.pdb"),
        (["--out", "dimer.pdb/x"], "--out dimer.pdb/x"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_options(here: Path, arguments: list[str], message: str) -> None:
    """Each option that cannot be used ends with exit code 2, a sentence that says why, no file."""
    (here / "list.json").write_text("[]")
    (here / "names.json").write_text('{"other": {}}')
    (here / "deep.json").write_text("[" * 100_000)
    (here / "twice.json").write_text('{"A1": "C", "A1": "D"}')
    before = sorted(p.name for p in here.iterdir())
    result = run("design", "dimer.pdb", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    assert not list(here.glob("seqs/*"))
    assert sorted(p.name for p in here.iterdir() if p.name != "seqs") == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "holds no sequence"),
        (b"ACD\n>x\nACD\n", "line 1"),
        (b">x\n>y\nACD\n", "record 'x' has no sequence"),
        (b">x\nACD\n", "dimer: record 'x' of seqs.fa has 3 residues"),
        (b">x\nJ\n", "dimer: letters J in record 'x' of seqs.fa"),
        (b"\xff\xfe", "is not text"),
    ],
)
def test_bad_fasta(here: Path, content: bytes | None, message: str) -> None:
    """Sequences that cannot be scored end with exit code 2 and a sentence that says why."""
    if content is not None:
        (here / "seqs.fa").write_bytes(content)
    result = run("score", "dimer.pdb", "--fasta", "seqs.fa")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(here.glob("scores/*"))


@pytest.mark.usefixtures("here")
def test_no_weights_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shipped weights the message says how to get some."""
    monkeypatch.setattr(weights, "PREFERRED", ("absent",))
    result = run("design", "dimer.pdb")
    assert result.exit_code == 2
    assert "--weights" in result.stderr


TEXT_RULES = ["--chains", "--fixed", "--redesigned", "--tied", "--omit", "--bias"]
words = st.text(st.sampled_from("AB1234,:-|=. XZ!é{}"), max_size=10)


@pytest.mark.usefixtures("here")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    option=st.sampled_from(["--chains", "--fixed", "--redesigned", "--tied", "--omit", "--bias"]),
    value=words,
)
def test_any_rule_is_kept_or_refused(option: str, value: str) -> None:
    """No text in a rule leads to anything but designs or one line of error."""
    result = run("design", "dimer.pdb", f"{option}={value}", "--out", "-")
    assert result.exit_code in (0, 2)
    assert (result.exit_code == 0) == result.stdout.startswith(">dimer")
    if result.exit_code:
        assert result.stdout == ""
        assert result.stderr.count("error: ") == 1


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_to_a_structure_is_read_or_refused(here: Path, data: st.DataObject) -> None:
    """A PDB file with characters changed anywhere gives designs or one line of error."""
    text = bytearray(pdb_text(DIMER).encode())
    for _ in range(data.draw(st.integers(1, 20))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    (here / "damaged.pdb").write_bytes(bytes(text))
    result = run("design", "damaged.pdb", "--out", "-")
    assert result.exit_code in (0, 2)
    assert (result.exit_code == 0) == bool(result.stdout)


def test_usage_error() -> None:
    """A command without files, or an unknown option, ends with exit code 2."""
    assert run("design").exit_code == 2
    assert run("design", "x.pdb", "--color").exit_code == 2


def test_interrupt(here: Path, made: str) -> None:
    """Ctrl-C ends with exit code 130 and a sentence; finished files stay, none is partial."""
    (here / "in").mkdir()
    for n in range(40):
        write_pdb(here / "in" / f"s{n:02}.pdb", synthetic_backbone(100))
    command = [sys.executable, "-m", "mpnn", "design", "in", "--weights", made, "--num-seqs", "50"]
    # A shell that starts the tests in the background leaves them deaf to Ctrl-C: listen again.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=here, preexec_fn=listen
    ) as process:
        deadline = time.monotonic() + 600
        while not list(here.glob("seqs/*.fa")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert re.search(r"interrupted: \d+ of 40 results are complete", errors)
    assert "Traceback" not in errors
    written = list((here / "seqs").glob("[!m]*"))  # all but the manifest
    assert 1 <= len(written) < 40
    assert all(p.suffix == ".fa" and len(sequences(p)) == 51 for p in written)
