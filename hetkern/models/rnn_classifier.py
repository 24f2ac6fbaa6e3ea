"""A recurrent text classifier.

x      = dropout(E[text])                                    E: (V, I), row 0 (padding) is 0
h      = the last layer's state at each row's true end, of each direction
logits = W dropout([h_forward, h_backward]) + b

Shapes: B texts of up to T tokens, their true lengths beside them; V tokens, C classes, H hidden.
No padding is computed, and none is seen: the forward state is the one of a text's last token, the
backward state the one of its first.

Source: Schuster & Paliwal (1997), "Bidirectional Recurrent Neural Networks"; Elman (1990) for tanh.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from hetkern.models.kernels import Kernels, choose_kernels
from hetkern.models.recurrent import last_states, recurrent_layers

PAD = 0


class RNNClassifier(nn.Module):
    """Embedding, bidirectional layers, and a linear map of their last states.

    Args:
        input_dim: V, the number of different tokens; token 0 is padding.
        hidden_dim: H of each direction, and I, the size of the embedding, unless that is given.
        output_dim: C, the number of classes.
        n_layers: layers of the recurrence.
        bidirectional: whether each layer also reads from the end.
        dropout: in training, probability of a zero in the embedding, between layers and in the
            last states.
        cell: "rnn" (tanh), "lstm" or "gru".
        embedding_dim: I.
        longest: tokens after which texts were cut in training, for who prepares texts; the model
            itself reads any.
        kernels: whose kernels it runs on; hetkern's own if None.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 256,
        output_dim: int = 2,
        n_layers: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.5,
        *,
        cell: str = "rnn",
        embedding_dim: int | None = None,
        longest: int | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        self.kernels = kernels if kernels is not None else choose_kernels()
        self.bidirectional = bidirectional
        self.longest = longest
        self.dropout = dropout
        width = hidden_dim if embedding_dim is None else embedding_dim
        self.embedding = nn.Embedding(input_dim, width, padding_idx=PAD)
        self.rnn = recurrent_layers(
            self.kernels,
            cell,
            width,
            hidden_dim,
            n_layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        self.output = nn.Linear(hidden_dim * (2 if bidirectional else 1), output_dim)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            text: (B, T) int64 tokens; what stands behind a row's length is not read.
            lengths: (B,) int64 in [1, T], on the device of ``text``.

        Returns:
            (B, C).
        """
        if text.device.type == "cpu" and not torch.compiler.is_compiling():
            # No padding is even looked up; elsewhere a packed batch would wait for its lengths.
            tokens, *where = pack_padded_sequence(text.t(), lengths, enforce_sorted=False)
            _, state = self.rnn(PackedSequence(self._embedded(tokens), *where))
        else:
            _, state = self.rnn(self._embedded(text.t()), lengths=lengths)
        ends = last_states(state, self.bidirectional)
        return self.output(F.dropout(ends, self.dropout, self.training))

    def _embedded(self, tokens: Tensor) -> Tensor:
        return F.dropout(self.embedding(tokens), self.dropout, self.training)

    def loss(
        self, text: Tensor, lengths: Tensor, labels: Tensor, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy of ``labels``, (B,), in nats: the mean, or ``"none"`` for one a text."""
        return self.kernels.cross_entropy(self(text, lengths), labels, reduction)

    def describe(self) -> str:
        """The sizes in words."""
        layers, directions = self.rnn.num_layers, "both ways" if self.bidirectional else "one way"
        return f"{layers} layers of {self.rnn.hidden_size}, {directions}"

    def parameter_count(self) -> int:
        """The number of weights that are trained."""
        return sum(p.numel() for p in self.parameters())
