"""A sequence through one RNN layer in one direction, in Triton: the launchers.

(the kernels: rnn_sequence_kernels.py). Each step is a product by torch and one kernel, driven from
here; nothing is read back from a GPU, so that a CUDA graph can hold a call.

Each function goes: check, allocate, return if empty, plan, launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..reference.rnn import CELLS, GATES
from .checks import check_like, check_shape
from .rnn_checks import ACCUMULATOR, check_maybe, checked_sequence
from .rnn_sequence_kernels import rnn_step_backward_kernel, rnn_step_forward_kernel
from .rnn_tiles import options, plan, rows_operand, steps_operand
from .views import Operand, on_device

SAVED = {"tanh": 0, "relu": 0, "lstm": 4, "gru": 4}
GRADIENTS = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 4}

# A release build keeps the trap on a bad length; the compiler's own overflow checks stay out.
_TRAPS = {"debug": True, "sanitize_overflow": False}


def _steps(counts: Sequence[int], packed: bool) -> list[tuple[int, int]]:
    """Where each step begins, in steps or in packed rows, and how many rows it has."""
    if not packed:
        return list(enumerate(counts))
    ends = list(accumulate(counts))
    return [(end - n, n) for end, n in zip(ends, counts, strict=True)]


def _places(lengths: Tensor | None, reset: Tensor | None, packed: bool) -> tuple[Any, Any]:
    operand: Operand | None = None
    if reset is not None:
        operand = (reset, reset.stride(0), reset.stride(0 if packed else 1))
    return None if lengths is None else lengths.contiguous(), operand


# ---- Forward. ------------------------------------------------------------------------------------


def rnn_sequence(
    cell: int,
    x_gates: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    h_mask: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``hetkern::rnn_sequence``: y, h_n, c_n, and where ``save`` asks for them gates and cells."""
    # Check.
    packed = batch_sizes is not None
    sizes, counts = checked_sequence(
        "rnn_sequence",
        cell,
        x_gates,
        w_hh,
        b_hh,
        h0,
        c0,
        lengths,
        batch_sizes,
        h_mask,
        reset,
    )

    # Allocate, return if empty.
    B, H, x = sizes.B, sizes.H, x_gates
    places, nothing = x.shape[:-1], x.new_empty(0)
    y, h = x.new_empty((*places, H)), h0.clone(memory_format=torch.contiguous_format)
    c = nothing.to(ACCUMULATOR)
    gates, cells = nothing.clone(), c.clone()
    if c0 is not None:
        c = c0.clone(memory_format=torch.contiguous_format)
    if save and SAVED[sizes.cell]:
        gates = x.new_empty((*places, 4 * H))
    if save and sizes.lstm:
        cells = x.new_empty((*places, H), dtype=ACCUMULATOR)
    if B * H == 0:
        return y, h, c, gates, cells

    # Plan and launch.
    tiles = plan(B, H, x.dtype)
    product = x.new_empty((B, x.shape[-1]))
    left = h if h_mask is None else h0 * h_mask
    masked = None if h_mask is None else (rows_operand(left), rows_operand(h_mask))
    state, hidden = (rows_operand(h), rows_operand(c)), rows_operand(product)
    x_steps, y_steps = steps_operand(x, packed), steps_operand(y, packed)
    saved = steps_operand(gates, packed), steps_operand(cells, packed)
    where = (*_places(lengths, reset, packed), len(counts))
    bias = None if b_hh is None else (b_hh.contiguous(), 0)
    weight = w_hh.t()
    checked = lengths is not None and not x.is_cpu
    steps = [step for step in _steps(counts, packed) if step[1]]
    with on_device(x):
        for start, n in reversed(steps) if reverse else steps:
            torch.mm(left[:n], weight, out=product[:n])
            rnn_step_forward_kernel[(plan(n, H, x.dtype)["programs"],)](
                x_steps,
                hidden,
                bias,
                state,
                masked,
                where,
                y_steps,
                saved,
                start,
                n,
                H,
                CELL=CELLS.index(sizes.cell),
                GATES=GATES[sizes.cell],
                CHECKED=checked,
                **options(tiles),
                **(_TRAPS if checked else {}),
            )
            checked = False
    return y, h, c, gates, cells


