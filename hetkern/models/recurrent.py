"""Recurrent layers for models: hetkern's own, or torch's beside them with packed sequences.

Both have torch's parameters under torch's names, drawn in torch's order: the same seed gives the
same weights, and a checkpoint of one loads into the other.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hetkern.models.kernels import Kernels

CELLS = ("rnn", "lstm", "gru")  # "rnn" is the one with tanh
State = Tensor | tuple[Tensor, Tensor]


def recurrent_layers(
    kernels: Kernels,
    cell: str,
    input_size: int,
    hidden_size: int,
    layers: int = 1,
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    variational_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
) -> Any:
    """A module ``(x (T, B, I), hx, lengths=, reset=) -> (y (T, B, H), state)``.

    Time first, as the kernels walk: a batch first would be copied there and back. ``reset`` is
    (B, T).

    Args:
        kernels: whose kernels it runs on.
        cell: "rnn", "lstm" or "gru".
        input_size: I.
        hidden_size: H of each direction.
        layers: each reads the output of the one before.
        bidirectional: whether each layer also walks from the end.
        dropout: in training, of what passes from layer to layer, drawn for each step.
        variational_dropout: in training, of each layer's input, drawn once a sequence.
        recurrent_dropout: the same of the state where it meets ``W_hh``.

    Raises:
        ValueError: no such cell; or recurrent dropout, which torch's kernels do not have.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
    sizes = input_size, hidden_size, layers
    options: dict[str, Any] = {"bidirectional": bidirectional}
    options["dropout"] = dropout if layers > 1 else 0.0  # torch warns where nothing is between
    if kernels.name == "torch":
        if recurrent_dropout:
            raise ValueError("torch's kernels have no recurrent dropout; set it to 0")
        made = _TORCH[cell](*sizes, **options)
        made.variational_dropout = variational_dropout
        return made
    from hetkern import nn as ours  # `import hetkern` imports this module

    classes = {"rnn": ours.RNN, "lstm": ours.LSTM, "gru": ours.GRU}
    return classes[cell](
        *sizes,
        **options,
        variational_dropout=variational_dropout,
        recurrent_dropout=recurrent_dropout,
        impl="auto" if kernels.name == "hetkern" else kernels.name,
    )


def detached(state: State | None) -> State | None:
    """The numbers of a state without the steps that led to it."""
    if isinstance(state, tuple):
        return state[0].detach(), state[1].detach()
    return None if state is None else state.detach()


def last_states(state: State, bidirectional: bool) -> Tensor:
    """Each row's h at its end, of the last layer: (B, H), of both directions (B, 2H)."""
    h = state[0] if isinstance(state, tuple) else state
    return torch.cat([h[-2], h[-1]], -1) if bidirectional else h[-1]


class _OnTorch(nn.RNNBase):
    """What torch's modules lack: lengths, resets, variational dropout."""

    variational_dropout: float = 0.0

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """As hetkern's modules, time first; a row's length must be at least 1."""
        if reset is not None and (lengths is not None or self.bidirectional):
            raise ValueError("torch's kernels take reset for one direction and whole rows alone")
        if isinstance(input, PackedSequence):
            return super().forward(input, hx)  # type: ignore[misc]
        if lengths is not None:
            packed = pack_padded_sequence(input, lengths.cpu(), enforce_sorted=False)
            y, ends = super().forward(packed, hx)  # type: ignore[misc]
            y, _ = pad_packed_sequence(y, total_length=input.shape[0])
            return y, ends
        if hx is None:
            zeros = input.new_zeros(
                self.num_layers * (2 if self.bidirectional else 1), input.shape[1], self.hidden_size
            )
            hx = (zeros, zeros) if self.mode == "LSTM" else zeros
        masks = self._masks(input)
        if reset is None:
            return self._walk(input, hx, masks)
        # No state passes a step where some row starts anew: the columns between go one by one.
        begins = [0, *(reset[:, 1:].any(0).nonzero()[:, 0] + 1).tolist(), input.shape[0]]
        outputs: list[Tensor] = []
        for begin, end in itertools.pairwise(begins):
            kept = (~reset[:, begin])[:, None]
            hx = tuple(s * kept for s in hx) if isinstance(hx, tuple) else hx * kept  # type: ignore[assignment]
            y, hx = self._walk(input[begin:end], hx, masks)
            outputs.append(y)
        return torch.cat(outputs), hx

    def _masks(self, input: Tensor) -> list[Tensor] | None:
        p = self.variational_dropout if self.training else 0.0
        if not p:
            return None
        directions = 2 if self.bidirectional else 1
        widths = [self.input_size] + [directions * self.hidden_size] * (self.num_layers - 1)
        ones = (input.new_ones(1, input.shape[1], width) for width in widths)
        return [nn.functional.dropout(one, p) for one in ones]

    def _walk(self, x: Tensor, hx: State, masks: list[Tensor] | None) -> tuple[Tensor, State]:
        if masks is None:
            return super().forward(x, hx)  # type: ignore[misc]
        # Layer by layer, since each layer's input has its mask.
        walk: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh}[self.mode]
        directions = 2 if self.bidirectional else 1
        ends = []
        for layer, mask in enumerate(masks):
            at = slice(layer * directions, (layer + 1) * directions)
            if layer and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            weights = [w for group in self.all_weights[at] for w in group]
            state: Any = tuple(s[at] for s in hx) if isinstance(hx, tuple) else hx[at]
            x, *end = walk(
                x * mask, state, weights, True, 1, 0.0, self.training, self.bidirectional, False
            )
            ends.append(end)
        joined = tuple(torch.cat(parts) for parts in zip(*ends, strict=True))
        return x, joined if len(joined) > 1 else joined[0]  # type: ignore[return-value]


class _TorchRNN(_OnTorch, nn.RNN):  # type: ignore[misc]
    pass


class _TorchLSTM(_OnTorch, nn.LSTM):  # type: ignore[misc]
    pass


class _TorchGRU(_OnTorch, nn.GRU):  # type: ignore[misc]
    pass


_TORCH: dict[str, Any] = {"rnn": _TorchRNN, "lstm": _TorchLSTM, "gru": _TorchGRU}
