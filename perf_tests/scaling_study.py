"""How the exact engine scales, and how near it comes to its bound: `tox -e scaling`.

Each point runs in a fresh process, which reports the best of a few runs and its peak memory. The
matrix products alone are timed between the runs of the job, so that both see the same machine.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from mpnn.batch import Batch
from mpnn.decoding import Constraints, Key, make_job

from mpnn.config import ARCHITECTURES
from mpnn.optimizations import load_engine
from mpnn.output import write_whole
from mpnn.regression.baselines import commit_info
from mpnn.regression.hardware import this_machine
from mpnn.regression.process import PINNED
from mpnn.regression.products import ProductsAlone, exact_products, multiply_adds
from mpnn.synthetic import made_up_backbone
from mpnn.weights import formula_weights

BASELINES = Path(__file__).parents[1] / "baselines"
LENGTHS = (50, 106, 250, 500, 955, 2000, 4000)
SAMPLES = (1, 8, 64)
LARGEST = 64_000  # residues drawn; beyond it a point takes minutes
CONFIG = ARCHITECTURES["baseline"]


def peak_bytes():
    """Largest resident memory of this process so far, Python and torch included."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text()  # ru_maxrss counts the parent's memory too
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def point(length, samples, repeats):
    """One point: seconds of the whole job, of its products alone, and memory."""
    engine = load_engine("exact", formula_weights(CONFIG))
    backbone = made_up_backbone(length)
    batch = Batch.from_backbones([backbone])
    keys = [Key(0, n, 0.1) for n in range(samples)]
    products = exact_products(CONFIG, length, samples)
    alone = ProductsAlone(products, CONFIG.k_neighbors, torch.get_num_threads())
    jobs, bounds, peak = [], [], 0
    for _ in range(repeats + 1):
        start = time.perf_counter()
        job = make_job(batch.S.numpy(), [Constraints.free(backbone.mask)], keys)
        engine.sample(engine.encode(batch), job)
        jobs.append(time.perf_counter() - start)
        peak = peak or peak_bytes()
        bounds.append(alone.seconds())
    return {
        "length": length,
        "samples": samples,
        "threads": torch.get_num_threads(),
        "seconds": min(jobs[1:]),
        "products_seconds": min(bounds[1:]),
        "multiply_adds": multiply_adds(products),
        "peak_bytes": peak,
    }


def main():
    """Runs every point in a process of its own and stores them together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--point", nargs=2, type=int, metavar=("LENGTH", "SAMPLES"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(point(*arguments.point, arguments.repeats)))  # noqa: T201
        return
    points = []
    for length in LENGTHS:
        for samples in SAMPLES:
            if length * samples <= LARGEST:
                command = [sys.executable, __file__, "--point", str(length), str(samples)]
                command += ["--repeats", str(arguments.repeats)]
                environ = {**os.environ, **PINNED}
                run = subprocess.run(
                    command, check=True, capture_output=True, text=True, env=environ
                )
                points.append(json.loads(run.stdout))
                sys.stderr.write(f"{points[-1]}\n")
    target = BASELINES / this_machine().id / "scaling.json"
    study = {
        "commit": commit_info(BASELINES.parent)["id"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__,
        "points": points,
    }
    write_whole(target, json.dumps(study, indent=1) + "\n")


if __name__ == "__main__":
    main()
