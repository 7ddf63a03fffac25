"""Synthetic stored runs: a row for every claim that any platform can measure."""

import math

from mpnn.regression import baselines
from mpnn.regression.claims import CLAIMS
from mpnn.regression.workloads import about

TRAINED = {
    "recovery": 42.0, "recovery_low": 40.0, "recovery_high": 44.0, "reference_recovery": 44.5,
    "reference_recovery_low": 43.0, "reference_recovery_high": 46.0,
}  # fmt: skip


def row(claim, speedup, width=0.02, passed=True, **figures):
    log_ratio = -math.log(speedup)
    return {
        "log_ratio": log_ratio,
        "log_ratio_low": log_ratio - width / 2,
        "log_ratio_high": log_ratio + width / 2,
        "speedup": speedup,
        "subject_seconds": 0.05 / speedup,
        "reference_seconds": 0.05,
        "margin": 0.03,
        "expected": log_ratio,
        "verdict": "holds",
        "accuracy": {"passed": passed, "text": "equal, |Δ|≤3e-06", "figures": figures},
        **about(claim),
    }


def stored(root, hardware="intel-xeon-linux6", when="2026-03-01", **changes):
    claims = [claim for claim in CLAIMS if claim.platform == "any" and not claim.timed_as]
    rows = {claim.id: row(claim, 1.5 + i) for i, claim in enumerate(claims)} | changes
    data = {
        "machine_info": {"hardware": hardware, "threads": 2},
        "commit_info": {"id": "0123456789ab"},
        "datetime": f"{when}T10:00:00+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "benchmarks": [{"fullname": name, "extra_info": info} for name, info in rows.items()],
    }
    baselines.write(root / hardware, data)
    return baselines.history(root / hardware)[-1]
