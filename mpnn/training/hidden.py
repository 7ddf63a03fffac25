"""A student's hidden vectors held against those of its teacher.

A teacher's distribution tells a student 21 numbers for each residue, its hidden vectors some twenty
thousand: what every layer makes of every node and edge (Romero et al. 2015, *FitNets*; Jiao et al.
2020, *TinyBERT*). Where both are equally wide they are compared as they are, else through a linear
map of each state that begins at ridge regression, is trained along and thrown away. Maps that began
at random would ask a trained student to unlearn what it knows. A student with fewer layers
follows those of the teacher that lie at the end of each of its equal parts; one that sees no
letters can know no more than the mean of what the teacher's decoder makes of them. What it is worth
stands in `mpnn/checkpoints/README.md`.
Shapes: R residues, K neighbors, C hidden of the student, D of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpnn.model import EncoderLayer, ProteinMPNN

NODES, EDGES = "norm2", "norm3"  # the last LayerNorms that nodes and edges pass in a layer
RIDGE = 1e-2  # of fitted maps, in units of the mean variance of a student's state


class HiddenMatch(nn.Module):
    """Which of a student's states follow which of its teacher's, and the maps between them.

    A state is what a layer makes of the nodes [R, C] or of the edges [R, K, C].
    """

    def __init__(self, student: ProteinMPNN, teacher: ProteinMPNN) -> None:
        super().__init__()
        self.pairs = {name: _followed(name, student, teacher) for name in _names(student)}
        C, D = student.config.hidden_dim, teacher.config.hidden_dim
        maps = {_key(name): nn.Linear(C, D) for name in self.pairs if C != D}
        self.maps = nn.ModuleDict(maps)
        self._networks = student, teacher  # in a tuple: their parameters are not ours
        self._states: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the states of both are kept, those of their last pass."""
        hooks = []
        followed = self.pairs, self.pairs.values()
        for network, states, names in zip(self._networks, self._states, followed, strict=True):
            for name in names:
                keep = _keeper(states, name)
                hooks.append(network.get_submodule(name).register_forward_hook(keep))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def error(self, mask: Tensor) -> Tensor:
        """Mean squared error, in units of the variance of the teacher's state, mean over states.

        1 where the student knows the mean alone. Both must have been listened to over the same
        residues; their states are let go of.

        Args:
            mask: [R, K] of the student's neighbors; the nearer ones are the teacher's too.
        """
        errors = []
        for name, s, t in self._compared(mask):
            if name in self.maps:
                s = self.maps[name](s)
            errors.append((s - t).square().mean(dtype=torch.float32) / _variance(t))
        return torch.stack(errors).mean()

    @torch.no_grad()
    def fit(self, mask: Tensor) -> None:
        """Sets the maps, which must be there, by ridge regression; mask and states as in `error`.

        `RIDGE` keeps weights small in the directions in which the student hardly varies yet.
        """
        for name, *states in self._compared(mask):
            linear = self.maps[name]
            assert isinstance(linear, nn.Linear)
            s, t = (x.float() for x in states)
            mean = s.mean(0)
            s = s - mean
            gram = s.T @ s
            gram.diagonal().add_(RIDGE * gram.diagonal().mean())
            weight = torch.linalg.solve(gram, s.T @ t)
            linear.weight.copy_(weight.T)
            linear.bias.copy_(t.mean(0) - mean @ weight)

    def _compared(self, mask: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Key, rows of a state and rows of what it follows: nodes, or edges that both have."""
        ours, theirs = self._states
        for name, followed in self.pairs.items():
            s, t = ours[name], theirs[followed]
            if name.endswith(EDGES):
                s, t, real = (x[:, : min(s.shape[1], t.shape[1])] for x in (s, t, mask > 0))
                if not real.all():  # few crops are so short
                    s, t = s[real], t[real]
            yield _key(name), s.flatten(0, -2), t.flatten(0, -2)
        ours.clear()
        theirs.clear()


def _variance(x: Tensor) -> Tensor:
    """Mean over columns of their variance over rows, in a tenth of the time that var takes."""
    mean = x.mean(0, dtype=torch.float32)
    return x.square().mean(dtype=torch.float32) - mean.square().mean()


def _keeper(states: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """A hook that puts a module's output into `states`."""

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        states[name] = output

    return keep


def _key(name: str) -> str:
    """Parameter names have dots, names in a ModuleDict have none."""
    return name.replace(".", "_")


def _names(model: ProteinMPNN) -> list[str]:
    """Parameter names of the modules whose outputs are states."""
    return [
        f"{part}.{i}.{norm}"
        for part in ("encoder_layers", "decoder_layers")
        for i, layer in enumerate(model.get_submodule(part).children())
        for norm in ((NODES, EDGES) if isinstance(layer, EncoderLayer) else (NODES,))
    ]


def _followed(name: str, student: ProteinMPNN, teacher: ProteinMPNN) -> str:
    """The teacher's state that the student's state `name` follows."""
    part, i, norm = name.split(".")
    n, N = (len(list(m.get_submodule(part).children())) for m in (student, teacher))
    return f"{part}.{-(-(int(i) + 1) * N // n) - 1}.{norm}"
