"""Fused kernels for language models: softmax, cross-entropy and more.

Each operation has one written meaning, on every processor.
"""

from . import _library

if (_installed := _library.hidden(list(__path__))) is not None:
    # A clone without its library, and Python was started in it: what is installed runs.
    _library.run_instead(__name__, list(__path__), _installed)
else:
    from . import impl as _impl

    _impl.missing_library = _library.load(list(__path__))
    if _impl.missing_library is None:
        try:
            from . import _C as _native  # type: ignore[attr-defined]  # built, not written

            _impl.native = _native
        except ImportError:  # built without pybind11: plans and instruction sets cannot be shown
            pass

    from . import nn, ops, reference
    from .doctor import doctor
    from .impl import explain, record, use
    from .ops import (
        attention,
        attention_decode,
        attention_varlen,
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
    from .reference import CrossEntropyStats
    from .training import load

__version__ = "0.1.0"
__all__ = [
    "CrossEntropyStats",
    "attention",
    "attention_decode",
    "attention_varlen",
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
