"""Train small language models: ``hetkern train`` from a shell, :func:`train` from Python."""

from hetkern.training.checkpoint import LoadedRun, load
from hetkern.training.config import TrainConfig, UserError
from hetkern.training.evaluate import Evaluation, evaluate
from hetkern.training.generate import generate, sample
from hetkern.training.loop import train
from hetkern.training.metrics import Row, read_metrics
from hetkern.training.result import TrainResult

__all__ = [
    "Evaluation",
    "LoadedRun",
    "Row",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "evaluate",
    "generate",
    "load",
    "read_metrics",
    "sample",
    "train",
]
