"""The kinds of network: which one a configuration means, and which engine runs it."""

from __future__ import annotations

import torch

from mpnn.errors import InputError
from mpnn.model import ProteinMPNN
from mpnn.optimizations import Engine, load_engine
from mpnn.optimizations.one_shot import OneShotEngine
from mpnn.optimizations.ssm import SSMEngine
from mpnn.ssm import SSM
from mpnn.weights import make_network

__all__ = ["Network", "engine_for", "make_network"]

Network = ProteinMPNN | SSM

USUAL_ENGINE = "exact"
"""Runs a ProteinMPNN where no engine is named."""

SSM_ENGINE = "ssm"
"""The one engine that runs a state-space network."""


def engine_for(
    network: Network, name: str | None = None, device: str | torch.device = "cpu"
) -> Engine:
    """The engine that runs a network with its weights.

    Args:
        network: the network.
        name: what `mpnn.optimizations.load_engine` takes, or "ssm"; None takes the usual one.
        device: where to run it.

    Raises:
        InputError: the engine runs networks of another kind; or see `load_engine`.
    """
    if isinstance(network, SSM):
        if name not in (None, SSM_ENGINE):
            raise InputError(
                f"engine {name} runs ProteinMPNN networks, and these weights are of a state-space "
                f"network; take engine {SSM_ENGINE}"
            )
        return SSMEngine(network, device)
    if name == SSM_ENGINE:
        raise InputError(
            f"engine {name} runs state-space networks, and these weights are of a ProteinMPNN; "
            f"take engine {USUAL_ENGINE}"
        )
    engine = load_engine(name or USUAL_ENGINE, network, device)
    return engine if network.config.autoregressive else OneShotEngine(engine)
