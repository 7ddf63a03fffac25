"""ONNX Runtime: encoder, score pass and decoder step, each exported as an ONNX graph.

The score pass of a structure is the graph `encode`, then the graph `score`; sampling is `encode`,
then `step` once for each wavefront. Both halves of the pass in one graph take no less time.

**Lengths are dynamic.** The first axis of every input is exported as a variable one, from two
example samples of five residues; one graph serves all sizes, 1 included. `topk` stays outside
(`staged`): its K would have to vary too, and of equal distances ONNX takes the first, torch any.

**Cache.** One graph and one session of each program for each engine, in memory and with the weights
in it; nothing is kept on disk, so every process exports anew.

**Threads.** As many as torch has, asleep between calls: spinning ones would take the processor from
whatever runs beside. They treat denormal numbers as the thread that makes the session does; the
first session of a process would change that for its maker too, by default to not flushing them.

**Refused**: weights other than float32. For float64 and bfloat16 ONNX Runtime's CPU has no Erf,
which is in the GELU; float16 it computes in float32. A device is refused where its execution
provider is not in the installed build: CoreML for "mps", CUDA for "cuda". What a provider cannot
take, ONNX Runtime gives to its CPU; CoreML may so leave much of a graph whose lengths vary, which
only a Mac can show.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from mpnn.errors import InputError
from mpnn.flat import Flat
from mpnn.model import ProteinMPNN
from mpnn.optimizations import check_neighbors
from mpnn.optimizations.exact.workers import denormals_are_flushed
from mpnn.optimizations.staged import StagedEncoding, StagedEngine, example

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
"""Type of device to ONNX Runtime's execution provider for it."""


class OnnxEngine(StagedEngine):
    """The staged engine with its programs run by ONNX Runtime, exported when they are first run.

    Inputs and outputs are host arrays, whatever runs the graphs, so `device` is always "cpu".

    Attributes:
        provider: the execution provider that runs the graphs.
        graphs: serialized ONNX model of each program run so far, to be stored or looked at.
        sessions: ONNX Runtime's session of each.
        compile_seconds: of each program, its export and the loading of its session.

    Raises:
        InputError: the device has no provider in this build, or the model is not float32.
    """

    def __init__(self, model: ProteinMPNN, device: str = "cpu") -> None:
        self.provider = find_provider(torch.device(device).type)
        super().__init__(model, "cpu")
        if self.dtype != "float32":
            raise InputError(f"engine onnx: takes float32 weights, not {self.dtype}")
        self.graphs: dict[str, bytes] = {}
        self.sessions: dict[str, Any] = {}

    def encode(self, flat: Flat) -> StagedEncoding:
        """Finds the neighbors and runs the encoder.

        Raises:
            InputError: more neighbors are given than the graphs have room for.
        """
        check_neighbors(flat, self.model.config.k_neighbors)
        return super().encode(flat)

    def run(self, stage: str, *inputs: Tensor) -> Any:
        """Runs one graph, exported before if it is the first time."""
        if stage not in self.sessions:
            start = time.perf_counter()
            given = example(stage, self.model.config, self.torch_dtype)
            self.graphs[stage] = export(self.stages[stage], given)
            self.sessions[stage] = load(self.graphs[stage], self.provider)
            self.compile_seconds[stage] = time.perf_counter() - start
        session = self.sessions[stage]
        names = [argument.name for argument in session.get_inputs()]
        arrays = [x.numpy() for x in inputs]
        found = session.run(None, dict(zip(names, arrays, strict=True)))
        outputs = [torch.from_numpy(x) for x in found]
        return outputs[0] if len(outputs) == 1 else outputs


def find_provider(device: str) -> str:
    """The execution provider for a type of device.

    Raises:
        InputError: there is none, or the installed build of ONNX Runtime lacks it.
    """
    available = onnxruntime.get_available_providers()
    provider = PROVIDERS.get(device, "an execution provider")
    if provider not in available:
        raise InputError(
            f"engine onnx: device {device} needs {provider}, and this "
            f"build of ONNX Runtime has {', '.join(available)}; take device cpu or another build"
        )
    return provider


def export(stage: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The ONNX model of one program, the first axis of every input variable."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with _without_warnings():
        program = torch.onnx.export(
            stage, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    assert program is not None  # with dynamo there is one
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def load(graph: bytes, provider: str) -> Any:
    """A session that runs an ONNX model on `provider`, and on the CPU what that cannot take."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    flushed = "1" if denormals_are_flushed() else "0"
    options.add_session_config_entry("session.set_denormal_as_zero", flushed)
    providers = list(dict.fromkeys([provider, PROVIDERS["cpu"]]))
    return onnxruntime.InferenceSession(graph, options, providers=providers)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences the exporter's warnings about its own deprecations and about torchvision."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)
