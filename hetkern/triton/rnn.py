"""The gates of one RNN step in Triton: the launchers.              (the kernels: rnn_kernels.py).

Each function goes: check, allocate, return if empty, plan, launch. Sequences: rnn_sequence.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference.rnn import CELLS, GATES
from .rnn_checks import ACCUMULATOR, Sizes, check_maybe, checked_step
from .rnn_kernels import (
    rnn_gates_backward_kernel,
    rnn_gates_double_backward_kernel,
    rnn_gates_forward_kernel,
)
from .rnn_sequence import rnn_sequence, rnn_sequence_backward
from .rnn_tiles import options, plan, rows_operand
from .views import on_device

__all__ = [
    "plan",
    "rnn_gates",
    "rnn_gates_backward",
    "rnn_gates_double_backward",
    "rnn_sequence",
    "rnn_sequence_backward",
]


def _result(x: Tensor, sizes: Sizes, wanted: bool, columns: int, dtype: torch.dtype) -> Tensor:
    """A result, without elements where the cell has none."""
    return torch.empty((sizes.B, columns) if wanted else (0,), dtype=dtype, device=x.device)


def _launch(kernel: Any, sizes: Sizes, x: Tensor, *arguments: Any) -> None:
    tiles = plan(sizes.B, sizes.H, x.dtype)
    with on_device(x):
        kernel[(tiles["programs"],)](
            *arguments,
            sizes.B,
            sizes.H,
            CELL=CELLS.index(sizes.cell),
            GATES=GATES[sizes.cell],
            **options(tiles),
        )


# ---- Forward. ------------------------------------------------------------------------------------


def rnn_gates(
    cell: int, x_gates: Tensor, h_gates: Tensor, h: Tensor | None, c: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``hetkern::rnn_gates``: h_next and c_next."""
    # Check.
    sizes = checked_step("rnn_gates", cell, x_gates, h_gates, h, c)

    # Allocate, return if empty.
    x, H = x_gates, sizes.H
    h_next = _result(x, sizes, True, H, x.dtype)
    c_next = _result(x, sizes, sizes.lstm, H, ACCUMULATOR)
    if h_next.numel() == 0:
        return h_next, c_next

    # Plan and launch.
    inputs = tuple(map(rows_operand, (x_gates, h_gates, h, c)))
    _launch(rnn_gates_forward_kernel, sizes, x, inputs, rows_operand(h_next), rows_operand(c_next))
    return h_next, c_next


# ---- Backward. -----------------------------------------------------------------------------------


def rnn_gates_backward(
    cell: int,
    dh_next: Tensor | None,
    dc_next: Tensor | None,
    x_gates: Tensor,
    h_gates: Tensor,
    h: Tensor | None,
    c: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``hetkern::rnn_gates_backward``: dx_gates, dh_gates and dh of a GRU, dc of an LSTM."""
    # Check.
    op, x = "rnn_gates_backward", x_gates
    sizes = checked_step(op, cell, x_gates, h_gates, h, c)
    dc_next = dc_next if sizes.lstm else None
    state = (sizes.B, sizes.H)
    check_maybe(op, "dh_next", dh_next, x, x.dtype, state)
    check_maybe(op, "dc_next", dc_next, x, ACCUMULATOR, state)

    # Allocate, return if empty.
    columns, H = x.shape[1], sizes.H
    results = (
        _result(x, sizes, True, columns, x.dtype),
        _result(x, sizes, sizes.gru, columns, x.dtype),
        _result(x, sizes, sizes.gru, H, x.dtype),
        _result(x, sizes, sizes.lstm, H, ACCUMULATOR),
    )
    if results[0].numel() == 0:
        return results

    # Plan and launch.
    given = tuple(map(rows_operand, (dh_next, dc_next)))
    inputs = tuple(map(rows_operand, (x_gates, h_gates, h, c)))
    _launch(rnn_gates_backward_kernel, sizes, x, given, inputs, *map(rows_operand, results))
    return results


# ---- Double backward. ----------------------------------------------------------------------------


def rnn_gates_double_backward(
    cell: int,
    g_dx_gates: Tensor | None,
    g_dh_gates: Tensor | None,
    g_dh: Tensor | None,
    g_dc: Tensor | None,
    dh_next: Tensor | None,
    dc_next: Tensor | None,
    x_gates: Tensor,
    h_gates: Tensor,
    h: Tensor | None,
    c: Tensor | None,
) -> tuple[Tensor, ...]:
    """``hetkern::rnn_gates_double_backward``: by dh_next, dc_next, x_gates, h_gates, h and c."""
    # Check.
    op, x = "rnn_gates_double_backward", x_gates
    sizes = checked_step(op, cell, x_gates, h_gates, h, c)
    if not sizes.gru:
        g_dh_gates = g_dh = None
    if not sizes.lstm:
        g_dc = dc_next = None
    columns, H = x.shape[1], sizes.H
    for name, t, wide, dtype in (
        ("g_dx_gates", g_dx_gates, columns, x.dtype),
        ("g_dh_gates", g_dh_gates, columns, x.dtype),
        ("g_dh", g_dh, H, x.dtype),
        ("dh_next", dh_next, H, x.dtype),
        ("g_dc", g_dc, H, ACCUMULATOR),
        ("dc_next", dc_next, H, ACCUMULATOR),
    ):
        check_maybe(op, name, t, x, dtype, (sizes.B, wide))

    # Allocate, return if empty.
    results = (
        _result(x, sizes, True, H, x.dtype),
        _result(x, sizes, sizes.lstm, H, ACCUMULATOR),
        _result(x, sizes, True, columns, x.dtype),
        _result(x, sizes, sizes.gru, columns, x.dtype),
        _result(x, sizes, sizes.gru, H, x.dtype),
        _result(x, sizes, sizes.lstm, H, ACCUMULATOR),
    )
    if results[2].numel() == 0:
        return results

    # Plan and launch.
    gradients = tuple(map(rows_operand, (g_dx_gates, g_dh_gates, g_dh, g_dc)))
    given = tuple(map(rows_operand, (dh_next, dc_next)))
    inputs = tuple(map(rows_operand, (x_gates, h_gates, h, c)))
    by = tuple(map(rows_operand, results))
    kernel = rnn_gates_double_backward_kernel
    _launch(kernel, sizes, x, gradients, given, inputs, by[:2], by[2:4], by[4:])
    return results
