"""Modules of the RNN family: whole sequences, and cells.

``RNN``, ``LSTM`` and ``GRU`` derive from ``torch.nn.RNNBase`` and not from their namesakes, since
torch.compile refuses whatever is an ``nn.LSTM``, subclasses with a ``forward`` of their own
included. Weights are read by their names at each call: what stands there in place of a parameter
(a parametrization, ``functional_call``, a replica's copy) is what counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import LSTM as TorchLSTM  # also where nn.LSTM has been set to ours
from torch.nn.utils.rnn import PackedSequence

from .. import ops
from .modules import Options
from .recurrent_checks import check_dtype, check_state, check_tensor, named, two

State = Tensor | tuple[Tensor, Tensor]
Weights = list[tuple[Any, ...]]


class _Sequences(Options, nn.RNNBase):
    """What RNN, LSTM and GRU share."""

    options = ("variational_dropout", "recurrent_dropout", "impl")
    variational_dropout: float = 0.0
    recurrent_dropout: float = 0.0

    def __init__(self, mode: str, *torchs: Any, **ours: Any) -> None:
        super().__init__(mode, *torchs)
        probabilities = {"dropout": self.dropout, **ours}
        del probabilities["impl"]
        for name, value in probabilities.items():
            if not 0.0 <= value < 1.0:
                wanted = f"{named(self)}: {name}: wanted a probability in [0, 1)"
                raise ValueError(f"{wanted}, got {value}")
        if self.proj_size and mode != "LSTM":
            raise ValueError(
                f"{named(self)}: proj_size: wanted 0, since only LSTM has a projection, "
                f"got {self.proj_size}"
            )
        self._set_options(**ours)

    @classmethod
    def why_not_from(cls, module: nn.Module) -> str | None:
        """Why a module of torch cannot become one of ours; None if it can."""
        return "hetkern has no dropout=1.0" if getattr(module, "dropout", 0.0) == 1.0 else None

    def _init_flat_weights(self) -> None:
        super()._init_flat_weights()
        # A weight that a parametrization computes is no leaf, and kept it could not be copied.
        leaves = [w if w is None or w.is_leaf else None for w in self._flat_weights]
        self._flat_weights = leaves

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Walk through ``input``: torch's arguments, then ours.

        Args:
            input: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)``, or a
                ``PackedSequence``, of which no padding is computed.
            hx: the state to begin with, ``(layers directions, B, H)``, for an LSTM two of them;
                zeros without it.
            lengths: ``(B,)`` integers in [0, T] on the input's device: how many steps each row of
                a tensor has. The output behind them is 0, and the states are those of a row's end.
            reset: boolean ``(B, T)``, or ``(T,)`` beside ``(T, I)``: the state starts anew there.

        Returns:
            The output, of the kind of ``input``, and the state in the shape of ``hx``.

        Raises:
            ValueError: a dimension, or a value of ``lengths`` or ``reset``, does not fit.
            RuntimeError: the shape, dtype or device of a state does not fit, as in torch.
        """
        if torch.jit.is_tracing():
            raise NotImplementedError(
                f"{named(self)}: torch.jit.trace: wanted torch.export or torch.compile, which take "
                "it; or hetkern.nn.convert(model, to='torch') before"
            )
        weights = self._weights()  # once, since a parametrization computes at each reading
        if not isinstance(input, PackedSequence):
            self._check(input, hx, None, weights)
            rows = {"lengths": lengths, "reset": reset, "batch_first": self.batch_first}
            return self._walk(input, hx, weights, **rows)
        if lengths is not None:
            wanted = "wanted none beside a PackedSequence, which has its own"
            raise ValueError(f"{named(self)}: lengths: {wanted}")
        data, batch_sizes, order, back = input
        if order is not None:
            B = order.shape[0]
        elif hx is not None and torch.compiler.is_compiling():  # which cannot ask for a number
            B = self._states(hx)[0].shape[1]
            wanted = f"{named(self)}: hx: wanted as many rows as the first of batch_sizes has"
            torch._assert_async(batch_sizes[0] == B, wanted)
        else:
            B = int(batch_sizes[0])
        self._check(data, hx, B, weights)
        hx = self._zeros(data, B) if hx is None else self.permute_hidden(hx, order)  # type: ignore[arg-type]
        if reset is not None and order is not None:
            reset = reset.index_select(0, order)
        y, ends = self._walk(data, hx, weights, batch_sizes=batch_sizes, reset=reset)
        return PackedSequence(y, batch_sizes, order, back), self.permute_hidden(ends, back)

    def _walk(self, x: Tensor, hx: Any, weights: Weights, **rows: Any) -> Any:
        training = self.training
        return self._function()(
            x,
            hx,
            weights,
            bidirectional=self.bidirectional,
            dropout=self.dropout if training else 0.0,
            variational_dropout=self.variational_dropout if training else 0.0,
            recurrent_dropout=self.recurrent_dropout if training else 0.0,
            impl=self.impl,
            **rows,
            **self._more(),
        )

    def _function(self) -> Any:
        raise NotImplementedError

    def _more(self) -> dict[str, Any]:
        return {}

    def _weights(self) -> Weights:
        layers: Weights = []
        for w_ih, w_hh, *more in self.all_weights:
            biases, projection = (more[:2], more[2:]) if self.bias else ([None, None], more)
            layers.append((w_ih, w_hh, *biases, *projection))
        return layers

    def _check(self, x: Tensor, hx: Any, B: int | None, weights: Weights) -> None:
        """What torch's modules check, with their classes of errors; B belongs to packed rows."""
        name = named(self)
        check_tensor(f"{name}: input", x)
        if B is None and x.dim() not in (2, 3):
            layout = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(
                f"{name}: input: wanted shape {layout} or (T, I), got {tuple(x.shape)}"
            )
        if x.shape[-1] != self.input_size:
            wanted = f"wanted {self.input_size} numbers a step"
            raise RuntimeError(f"{name}: input: {wanted}, got shape {tuple(x.shape)}")
        check_dtype(ValueError, f"{name}: input", x, weights[0][0].dtype)
        if hx is None:
            return
        between: tuple[int, ...] = (B,) if B is not None else ()
        if x.dim() == 3:
            between = (x.shape[0 if self.batch_first else 1],)
        first = self.num_layers * (2 if self.bidirectional else 1)
        for state, (argument, width) in zip(self._states(hx), self._widths(), strict=True):
            check_state(f"{name}: {argument}", state, (first, *between, width), x)

    def _zeros(self, x: Tensor, B: int) -> Any:
        first = self.num_layers * (2 if self.bidirectional else 1)
        states = tuple(x.new_zeros(first, B, width) for _, width in self._widths())
        return states if len(states) > 1 else states[0]

    def _states(self, hx: Any) -> tuple[Any, ...]:
        return (hx,)

    def _widths(self) -> tuple[tuple[str, int], ...]:
        return (("hx", self.hidden_size),)


