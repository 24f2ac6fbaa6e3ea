"""The oracle: each operation in plain eager PyTorch, read as its equations.

It serves twice. Called on float64 inputs it is the exact value that every kernel is held to
(``hetkern.testing``); called on the user's own tensors it is ``impl="reference"``. Any float dtype,
any strides, any device; differentiable as often as wanted, in forward and reverse mode; no host
synchronisation and no control flow that depends on data, so that it also runs under ``torch.func``
and ``torch.compile``.
"""

from hetkern.reference.attention import attention, attention_varlen
from hetkern.reference.cross_entropy import CrossEntropyStats, cross_entropy
from hetkern.reference.rnn import rnn_gates, rnn_sequence
from hetkern.reference.softmax import softmax

__all__ = [
    "CrossEntropyStats",
    "attention",
    "attention_varlen",
    "cross_entropy",
    "rnn_gates",
    "rnn_sequence",
    "softmax",
]
