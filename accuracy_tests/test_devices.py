"""What can be proven about MPS and CUDA without either: the decode loop runs on the meta device.

A meta tensor has a shape and no data, so whatever asks for a value (`.item()`, `if tensor`, a copy
to the host, a boolean mask) fails there, and so does a CPU tensor made inside the loop. The
operators seen on the way are looked up in torch's own table of kernels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mpnn.batch import Batch
from mpnn.config import ModelConfig
from mpnn.decoding import Constraints, Job, Key, make_job, on_device
from mpnn.model import ProteinMPNN
from mpnn.optimizations import load_engine
from mpnn.optimizations.exact.decoder import Decoder, DecoderWeights
from mpnn.optimizations.exact.engine import Lane, lanes_of, steps_of
from mpnn.optimizations.exact.workers import Buffers, Workers
from mpnn.synthetic import made_up_backbone
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
    """Names of the operators that run on MPS, from the table inside torch."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
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


def job_of(batch: Batch, tied: bool) -> Job:
    constraints = Constraints.free(batch.mask[0].numpy() > 0)
    constraints.designed[::4] = False
    if tied:
        constraints.tie_group[21] = 1
    return make_job(batch.S.numpy(), [constraints], [Key(0, n, 0.1) for n in range(2)])


def decoding_on_meta(tied: bool) -> tuple[Decoder, Lane]:
    """A decoder and its lane on the meta device, scheduled on the host as always."""
    model: ProteinMPNN = formula_weights(CONFIG)
    batch = Batch.from_backbones([made_up_backbone(40)])
    job = job_of(batch, tied)
    encoding = on_meta(load_engine("exact", model).encode(batch))
    step = steps_of(load_engine("exact", model).encode(batch).graph, job)
    decoder = Decoder(
        DecoderWeights(model.to(META)),
        encoding,
        on_device(job.S.repeat(2, 0), META),
        on_device(job.rank[0], META),
        Workers(META, 1),
        Buffers(META, torch.float32),
    )
    return decoder, lanes_of(decoder, job, step, 1)[0]


@pytest.mark.parametrize("name", ["reference", "exact", "staged"])
def test_an_engine_keeps_the_weights_it_was_made_with(name: str) -> None:
    """Another engine on another device, or training, leaves an engine of the same network alone."""
    model, batch = formula_weights(CONFIG), Batch.from_backbones([made_up_backbone(30)])
    S, rank = batch.S[:, None].numpy(), np.arange(30)[None, None]
    engine = load_engine(name, model)
    before = engine.log_probs(engine.encode(batch), S, rank)
    load_engine(name, model, "meta")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert model.W_e.weight.device.type == "cpu"
    np.testing.assert_array_equal(engine.log_probs(engine.encode(batch), S, rank), before)


@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_decode_loop_asks_nothing_of_the_device(tied: bool) -> None:
    """Steps are launched one after another without waiting for any of their results."""
    decoder, lane = decoding_on_meta(tied)
    assert len(lane.sizes) > 5
    recorder = Recorder()
    with recorder:
        lane.run(decoder)
    assert not recorder.double
    assert recorder.operators - operators_with_an_mps_kernel() == set()


@torch.inference_mode()
def test_known_residues_ask_nothing_of_the_device() -> None:
    """The pass over known letters, and so scoring, waits for nothing either."""
    decoder, _ = decoding_on_meta(tied=False)
    recorder = Recorder()
    with recorder:
        decoder.teacher_forced()
    assert not recorder.double
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
