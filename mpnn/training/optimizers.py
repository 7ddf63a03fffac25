"""The optimizers of a run: AdamW, and Muon for the matrices of layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

ADAM_BETAS = (0.9, 0.98)
MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients of the odd polynomial that moves singular values towards 1 (Jordan et al. 2024)."""
NEWTON_SCHULZ_STEPS = 5
RMS_OF_ADAM = 0.2  # root mean square of a typical AdamW step, in units of the learning rate
TINY = 1e-7  # smallest norm that a gradient is divided by


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates, for matrices.

    Updates are scaled by the size of the matrix to be as large as those of AdamW (Liu et al.,
    arXiv:2502.16982), so that one learning rate serves both. `torch.optim.Muon` with
    `adjust_lr_fn="match_rms_adamw"` is the same but for two things: here matmuls are in float32, as
    CPUs without bfloat16 instructions are some fifteen times slower in bfloat16, and matrices of
    one shape are batched. On such a CPU a network of two layers and width 64 trains three times as
    fast.
    """

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float = WEIGHT_DECAY) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates all parameters that have a gradient.

        Args:
            closure: evaluates the loss that is returned, before the update.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, matrices in by_shape.items():
                updates = orthogonalized(torch.stack([self._momentum(p) for p in matrices]))
                size = group["lr"] * RMS_OF_ADAM * math.sqrt(max(shape))
                for p, update in zip(matrices, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)
        return loss

    def _momentum(self, p: Tensor) -> Tensor:
        """The gradient of `p` with Nesterov momentum."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        mean: Tensor = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(mean, MOMENTUM)


def orthogonalized(G: Tensor) -> Tensor:
    """Matrices [M, rows, columns] with the same singular vectors and singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    tall = G.shape[1] > G.shape[2]
    X = G.mT if tall else G
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=TINY)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


def optimizers_for(model: nn.Module, matrices: str) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices of layers and AdamW for the rest.

    Args:
        model: the network, whose layers are in modules named `…layers`.
        matrices: optimizer of the matrices of layers, adamw or muon.
    """

    def is_matrix_of_layer(name: str, p: Tensor) -> bool:
        return p.dim() == 2 and name.split(".")[0].endswith("layers")

    named = list(model.named_parameters())
    inner = [p for name, p in named if matrices == "muon" and is_matrix_of_layer(name, p)]
    rest = [p for name, p in named if matrices != "muon" or not is_matrix_of_layer(name, p)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    ]
    if inner:
        optimizers.append(Muon(inner))
    return optimizers
