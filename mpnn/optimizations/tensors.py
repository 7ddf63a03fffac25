"""What the torch engines share: host arrays as tensors, a network of their own, rows of steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpnn.sampling import sample_types
from mpnn.schedule import StepRows

M = TypeVar("M", bound=nn.Module)


def own(model: M, device: str | torch.device) -> M:
    """A copy of a network for an engine to keep, on its device.

    Training the network, or making another engine of it, leaves this one alone.
    """
    return copy.deepcopy(model).to(device).eval()


def name_of(dtype: torch.dtype) -> str:
    """The name of a type: "float32"."""
    return str(dtype).removeprefix("torch.")


def on_device(x: NDArray[np.generic], device: str | torch.device) -> Tensor:
    """A host array as a tensor; copied where it is a read-only view, such as a broadcast."""
    t = torch.from_numpy(np.require(x, requirements=["C", "W"]))
    if t.dtype == torch.float64 and torch.device(device).type == "mps":  # which has no float64
        t = t.float()
    return t.to(device)


def synchronize(device: str) -> None:
    """Blocks until the device has finished all work; does nothing on the CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True, eq=False)
class TensorRows:
    """`mpnn.schedule.StepRows` on a device; M rows sorted by decoding step."""

    sizes: list[int]  # rows in each step
    row: Tensor  # [M] n·R + i
    residue: Tensor  # [M] i
    designed: Tensor  # [M] bool
    gumbel: Tensor  # [M, 21]
    temperature: Tensor  # [M]
    bias: Tensor  # [M, 21]
    group: Tensor | None  # [M] number of each row's tied group within its step
    weight: Tensor  # [M]

    @classmethod
    def of(cls, rows: StepRows, device: str | torch.device, dtype: torch.dtype) -> TensorRows:
        """Moves rows to a device, real numbers in `dtype`."""

        def put(x: NDArray[np.generic] | None) -> Tensor | None:
            if x is None:
                return None
            t = on_device(x, device)
            return t.to(dtype) if t.is_floating_point() else t

        return cls(rows.sizes, *(put(getattr(rows, f.name)) for f in fields(rows)[1:]))  # type: ignore[arg-type]

    def steps(self) -> Iterator[TensorRows]:
        """Cuts the rows into their steps; no step reads a value back from the device."""
        tensors = [getattr(self, f.name) for f in fields(self)[1:]]
        cut = [[None] * len(self.sizes) if t is None else t.split(self.sizes) for t in tensors]
        for size, parts in zip(self.sizes, zip(*cut, strict=True), strict=True):
            yield TensorRows([size], *parts)

    def sample(self, logits: Tensor, S: Tensor) -> Tensor:
        """Residue types [M] from logits [M, 21]: sampled where designed, S [M] elsewhere."""
        types = sample_types(
            logits, self.gumbel, self.temperature, self.bias, self.group, self.weight
        )
        return torch.where(self.designed, types, S)
