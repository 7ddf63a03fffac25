"""What the stages of a Mac's bundle measure; each prints its result as JSON on the last line."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.optimizations import Engine, check_device, load_engine
from mpnn.regression.machine import Power, gpu_cores, said, this_machine, version_of
from mpnn.sampling import Constraints, Job, Key, make_job
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import load_arrays

SYSCTLS = (
    "machdep.cpu.brand_string",
    "hw.model",
    "hw.memsize",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "kern.osproductversion",
    "kern.osversion",
    "kern.hv_vmm_present",
)
"""Chip, memory, performance and efficiency cores, macOS and its build."""

PACKAGES = ("coremltools", "mlx", "mpnn", "numpy", "torch")
NETWORKS = ("baseline", "extreme-v2")
LENGTH, SAMPLES = 106, 2
REPEATS = 10
"""Timed calls, of which the median counts; one call before each keeps a GPU's clock up."""


def machine() -> dict[str, Any]:
    """Chip, cores, build, power and versions; nothing that names its owner."""
    power = Power.now()
    return {
        "hardware": this_machine().id,
        "facts": {name: said("sysctl", "-n", name) for name in SYSCTLS},
        "gpu_cores": gpu_cores(),
        "power": power.source,
        "low_power_mode": power.low,
        "thermal": said("pmset", "-g", "therm")[-500:],
        "versions": {name: version_of(name) for name in PACKAGES},
        "python": platform.python_version(),
    }


def seconds(call: Callable[[], object]) -> float:
    """Median of `REPEATS` calls, each after one that is not timed."""
    found = []
    for _ in range(REPEATS):
        call()
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return median(found)


def mps(name: str) -> dict[str, Any]:
    """One engine on MPS against the reference on the CPU, for each of `NETWORKS`.

    Returns:
        By network: the largest |Δ log p| in nats of a score, the share of sampled residues that
        are the same, and seconds of a score and of `SAMPLES` sequences.
    """
    check_device("mps")
    flat = Flat.from_backbones([synthetic_backbone(LENGTH)])
    job = make_job(flat.S, [Constraints.free(flat.mask)], [Key(0, n, 0.1) for n in range(SAMPLES)])
    found = {}
    for network in NETWORKS:
        checkpoint = load_arrays(network)
        reference = load_engine(checkpoint, "reference")
        theirs = reference.sample(reference.encode(flat), job)
        engine = load_engine(checkpoint, name, "mps")
        encoding = engine.encode(flat)
        samples = engine.sample(encoding, job)
        scored = engine.log_probs(encoding, theirs.S, job.rank)
        found[network] = {
            "difference": float(np.abs(scored - theirs.log_probs).max()),
            "same_residues": float((samples.S == theirs.S).mean()),
            "score_seconds": seconds(partial(_score, engine, flat, job)),
            "sample_seconds": seconds(partial(_sample, engine, flat, job)),
        }
    return found


def _score(engine: Engine, flat: Flat, job: Job) -> object:
    return engine.log_probs(engine.encode(flat), np.tile(job.S, (SAMPLES, 1)), job.rank)


def _sample(engine: Engine, flat: Flat, job: Job) -> object:
    return engine.sample(engine.encode(flat), job)


def metal() -> dict[str, Any]:
    """Every variant of the message kernel that the shipped networks use: error, seconds, text.

    Where MLX has no Metal, the fallback kernel is measured instead, and the result says so.
    """
    import mlx.core as mx

    from mpnn.optimizations.mlx import metal as kernels

    on_gpu = mx.metal.is_available()
    run = kernels.metal_message_sum if on_gpu else kernels.plain_message_sum
    variants = {}
    for C, K in ((128, 48), (128, 30), (64, 48), (64, 30), (64, 16), (64, 12)):
        for product in (True, False):
            m = _messages(kernels.Messages, C, K, product)
            name = f"C={C}, K={K}, {'encoder' if product else 'decoder'}"
            variants[name] = _tried(run, kernels.plain_message_sum, m)
    return {"metal": on_gpu, "text": kernels.HEADER + kernels.SOURCE, "variants": variants}


def _tried(run: Callable[..., Any], plain: Callable[..., Any], m: Any) -> dict[str, Any]:
    """One variant against the plain operations on the CPU; a compiler's message is a result."""
    import mlx.core as mx

    try:
        with mx.stream(mx.cpu):
            expected = np.array(plain(m))
        difference = np.abs(np.array(run(m)) - expected).max() / np.abs(expected).max()
        return {"difference": float(difference), "seconds": seconds(lambda: mx.eval(run(m)))}
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)[-4000:]}


def _messages(make: Callable[..., Any], C: int, K: int, product: bool) -> Any:
    """Random messages of `LENGTH` rows; an encoder's kernel multiplies by W1 too."""
    import mlx.core as mx

    rng = np.random.default_rng(C + K)

    def normal(*shape: int) -> Any:
        return mx.array(rng.standard_normal(shape).astype(np.float32))

    neighbors = mx.array(rng.integers(0, LENGTH, (LENGTH, K)).astype(np.int32))
    W1 = normal(C, 3 * C) / C**0.5 if product else None
    return make(
        x_i=normal(LENGTH, C), x_j=normal(LENGTH, C), where=neighbors, mask=mx.ones((LENGTH, K)),
        edges=normal(LENGTH, K, C), at=None, W1=W1, W2=normal(C, C) / C**0.5, b2=normal(C),
    )  # fmt: skip


def coreml(unit: str, layout: str) -> dict[str, Any]:
    """One compute unit and layout: devices that each function is planned on, parity, and seconds.

    Returns:
        By function: share of the estimated work by device, operations that are not on the first
        device, and seconds of a prediction; and by bucket the largest |Δ log p|, and seconds that
        the host and the device spend on a score from coordinates.
    """
    from collections import Counter

    from mpnn.optimizations.coreml import package as packages
    from mpnn.optimizations.coreml import plan, predictor, trial
    from mpnn.optimizations.coreml.network import LAYOUTS, BucketNetwork
    from mpnn.weights import build_network

    checkpoint = load_arrays("baseline")
    model: Any = build_network(checkpoint.config, checkpoint.arrays)
    package = packages.cached_package(model, packages.BUCKETS, layout=LAYOUTS[layout]).path
    predict = predictor.CoreMLPredictor(package, unit, LAYOUTS[layout])
    found: dict[str, Any] = {"buckets": {}, "functions": {}}
    for bucket in packages.BUCKETS:
        found["buckets"][bucket] = trial.tried(model, predict, bucket)
        for name, function in BucketNetwork(model).functions(bucket, LAYOUTS[layout]).items():
            placed = plan.placements(package, name, unit)
            shares = {device: plan.share(placed, device) for device in ("NE", "GPU", "CPU")}
            first = max(shares, key=lambda device: shares[device])
            inputs = {n: np.zeros(s, predict.dtype) for n, s in function.inputs.items()}
            found["functions"][name] = {
                "shares": shares,
                "elsewhere": Counter(p.operation for p in placed if p.device != first),
                "seconds": seconds(partial(predict, name, inputs)),
            }
    return found


STAGES: Mapping[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (machine, mps, metal, coreml)
}


def main(name: str, *arguments: str) -> None:
    """Runs one stage; a device or package that is missing is its result."""
    try:
        result = STAGES[name](*arguments)
    except (InputError, ImportError) as error:
        result = {"not_here": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
