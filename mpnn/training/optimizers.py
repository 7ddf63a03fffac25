"""Which optimiser has which parameters."""

from __future__ import annotations

import torch
from torch import nn

ADAM_BETAS = (0.9, 0.98)


def optimizers_for(
    model: nn.Module, match: nn.Module | None, matrices: str, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices of layers and AdamW for the rest.

    Args:
        model: the network, whose layers are in modules named `…layers`.
        match: what else is trained along, by AdamW.
        matrices: what the matrices of layers are given to, adamw or muon.
        weight_decay: of both.

    Muon (Jordan et al. 2024) makes all singular values of a step nearly equal; scaled by the size
    of the matrix its steps are as large as those of AdamW (Liu et al., arXiv:2502.16982), and one
    learning rate is for both.
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
        optimizers.append(
            torch.optim.Muon(inner, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers
