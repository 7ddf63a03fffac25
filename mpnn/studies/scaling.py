"""How the exact engine scales, and how near it comes to its bound: `tox -e scaling`.

Each point runs in a fresh process, which reports the best of a few runs and its peak memory. The
matmuls alone are timed between the runs of the job, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mpnn.atomic import write_whole
from mpnn.config import ARCHITECTURES, ModelConfig
from mpnn.flat import Flat
from mpnn.optimizations import load_engine
from mpnn.regression.baselines import commit_info
from mpnn.regression.machine import PINNED, this_machine
from mpnn.regression.matmuls import MatmulsAlone, exact_matmuls, multiply_adds
from mpnn.sampling import Constraints, Key, make_job
from mpnn.studies.tables import SCALING
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

BASELINES = Path(__file__).parents[2] / "baselines"
LENGTHS = (50, 106, 250, 500, 955, 2000, 4000)
SAMPLES = (1, 8, 64)
LARGEST = 64_000  # residues sampled; beyond it a point takes minutes


def peak_bytes() -> int:
    """Largest resident memory of this process so far, Python and torch included."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text()  # ru_maxrss counts the parent's memory too
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def point(length: int, samples: int, repeats: int) -> dict[str, float]:
    """One point: seconds of the whole job, of its matmuls alone, and memory."""
    config = ARCHITECTURES["baseline"]
    assert isinstance(config, ModelConfig)
    engine = load_engine(formula_weights(config), "exact-torch")
    backbone = synthetic_backbone(length)
    batch = Flat.from_backbones([backbone])
    keys = [Key(0, n, 0.1) for n in range(samples)]
    matmuls = exact_matmuls(config, length, samples)
    alone = MatmulsAlone(matmuls, config.k_neighbors, torch.get_num_threads())
    jobs, bounds, peak = [], [], 0
    for _ in range(repeats + 1):
        start = time.perf_counter()
        job = make_job(batch.S, [Constraints.free(backbone.mask)], keys)
        engine.sample(engine.encode(batch), job)
        jobs.append(time.perf_counter() - start)
        peak = peak or peak_bytes()
        bounds.append(alone.seconds())
    return {
        "length": length,
        "samples": samples,
        "threads": torch.get_num_threads(),
        "seconds": min(jobs[1:]),
        "products_seconds": min(bounds[1:]),  # the name under which it is stored
        "multiply_adds": multiply_adds(matmuls),
        "peak_bytes": peak,
    }


def points(repeats: int) -> Iterator[dict[str, Any]]:
    """Every point, each measured in a process of its own."""
    for length in LENGTHS:
        for samples in SAMPLES:
            if length * samples > LARGEST:
                continue
            command = [sys.executable, __file__, "--point", str(length), str(samples)]
            command += ["--repeats", str(repeats)]
            environ = {**os.environ, **PINNED}
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
            found: dict[str, Any] = json.loads(run.stdout)
            sys.stderr.write(f"{found}\n")
            yield found


def main() -> None:
    """Measures every point and stores them together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--point", nargs=2, type=int, metavar=("LENGTH", "SAMPLES"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.point:
        length, samples = arguments.point
        sys.stdout.write(json.dumps(point(length, samples, arguments.repeats)))
        return
    study = {
        "commit": commit_info(BASELINES.parent)["id"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "points": list(points(arguments.repeats)),
    }
    write_whole(BASELINES / this_machine().id / SCALING, json.dumps(study, indent=1) + "\n")


if __name__ == "__main__":
    main()
