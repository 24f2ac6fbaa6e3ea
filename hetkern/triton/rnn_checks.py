"""What the RNN family checks of its arguments in Triton: the checks of csrc/, the same messages.

(csrc/rnn_gates.cpp, csrc/rnn_sequence.cpp)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.rnn import CELLS, GATES
from .checks import (
    check_float,
    check_length,
    check_like,
    check_shape,
    name_of,
    shape_text,
    value_error,
)

#: c, and what dh and dc are between steps.
ACCUMULATOR = torch.float32


class Sizes(NamedTuple):
    """What every op of the family knows of its call."""

    cell: str
    B: int
    H: int
    gates: int  # column blocks of x_gates

    @property
    def lstm(self) -> bool:
        """Whether there is a c."""
        return self.cell == "lstm"

    @property
    def gru(self) -> bool:
        """Whether the step reads h."""
        return self.cell == "gru"


def _checked_cell(op: str, number: int) -> str:
    if not 0 <= number < len(CELLS):
        value_error(op, "cell", "0 (tanh), 1 (relu), 2 (lstm) or 3 (gru)", number)
    return CELLS[number]


def _check_given(op: str, name: str, t: Tensor | None, wanted: bool) -> None:
    if (t is not None) != wanted:
        text = "a tensor" if wanted else "none"
        raise ValueError(f"hetkern::{op}: {name}: wanted {text} for this cell")


def check_maybe(
    op: str, name: str, t: Tensor | None, x: Tensor, dtype: torch.dtype, shape: Sequence[int]
) -> None:
    """A tensor that may be absent has this dtype and shape."""
    if t is not None:
        check_like(op, name, t, x, dtype)
        check_shape(op, name, t, shape)


# ---- Gates. --------------------------------------------------------------------------------------


def checked_step(
    op: str, number: int, x_gates: Tensor, h_gates: Tensor, h: Tensor | None, c: Tensor | None
) -> Sizes:
    """The sizes of a step, once its four inputs fit together."""
    cell = _checked_cell(op, number)
    gates = GATES[cell]
    check_float(op, "x_gates", x_gates)
    shape = tuple(x_gates.shape)
    if len(shape) != 2 or shape[1] % gates:
        value_error(op, "x_gates", f"shape (B, {gates} H)", shape_text(shape))
    check_length(op, shape[1])
    sizes = Sizes(cell, shape[0], shape[1] // gates, gates)
    check_maybe(op, "h_gates", h_gates, x_gates, x_gates.dtype, shape)
    _check_given(op, "h", h, sizes.gru)
    check_maybe(op, "h", h, x_gates, x_gates.dtype, (sizes.B, sizes.H))
    _check_given(op, "c", c, sizes.lstm)
    check_maybe(op, "c", c, x_gates, ACCUMULATOR, (sizes.B, sizes.H))
    return sizes


# ---- Sequences. ----------------------------------------------------------------------------------


def checked_sequence(
    op: str,
    number: int,
    x_gates: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    h_mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Sizes, list[int]]:
    """The sizes, and how many rows each step has, once a walk's arguments fit together."""
    cell = _checked_cell(op, number)
    gates, packed = GATES[cell], batch_sizes is not None
    check_float(op, "x_gates", x_gates)
    shape, storage = tuple(x_gates.shape), x_gates.dtype
    if len(shape) != (2 if packed else 3) or shape[-1] % gates:
        rows = "rows" if packed else "T, B"
        value_error(op, "x_gates", f"shape ({rows}, {gates} H)", shape_text(shape))
    columns = shape[-1]
    check_length(op, columns)
    H = columns // gates
    check_like(op, "h0", h0, x_gates, storage)
    if h0.dim() != 2:
        value_error(op, "h0", "shape (B, H)", shape_text(h0.shape))
    B = h0.shape[0] if packed else shape[1]
    check_shape(op, "h0", h0, (B, H))
    if batch_sizes is None:
        steps = [B] * shape[0]
    else:
        steps = _checked_batch_sizes(op, batch_sizes, lengths, B, shape[0])
    check_maybe(op, "w_hh", w_hh, x_gates, storage, (columns, H))
    check_maybe(op, "b_hh", b_hh, x_gates, storage, (columns,))
    _check_given(op, "c0", c0, cell == "lstm")
    check_maybe(op, "c0", c0, x_gates, ACCUMULATOR, (B, H))
    check_maybe(op, "h_mask", h_mask, x_gates, storage, (B, H))
    check_maybe(op, "reset", reset, x_gates, torch.bool, shape[:-1])
    if lengths is not None:
        _check_lengths(op, lengths, x_gates, len(steps), B)
    return Sizes(cell, B, H, gates), steps


def _checked_batch_sizes(
    op: str, batch_sizes: Tensor, lengths: Tensor | None, B: int, rows: int
) -> list[int]:
    if batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu or batch_sizes.dim() != 1:
        got = f"{name_of(batch_sizes.dtype)} of shape {shape_text(batch_sizes.shape)}"
        value_error(op, "batch_sizes", "int64 of shape (T,) on the CPU", got)
    if lengths is not None:
        raise ValueError(f"hetkern::{op}: lengths: wanted none beside batch_sizes")
    steps: list[int] = batch_sizes.tolist()
    most, what = B, "at most B, "
    for t, n in enumerate(steps):
        if not 0 <= n <= most:
            value_error(op, "batch_sizes", f"{what}{most}, at step {t}", n)
        most, what = n, "no more than the step before has, "
    if sum(steps) != rows:
        value_error(op, "batch_sizes", f"a sum of {rows}, x_gates' rows", sum(steps))
    return steps


def _check_lengths(op: str, lengths: Tensor, x: Tensor, T: int, B: int) -> None:
    """A GPU's values are checked by the kernel: the host does not wait for them."""
    check_maybe(op, "lengths", lengths, x, torch.int64, (B,))
    if x.is_cpu:
        for b, length in enumerate(lengths.tolist()):
            if not 0 <= length <= T:
                value_error(op, "lengths", f"values in [0, {T}]", f"{length} for row {b}")
