"""Row cross-entropy in Triton: the launchers.             (the kernels: cross_entropy_*kernels.py).

Each function goes: check, allocate, return if empty, plan, launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .cross_entropy_backward_kernels import cross_entropy_backward_kernel
from .cross_entropy_kernels import cross_entropy_forward_kernel, cross_entropy_reduction_kernel
from .views import (
    View,
    next_power_of_2,
    on_device,
    per_row,
    ready,
    rows_per_program,
    share_out,
    view_rows,
)

LOOPED = 2048  # columns at a time
NONE, MEAN = 0, 1

# A release build keeps the trap on a bad target; the compiler's own overflow checks stay out.
_TRAPS = {"debug": True, "sanitize_overflow": False}


def plan(M: int, N: int, dtype: torch.dtype) -> dict[str, Any]:
    """In what tiles a row is read: its bits depend on ``block``, and so on N alone."""
    block = min(next_power_of_2(N), LOOPED)
    path = "kept" if N <= LOOPED else "looped"
    rows = rows_per_program(block)
    return {"path": path, "block": block, "rows": rows, "warps": 8 if rows * block >= 2048 else 4}


def _numbers(
    N: int, label_smoothing: float, scale: float, softcap: float, z_loss: float
) -> tuple[float, ...]:
    inverse = 1.0 / softcap if softcap > 0 else 0.0
    keep, spread = 1.0 - label_smoothing, label_smoothing / N
    return float(scale), float(softcap), inverse, keep, spread, float(z_loss)


# ---- Forward. ------------------------------------------------------------------------------------


def _forward(
    op: str,
    with_stats: bool,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    any_dim: int,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    scale: float,
    softcap: float,
    z_loss: float,
) -> tuple[Tensor, ...]:
    """Loss, saved and divisors, and the six statistics if they are wanted."""
    # Check.
    checks.check_float(op, "input", x)
    options = (weight, any_dim, ignore_index, label_smoothing, softcap)
    dim = checks.check_cross_entropy(op, x, target, *options)
    if not 0 <= reduction <= 2:
        wanted = "0 for none, 1 for mean or 2 for sum"
        checks.value_error(op, "reduction", wanted, reduction)
    sizes, N = tuple(x.shape), x.shape[dim]
    rows = sizes[:dim] + sizes[dim + 1 :]
    by_index = not target.is_floating_point()
    checks.check_target_range(op, target, N, ignore_index)

    # Allocate. Without any row, a mean is still NaN and a sum 0.
    def new(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    M = x.numel() // N
    loss = new(rows if reduction == NONE else ())
    saved = new(_with(sizes, dim, 2 if by_index else 4))
    shape = _with((1,) * len(sizes), dim, 2)
    divisors = new(shape) if reduction == MEAN else torch.ones(shape, device=x.device)
    stats = (*(new(rows) for _ in range(5)), new(rows, torch.bool)) if with_stats else None
    terms: tuple[Tensor | None, ...] = (loss, None, None, None)
    if reduction != NONE:
        planes = new((4, M))
        wanted_planes = (True, z_loss != 0, weight is not None and by_index, by_index)
        present = zip(planes, wanted_planes, strict=True)
        terms = tuple(plane if wanted else None for plane, wanted in present)

    # Plan and launch.
    tiles = plan(M, N, x.dtype)
    with on_device(x):
        if M > 0:
            views = [View(ready(x, dim)), View(saved)]
            views += [View(target, False) if by_index else View(ready(target, dim))]
            outer, (x_view, saved_view, target_view) = view_rows(op, sizes, dim, views)
            programs, flat = share_out(outer, tiles["rows"])
            cross_entropy_forward_kernel[(programs,)](
                x_view,
                target_view if by_index else None,
                None if by_index else target_view,
                None if weight is None else weight.contiguous(),
                saved_view,
                terms,
                stats,
                outer,
                N,
                ignore_index,
                _numbers(N, label_smoothing, scale, softcap, z_loss),
                CAPPED=softcap > 0,
                SMOOTHED=label_smoothing > 0,
                CHECKED=not x.is_cpu,
                FLAT=flat,
                ROWS=tiles["rows"],
                BLOCK=tiles["block"],
                num_warps=tiles["warps"],
                **_TRAPS,
            )
        if reduction != NONE:
            cross_entropy_reduction_kernel[(1,)](
                terms,
                loss,
                divisors,
                M,
                MEAN=reduction == MEAN,
                Z_LOSS=z_loss != 0,
                BLOCK=1024,
                num_warps=4,
            )
    return (loss, saved, divisors, *(stats or ()))


def _with(shape: tuple[int, ...], dim: int, elements: int) -> tuple[int, ...]:
    return (*shape[:dim], elements, *shape[dim + 1 :])


def cross_entropy(*arguments: Any) -> tuple[Tensor, ...]:
    """``hetkern::cross_entropy``: loss, saved, divisors."""
    return _forward("cross_entropy", False, *arguments)


def cross_entropy_stats(*arguments: Any) -> tuple[Tensor, ...]:
    """``hetkern::cross_entropy_stats``: the same, then the statistics."""
    return _forward("cross_entropy_stats", True, *arguments)


# ---- Backward. -----------------------------------------------------------------------------------


def _backward(
    with_target: bool,
    d_loss: Tensor | None,
    d_row_loss: Tensor | None,
    d_lse: Tensor | None,
    d_z_loss: Tensor | None,
    d_entropy: Tensor | None,
    d_log_prob: Tensor | None,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    divisors: Tensor,
    entropy: Tensor | None,
    any_dim: int,
    ignore_index: int,
    label_smoothing: float,
    scale: float,
    softcap: float,
    z_loss: float,
) -> tuple[Tensor, Tensor | None]:
    """dx, and the gradient of class probabilities if it is wanted."""
    op = "cross_entropy_backward"

    # Check.
    checks.check_float(op, "input", x)
    options = (weight, any_dim, ignore_index, label_smoothing, softcap)
    dim = checks.check_cross_entropy(op, x, target, *options)
    sizes, N = tuple(x.shape), x.shape[dim]
    rows = sizes[:dim] + sizes[dim + 1 :]
    by_index = not target.is_floating_point()
    if with_target and by_index:
        wanted = "class probabilities, which have a gradient"
        checks.value_error(op, "target", wanted, "class indices")
    checks.check_like(op, "saved", saved, x, torch.float32)
    checks.check_shape(op, "saved", saved, _with(sizes, dim, 2 if by_index else 4))
    checks.check_like(op, "divisors", divisors, x, torch.float32)
    checks.check_broadcasts(op, "divisors", divisors.shape, _with(sizes, dim, 2))
    if d_entropy is not None and entropy is None:
        checks.value_error(op, "entropy", "beside its gradient", "none")
    names = ("d_loss", "d_row_loss", "d_lse", "d_z_loss", "d_entropy", "d_log_prob", "entropy")
    upstream = (d_loss, d_row_loss, d_lse, d_z_loss, d_entropy, d_log_prob, entropy)
    for name, t in zip(names, upstream, strict=True):
        if t is not None:
            checks.check_like(op, name, t, x, torch.float32)
            checks.check_broadcasts(op, name, t.shape, rows)
    checks.check_target_range(op, target, N, ignore_index)

    # Allocate, return if empty.
    dx = torch.empty(sizes, dtype=x.dtype, device=x.device)
    d_target = torch.empty(sizes, dtype=x.dtype, device=x.device) if with_target else None
    if dx.numel() == 0:
        return dx, d_target

    # Plan and launch.
    views = [View(ready(x, dim)), View(saved), View(dx), View(d_target)]
    views += [View(target, False) if by_index else View(ready(target, dim))]
    outer, (x_view, saved_view, dx_view, dq_view, target_view) = view_rows(op, sizes, dim, views)
    if divisors.numel() == 2:
        shared = (divisors.reshape(2).contiguous(), 0, 1)
    else:
        each = divisors.expand(_with(sizes, dim, 2)).movedim(dim, -1)
        shared = (each.contiguous(), 2, 1)
    weight_sum = None
    if weight is not None and label_smoothing > 0:
        weight_sum = weight.sum(dtype=torch.float64).float()
    tiles = plan(x.numel() // N, N, x.dtype)
    blocks = -(-N // tiles["block"])
    programs, flat = share_out(outer, tiles["rows"])
    with on_device(x):
        cross_entropy_backward_kernel[(programs * blocks,)](
            x_view,
            target_view if by_index else None,
            None if by_index else target_view,
            (None if weight is None else weight.contiguous(), weight_sum),
            saved_view,
            shared,
            tuple(per_row(t, rows) for t in upstream),
            dx_view,
            dq_view,
            outer,
            N,
            ignore_index,
            _numbers(N, label_smoothing, scale, softcap, z_loss),
            CAPPED=softcap > 0,
            SMOOTHED=label_smoothing > 0,
            CHECKED=not x.is_cpu,
            FLAT=flat,
            ROWS=tiles["rows"],
            BLOCK=tiles["block"],
            num_warps=tiles["warps"],
            **_TRAPS,
        )
    return dx, d_target


def cross_entropy_backward(*arguments: Any) -> Tensor:
    """``hetkern::cross_entropy_backward``: dx."""
    return _backward(False, *arguments)[0]


def cross_entropy_backward_target(*arguments: Any) -> tuple[Tensor, Tensor]:
    """``hetkern::cross_entropy_backward_target``: dx and the gradient of the probabilities."""
    dx, d_target = _backward(True, *arguments)
    assert d_target is not None
    return dx, d_target
