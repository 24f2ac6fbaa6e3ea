"""The public functions for whole sequences: rnn, lstm, gru."""

from __future__ import annotations

import functools

from torch import Tensor

from .. import impl as _impl
from . import rnn_layers as layers
from .rnn import OPS
from .rnn_layers import Options, Weights


def _plan_rnn(impl, x, h0, weights, *, nonlinearity, **named):
    return layers.plan(impl, x, cell=nonlinearity, weights=weights, **named)


_plan_lstm = functools.partial(layers.plan, cell="lstm")
_plan_gru = functools.partial(layers.plan, cell="gru")


@_impl.explainable("hetkern.rnn", OPS, _plan_rnn)
def rnn(
    x: Tensor,
    h0: Tensor | None,
    weights: Weights,
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    dropout: float = 0.0,
    variational_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A plain RNN over whole sequences, all layers and directions.

    ``h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, or ``max(…, 0)``; the input product of
    all steps is one product, and each layer and direction one kernel.

    Equals ``torch.nn.RNN`` in training mode. Sums and tanh are float32 for 16 bits; the state is
    rounded to its own dtype at each step. A row has the same bits in any company as far as the
    arithmetic is ours; the input product is torch's, whose last bits depend on the number of rows.

    Args:
        x: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, or ``(T, I)``; with ``batch_sizes``
            the packed rows ``(rows, I)``. float32, float64, float16 or bfloat16.
        h0: ``(layers directions, B, H)``, or ``(layers directions, H)`` beside ``(T, I)``; None for
            zeros.
        weights: one tuple ``(w_ih, w_hh, b_ih, b_hh)`` for each layer and direction, in torch's
            order: the backward direction behind the forward one. Biases may be None.
        nonlinearity: "tanh" or "relu".
        bidirectional: whether each layer also walks from each row's end.
        batch_first: whether x and the result have the batch first.
        lengths: ``(B,)`` integers in [0, T], on x's device: how many steps each row has. 0 is
            allowed; a row of length 0 ends in h0. What x holds behind a row's end, NaN included,
            changes nothing and has gradient 0; the result is 0 there.
        batch_sizes: ``(T,)`` integers on the CPU, of a ``PackedSequence``: no padding is computed.
        reset: boolean ``(B, T)``, or ``(T,)`` beside ``(T, I)``: the state starts anew, at zeros,
            where true, and passes that edge in neither direction; for truncated back-propagation
            across the ends of documents.
        dropout: probability of a zero in what passes from one layer to the next, drawn anew for
            each step; torch's own, always on.
        variational_dropout: the same of each layer's input, drawn once a sequence.
        recurrent_dropout: the same of the state where it meets W_hh, drawn once a sequence. Both
            masks are Philox's numbers of a seed from torch's generator: the same on any device.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.

    Returns:
        ``y`` in x's layout, ``(…, directions H)``, and ``h_n`` in h0's shape: the state behind each
        row's own end. Under autocast both are in its dtype.

    Raises:
        ValueError: a shape, dtype, device or value does not fit; the message names op, argument,
            wanted and got.
        RuntimeError: x has no step, as torch.
        NotImplementedError: the named implementation cannot run here.

    Source: Elman (1990); Gal & Ghahramani (2016), arXiv:1512.05287, for the two dropouts.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(
            f"hetkern.rnn: nonlinearity: wanted 'tanh' or 'relu', got {nonlinearity!r}"
        )
    y, h_n, _ = layers.run(
        "hetkern.rnn",
        nonlinearity,
        x,
        (h0,),
        weights,
        (lengths, batch_sizes, reset),
        Options(bidirectional, batch_first, dropout, variational_dropout, recurrent_dropout),
        impl,
    )
    if _impl.thread.logs:
        more = {"lengths": lengths, "batch_sizes": batch_sizes, "batch_first": batch_first}
        call = {"x": x, "h0": h0, "weights": weights, "nonlinearity": nonlinearity}
        _impl.note(rnn, **call, **more, impl=impl)
    return y, h_n


@_impl.explainable("hetkern.lstm", OPS, _plan_lstm)
def lstm(
    x: Tensor,
    state: tuple[Tensor, Tensor] | None,
    weights: Weights,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    dropout: float = 0.0,
    variational_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """An LSTM over whole sequences, all layers and directions.

    Each step is that of :func:`lstm_cell`; c stays float32 within a call. With a projection,
    ``h_t = W_hr (o tanh(c_t))``, the steps run one by one from Python.

    Equals ``torch.nn.LSTM`` in training mode.

    Args:
        x: as in :func:`rnn`, as are all that follow but these two:
        state: ``(h0, c0)``, ``(layers directions, B, H)`` each, h0 ``(layers directions, B, P)``
            with a projection; None for zeros.
        weights: ``(w_ih, w_hh, b_ih, b_hh)`` for each layer and direction, gates in the order
            i f g o; with a projection ``(w_ih, w_hh, b_ih, b_hh, w_hr)``, w_hr ``(P, H)``.
        bidirectional: as in :func:`rnn`.
        batch_first: as in :func:`rnn`.
        lengths: as in :func:`rnn`.
        batch_sizes: as in :func:`rnn`.
        reset: as in :func:`rnn`; c starts anew as well.
        dropout: as in :func:`rnn`.
        variational_dropout: as in :func:`rnn`.
        recurrent_dropout: as in :func:`rnn`.
        impl: as in :func:`rnn`.

    Returns:
        ``y`` in x's layout and ``(h_n, c_n)``.

    Raises:
        ValueError: as in :func:`rnn`.
        RuntimeError: x has no step, as torch.
        NotImplementedError: the named implementation cannot run here.
    """
    op = "hetkern.lstm"
    if state is not None and (not isinstance(state, (tuple, list)) or len(state) != 2):
        raise ValueError(f"{op}: state: wanted (h0, c0), two tensors, or None")
    y, h_n, c_n = layers.run(
        op,
        "lstm",
        x,
        (None, None) if state is None else tuple(state),
        weights,
        (lengths, batch_sizes, reset),
        Options(bidirectional, batch_first, dropout, variational_dropout, recurrent_dropout),
        impl,
    )
    if _impl.thread.logs:
        more = {"lengths": lengths, "batch_sizes": batch_sizes, "batch_first": batch_first}
        _impl.note(lstm, x=x, state=state, weights=weights, **more, impl=impl)
    assert c_n is not None
    return y, (h_n, c_n)


@_impl.explainable("hetkern.gru", OPS, _plan_gru)
def gru(
    x: Tensor,
    h0: Tensor | None,
    weights: Weights,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    dropout: float = 0.0,
    variational_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A GRU over whole sequences, all layers and directions.

    Each step is that of :func:`gru_cell`. Equals ``torch.nn.GRU`` in training mode.

    Arguments, results and errors are those of :func:`rnn`, without ``nonlinearity``; gates are in
    the order r z n.
    """
    y, h_n, _ = layers.run(
        "hetkern.gru",
        "gru",
        x,
        (h0,),
        weights,
        (lengths, batch_sizes, reset),
        Options(bidirectional, batch_first, dropout, variational_dropout, recurrent_dropout),
        impl,
    )
    if _impl.thread.logs:
        more = {"lengths": lengths, "batch_sizes": batch_sizes, "batch_first": batch_first}
        _impl.note(gru, x=x, h0=h0, weights=weights, **more, impl=impl)
    return y, h_n
