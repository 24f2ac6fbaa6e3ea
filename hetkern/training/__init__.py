"""Train small language models: ``hetkern train`` from a shell, :func:`train` from Python."""

from hetkern.training.config import ClassifyConfig, RunConfig, TrainConfig, UserError
from hetkern.training.evaluate import evaluate
from hetkern.training.generate import generate, sample
from hetkern.training.loading import load
from hetkern.training.loop import resume, train
from hetkern.training.metrics import Row, read_metrics
from hetkern.training.result import TrainResult
from hetkern.training.task import Evaluation, LoadedRun, Task

__all__ = [
    "ClassifyConfig",
    "Evaluation",
    "LoadedRun",
    "Row",
    "RunConfig",
    "Task",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "evaluate",
    "generate",
    "load",
    "read_metrics",
    "resume",
    "sample",
    "train",
]
