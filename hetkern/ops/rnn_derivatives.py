"""The derivatives of the RNN family's ops: backward, double backward, forward mode of cells.

A cell's ops save nothing but their inputs. A sequence saves its gates; its double backward runs the
steps again, one differentiable cell at a time: right, and slow.
"""

from __future__ import annotations

import torch

from ..reference import rnn as reference
from ..reference.packed_rows import packed_rows
from ..reference.rnn import CELLS
from .products import matmul

# ---- rnn_gates: cell, x_gates, h_gates, h, c -> h_next, c_next -----------------------------------


def save_gates(ctx, inputs, output):
    """Keep the inputs."""
    ctx.cell = CELLS[inputs[0]]
    return inputs[1:]


def backward_gates(ops, ctx, dh_next, dc_next):
    """Gradients of both products, of h and of c."""
    if dh_next is None and (dc_next is None or ctx.cell != "lstm"):
        return (None,) * 5
    lstm, gru = ctx.cell == "lstm", ctx.cell == "gru"
    dx, dh_gates, dh, dc = ops.rnn_gates_backward(
        CELLS.index(ctx.cell), dh_next, dc_next if lstm else None, *ctx.saved_tensors
    )
    return None, dx, dh_gates if gru else dx, dh if gru else None, dc if lstm else None


def jvp_gates(ops, ctx, _cell, x_t, h_gates_t, h_t, c_t):
    """Tangents of h_next and c_next: those that the transpose of backward gives."""
    x_gates, h_gates, h, c = ctx.saved_tensors
    gru, lstm = ctx.cell == "gru", ctx.cell == "lstm"
    if not gru:
        x_t, h_gates_t = _sum(x_t, h_gates_t), None
    h_next_t, c_next_t, *_ = ops.rnn_gates_double_backward(
        CELLS.index(ctx.cell),
        x_t,
        h_gates_t,
        h_t if gru else None,
        c_t if lstm else None,
        None,
        None,
        x_gates,
        h_gates,
        h,
        c,
    )
    return h_next_t, c_next_t


# ---- rnn_gates_backward: cell, dh_next, dc_next, x_gates, h_gates, h, c -> dx_gates, …, dc -------


def save_gates_backward(ctx, inputs, output):
    """Keep the inputs."""
    ctx.cell = CELLS[inputs[0]]
    return inputs[1:]


def double_backward_gates(ops, ctx, g_dx, g_dh_gates, g_dh, g_dc):
    """Gradients of every input of backward."""
    gru, lstm = ctx.cell == "gru", ctx.cell == "lstm"
    given = g_dx, g_dh_gates if gru else None, g_dh if gru else None, g_dc if lstm else None
    if all(g is None for g in given):
        return (None,) * 7
    by_dh, by_dc, by_x, by_h_gates, by_h, by_c = ops.rnn_gates_double_backward(
        CELLS.index(ctx.cell), *given, *ctx.saved_tensors
    )
    asked = ctx.needs_input_grad
    return (
        None,
        by_dh if asked[1] else None,
        by_dc if lstm and asked[2] else None,
        by_x,
        by_h_gates if gru else by_x,
        by_h if gru else None,
        by_c if lstm else None,
    )


def save_nothing(ctx, inputs, output):
    """Nothing follows."""
    return ()


def no_third_derivative(ops, ctx, *gradients):
    """Refuse by name."""
    raise NotImplementedError("hetkern::rnn_gates: derivatives past the second are not implemented")


# ---- rnn_sequence: cell, x_gates, w_hh, b_hh, h0, c0, lengths, batch_sizes, h_mask, reset, -------
#                    reverse, save -> y, h_n, c_n, gates, cells


def save_sequence(ctx, inputs, output):
    """Keep the inputs, y, the gates and the cells."""
    cell, *tensors, reverse, _ = inputs
    y, _, _, gates, cells = output
    ctx.options = CELLS[cell], reverse
    return *tensors, y, gates, cells


