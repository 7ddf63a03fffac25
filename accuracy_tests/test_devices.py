"""What can be proven about MPS and CUDA without either: the decode loop runs on the meta device.

A meta tensor has a shape and no data, so whatever asks for a value (`.item()`, `if tensor`, a copy
to the host, a boolean mask) fails there, and so does a CPU tensor made inside the loop. The
operators seen on the way are looked up in torch's own table of kernels.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchgen
import yaml
from synthetic_files import with_gaps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mpnn.config import ModelConfig
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.optimizations.exact.decoder import Decoder, DecoderWeights
from mpnn.optimizations.exact.engine import WorkerRows, rows_of_workers
from mpnn.optimizations.exact.workers import Buffers, Workers
from mpnn.optimizations.tensors import on_device
from mpnn.sampling import Constraints, Key, make_job
from mpnn.schedule import steps_of
from mpnn.synthetic import synthetic_backbone
from mpnn.weights import formula_weights

CONFIG = ModelConfig(1, 2, 32, 12)
META = torch.device("meta")
FOR_EVERY_DEVICE = {
    "MPS",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
}


class Recorder(TorchDispatchMode):
    """Notes the operators called and those that return float64, which MPS does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.double: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        overload = func._overloadname
        self.operators.add(name if overload == "default" else f"{name}.{overload}")
        outputs = result if isinstance(result, list | tuple) else [result]
        if any(isinstance(o, Tensor) and o.dtype == torch.float64 for o in outputs):
            self.double.add(name)
        return result


@functools.cache
def operators_with_an_mps_kernel() -> frozenset[str]:
    """Names of the operators that run on MPS, from the table inside torch.

    `MPNN_TORCHGEN` names the `torchgen` of another wheel, such as the one for macOS.
    """
    folder = os.environ.get("MPNN_TORCHGEN", str(Path(torchgen.__file__).parent))
    table = Path(folder, "packaged/ATen/native/native_functions.yaml")
    entries = {e["func"].split("(")[0]: e for e in yaml.safe_load(table.read_text())}

    def keys(entry: dict[str, Any]) -> set[str]:
        if "structured_delegate" in entry:
            return keys(entries[entry["structured_delegate"]])
        dispatch = entry.get("dispatch") or {"CompositeImplicitAutograd": ""}
        return {key.strip() for joined in dispatch for key in joined.split(",")}

    return frozenset(name for name, entry in entries.items() if keys(entry) & FOR_EVERY_DEVICE)


def on_meta(record: Any) -> Any:
    """A dataclass with every tensor, also of dataclasses inside it, moved to the meta device."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value.to(META)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = on_meta(value)
    return dataclasses.replace(record, **changes)


def decoding_on_meta(tied: bool) -> tuple[Decoder, WorkerRows]:
    """A decoder and its worker's rows on the meta device, scheduled on the host as always."""
    model: ProteinMPNN = formula_weights(CONFIG)
    flat = Flat.from_backbones([synthetic_backbone(40)])
    constraints = Constraints.free(flat.mask)
    constraints.designed[::4] = False
    if tied:
        constraints.tie_group[21] = 1
    job = make_job(flat.S, [constraints], [Key(0, n, 0.1) for n in range(2)])
    encoding = load_engine(model, "exact").encode(flat)
    step = steps_of(job, encoding.graph.all_structures())
    decoder = Decoder(
        DecoderWeights(model.to(META)),
        on_meta(encoding),
        on_device(np.tile(job.S, (2, 1)), META),
        on_device(job.rank, META),
        Workers(META, 1),
        Buffers(META, torch.float32),
    )
    return decoder, rows_of_workers(decoder, job, step, 1)[0]


@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_the_decode_loop_reads_nothing_from_the_device(tied: bool) -> None:
    """Steps are launched one after another without reading any of their results."""
    decoder, rows = decoding_on_meta(tied)
    assert len(rows.rows.sizes) > 5
    recorder = Recorder()
    with recorder:
        rows.run(decoder)
    assert not recorder.double
    assert recorder.operators - operators_with_an_mps_kernel() == set()


@torch.inference_mode()
def test_scoring_reads_nothing_from_the_device() -> None:
    """The pass over known residue types, and so scoring, reads nothing back either."""
    decoder, _ = decoding_on_meta(tied=False)
    recorder = Recorder()
    with recorder:
        decoder.teacher_forced()
    assert not recorder.double
    assert recorder.operators - operators_with_an_mps_kernel() == set()


@pytest.mark.parametrize("engine", ["reference", "staged", "half", "bfloat16", "mixed"])
def test_every_operator_of_an_engine_has_an_mps_kernel(engine: str) -> None:
    """Scoring and sampling, with a tie, a gap and fixed residues, call nothing that MPS lacks."""
    backbone = with_gaps(synthetic_backbone(30), 3, 4)
    flat = Flat.from_backbones([backbone, synthetic_backbone(20, seed=1)])
    constraints = [Constraints.free(flat.mask[rows]) for rows in flat.slices]
    constraints[0].designed[::4] = False
    constraints[0].tie_group[9] = 1
    job = make_job(flat.S, constraints, [Key(0, n, 0.1) for n in range(2)])
    made = load_engine(formula_weights(CONFIG), engine)
    recorder = Recorder()
    with recorder:
        encoding = made.encode(flat)
        made.sample(encoding, job)
        made.log_probs(encoding, np.tile(job.S, (2, 1)), job.rank)
    assert len(recorder.operators) > 10
    assert recorder.operators - operators_with_an_mps_kernel() == set()


@pytest.mark.parametrize(
    "defect",
    [
        lambda x: x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(8),
    ],
    ids=["item", "branch", "copy", "boolean mask", "host tensor"],
)
def test_a_planted_wait_is_caught(defect: Callable[[Tensor], Any]) -> None:
    """Each way to wait for the device, or to mix in the host, fails on the meta device."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        defect(torch.empty(4, 8, device=META))


def test_planted_float64_and_missing_kernels_are_caught() -> None:
    """The recorder sees a conversion to float64, and an operator that MPS lacks."""
    recorder = Recorder()
    with recorder:
        torch.empty(4, device=META).double()
        torch.linalg.eig(torch.empty(3, 3, device=META))
    assert recorder.double
    assert recorder.operators - operators_with_an_mps_kernel() >= {"linalg_eig"}
