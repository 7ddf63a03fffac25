"""What is computed: the letters, the frozen model configuration and the named architectures."""

from __future__ import annotations

from dataclasses import dataclass

ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
"""The V = 21 letters in the order of the network's outputs; X is unknown."""

NUM_LETTERS = len(ALPHABET)
UNKNOWN = ALPHABET.index("X")


@dataclass(frozen=True)
class ModelConfig:
    """Size of one ProteinMPNN network.

    The feature widths (16 positional, 16 radial per atom pair, 25 pairs) are the same in every
    published network and stand as constants in `mpnn.graph`.
    """

    num_encoder_layers: int = 3
    num_decoder_layers: int = 3
    hidden_dim: int = 128  # C, width of node and edge vectors
    k_neighbors: int = 48  # k; K = min(k, L) neighbours are used

    def __post_init__(self) -> None:
        for name in ("num_encoder_layers", "num_decoder_layers", "hidden_dim", "k_neighbors"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


ARCHITECTURES: dict[str, ModelConfig] = {
    "baseline": ModelConfig(),
    "baseline-k30": ModelConfig(k_neighbors=30),
    "baseline-k12": ModelConfig(k_neighbors=12),
    "fast": ModelConfig(k_neighbors=16),
    "minimal": ModelConfig(2, 2, 64),
    "minimal-k30": ModelConfig(2, 2, 64, 30),
    "minimal-fast": ModelConfig(2, 2, 64, 16),
    "extreme-v2": ModelConfig(2, 2, 64, 12),
}
"""Published name (or base and k) to configuration. Each needs its own checkpoint."""
