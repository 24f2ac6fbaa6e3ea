"""Fused kernels for language models: softmax, cross-entropy and more.

Each operation has one written meaning, on every processor.
"""

from . import _library
from . import impl as _impl

_impl.missing_library = _library.load(list(__path__))
if _impl.missing_library is None:
    try:
        from . import _C as _native  # type: ignore[attr-defined]  # built, not written

        _impl.native = _native
    except ImportError:  # built without pybind11: plans and instruction sets cannot be shown
        pass

from . import nn, ops, reference  # noqa: E402
from .doctor import doctor  # noqa: E402
from .impl import explain, record, use  # noqa: E402
from .ops import (  # noqa: E402
    cross_entropy,
    gru,
    gru_cell,
    log_softmax,
    lstm,
    lstm_cell,
    rnn,
    rnn_cell,
    softmax,
)
from .reference import CrossEntropyStats  # noqa: E402
from .training import load  # noqa: E402

__version__ = "0.1.0"
__all__ = [
    "CrossEntropyStats",
    "cross_entropy",
    "doctor",
    "explain",
    "gru",
    "gru_cell",
    "load",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "nn",
    "ops",
    "record",
    "reference",
    "rnn",
    "rnn_cell",
    "softmax",
    "use",
]
