"""The families: one module each holds public functions, schemas, shapes and derivatives."""

from .cross_entropy import cross_entropy
from .softmax import log_softmax, softmax

__all__ = ["cross_entropy", "log_softmax", "softmax"]
