"""From tensors to the operands of a Triton kernel, and how many programs it takes.

(the same merging of dimensions for the native kernels: csrc/common/row_view.cpp)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_OUTER = 8
TILE = 2048  # elements that a program takes at a time, where rows are short
MAX_ROWS = 256

Operand = tuple[Any, ...]


@dataclass(frozen=True)
class View:
    """A tensor that broadcasts to the reduced one's shape, or to it without the reduced dim."""

    tensor: Tensor | None
    reduced: bool = True  # it has the reduced dimension, whatever its size there


def view_rows(
    op: str, sizes: Sequence[int], dim: int, views: Sequence[View]
) -> tuple[tuple[int, ...], list[Operand | None]]:
    """Sizes of the outer dimensions, those merged that every operand walks with one stride.

    Raises:
        ValueError: more than MAX_OUTER remain, though the operands were made contiguous.
    """
    for attempt in (views, [_contiguous(view) for view in views]):
        outer, strides = _merged(sizes, dim, attempt)
        if len(outer) <= MAX_OUTER:
            break
    else:
        raise ValueError(
            f"hetkern::{op}: wanted operands whose strides leave at most {MAX_OUTER} separate "
            "outer dimensions, got more: call contiguous()"
        )
    operands: list[Operand | None] = []
    for view, steps in zip(attempt, strides, strict=True):
        if view.tensor is None:
            operands.append(None)
        elif view.reduced:
            step = _stride(view, len(sizes), dim, dim) if sizes else 0
            operands.append((view.tensor, *steps, step))
        else:
            operands.append((view.tensor, *steps))
    return outer, operands


def _contiguous(view: View) -> View:
    full = view.tensor is not None and view.tensor.dim() > 0 and 0 not in view.tensor.stride()
    return (
        View(view.tensor.contiguous(), view.reduced) if full and view.tensor is not None else view
    )


def _stride(view: View, rank: int, dim: int, d: int) -> int:
    """A view's stride along dimension d of the reduced tensor; 0 where it is broadcast."""
    if view.tensor is None:
        return 0
    at = d - (rank - view.tensor.dim() - (not view.reduced))
    if at < 0:
        return 0
    if not view.reduced and d > dim:
        at -= 1
    return 0 if at < 0 or view.tensor.shape[at] == 1 else view.tensor.stride(at)


def _merged(
    sizes: Sequence[int], dim: int, views: Sequence[View]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    rank = len(sizes)
    outer: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for d in range(rank):
        if d == dim or sizes[d] == 1:
            continue
        steps = [_stride(view, rank, dim, d) for view in views]
        walked = zip(strides, steps, strict=True)
        if outer and all(before[-1] == step * sizes[d] for before, step in walked):
            outer[-1] *= sizes[d]
            for before, step in zip(strides, steps, strict=True):
                before[-1] = step
        else:
            outer.append(sizes[d])
            for before, step in zip(strides, steps, strict=True):
                before.append(step)
    if not outer:
        outer, strides = [1], [[0] for _ in views]
    return tuple(outer), [tuple(steps) for steps in strides]


def ready(t: Tensor, dim: int, broadcast: bool = False) -> Tensor:
    """``t``, copied if its neighbours along the innermost dimension do not lie side by side.

    That is the reduced dimension or, where others follow it, the last of these.
    """
    if t.dim() == 0:
        return t
    inner = [d for d in range(dim + 1, t.dim()) if t.shape[d] > 1]
    unit = inner[-1] if inner else dim
    if t.shape[unit] <= 1 or t.stride(unit) == 1:
        return t
    if broadcast and not inner and t.stride(unit) == 0:
        return t
    return t.contiguous()


def per_row(t: Tensor | None, rows: Sequence[int]) -> Operand | None:
    """One value a row, in the rows' order: (tensor, 1), or (tensor, 0) for the same of all."""
    if t is None:
        return None
    return (t, 0) if t.numel() == 1 else (t.expand(tuple(rows)).contiguous(), 1)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n, and 1."""
    return 1 << max(n - 1, 0).bit_length()


def rows_per_program(block: int) -> int:
    """How many rows share a tile: depends on the block alone, as a row's bits must."""
    return max(1, min(MAX_ROWS, TILE // block))


def share_out(sizes: Sequence[int], rows: int) -> tuple[int, bool]:
    """How many programs take all rows, and whether a program's rows lie anywhere (FLAT)."""
    outer = math.prod(sizes[:-1])
    if outer > 1 and sizes[-1] < rows:
        return -(-outer * sizes[-1] // rows), True
    return outer * -(-sizes[-1] // rows), False


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