# ---- Backward. -----------------------------------------------------------------------------------


def rnn_sequence_backward(
    cell: int,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    y: Tensor,
    gates: Tensor,
    cells: Tensor,
    x_gates: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    h_mask: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``hetkern::rnn_sequence_backward``: dgates (gru: dn r, dr, dz, dn), dh0 and dc0."""
    # Check.
    op, x, packed = "rnn_sequence_backward", x_gates, batch_sizes is not None
    sizes, counts = checked_sequence(
        op, cell, x, w_hh, b_hh, h0, c0, lengths, batch_sizes, h_mask, reset
    )
    B, H, places, storage = sizes.B, sizes.H, tuple(x.shape[:-1]), x.dtype
    check_like(op, "y", y, x, storage)
    check_shape(op, "y", y, (*places, H))
    if SAVED[sizes.cell]:
        check_maybe(op, "gates", gates, x, storage, (*places, 4 * H))
    if sizes.lstm:
        check_maybe(op, "cells", cells, x, ACCUMULATOR, (*places, H))
    dc_n = dc_n if sizes.lstm else None
    check_maybe(op, "dy", dy, x, storage, (*places, H))
    check_maybe(op, "dh_n", dh_n, x, storage, (B, H))
    check_maybe(op, "dc_n", dc_n, x, ACCUMULATOR, (B, H))

    # Allocate, return if empty.
    blocks = GRADIENTS[sizes.cell]
    dgates = x.new_empty((*places, blocks * H))
    dh = _copy_or_zeros(dh_n, x, (B, H))
    dc = _copy_or_zeros(dc_n, x, (B, H) if sizes.lstm else (0,))
    if B * H == 0:
        return dgates, dh.to(storage), dc

    # Plan and launch: the walk back, and once more for what its last step passes on.
    tiles = plan(B, H, storage)
    product = x.new_empty((B, H))
    columns = x.shape[-1]
    weight = torch.cat([w_hh[2 * H :], w_hh[: 2 * H]]) if sizes.gru else w_hh
    dy_steps, d_steps = steps_operand(dy, packed), steps_operand(dgates, packed)
    saved = tuple(steps_operand(t, packed) for t in (y, gates, cells))
    carried, first = (rows_operand(dh), rows_operand(dc)), (rows_operand(h0), rows_operand(c0))
    through = rows_operand(product), rows_operand(h_mask)
    where = _places(lengths, reset, packed)
    walk = [step for step in _steps(counts, packed) if step[1]]
    outside = -1 if not packed else 0
    if reverse:
        outside = x.shape[0]
    else:
        walk.reverse()
    walk.append((outside, 0))
    n_next = 0
    with on_device(x):
        for i, (start, n) in enumerate(walk):
            n_before = walk[i + 1][1] if n else 0
            rows = max(n, n_next)
            if rows == 0:
                continue
            rnn_step_backward_kernel[(plan(rows, H, storage)["programs"],)](
                dy_steps,
                carried,
                through,
                where,
                saved,
                first,
                d_steps,
                start,
                n,
                n_next,
                n_before,
                H,
                CELL=CELLS.index(sizes.cell),
                D_GATES=blocks,
                REVERSE=reverse,
                PACKED=packed,
                **options(tiles),
            )
            if n:
                of_step = dgates[start : start + n] if packed else dgates[start]
                torch.mm(of_step[:, :columns], weight, out=product[:n])
            n_next = n
    return dgates, dh.to(storage), dc


def _copy_or_zeros(t: Tensor | None, x: Tensor, shape: Sequence[int]) -> Tensor:
    """Float32 of its own memory, which the walk replaces."""
    if t is None:
        return x.new_zeros(shape, dtype=ACCUMULATOR)
    return torch.empty(shape, dtype=ACCUMULATOR, device=x.device).copy_(t)
