"""The families: one module each holds public functions, schemas, shapes and derivatives."""

from .attention import attention
from .attention_sequences import attention_decode, attention_varlen
from .cross_entropy import cross_entropy
from .rnn import gru_cell, lstm_cell, rnn_cell
from .rnn_sequences import gru, lstm, rnn
from .softmax import log_softmax, softmax

__all__ = [
    "attention",
    "attention_decode",
    "attention_varlen",
    "cross_entropy",
    "gru",
    "gru_cell",
    "log_softmax",
    "lstm",
    "lstm_cell",
    "rnn",
    "rnn_cell",
    "softmax",
]
