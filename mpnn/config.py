"""What is computed: residue types, the model configuration and the named architectures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
"""The V = 21 residue types in the order of the network's outputs; X is unknown."""

NUM_LETTERS = len(ALPHABET)
UNKNOWN = ALPHABET.index("X")

ATOMS = N, CA, C, O, CB = range(5)  # noqa: E741 – atom names of the backbone
ATOM_PAIRS = (  # first atom on residue i, second on its neighbor j, in the order of the weights
    (CA, CA), (N, N), (C, C), (O, O), (CB, CB),
    (CA, N), (CA, C), (CA, O), (CA, CB),
    (N, C), (N, O), (N, CB), (CB, C), (CB, O), (O, C),
    (N, CA), (C, CA), (O, CA), (CB, CA),
    (C, N), (O, N), (CB, N), (C, CB), (O, CB), (C, O),
)  # fmt: skip
NUM_POSITIONAL = 16
NUM_RBF = 16
RBF_MIN, RBF_MAX = 2.0, 22.0  # Å, centers evenly spaced, both ends included


@dataclass(frozen=True)
class ModelConfig:
    """Size of one ProteinMPNN network.

    The feature widths (16 positional, 16 radial per atom pair, 25 pairs) are the same in every
    published network, and are constants of this module.
    """

    num_encoder_layers: int = 3
    num_decoder_layers: int = 3
    hidden_dim: int = 128  # C, width of node and edge vectors
    k_neighbors: int = 48  # k; K = min(k, L) neighbors are used
    autoregressive: bool = True  # False: sees no residue types; one pass samples all

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass(frozen=True)
class SSMConfig:
    """Size of one state-space network (`mpnn.ssm`), which sees no residue types."""

    num_layers: int = 6
    hidden_dim: int = 128  # C, width of node and edge vectors; inside a layer it is 2·C
    num_heads: int = 8  # H, parts of the inner width that share a decay
    state_dim: int = 16  # n, numbers that each inner channel remembers
    k_neighbors: int = 48  # k; neighbors whose edges are pooled once
    autoregressive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_sizes(self)
        if 2 * self.hidden_dim % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide 2·{self.hidden_dim} channels")


NetworkConfig = ModelConfig | SSMConfig


def _check_sizes(config: NetworkConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(field.default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{field.name} must be true or false, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{field.name} must be a whole number of at least 1, not {value!r}")


ARCHITECTURES: dict[str, NetworkConfig] = {
    "baseline": ModelConfig(),
    "baseline-k30": ModelConfig(k_neighbors=30),
    "baseline-k12": ModelConfig(k_neighbors=12),
    "fast": ModelConfig(k_neighbors=16),
    "minimal": ModelConfig(2, 2, 64),
    "minimal-k30": ModelConfig(2, 2, 64, 30),
    "minimal-fast": ModelConfig(2, 2, 64, 16),
    "extreme-v2": ModelConfig(2, 2, 64, 12),
    "one-shot": ModelConfig(autoregressive=False),
    "minimal-one-shot": ModelConfig(2, 2, 64, autoregressive=False),
    "ssm": SSMConfig(),
}
"""Published name (or base and k) to configuration. Each needs its own checkpoint."""
