"""The compiled engine built in every way: other vectors, a BLAS, sanitizers, another processor.

Each build is a program of its own (native_driver.cpp), so neither Python nor a preloaded runtime is
in the way. The fast tests run the build of this machine alone.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from native_build import FLAGS, SOURCES, compiler
from native_cases import KINDS, SMALL, TOLERANCE, expected, jobs, structures

from mpnn.optimizations.native.engine import folded
from mpnn.weights import formula_weights

NAMES = ("masked residues", "different lengths", "fewer complete residues than K")
CROSS, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for x86-64")
SANITIZED = ("-O1", "-g", "-fno-sanitize-recover=all")

BLAS = """
extern "C" __attribute__((visibility("default"))) void cblas_sgemm(
    int, int, int, int m, int n, int k, float alpha, const float* a, int lda,
    const float* b, int ldb, float beta, float* c, int ldc) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = beta * c[i * ldc + j];
      for (int d = 0; d < k; ++d) sum += alpha * double(a[i * lda + d]) * b[d * ldb + j];
      c[i * ldc + j] = float(sum);
    }
}
"""


def write_job(path: Path, name: str, kind: str, threads: int) -> None:
    """The input of native_driver.cpp."""
    flat, job = structures(name), jobs(name, kind)
    weights = {key: x.numpy() for key, x in formula_weights(SMALL).state_dict().items()}
    tensors = list(folded(weights, SMALL))
    K = min(SMALL.k_neighbors, max(flat.lengths))
    layers = (SMALL.num_encoder_layers, SMALL.num_decoder_layers)
    sizes = (SMALL.hidden_dim, *layers, len(tensors), flat.size, len(flat.lengths), K)
    header = np.array([*sizes, len(job.rank), threads], np.int32)
    starts = np.array([*flat.offsets, flat.size], np.int64)
    arrays = [
        *(header, *tensors, flat.X, flat.mask, flat.residue_idx, flat.chain_encoding, starts),
        *(job.S, job.designed, job.rank, job.gumbel),
        *(job.temperature, job.bias, job.tie_group, job.tie_weight),
    ]
    with path.open("wb") as out:
        for array in arrays:
            data = np.ascontiguousarray(array).tobytes()
            out.write(np.int64(len(data)).tobytes() + data)


def build(folder: Path, command: list[str], *flags: str) -> Path:
    """The driver with all sources, compiled side by side."""
    sources = [*SOURCES.glob("*.cpp"), Path(__file__).with_name("native_driver.cpp")]
    options = [*command, *FLAGS, f"-I{SOURCES}", *flags]
    objects = [folder / f"{source.stem}.o" for source in sources]
    running = [
        subprocess.Popen([*options, "-c", source, "-o", to])
        for source, to in zip(sources, objects, strict=True)
    ]
    assert sum(job.wait() for job in running) == 0, "the sources do not compile"
    subprocess.run([*options, *objects, "-o", folder / "driver", "-ldl"], check=True)
    return folder / "driver"


def check(folder: Path, program: list[str]) -> None:
    """Runs jobs of every kind, on one thread and on three, and compares them with the reference."""
    for name in NAMES:
        for kind in KINDS:
            S, log_probs = expected(name, kind, SMALL)
            bits = set()
            for threads in (1, 3):
                write_job(folder / "in", name, kind, threads)
                command = [*program, str(folder / "in"), str(folder / "out")]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                data = (folder / "out").read_bytes()
                bits.add(data)
                np.testing.assert_array_equal(
                    np.frombuffer(data, np.int64, S.size).reshape(S.shape), S
                )
                found = np.frombuffer(data, np.float32, offset=8 * S.size)
                np.testing.assert_allclose(
                    found.reshape(log_probs.shape), log_probs, rtol=0, atol=TOLERANCE
                )
            assert len(bits) == 1, "bits depend on the threads"


@X86
@pytest.mark.slow
@pytest.mark.parametrize("march", ["x86-64-v4", "x86-64-v3", "x86-64-v2"])
def test_vectors_of_every_width(tmp_path: Path, march: str) -> None:
    """16, 8 and 4 lanes give the reference's sequences (v2 is the form without intrinsics)."""
    if march == "x86-64-v4" and "avx512dq" not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("this CPU lacks AVX-512")
    check(tmp_path, [str(build(tmp_path, compiler(), f"-march={march}"))])


@pytest.mark.slow
def test_matmuls_of_a_blas(tmp_path: Path) -> None:
    """With matmuls by a BLAS that is looked up at run time, as on macOS, the jobs are the same."""
    source, library = tmp_path / "blas.cpp", tmp_path / "libblas.so"
    source.write_text(BLAS)
    subprocess.run(
        [*compiler(), "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True
    )
    check(tmp_path, [str(build(tmp_path, compiler(), f'-DMPNN_BLAS="{library}"'))])


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    """No access out of bounds, no undefined behavior, no leak and no data race in any job."""
    flags = (*SANITIZED, f"-fsanitize={sanitizer}")
    march = ("-march=x86-64-v3",) if platform.machine() == "x86_64" else ()
    try:
        program = build(tmp_path, compiler(), *flags, *march)
    except (AssertionError, subprocess.CalledProcessError):
        pytest.skip(f"this compiler lacks -fsanitize={sanitizer}")
    check(tmp_path, [str(program)])


@pytest.mark.slow
def test_neon_under_qemu(tmp_path: Path) -> None:
    """Compiled for arm64 with NEON, and run by qemu, the jobs give the reference's sequences."""
    for tool in (CROSS, QEMU):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (g++-aarch64-linux-gnu, qemu-user-static)")
    check(tmp_path, [QEMU, str(build(tmp_path, [CROSS], "-march=armv8-a", "-static"))])
