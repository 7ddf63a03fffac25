"""The registry of variants: architecture + checkpoint + engine + batch, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mpnn.config import ARCHITECTURES, NetworkConfig
from mpnn.errors import InputError
from mpnn.optimizations import Engine, check_device, load_engine
from mpnn.schedule import Order
from mpnn.weights import Card, formula_weights, load_arrays, shipped


@dataclass(frozen=True)
class Variant:
    """One way to get sequences and scores.

    Attributes:
        architecture: a name in `ARCHITECTURES`; what is computed. It names the checkpoint too.
        engine: what `mpnn.optimizations.load_engine` takes; how it is computed.
        batch: proteins per call.
        device: where.
        order: distribution over decoding orders.
        trained: whether the weights are those of the shipped checkpoint, else deterministic ones:
            float16 cannot hold these, while a checkpoint that is stored in it loses nothing by it.
    """

    architecture: str = "baseline"
    engine: str = "reference"
    batch: int = 1
    device: str = "cpu"
    order: Order = "random"
    trained: bool = True

    @property
    def config(self) -> NetworkConfig:
        """Size of the network."""
        return ARCHITECTURES[self.architecture]

    @property
    def card(self) -> Card | None:
        """The card of the shipped checkpoint; None where it is not used or does not exist."""
        return load_arrays(self.architecture).card if self._ships else None

    @property
    def _ships(self) -> bool:
        return self.trained and self.architecture in shipped()

    def load(self) -> Engine:
        """The engine with the shipped checkpoint, or with deterministic weights if none is shipped.

        Times do not depend on the values of weights; recovery does, and is stated of checkpoints
        alone.

        Raises:
            InputError: the device cannot be used, or the checkpoint is damaged or of a network of
                another configuration.
        """
        check_device(self.device)
        weights = load_arrays(self.architecture) if self._ships else formula_weights(self.config)
        if weights.config != self.config:
            raise InputError(
                f"{self.architecture} is {self.config}, and its weights are of {weights.config}; "
                f"a file called {self.architecture} here, or one that was swapped, hides them"
            )
        return load_engine(weights, self.engine, self.device)


VARIANTS: dict[str, Variant] = {
    "baseline": Variant(),
    "fast": Variant("fast"),
    "minimal": Variant("minimal"),
    "minimal-fast": Variant("minimal-fast"),
    "extreme-v2": Variant("extreme-v2", batch=8),
    "baseline-formula": Variant(trained=False),
    "mixed-formula": Variant(engine="mixed", trained=False),
    "baseline-k12": Variant("baseline-k12"),
    "baseline-k30": Variant("baseline-k30"),
    "baseline-batch-8": Variant(batch=8),
    "minimal-batch-8": Variant("minimal", batch=8),
    "minimal-k30-batch-8": Variant("minimal-k30", batch=8),
    "baseline-coloured": Variant(order="graph-coloring"),
    "exact-coloured": Variant(engine="exact-torch", order="graph-coloring"),
    "coreml-extreme-v2": Variant("extreme-v2", "coreml", batch=8),
    "extreme-v2-mlx": Variant("extreme-v2", "mlx"),
    "extreme-v2-mlx-eager": Variant("extreme-v2", "mlx-eager"),
    "extreme-v2-mlx-fused": Variant("extreme-v2", "mlx-fused"),
    "one-shot": Variant("one-shot"),
    "one-shot-exact": Variant("one-shot", "exact-torch"),
    "minimal-one-shot": Variant("minimal-one-shot"),
    "ssm": Variant("ssm", "ssm"),
}
"""Every variant that has a name."""


def find_variant(name: str) -> Variant:
    """The variant of this name; `NAME@mps` is the same on another device.

    Any other name is an engine's, and means the published network.
    """
    name, _, device = name.partition("@")
    return replace(VARIANTS.get(name) or Variant(engine=name), device=device or "cpu")
