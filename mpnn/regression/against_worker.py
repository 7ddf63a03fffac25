"""Times the claims of whichever `mpnn` stands first on the path; `against` runs it by file name.

It uses nothing of the package but its table of claims and how to build their sides, so that it can
time an older commit than its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import mpnn
from mpnn.errors import InputError
from mpnn.regression.claims import CLAIMS, not_measured_here
from mpnn.regression.workloads import sides

LEGS, LEG_SECONDS = 5, 0.05


def seconds_per_unit(side: Any) -> float:
    """Median over a few legs of about 50 ms or one call, after a call and a leg to warm up."""
    side.call(0)  # may compile
    start = time.perf_counter()
    side.call(0)
    repeats = max(1, round(LEG_SECONDS / (time.perf_counter() - start)))
    legs: list[float] = []
    for leg in range(LEGS + 1):
        start = time.perf_counter()
        for i in range(repeats):
            side.call((leg + i) % 4)
        legs.append((time.perf_counter() - start) / (repeats * side.units))
    return statistics.median(legs[1:])


def main(word: str) -> dict[str, object]:
    """Seconds per unit of every short claim whose id contains `word`, and where mpnn came from.

    A claim that cannot run here, for want of a package, is named on stderr and left out.
    """
    chosen = [c for c in CLAIMS if word in c.id and not c.slow and not not_measured_here(c)]
    found = {}
    for claim in chosen:
        try:
            found[claim.id] = seconds_per_unit(sides(claim)[0])
        except (FileNotFoundError, InputError) as error:
            sys.stderr.write(f"{claim.id}: not measured here: {error}\n")
    return {"package": str(Path(mpnn.__file__).resolve().parents[1]), "seconds": found}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
