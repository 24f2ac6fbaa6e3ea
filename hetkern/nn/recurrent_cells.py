"""Modules of one step of the RNN family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .modules import Options
from .recurrent_checks import check_dtype, check_state, check_tensor, named, two


class _Cell(Options, nn.modules.rnn.RNNCellBase):
    """What the cells share."""

    def _check(self, x: Any, states: dict[str, Any]) -> None:
        """What torch's cells check, with their classes of errors; the ops check the rest."""
        name = named(self)
        check_tensor(f"{name}: input", x)
        for argument, value in {"input": x, **states}.items():
            if isinstance(value, Tensor) and value.dim() not in (1, 2):
                wanted = "wanted one or two dimensions"
                raise ValueError(f"{name}: {argument}: {wanted}, got shape {tuple(value.shape)}")
        if x.shape[-1] != self.input_size:
            wanted = f"wanted {self.input_size} numbers a row"
            raise RuntimeError(f"{name}: input: {wanted}, got shape {tuple(x.shape)}")
        check_dtype(RuntimeError, f"{name}: input", x, self.weight_ih.dtype)
        for argument, state in states.items():
            check_state(f"{name}: {argument}", state, (*x.shape[:-1], self.hidden_size), x)

    def _step(self, op: Any, x: Any, hx: Any, *more: Any) -> Any:
        """One step from ``hx``, which the op checks; its errors become those of :meth:`_check`."""
        try:
            return op(x, hx, *self._weights(), *more, impl=self.impl)
        except Exception:
            self._check(x, self._named(hx))
            raise

    def _named(self, hx: Any) -> dict[str, Any]:
        return {"hx": hx}

    def _weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        found: Any = self._parameters  # what nn.Module finds after a search, a microsecond later
        try:
            return found["weight_ih"], found["weight_hh"], found["bias_ih"], found["bias_hh"]
        except KeyError:  # one of them is computed: weight norm, pruning
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def _zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.hidden_size)


class RNNCell(_Cell, nn.RNNCell):
    """``torch.nn.RNNCell`` on :func:`hetkern.rnn_cell`.

    ``h_next = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or ``max(…, 0)``.

    Args:
        input_size: numbers in the input.
        hidden_size: numbers in the state.
        bias: whether there are ``b_ih`` and ``b_hh``.
        nonlinearity: "tanh" or "relu".
        device: of the parameters.
        dtype: of the parameters.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        self._set_options(impl=impl)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The state after ``input``, ``(B, I)`` or ``(I,)``; ``hx`` is zeros if it is left out."""
        if self.nonlinearity not in ("tanh", "relu"):  # torch too asks here and not before
            wanted = f"{named(self)}: nonlinearity: wanted 'tanh' or 'relu'"
            raise RuntimeError(f"{wanted}, got {self.nonlinearity!r}")
        if hx is None:
            self._check(input, {})
            hx = self._zeros(input)
        return self._step(ops.rnn_cell, input, hx, self.nonlinearity)


class LSTMCell(_Cell, nn.LSTMCell):
    """``torch.nn.LSTMCell`` on :func:`hetkern.lstm_cell`.

    ``i, f, o = sigma(a)``, ``g = tanh(a_g)`` with ``a = W_ih x + b_ih + W_hh h + b_hh``;
    ``c_next = f c + i g``; ``h_next = o tanh(c_next)``.

    Args:
        input_size: numbers in the input.
        hidden_size: numbers in h and in c.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device: of the parameters.
        dtype: of the parameters.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._set_options(impl=impl)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """States h and c after ``input``, ``(B, I)`` or ``(I,)``; without ``hx`` from zeros."""
        if hx is None:
            self._check(input, {})
            hx = self._zeros(input), self._zeros(input)
        return self._step(ops.lstm_cell, input, hx)

    def _named(self, hx: Any) -> dict[str, Any]:
        return {f"hx[{i}]": state for i, state in enumerate(two(f"{named(self)}: hx", hx))}


class GRUCell(_Cell, nn.GRUCell):
    """``torch.nn.GRUCell`` on :func:`hetkern.gru_cell`; arguments as :class:`LSTMCell`.

    ``r, z = sigma(W_ih x + b_ih + W_hh h + b_hh)``;
    ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``; ``h_next = n + z (h - n)``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._set_options(impl=impl)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The state after ``input``, ``(B, I)`` or ``(I,)``; ``hx`` is zeros if it is left out."""
        if hx is None:
            self._check(input, {})
            hx = self._zeros(input)
        return self._step(ops.gru_cell, input, hx)
