"""Training and distillation: `train` runs what a `TrainConfig` describes."""

from mpnn.training.run import Progress, train
from mpnn.training.settings import TrainConfig, learning_rate
from mpnn.training.state import CurvePoint

__all__ = ["CurvePoint", "Progress", "TrainConfig", "learning_rate", "train"]
