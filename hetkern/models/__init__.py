"""Language models to train with hetkern's kernels: one file a model."""

from hetkern.models.gpt import GPT, GPTShape
from hetkern.models.kernels import Kernels, choose_kernels

__all__ = ["GPT", "GPTShape", "Kernels", "choose_kernels"]
