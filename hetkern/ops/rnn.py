"""The RNN family: schemas, shapes and batching, and the public cells.

Whole sequences are in rnn_layers.py, derivatives in rnn_derivatives.py. Cells are numbers in the
schemas, in the order of ``hetkern.reference.rnn.CELLS``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import impl as _impl
from ..reference import rnn as reference
from ..reference.rnn import CELLS, GATES, accumulator_of
from . import arguments
from . import rnn_derivatives as derivatives
from .family import Derivative, Op, register
from .products import linear
from .rnn_batching import batch_gates, batch_sequence

# ---- Schemas and shapes. -------------------------------------------------------------------------
# A result that a cell does not have is a tensor without elements.


def _c_like(cell, x, shape):
    shape = shape if CELLS[cell] == "lstm" else (0,)
    return x.new_empty(shape, dtype=accumulator_of(x.dtype))


def _fake_gates(cell, x_gates, h_gates, h, c):
    shape = (x_gates.shape[0], x_gates.shape[1] // GATES[CELLS[cell]])
    return x_gates.new_empty(shape), _c_like(cell, x_gates, shape)


def _fake_gates_backward(cell, dh_next, dc_next, x_gates, h_gates, h, c):
    shape = (x_gates.shape[0], x_gates.shape[1] // GATES[CELLS[cell]])
    gru = CELLS[cell] == "gru"
    return (
        x_gates.new_empty(x_gates.shape),
        x_gates.new_empty(x_gates.shape if gru else (0,)),
        x_gates.new_empty(shape if gru else (0,)),
        _c_like(cell, x_gates, shape),
    )


def _fake_gates_double_backward(
    cell, g_dx_gates, g_dh_gates, g_dh, g_dc, dh_next, dc_next, x_gates, h_gates, h, c
):
    dx_gates, dh_gates, dh, dc = _fake_gates_backward(cell, None, None, x_gates, h_gates, h, c)
    shape = (x_gates.shape[0], x_gates.shape[1] // GATES[CELLS[cell]])
    h_next, c_next = x_gates.new_empty(shape), _c_like(cell, x_gates, shape)
    return h_next, c_next, dx_gates, dh_gates, dh, dc


def _fake_sequence(
    cell, x_gates, w_hh, b_hh, h0, c0, lengths, batch_sizes, h_mask, reset, reverse, save
):
    *rows, columns = x_gates.shape
    H = columns // GATES[CELLS[cell]]
    saved = [*rows, 4 * H] if save and CELLS[cell] in ("lstm", "gru") else [0]
    cells = [*rows, H] if save else [0]
    return (
        x_gates.new_empty([*rows, H]),
        x_gates.new_empty(h0.shape),
        _c_like(cell, x_gates, h0.shape),
        x_gates.new_empty(saved),
        _c_like(cell, x_gates, cells),
    )


def _fake_sequence_backward(cell, dy, dh_n, dc_n, y, gates, cells, x_gates, w_hh, b_hh, h0, *_more):
    *rows, H = y.shape
    columns = 4 * H if CELLS[cell] in ("lstm", "gru") else H
    return y.new_empty([*rows, columns]), y.new_empty(h0.shape), _c_like(cell, y, h0.shape)


_STEP = "Tensor x_gates, Tensor h_gates, Tensor? h, Tensor? c"
_WALK = (
    "Tensor x_gates, Tensor w_hh, Tensor? b_hh, Tensor h0, Tensor? c0, Tensor? lengths, "
    "Tensor? batch_sizes, Tensor? h_mask, Tensor? reset, bool reverse"
)
OPS = register(
    "rnn",
    Op(
        f"rnn_gates(int cell, {_STEP}) -> (Tensor h_next, Tensor c_next)",
        _fake_gates,
        Derivative(derivatives.save_gates, derivatives.backward_gates, derivatives.jvp_gates),
        batch_gates,
    ),
    Op(
        f"rnn_gates_backward(int cell, Tensor? dh_next, Tensor? dc_next, {_STEP}) "
        "-> (Tensor dx_gates, Tensor dh_gates, Tensor dh, Tensor dc)",
        _fake_gates_backward,
        Derivative(derivatives.save_gates_backward, derivatives.double_backward_gates),
        batch_gates,
    ),
    Op(
        "rnn_gates_double_backward(int cell, Tensor? g_dx_gates, Tensor? g_dh_gates, "
        f"Tensor? g_dh, Tensor? g_dc, Tensor? dh_next, Tensor? dc_next, {_STEP}) "
        "-> (Tensor by_dh_next, Tensor by_dc_next, Tensor by_x_gates, Tensor by_h_gates, "
        "Tensor by_h, Tensor by_c)",
        _fake_gates_double_backward,
        Derivative(derivatives.save_nothing, derivatives.no_third_derivative),
        batch_gates,
    ),
    Op(
        f"rnn_sequence(int cell, {_WALK}, bool save) "
        "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)",
        _fake_sequence,
        Derivative(derivatives.save_sequence, derivatives.backward_sequence, constant=(3, 4)),
        batch_sequence,
    ),
    Op(
        "rnn_sequence_backward(int cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor y, "
        f"Tensor gates, Tensor cells, {_WALK}) -> (Tensor dgates, Tensor dh0, Tensor dc0)",
        _fake_sequence_backward,
        Derivative(derivatives.save_sequence_backward, derivatives.double_backward_sequence),
        batch_sequence,
    ),
)


# ---- Public cells. -------------------------------------------------------------------------------


def _plan(impl: str, x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
    path = "two products, one kernel"
    if impl == "triton":
        return {"path": path}
    if impl != "cpu" or _impl.native is None:
        return {}
    return {"isa": _impl.native.isa(), "path": path}


def _step(
    op: str,
    cell: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    impl: str,
) -> tuple[Tensor, Tensor | None]:
    """One step of a cell, batched or not."""
    arguments.tensor(op, "x", x)
    arguments.tensor(op, "h", h)
    w_ih, w_hh, b_ih, b_hh = weights
    ops: SimpleNamespace | None = _impl.choose(op, OPS, x, impl)
    if not _fits(cell, x, h, c, w_ih, w_hh):
        _check_cell(op, cell, x, h, c, w_ih, w_hh)
    if x.dim() == 1:
        x, h = x.unsqueeze(0), h.unsqueeze(0)
        c = c if c is None else c.unsqueeze(0)
        h, c = _batched_step(ops, cell, x, h, c, w_ih, w_hh, b_ih, b_hh)
        return h.squeeze(0), c if c is None else c.squeeze(0)
    return _batched_step(ops, cell, x, h, c, w_ih, w_hh, b_ih, b_hh)


def _batched_step(ops, cell, x, h, c, w_ih, w_hh, b_ih, b_hh):
    x_gates, h_gates = linear(x, w_ih, b_ih), linear(h, w_hh, b_hh)  # autocast casts them
    dtype = x_gates.dtype
    if h.dtype is not dtype:
        h = h.to(dtype)
    if c is not None and (accumulator := accumulator_of(dtype)) is not c.dtype:
        c = c.to(accumulator)
    gru = cell == "gru"
    if ops is None:
        h_next, c_next = reference.rnn_gates(cell, x_gates, h_gates, h if gru else None, c)
    else:
        h_next, c_next = ops.rnn_gates(CELLS.index(cell), x_gates, h_gates, h if gru else None, c)
    if c is None or c_next is None:
        return h_next, None
    return h_next, c_next if c_next.dtype is dtype else c_next.to(dtype)


def _fits(cell, x, h, c, w_ih, w_hh):
    """Whether :func:`_check_cell` finds nothing, of a batch outside autocast: asked in a hurry."""
    shape, wanted, dtype, device = x.shape, h.shape, x.dtype, x.device
    if len(shape) != 2 or len(wanted) != 2 or wanted[0] != shape[0]:
        return False
    H = wanted[1]
    rows = GATES[cell] * H
    return (
        w_ih.shape == (rows, shape[1])
        and w_hh.shape == (rows, H)
        and h.dtype == dtype == w_ih.dtype
        and h.device == device
        and (c is None or (c.shape == wanted and c.dtype == dtype and c.device == device))
    )


def _check_cell(op, cell, x, h, c, w_ih, w_hh):
    """What torch's linear would say less plainly."""
    if x.dim() not in (1, 2):
        raise ValueError(f"{op}: x: wanted shape (B, I) or (I,), got {tuple(x.shape)}")
    H = w_hh.shape[-1]
    for name, weight, columns in (("w_ih", w_ih, x.shape[-1]), ("w_hh", w_hh, H)):
        wanted = (GATES[cell] * H, columns)
        if weight.shape != wanted:
            raise ValueError(f"{op}: {name}: wanted shape {wanted}, got {tuple(weight.shape)}")
    wanted = (*x.shape[:-1], H)
    for name, state in (("h", h), ("c", c)):
        if state is None:
            continue
        if state.shape != wanted:
            raise ValueError(f"{op}: {name}: wanted shape {wanted}, got {tuple(state.shape)}")
        if state.device != x.device:
            raise ValueError(
                f"{op}: {name}: wanted a tensor on {x.device}, got one on {state.device}"
            )
        if state.dtype != x.dtype and not _in_autocast(x):
            raise ValueError(f"{op}: {name}: wanted {x.dtype}, got {state.dtype}")
    if w_ih.dtype != x.dtype and not _in_autocast(x):
        raise ValueError(f"{op}: w_ih: wanted {x.dtype}, got {w_ih.dtype}")


