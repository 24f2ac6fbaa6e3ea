"""A recurrent language model: tanh, LSTM or GRU.

x        = dropout(E[tokens])                                E: (V, H)
y, state = layers(x, state)
logits   = dropout(y) E^T + b                                tied; W y + b without

Shapes: B sequences of T tokens from a vocabulary of V; H the width. The state is carried from one
call to the next: sequences in pieces, token by token too, give what they give whole. It starts
anew where a document begins (``reset``).

Source: Mikolov et al. (2010), "Recurrent neural network based language model"; Press & Wolf (2017)
for tied weights; Gal & Ghahramani (2016) and Merity et al. (2018) for the dropouts drawn once a
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetkern.models.kernels import Kernels
from hetkern.models.recurrent import CELLS, State, recurrent_layers


@dataclass(frozen=True)
class RNNShape:
    """The sizes of a recurrent language model.

    Attributes:
        vocabulary: V, the number of different tokens.
        cell: "rnn" (tanh), "lstm" or "gru".
        layers: of the recurrence.
        width: H, of embedding and state.
        context: tokens between two truncations of the gradient; the state goes on.
        dropout: in training, of the embedding, between layers and of the output, each step anew.
        variational_dropout: the same of each layer's input and of the output, once a sequence.
        recurrent_dropout: the same of the state where it meets ``W_hh``.
        tied: whether the output's weights are the embedding's.
    """

    vocabulary: int
    cell: str = "lstm"
    layers: int = 2
    width: int = 256
    context: int = 128
    dropout: float = 0.0
    variational_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    tied: bool = True

    def __post_init__(self) -> None:
        """Refuse an unknown cell."""
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")


class RNNLM(nn.Module):
    """The model; see the head of this file. Sampling takes it as a ``Stepping``."""

    longest: int | None = None  # a state goes on for ever

    def __init__(self, shape: RNNShape, kernels: Kernels) -> None:
        """Draw the weights from torch's generator: seed it first for the same ones again."""
        super().__init__()
        self.shape = shape
        self.kernels = kernels
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.rnn = recurrent_layers(
            kernels,
            shape.cell,
            shape.width,
            shape.width,
            shape.layers,
            dropout=shape.dropout,
            variational_dropout=shape.variational_dropout,
            recurrent_dropout=shape.recurrent_dropout,
        )
        self.output_weight = (
            None if shape.tied else nn.Parameter(torch.empty(shape.vocabulary, shape.width))
        )
        self.output_bias = nn.Parameter(torch.zeros(shape.vocabulary))
        self._draw_weights()

    def _draw_weights(self) -> None:
        nn.init.uniform_(self.token_embedding.weight, -0.1, 0.1)
        if self.output_weight is not None:
            nn.init.uniform_(self.output_weight, -0.1, 0.1)
        if self.shape.cell == "lstm":  # a fresh memory keeps what it holds (Gers et al., 2000)
            H = self.shape.width
            with torch.no_grad():
                for layer in range(self.shape.layers):
                    self.rnn.get_parameter(f"bias_ih_l{layer}")[H : 2 * H] = 1.0

    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits of the token after each one, and the state behind the last.

        Args:
            tokens: (B, T) int64.
            state: (layers, B, H), for an LSTM two of them; zeros without it.
            reset: (B, T) boolean, true where a document begins; its first token sees nothing
                before it.

        Returns:
            (B, T, V) in the weights' dtype, and the state.
        """
        logits, state = self._walk(tokens, state, reset)
        return logits.transpose(0, 1), state

    def _walk(
        self, tokens: Tensor, state: State | None, reset: Tensor | None
    ) -> tuple[Tensor, State]:
        """The logits (T, B, V): time first, as the layers walk."""
        shape = self.shape
        x = F.dropout(self.token_embedding(tokens.t()), shape.dropout, self.training)
        y, state = self.rnn(x, state, reset=reset)
        y = F.dropout(y, shape.dropout, self.training)
        if self.training and shape.variational_dropout:
            y = y * F.dropout(y.new_ones(1, *y.shape[1:]), shape.variational_dropout)
        return self._logits(y), state

    def _logits(self, y: Tensor) -> Tensor:
        weight = self.token_embedding.weight if self.output_weight is None else self.output_weight
        return F.linear(y, weight, self.output_bias)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, State]:
        """Cross-entropy of ``targets`` in nats, and the state behind the last token.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64, the token that follows each.
            state: as in :meth:`forward`.
            reset: as in :meth:`forward`.
            reduction: ``"mean"`` or ``"sum"``, or ``"none"`` for one loss a target, (B·T,).
        """
        logits, state = self._walk(tokens, state, reset)
        loss = self.kernels.cross_entropy(logits.flatten(0, 1), targets.t().flatten(), reduction)
        return loss.view(targets.t().shape).t().flatten() if reduction == "none" else loss, state

    def start(self, rows: int) -> State | None:
        """The state before the first token of ``rows`` sequences."""
        return None

    @torch.no_grad()
    def extend(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """The logits (B, V) after the last of ``tokens`` (B, T), and the state there."""
        y, state = self.rnn(self.token_embedding(tokens.t()), state)
        return self._logits(y[-1]), state

    def describe(self) -> str:
        """The sizes in words."""
        return f"{self.shape.layers} layers of {self.shape.width}"

    def parameter_count(self) -> int:
        """The number of weights that are trained."""
        return sum(p.numel() for p in self.parameters())
