"""What splitting a run costs: `python -m mpnn.studies.campaign` (a minute), into baselines/.

The coordinator lists, hands out, receives and writes; it is measured with workers that cost
nothing, and with Dask's scheduler beside it. From that follows how a million backbones would go.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from mpnn import campaign
from mpnn.atomic import write_whole
from mpnn.design_structure import Template, structure_text
from mpnn.regression.baselines import commit_info
from mpnn.regression.machine import this_machine
from mpnn.results import Target
from mpnn.studies.tables import CAMPAIGN
from mpnn.synthetic import synthetic_backbone
from mpnn.tasks import Outcome, Task, perform

BASELINES = Path(__file__).parents[2] / "baselines"
LENGTH, SAMPLES = 106, 8
FEW, MANY = 100, 1100
"""Structures; the difference is what a thousand cost, without what a run costs once."""


class Instant(Executor):
    """Answers every task with the first one's outcome, at once."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.seconds = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        """A future that is done."""
        if self.outcome is None:
            self.outcome = fn(*args)
        future: Future[Any] = Future()
        future.set_result(self.outcome)
        return future


def structures(folder: Path, count: int) -> None:
    """Writes copies of one synthetic structure."""
    backbone = synthetic_backbone(LENGTH)
    target = Target(backbone, backbone.mask, backbone.chain_ids, ())
    text = structure_text(Template(target).made, "pdb")
    folder.mkdir()
    for n in range(count):
        (folder / f"s{n:05}.pdb").write_text(text)


def cost(count: int, run: Callable[[Path, Path], object]) -> dict[str, float]:
    """Wall and CPU seconds of this process and bytes of the manifest for a run over `count`."""
    with tempfile.TemporaryDirectory() as folder:
        structures(Path(folder, "in"), count)
        wall, cpu = time.perf_counter(), time.process_time()
        run(Path(folder, "in"), Path(folder, "out"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        manifest = Path(folder, "out", "manifest.jsonl").stat().st_size
    return {"wall": wall, "cpu": cpu, "manifest": manifest}


def per_structure(run: Callable[[Path, Path], object]) -> dict[str, float]:
    """What each structure adds."""
    few, many = cost(FEW, run), cost(MANY, run)
    return {name: (many[name] - few[name]) / (MANY - FEW) for name in many}


def instant(source: Path, out: Path) -> None:
    """A run whose workers cost nothing."""
    campaign.design([source], out, executor=Instant(), in_flight=6, num_seqs=SAMPLES)


def dask(source: Path, out: Path) -> None:
    """A run on a scheduler in this process with one worker, whose tasks are done by name."""
    import distributed

    make: Any = distributed.LocalCluster
    connect: Any = distributed.Client
    settings = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with make(1, **settings) as cluster, connect(cluster) as client:
        executor = client.get_executor(pure=False)
        campaign.design([source], out, executor=executor, in_flight=6, num_seqs=SAMPLES)


def worker_seconds() -> float:
    """CPU seconds of a worker for a structure, its file and results included."""
    with tempfile.TemporaryDirectory() as folder:
        structures(Path(folder, "in"), 1)
        kept: list[Task] = []

        class Keeping(Instant):
            def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
                """Keeps the task."""
                kept.append(args[0])
                return super().submit(fn, *args)

        campaign.design(
            [Path(folder, "in")], Path(folder, "out"), executor=Keeping(), num_seqs=SAMPLES
        )
        times = []
        for _ in range(20):
            start = time.process_time()
            perform(kept[0])
            times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Measures and stores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    coordinator = per_structure(instant)
    study = {
        "commit": commit_info(BASELINES.parent)["id"],
        "length": LENGTH,
        "samples": SAMPLES,
        "worker_seconds": worker_seconds(),
        "coordinator_seconds": coordinator["wall"],  # it waits for the disk, too
        "dask_seconds": coordinator["wall"] + per_structure(dask)["cpu"] - coordinator["cpu"],
        "manifest_bytes": coordinator["manifest"],
    }
    path = BASELINES / this_machine().id / CAMPAIGN
    write_whole(path, json.dumps(study, indent=1) + "\n")


if __name__ == "__main__":
    main()
