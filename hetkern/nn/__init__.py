"""Drop-ins for ``torch.nn``: modules, ``functional`` and :func:`convert`.

A module here is its torch namesake with other kernels: same constructor arguments, parameters,
buffers, state_dict and repr, and an instance of torch's class (whole RNNs of ``nn.RNNBase``).
hetkern's own options come after torch's, by keyword.
"""

from . import functional
from .attention import MultiheadAttention
from .convert import Conversion, convert
from .modules import CrossEntropyLoss, LogSoftmax, Softmax
from .recurrent import GRU, LSTM, RNN
from .recurrent_cells import GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Conversion",
    "CrossEntropyLoss",
    "GRUCell",
    "LSTMCell",
    "LogSoftmax",
    "MultiheadAttention",
    "RNNCell",
    "Softmax",
    "convert",
    "functional",
]
