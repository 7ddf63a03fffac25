"""Training and distillation: `train` runs what a `TrainConfig` describes."""

from mpnn.training.run import CurvePoint, Progress, train, train_together
from mpnn.training.settings import TrainConfig, learning_rate

__all__ = ["CurvePoint", "Progress", "TrainConfig", "learning_rate", "train", "train_together"]
