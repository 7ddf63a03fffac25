"""The native engine in NEON: compiled for 64-bit Arm and run in an emulator."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.optimizations import load_engine
from mpnn.optimizations.native import toolchain
from mpnn.optimizations.native.engine import folded
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights

DRIVER = Path(__file__).with_name("neon_driver.cpp")
CONFIG = ModelConfig(2, 2, 64, 24)
TOLERANCE = 3e-5  # nats, as every float32 engine with deterministic weights

pytestmark = pytest.mark.slow


def emulator() -> str:
    """The command of qemu for 64-bit Arm."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if path := shutil.which(name):
            return path
    pytest.skip("no qemu-aarch64-static (Debian's qemu-user-static)")


def cross_compiler() -> list[str]:
    """A compiler for 64-bit Arm that links statically."""
    if path := shutil.which("aarch64-linux-gnu-g++"):
        return [path, "-march=armv8-a", "-static"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    pytest.skip("no aarch64-linux-gnu-g++, and ziglang is not installed")


def inputs(network, flat, rank, path):
    """Writes what the driver reads: sizes, folded weights, the structure, an order and S."""
    parameters = {name: x.numpy() for name, x in network.state_dict().items()}
    tensors = [np.asarray(x, np.float32) for x in folded(parameters, CONFIG)]
    layers = CONFIG.num_encoder_layers, CONFIG.num_decoder_layers
    sizes = [CONFIG.hidden_dim, *layers, len(tensors), flat.size, CONFIG.k_neighbors]
    structure = [flat.X, flat.mask, flat.residue_idx, flat.chain_encoding]
    with path.open("wb") as file:
        for array in [np.array(sizes, np.int32), *tensors, *structure, rank, flat.S]:
            file.write(np.int64(array.nbytes).tobytes() + np.ascontiguousarray(array).tobytes())


def test_neon_scores_like_the_reference(tmp_path: Path) -> None:
    """Log-probabilities of the NEON code, emulated, are the reference's but for rounding."""
    qemu, command = emulator(), cross_compiler()
    sources = [str(path) for path in sorted(toolchain.SOURCES.glob("*.cpp"))]
    include = f"-I{toolchain.SOURCES}"
    driver = str(tmp_path / "driver")
    flags = [*toolchain.FLAGS, *toolchain.WARNINGS, include]
    subprocess.run([*command, *flags, *sources, str(DRIVER), "-o", driver], check=True)
    network = formula_weights(CONFIG)
    flat = Flat.from_backbones([made_up_backbone(60, chains=2)])
    order = np.random.default_rng(0).permutation(flat.size)
    rank = np.argsort(order)[None].astype(np.int64)
    inputs(network, flat, rank, tmp_path / "in")
    subprocess.run([qemu, driver, str(tmp_path / "in"), str(tmp_path / "out")], check=True)
    found = np.fromfile(tmp_path / "out", np.float32).reshape(1, flat.size, 21)
    reference = load_engine(network, "reference")
    expected = reference.log_probs(reference.encode(flat), flat.S[None], rank)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
