"""Times the claims of the first `mpnn` on the path, request by request; `against` starts it.

A request is a line of JSON on standard input, [function, arguments], the answer a line on the file
descriptor that the command line names. Of the package it uses only the table of claims and how to
build their sides, so that it can time an older commit than its own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import mpnn
from mpnn.errors import InputError
from mpnn.regression import workloads
from mpnn.regression.claims import CLAIMS, not_measured_here

INPUTS = 4
LOADED = SimpleNamespace(claim=None, subject=None, reference=None, output=None, calls=0)


def package() -> dict[str, Any]:
    """Where `mpnn` came from, and the ids of its short claims that this machine can measure."""
    timed = [c for c in CLAIMS if not c.slow and not getattr(c, "timed_as", "")]
    ids = [claim.id for claim in timed if not not_measured_here(claim)]
    return {"package": str(Path(mpnn.__file__).resolve().parents[1]), "ids": ids}


def load(id_: str) -> dict[str, Any]:
    """Builds the sides of a claim; answers the seconds of one call, or why it cannot run."""
    gc.collect()
    (LOADED.claim,) = (claim for claim in CLAIMS if claim.id == id_)
    flush_denormals()
    try:
        LOADED.subject, LOADED.reference = workloads.sides(LOADED.claim)[:2]
        LOADED.output = LOADED.subject.call(0)  # may compile
    except (FileNotFoundError, InputError) as error:
        return {"left_out": str(error)}
    LOADED.calls = 0
    return {"seconds": min(run(1)["seconds"] for _ in range(2))}


def run(repeats: int) -> dict[str, Any]:
    """Seconds of one timed run of the subject on inputs in rotation."""
    call = LOADED.subject.call
    numbers = [(LOADED.calls + i) % INPUTS for i in range(repeats)]
    LOADED.calls += repeats
    start = time.perf_counter()
    for number in numbers:
        call(number)
    return {"seconds": time.perf_counter() - start}


def check() -> dict[str, Any]:
    """What is wrong with the subject's output beside the reference's; None if nothing is."""
    outputs = {0: LOADED.output}, {0: LOADED.reference.call(0)}
    found = workloads.accuracy(LOADED.claim, SimpleNamespace(outputs=outputs))  # type: ignore[arg-type]
    return {"failure": None if found.passed else found.text}


def save(path: str) -> dict[str, Any]:
    """Writes the output of the first input, for a comparison with the other tree's."""
    found: dict[str, Any] = {}
    for i, output in enumerate(LOADED.output):  # of each protein
        if hasattr(output, "log_probs"):
            found |= {f"{i} sequences": output.S, f"{i} log-probabilities": output.log_probs}
        else:
            found[f"{i} output"] = output
    np.savez(path, **found)
    return {"band": getattr(LOADED.claim, "band", 0.0)}


def flush_denormals() -> None:
    """As the gate does before each claim: a package that a claim loads may turn it off."""
    if torch := sys.modules.get("torch"):  # by the tree that is timed
        torch.set_flush_denormal(True)


REQUESTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (package, load, run, check, save)
}


def serve() -> None:
    """Answers requests until standard input ends."""
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            request, arguments = json.loads(line)
            answers.write(json.dumps(REQUESTS[request](**arguments)) + "\n")
            answers.flush()


if __name__ == "__main__":
    gc.disable()
    serve()