class RNN(_Sequences):
    """``torch.nn.RNN`` on :func:`hetkern.rnn`; ``nn.RNNBase`` is what both derive from.

    ``h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, or ``max(…, 0)``, in each layer and
    direction.

    Args:
        input_size: numbers in a step of the input.
        hidden_size: numbers in the state.
        num_layers: layers, each of which reads the output of the one before.
        nonlinearity: "tanh" or "relu".
        bias: whether there are ``b_ih`` and ``b_hh``.
        batch_first: whether input and output have the batch first.
        dropout: in training, probability of a zero in what passes from layer to layer, drawn for
            each step.
        bidirectional: whether each layer also walks from the end.
        proj_size: 0; at this place since torch has it here.
        device: of the parameters.
        dtype: of the parameters.
        variational_dropout: in training, probability of a zero in each layer's input, drawn once a
            sequence.
        recurrent_dropout: the same for the state where it meets ``W_hh``.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.

    Source: Gal & Ghahramani (2016), arXiv:1512.05287, for the last two dropouts.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"{named(self)}: nonlinearity: wanted 'tanh' or 'relu', got {nonlinearity!r}"
            )
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            *sizes,
            proj_size,
            device,
            dtype,
            variational_dropout=variational_dropout,
            recurrent_dropout=recurrent_dropout,
            impl=impl,
        )
        self.nonlinearity = nonlinearity

    def _function(self) -> Any:
        return ops.rnn

    def _more(self) -> dict[str, Any]:
        return {"nonlinearity": "tanh" if self.mode == "RNN_TANH" else "relu"}


class LSTM(_Sequences):
    """``torch.nn.LSTM`` on :func:`hetkern.lstm`; ``nn.RNNBase`` is what both derive from.

    Arguments as for :class:`RNN`, without ``nonlinearity``.

    Args:
        input_size: see there.
        hidden_size: numbers in c, and in h if there is no projection.
        num_layers: see there.
        bias: see there.
        batch_first: see there.
        dropout: see there.
        bidirectional: see there.
        proj_size: numbers in h, ``W_hr (o tanh(c))``, below ``hidden_size``; 0 for no projection.
        device: see there.
        dtype: see there.
        variational_dropout: see there.
        recurrent_dropout: see there; of h, not of c.
        impl: see there.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(
            "LSTM",
            *sizes,
            proj_size,
            device,
            dtype,
            variational_dropout=variational_dropout,
            recurrent_dropout=recurrent_dropout,
            impl=impl,
        )

    # torch's own, for whoever calls or overrides them: they ask for no nn.LSTM.
    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The shape that ``c_0`` must have, as torch's method of this name says."""
        return TorchLSTM.get_expected_cell_size(self, input, batch_sizes)  # type: ignore[arg-type]

    def check_forward_args(  # type: ignore[override]
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Raise as torch's method of this name does, if a shape does not fit."""
        TorchLSTM.check_forward_args(self, input, hidden, batch_sizes)  # type: ignore[arg-type]

    def permute_hidden(  # type: ignore[override]
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both states with their rows in the order of ``permutation``."""
        return TorchLSTM.permute_hidden(self, hx, permutation)  # type: ignore[arg-type]

    def _function(self) -> Any:
        return ops.lstm

    def _states(self, hx: Any) -> tuple[Any, ...]:
        return two(f"{named(self)}: hx", hx)

    def _widths(self) -> tuple[tuple[str, int], ...]:
        return ("hx[0]", self.proj_size or self.hidden_size), ("hx[1]", self.hidden_size)


class GRU(_Sequences):
    """``torch.nn.GRU`` on :func:`hetkern.gru`; ``nn.RNNBase`` is what both derive from.

    Arguments as for :class:`RNN`, without ``nonlinearity``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        variational_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(
            "GRU",
            *sizes,
            proj_size,
            device,
            dtype,
            variational_dropout=variational_dropout,
            recurrent_dropout=recurrent_dropout,
            impl=impl,
        )

    def _function(self) -> Any:
        return ops.gru