def _in_autocast(x):
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


@_impl.explainable("hetkern.rnn_cell", OPS, _plan)
def rnn_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
    *,
    impl: str = "auto",
) -> Tensor:
    """One step of a plain RNN: two products and one fused kernel.

    ``h_next = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or ``max(…, 0)``.

    Equals ``torch.nn.RNNCell``; the sum and its tanh are float32 for 16 bits.

    Args:
        x: ``(B, I)`` or ``(I,)``; float32, float64, float16 or bfloat16.
        h: ``(B, H)`` or ``(H,)``, the state.
        w_ih: ``(H, I)``.
        w_hh: ``(H, H)``.
        b_ih: ``(H,)``, or None.
        b_hh: ``(H,)``, or None.
        nonlinearity: "tanh" or "relu".
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.

    Returns:
        The next state, in ``h``'s shape; under autocast in its dtype.

    Raises:
        ValueError: a shape, dtype, device or the nonlinearity does not fit.
        NotImplementedError: the named implementation cannot run here.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(
            f"hetkern.rnn_cell: nonlinearity: wanted 'tanh' or 'relu', got {nonlinearity!r}"
        )
    weights = w_ih, w_hh, b_ih, b_hh
    h_next, _ = _step("hetkern.rnn_cell", nonlinearity, x, h, None, weights, impl)
    if _impl.thread.logs:
        _impl.note(rnn_cell, x=x, impl=impl)
    return h_next


@_impl.explainable("hetkern.lstm_cell", OPS, _plan)
def lstm_cell(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: two products and one fused kernel.

    ``i, f, o = sigma(a)``, ``g = tanh(a_g)`` with ``a = W_ih x + b_ih + W_hh h + b_hh``;
    ``c_next = f c + i g``; ``h_next = o tanh(c_next)``.

    Equals ``torch.nn.LSTMCell``; gates and c are float32 inside for 16 bits.

    Args:
        x: ``(B, I)`` or ``(I,)``; float32, float64, float16 or bfloat16.
        state: ``(h, c)``, each ``(B, H)`` or ``(H,)``.
        w_ih: ``(4 H, I)``, gates in the order i f g o.
        w_hh: ``(4 H, H)``.
        b_ih: ``(4 H,)``, or None.
        b_hh: ``(4 H,)``, or None.
        impl: as in :func:`rnn_cell`.

    Returns:
        ``(h, c)`` after the step; under autocast both in its dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit.
        NotImplementedError: the named implementation cannot run here.

    Source: Hochreiter & Schmidhuber (1997); with a forget gate, Gers et al. (2000).
    """
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise ValueError("hetkern.lstm_cell: state: wanted (h, c), two tensors")
    h, c = state
    arguments.tensor("hetkern.lstm_cell", "c", c)
    weights = w_ih, w_hh, b_ih, b_hh
    h_next, c_next = _step("hetkern.lstm_cell", "lstm", x, h, c, weights, impl)
    if _impl.thread.logs:
        _impl.note(lstm_cell, x=x, impl=impl)
    assert c_next is not None
    return h_next, c_next


