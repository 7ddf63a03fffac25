"""Times the claims of the first `mpnn` on the path; `against` runs it by file name.

It uses nothing of the package but its table of claims and how to build their sides, so that it can
time an older commit than its own. With `--check` it judges outputs instead.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpnn
from mpnn.errors import InputError
from mpnn.regression import workloads
from mpnn.regression.claims import CLAIMS, not_measured_here

RUNS, RUN_SECONDS = 5, 0.05


def seconds_per_unit(side: Any) -> float:
    """Median over a few timed runs of about 50 ms or one call, after two to warm up."""
    side.call(0)  # may compile
    start = time.perf_counter()
    side.call(0)
    repeats = max(1, round(RUN_SECONDS / (time.perf_counter() - start)))
    runs: list[float] = []
    for run in range(RUNS + 1):
        start = time.perf_counter()
        for i in range(repeats):
            side.call((run + i) % 4)
        runs.append((time.perf_counter() - start) / (repeats * side.units))
    return statistics.median(runs[1:])


def flush_denormals() -> None:
    """As the gate does before each claim: a package that a claim loads may turn it off."""
    if torch := sys.modules.get("torch"):  # by the tree that is timed
        torch.set_flush_denormal(True)


def failure(claim: Any, subject: Any, reference: Any) -> str | None:
    """What is wrong with the outputs of one call of each side; None if nothing is."""
    outputs = tuple({0: side.call(0)} for side in (subject, reference))
    found = workloads.accuracy(claim, SimpleNamespace(outputs=outputs))  # type: ignore[arg-type]
    return None if found.passed else found.text


def main(word: str, checks: bool) -> dict[str, object]:
    """Seconds per unit of every short claim whose id contains `word`, and where mpnn came from.

    A claim that cannot run here is left out, and reported with the reason.

    Args:
        word: part of the ids.
        checks: whether outputs are compared with the reference's instead of timed.
    """
    timed = [c for c in CLAIMS if not c.slow and not getattr(c, "timed_as", "")]
    chosen = [c for c in timed if word in c.id and not not_measured_here(c)]
    seconds, failures, left_out = {}, {}, {}
    for claim in chosen:
        flush_denormals()
        try:
            subject, reference = workloads.sides(claim)
            if not checks:
                seconds[claim.id] = seconds_per_unit(subject)
            elif text := failure(claim, subject, reference):
                failures[claim.id] = text
        except (FileNotFoundError, InputError) as error:
            left_out[claim.id] = str(error)
    package = str(Path(mpnn.__file__).resolve().parents[1])
    found = {"seconds": seconds, "failures": failures, "left_out": left_out}
    return {"package": package, **found}


if __name__ == "__main__":
    gc.disable()
    sys.stdout.write(json.dumps(main(sys.argv[1], "--check" in sys.argv)))