def backward_sequence(ops, ctx, dy, dh_n, dc_n, _gates, _cells):
    """Gradients of x_gates, w_hh, b_hh, h0 and c0; the weights' are one product over all steps."""
    if dy is None and dh_n is None and dc_n is None:
        return (None,) * 12
    x_gates, w_hh, b_hh, h0, c0, lengths, batch_sizes, h_mask, reset, y, gates, cells = (
        ctx.saved_tensors
    )
    cell, reverse = ctx.options
    where = lengths, batch_sizes, h_mask, reset
    index, lstm = CELLS.index(cell), cell == "lstm"
    if gates.numel() == 0 and y.numel() > 0 and cell in ("lstm", "gru"):  # a call with save=False
        again = ops.rnn_sequence(index, x_gates, w_hh, b_hh, h0, c0, *where, reverse, True)
        gates, cells = again[3], again[4]
    dgates, dh0, dc0 = ops.rnn_sequence_backward(
        index,
        dy,
        dh_n,
        dc_n if lstm else None,
        y,
        gates,
        cells,
        x_gates,
        w_hh,
        b_hh,
        h0,
        c0,
        *where,
        reverse,
    )
    H = h0.shape[-1]
    wants_w, wants_b = ctx.needs_input_grad[2], ctx.needs_input_grad[3]
    dx = dgates if cell != "gru" else dgates.narrow(-1, H, dgates.shape[-1] - H)
    dw = db = None
    if wants_w or wants_b:
        rows = _by_rows(dgates.narrow(-1, 0, w_hh.shape[0]))
        if wants_w:
            dw = _r_z_n(cell, _weight_gradient(cell, rows, y, h0, where, reverse))
        if wants_b:
            db = _r_z_n(cell, rows.sum(0))
    return None, dx, dw, db, dh0, dc0 if lstm else None, *(None,) * 6


def _by_rows(t):
    """Steps and sequences in one dimension, by what torch's older vmap has a rule for."""
    return t.reshape(-1, t.shape[-1])


def _weight_gradient(cell, rows, y, h0, where, reverse):
    """The product of dgates, row by row, with the state before each row."""
    if y.dim() == 2 or any(w is not None for w in where) or y.element_size() < 4:
        lengths, batch_sizes, h_mask, reset = where
        h = states_before(cell, y, h0, lengths, batch_sizes, h_mask, reset, reverse)
        return matmul(rows.mT, _by_rows(h))
    B = h0.shape[0]  # each sequence begins once, at h0: no copy of y
    first, rest = (rows[-B:], rows[:-B]) if reverse else (rows[:B], rows[B:])
    before = _by_rows(y[1:] if reverse else y[:-1])
    return torch.addmm(first.mT @ h0, rest.mT, before)


def states_before(cell, y, h0, lengths, batch_sizes, h_mask, reset, reverse):
    """The state that each row's product with W_hh reads, in the layout of y; 0 outside lengths."""
    if batch_sizes is not None:
        rows = packed_rows(batch_sizes, y.shape[0], h0.shape[0], y.device)
        h = rows.before(y, h0, reverse)
        h_mask = None if h_mask is None else rows.of_sequences(h_mask)
    elif reverse:
        h = torch.cat([y[1:], h0.unsqueeze(0)])
    else:
        h = torch.cat([h0.unsqueeze(0), y[:-1]])
    if lengths is not None:
        t = torch.arange(y.shape[0], device=y.device)[:, None]
        if reverse:
            h = torch.where((t + 1 == lengths)[..., None], h0, h)
        h = torch.where((t < lengths)[..., None], h, 0.0)  # NaN in h0 would meet gradients of 0
    if reset is not None:
        h = torch.where(reset[..., None], 0.0, h)
    return h if h_mask is None else h * h_mask


def _r_z_n(cell, t):
    """The blocks n r z of a GRU's gradient in the order of its weights."""
    if cell != "gru":
        return t
    H = t.shape[0] // 3
    return torch.cat([t[H:], t[:H]])


