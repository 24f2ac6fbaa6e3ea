"""The families: one module each holds public functions, schemas, shapes and derivatives."""

from .softmax import log_softmax, softmax

__all__ = ["log_softmax", "softmax"]