@_impl.explainable("hetkern.gru_cell", OPS, _plan)
def gru_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """One step of a GRU: two products and one fused kernel.

    ``r, z = sigma(W_ih x + b_ih + W_hh h + b_hh)``;
    ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``;
    ``h_next = n + z (h - n)``: the reset gate stands behind the product, as in torch and cuDNN.

    Equals ``torch.nn.GRUCell``; gates are float32 inside for 16 bits.

    Args:
        x: ``(B, I)`` or ``(I,)``; float32, float64, float16 or bfloat16.
        h: ``(B, H)`` or ``(H,)``, the state.
        w_ih: ``(3 H, I)``, gates in the order r z n.
        w_hh: ``(3 H, H)``.
        b_ih: ``(3 H,)``, or None.
        b_hh: ``(3 H,)``, or None.
        impl: as in :func:`rnn_cell`.

    Returns:
        The next state, in ``h``'s shape; under autocast in its dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit.
        NotImplementedError: the named implementation cannot run here.

    Source: Cho et al. (2014), arXiv:1406.1078.
    """
    weights = w_ih, w_hh, b_ih, b_hh
    h_next, _ = _step("hetkern.gru_cell", "gru", x, h, None, weights, impl)
    if _impl.thread.logs:
        _impl.note(gru_cell, x=x, impl=impl)
    return h_next
