"""Row softmax in Triton: the launchers.                       (the kernels: softmax_kernels.py).

Each function goes: check, allocate, return if empty, plan, launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import checks
from .softmax_kernels import (
    softmax_backward_kernel,
    softmax_backward_looped_kernel,
    softmax_forward_kernel,
    softmax_forward_looped_kernel,
)
from .views import (
    View,
    next_power_of_2,
    on_device,
    ready,
    rows_per_program,
    share_out,
    view_rows,
)

KEPT = 16384  # the longest row that stays in registers
LOOPED = 4096  # columns at a time of a longer one


def plan(M: int, N: int, dtype: torch.dtype) -> dict[str, Any]:
    """Which kernel runs and in what tiles: a row's bits depend on ``block``, and so on N alone."""
    block = next_power_of_2(N) if N <= KEPT else LOOPED
    rows = rows_per_program(block)
    warps = 16 if block > LOOPED else 8 if block == LOOPED else 4
    path = "kept" if N <= KEPT else "looped"
    return {"path": path, "block": block, "rows": rows, "warps": warps}


def _numbers(scale: float, softcap: float) -> tuple[float, float, float]:
    return float(scale), float(softcap), 1.0 / softcap if softcap > 0 else 0.0


def _softmax(
    x: Tensor,
    any_dim: int,
    dtype: torch.dtype | None,
    scale: float,
    softcap: float,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    log: bool,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """``y``, and ``y_sink`` if there is a sink."""
    op, sizes = "softmax", tuple(x.shape)

    # Check.
    checks.check_float(op, "x", x)
    y_type = checks.checked_output_type(op, x.dtype, dtype)
    dim = checks.checked_dim(op, any_dim, len(sizes))
    checks.check_softcap(op, softcap)
    queries = checks.checked_queries(op, causal, dim, sizes)
    rows_shape = sizes[:dim] + sizes[dim + 1 :]
    for name, t, like, shape in (
        ("bias", bias, x.dtype, sizes),
        ("mask", mask, torch.bool, sizes),
        ("sink", sink, x.dtype, rows_shape),
    ):
        if t is not None:
            checks.check_like(op, name, t, x, like)
            checks.check_broadcasts(op, name, t.shape, shape)
    N = sizes[dim] if sizes else 1
    checks.check_length(op, N)

    # Allocate, return if empty.
    y = torch.empty(sizes, dtype=y_type, device=x.device)
    y_sink = None
    if sink is not None:
        y_sink = torch.empty(rows_shape, dtype=torch.float32, device=x.device)
    if y.numel() == 0 and (y_sink is None or y_sink.numel() == 0):
        return y, y_sink

    # Plan and launch.
    views = [View(t) for t in (ready(x, dim), y, bias, mask)] + [View(sink, False)]
    outer, operands = view_rows(op, sizes, dim, views)
    tiles = plan(y.numel() // max(N, 1), N, x.dtype)
    kernel = softmax_forward_kernel if tiles["path"] == "kept" else softmax_forward_looped_kernel
    programs, flat = share_out(outer, tiles["rows"])
    with on_device(x):
        kernel[(programs,)](
            *operands,
            y_sink,
            outer,
            N,
            queries,
            _numbers(scale, softcap),
            LOG=log,
            CAPPED=softcap > 0,
            CAUSAL=causal,
            FLAT=flat,
            ROWS=tiles["rows"],
            BLOCK=tiles["block"],
            num_warps=tiles["warps"],
        )
    return y, y_sink


def softmax(
    x: Tensor,
    dim: int,
    dtype: torch.dtype | None,
    scale: float,
    softcap: float,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    log: bool,
) -> Tensor:
    """``hetkern::softmax``: y."""
    return _softmax(x, dim, dtype, scale, softcap, bias, mask, causal, log, None)[0]


def softmax_sink(
    x: Tensor,
    dim: int,
    dtype: torch.dtype | None,
    scale: float,
    softcap: float,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    log: bool,
    sink: Tensor,
) -> tuple[Tensor, Tensor]:
    """``hetkern::softmax_sink``: y and y_sink."""
    y, y_sink = _softmax(x, dim, dtype, scale, softcap, bias, mask, causal, log, sink)
    assert y_sink is not None
    return y, y_sink


def softmax_backward(
    dy: Tensor,
    y: Tensor,
    x: Tensor | None,
    any_dim: int,
    x_type: torch.dtype,
    scale: float,
    softcap: float,
    mask: Tensor | None,
    causal: bool,
    log: bool,
    y_sink: Tensor | None,
) -> Tensor:
    """``hetkern::softmax_backward``: dx."""
    op, sizes = "softmax_backward", tuple(y.shape)

    # Check.
    checks.check_float(op, "y", y)
    dim = checks.checked_dim(op, any_dim, len(sizes))
    checks.check_softcap(op, softcap)
    queries = checks.checked_queries(op, causal, dim, sizes)
    checks.checked_output_type(op, x_type, y.dtype)
    checks.check_like(op, "dy", dy, y, y.dtype)
    checks.check_shape(op, "dy", dy, sizes)
    if (softcap > 0) != (x is not None):
        raise ValueError(f"hetkern::{op}: x: wanted with a softcap, and only then")
    if x is not None:
        checks.check_like(op, "x", x, y, x_type)
        checks.check_shape(op, "x", x, sizes)
        x = ready(x, dim)
    if mask is not None:
        checks.check_like(op, "mask", mask, y, torch.bool)
        checks.check_broadcasts(op, "mask", mask.shape, sizes)
    if y_sink is not None:
        checks.check_like(op, "y_sink", y_sink, y, torch.float32)
        checks.check_shape(op, "y_sink", y_sink, sizes[:dim] + sizes[dim + 1 :])

    # Allocate, return if empty.
    dx = torch.empty(sizes, dtype=x_type, device=y.device)
    if dx.numel() == 0:
        return dx

    # Plan and launch.
    N = sizes[dim] if sizes else 1
    views = [View(t) for t in (ready(dy, dim, broadcast=True), ready(y, dim), x, mask, dx)]
    views += [View(None if log else y_sink, False)]
    outer, operands = view_rows(op, sizes, dim, views)
    tiles = plan(dx.numel() // N, N, x_type)
    kernel = softmax_backward_kernel if tiles["path"] == "kept" else softmax_backward_looped_kernel
    programs, flat = share_out(outer, tiles["rows"])
    with on_device(y):
        kernel[(programs,)](
            *operands,
            outer,
            N,
            queries,
            _numbers(scale, softcap),
            LOG=log,
            CAUSAL=causal,
            EPS=torch.finfo(y.dtype).eps,
            FLAT=flat,
            ROWS=tiles["rows"],
            BLOCK=tiles["block"],
            num_warps=tiles["warps"],
        )
    return dx


def softmax_double_backward(
    g: Tensor, dy: Tensor, y: Tensor, any_dim: int, scale: float, log: bool
) -> tuple[Tensor, Tensor]:
    """``hetkern::softmax_double_backward``: g_dy and g_y, by torch's own operations.

    A kernel would bring nothing: second derivatives are rare, and this reads as the equations.
    """
    op, sizes = "softmax_double_backward", tuple(y.shape)
    checks.check_float(op, "y", y)
    checks.check_float(op, "g", g)
    dim = checks.checked_dim(op, any_dim, len(sizes))
    checks.checked_output_type(op, g.dtype, y.dtype)
    checks.check_shape(op, "g", g, sizes)
    checks.check_like(op, "dy", dy, y, y.dtype)
    checks.check_shape(op, "dy", dy, sizes)

    def total(t: Tensor) -> Tensor:  # in float64, so that torch's order of adding does not show
        return t.sum(dim, keepdim=True, dtype=torch.float64).float()

    g, v, dy = g.float(), y.float(), dy.float()
    if log:
        p = v.exp()
        g_dy, g_y = scale * (g - total(g * p)), -scale * total(dy) * (g * p)
    else:
        sum_g = total(g * v)
        g_dy, g_y = scale * v * (g - sum_g), scale * (g * (dy - total(dy * v)) - dy * sum_g)
    return g_dy.to(y.dtype).contiguous(), g_y.to(y.dtype).contiguous()
