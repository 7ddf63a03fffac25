"""Which optimizer has which parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

ADAM_BETAS = (0.9, 0.98)
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Of the odd polynomial that takes singular values towards 1 (Jordan et al. 2024)."""
NEWTON_SCHULZ_STEPS = 5
RMS_OF_ADAM = 0.2  # root mean square of a usual step of AdamW, in units of the learning rate
TINY = 1e-7  # the least norm of a gradient that is divided by it


class Muon(torch.optim.Optimizer):
    """AdamW's stand-in for matrices: steps whose singular values are nearly equal.

    Scaled by the size of the matrix its steps are as large as those of AdamW (Liu et al.,
    arXiv:2502.16982), and one learning rate is for both. It is `torch.optim.Muon` with
    `adjust_lr_fn="match_rms_adamw"` but for two things, which are its reason to be: products are in
    float32, not in bfloat16, which CPUs without instructions for it multiply some fifteen times
    more slowly, and matrices of one shape are treated together. A network of two layers and width
    64 then learns three times as fast on such a CPU.
    """

    def __init__(self, matrices: Iterable[Tensor], weight_decay: float) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step along the gradients; parameters without one stay as they are.

        Args:
            closure: called before, if given, to evaluate the loss that is returned.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, matrices in alike.items():
                updates = orthogonalized(torch.stack([self._momentum(p) for p in matrices]))
                size = group["lr"] * RMS_OF_ADAM * math.sqrt(max(shape))
                for p, update in zip(matrices, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)
        return loss

    def _momentum(self, p: Tensor) -> Tensor:
        """The gradient of `p` with Nesterov's momentum."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        mean: Tensor = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(mean, MOMENTUM)


def orthogonalized(G: Tensor) -> Tensor:
    """Matrices [M, rows, columns] with their singular vectors, and singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    tall = G.shape[1] > G.shape[2]
    X = G.mT if tall else G
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=TINY)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


def optimizers_for(
    model: nn.Module, match: nn.Module | None, matrices: str, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices of layers and AdamW for the rest.

    Args:
        model: the network, whose layers are in modules named `…layers`.
        match: what else is trained along, by AdamW.
        matrices: what the matrices of layers are given to, adamw or muon.
        weight_decay: of both.
    """
    inner = [
        p
        for name, p in model.named_parameters()
        if matrices == "muon" and p.dim() == 2 and name.split(".")[0].endswith("layers")
    ]
    theirs = {id(p) for p in inner}
    every = [*model.parameters(), *(() if match is None else match.parameters())]
    rest = [p for p in every if id(p) not in theirs]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, betas=ADAM_BETAS, weight_decay=weight_decay, fused=True)
    ]
    if inner:
        optimizers.append(Muon(inner, weight_decay))
    return optimizers
