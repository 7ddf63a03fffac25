"""The registry of variants: architecture + checkpoint + engine + batch, as data."""

from __future__ import annotations

from dataclasses import dataclass

from mpnn.config import ARCHITECTURES, ModelConfig
from mpnn.optimizations import Engine, load_engine
from mpnn.weights import formula_weights


@dataclass(frozen=True)
class Variant:
    """One way to get sequences and scores.

    Attributes:
        architecture: a name in `ARCHITECTURES`; what is computed. It names the checkpoint too.
        engine: a name in `mpnn.optimizations.ENGINES`; how it is computed.
        batch: proteins per call.
        device: where.
    """

    architecture: str = "baseline"
    engine: str = "reference"
    batch: int = 1
    device: str = "cpu"

    @property
    def config(self) -> ModelConfig:
        """Size of the network."""
        return ARCHITECTURES[self.architecture]

    def load(self) -> Engine:
        """The engine with weights made by formula: times do not depend on their values."""
        return load_engine(self.engine, formula_weights(self.config), self.device)


VARIANTS: dict[str, Variant] = {
    "baseline": Variant(),
    "fast": Variant("fast"),
    "minimal": Variant("minimal"),
    "minimal-fast": Variant("minimal-fast"),
    "extreme-v2": Variant("extreme-v2", batch=8),
    "baseline-k12": Variant("baseline-k12"),
    "baseline-k30": Variant("baseline-k30"),
    "baseline-batch-8": Variant(batch=8),
    "minimal-batch-8": Variant("minimal", batch=8),
    "minimal-k30-batch-8": Variant("minimal-k30", batch=8),
    "exact": Variant(engine="exact"),
}
"""Every variant that a claim or a user can name."""