# ---- rnn_sequence_backward: cell, dy, dh_n, dc_n, y, gates, cells, x_gates, w_hh, b_hh, h0, c0, --
#      lengths, batch_sizes, h_mask, reset, reverse -> dgates, dh0, dc0


def save_sequence_backward(ctx, inputs, output):
    """Keep what the steps begin with; y, gates and cells follow from it."""
    cell, dy, dh_n, dc_n, y, _, _, *rest, reverse = inputs
    ctx.options = CELLS[cell], reverse, y.shape
    return dy, dh_n, dc_n, *rest


def double_backward_sequence(ops, ctx, g_dgates, g_dh0, g_dc0):
    """Gradients of every input of backward, by way of steps that are differentiable."""
    if g_dgates is None and g_dh0 is None and g_dc0 is None:
        return (None,) * 17
    dy, dh_n, dc_n, x_gates, w_hh, b_hh, h0, c0, lengths, batch_sizes, h_mask, reset = (
        ctx.saved_tensors
    )
    cell, reverse, y_shape = ctx.options
    lstm, H = cell == "lstm", h0.shape[-1]

    def walk(x_gates, w_hh, b_steps, h0, c0):
        y, h_n, c_n = reference.rnn_sequence(
            cell,
            x_gates,
            w_hh,
            b_steps,
            h0,
            c0,
            lengths=lengths,
            batch_sizes=batch_sizes,
            h_mask=h_mask,
            reset=reset,
            reverse=reverse,
            gates=gates_by(ops),
        )
        return (y, h_n, c_n) if lstm else (y, h_n)

    # One bias a step: its gradient is that of h_gates.
    bias = torch.zeros_like(w_hh[:, 0]) if b_hh is None else b_hh
    c_like = c0 if lstm else h0.new_zeros(())
    upstream = [
        _or_zeros(dy, h0, y_shape),
        _or_zeros(dh_n, h0, h0.shape),
        *([_or_zeros(dc_n, c_like, h0.shape)] if lstm else []),
    ]

    def backward(x_gates, w_hh, bias, h0, c_like, *upstream):
        c0 = c_like if lstm else None
        _, pull = torch.func.vjp(  # type: ignore[misc]
            lambda x, b, h, c: walk(x, w_hh, b, h, c if lstm else None),
            x_gates,
            bias.expand(x_gates.shape),
            h0,
            c_like if c0 is None else c0,
        )
        dx, dh_gates, dh0, dc0 = pull(upstream)
        dgates = dx if cell != "gru" else torch.cat([dh_gates[..., 2 * H :], dx], -1)
        return (dgates, dh0, dc0) if lstm else (dgates, dh0)

    results, pull_again = torch.func.vjp(  # type: ignore[misc]
        backward, x_gates, w_hh, bias, h0, c_like, *upstream
    )
    given = (g_dgates, g_dh0, g_dc0)[: len(results)]
    by_x, by_w, by_b, by_h0, by_c0, *by_upstream = pull_again(
        tuple(_or_zeros(g, r, r.shape) for g, r in zip(given, results, strict=True))
    )
    by_dy, by_dh_n, *by_dc_n = by_upstream
    return (
        None,
        None if dy is None else by_dy,
        None if dh_n is None else by_dh_n,
        None if dc_n is None else by_dc_n[0],
        None,
        None,
        None,
        by_x,
        by_w,
        None if b_hh is None else by_b,
        by_h0,
        by_c0 if lstm else None,
        *(None,) * 5,
    )


# ---- Shared steps. -------------------------------------------------------------------------------


def gates_by(ops):
    """The step of ``reference.rnn_sequence`` by one implementation's kernel."""

    def gates(cell, x_gates, h_gates, h, c):
        gru, lstm = cell == "gru", cell == "lstm"
        h_next, c_next = ops.rnn_gates(
            CELLS.index(cell), x_gates, h_gates, h if gru else None, c if lstm else None
        )
        return h_next, c_next if lstm else None

    return gates


def _sum(a, b):
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _or_zeros(g, like, shape):
    return like.new_zeros(shape) if g is None else g
