"""The error of a student's hidden states against those of its teacher.

A teacher's distribution is 21 numbers for each residue; its hidden states, the outputs of every
layer for every node and edge, are some twenty thousand (Romero et al. 2015, *FitNets*; Jiao et al.
2020, *TinyBERT*). Student and teacher must have the same layers and width, not the same neighbors;
a one-shot student can at best learn the mean of the states of its teacher's decoder.
Shapes: R residues, K neighbors, C hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpnn.errors import InputError
from mpnn.model import EncoderLayer, ProteinMPNN

NODES, EDGES = "norm2", "norm3"  # the last LayerNorms of nodes and edges in a layer


class HiddenMatch:
    """Records the states of student and teacher in a forward pass, and compares them.

    A state is the output of a layer for the nodes [R, C] or for the edges [R, K, C].
    """

    def __init__(self, student: ProteinMPNN, teacher: ProteinMPNN) -> None:
        """Takes the two networks.

        Raises:
            InputError: they differ in layers or width.
        """
        if differing_tensors(student, teacher):
            raise InputError(
                "hidden_weight above 0 compares student and teacher layer by layer, but they "
                f"differ in layers or width: {student.config}, {teacher.config}; set "
                "hidden_weight = 0"
            )
        self.names = _state_names(student)
        self._networks = student, teacher
        self._states: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within it the states of the last pass of both networks are recorded."""
        hooks = [
            network.get_submodule(name).register_forward_hook(partial(_record, states, name))
            for network, states in zip(self._networks, self._states, strict=True)
            for name in self.names
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def error(self, mask: Tensor) -> Tensor:
        """Mean squared error in units of the variance of the teacher's state, mean over states.

        A student that outputs the mean of each state has an error of 1. Both networks must have
        been recorded on the same residues; the recorded states are dropped.

        Args:
            mask: [R, K] of the student's neighbors; the nearest ones are the teacher's too.
        """
        errors = []
        for name in self.names:
            s, t = (states.pop(name) for states in self._states)
            if name.endswith(EDGES):
                s, t, real = (x[:, : min(s.shape[1], t.shape[1])] for x in (s, t, mask > 0))
                if not real.all():  # few crops are so short
                    s, t = s[real], t[real]
            s, t = s.flatten(0, -2), t.flatten(0, -2)
            errors.append((s - t).square().mean(dtype=torch.float32) / _variance(t))
        return torch.stack(errors).mean()


def differing_tensors(a: nn.Module, b: nn.Module) -> list[str]:
    """Names of the weights that differ in shape, or that one of two networks lacks."""
    ours, theirs = ({n: t.shape for n, t in m.state_dict().items()} for m in (a, b))
    return [n for n in sorted(ours.keys() | theirs.keys()) if ours.get(n) != theirs.get(n)]


def _variance(x: Tensor) -> Tensor:
    """Mean over columns of their variance over rows; ten times as fast as Tensor.var."""
    mean = x.mean(0, dtype=torch.float32)
    return x.square().mean(dtype=torch.float32) - mean.square().mean()


def _record(
    states: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Tensor
) -> None:
    """A forward hook that stores a module's output in `states`."""
    states[name] = output


def _state_names(model: ProteinMPNN) -> list[str]:
    """Names of the modules whose outputs are states."""
    return [
        f"{part}.{i}.{norm}"
        for part in ("encoder_layers", "decoder_layers")
        for i, layer in enumerate(model.get_submodule(part).children())
        for norm in ((NODES, EDGES) if isinstance(layer, EncoderLayer) else (NODES,))
    ]
