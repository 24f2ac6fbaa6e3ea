"""Row softmax in Triton, forward and backward.                 (the contract: csrc/softmax.h).

    m_i  = max_j z_ij          y_ij = exp(z_ij - m_i) / sum_j exp(z_ij - m_i)
    dx_ij = y_ij (dy_ij - sum_k dy_ik y_ik) dz/dx

x, y, dy, dx: M rows of N; float32, float16 or bfloat16; m and the sums are float32.
Work:    a program takes a tile of short rows, or one row in blocks (Milakov & Gimelshein 2018,
         Alg. 3, each lane for itself); sums in the tree of rows.py.
Traffic: forward reads MN and writes MN elements where a row fits in registers, and reads 2MN where
         it does not; backward reads 2MN or 4MN and writes MN.
Edges:   a row of -inf gives NaN, as torch does; a row emptied by a mask gives 0, its logarithm
         -inf. Double backward is a formula of torch operations: it brings no kernel of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .rows import (
    add_exponentials,
    columns,
    exp,
    finished,
    finite,
    log1p,
    pointers,
    row_sum,
    rows_of_program,
    score,
    times_slope,
    tree_sum,
)
from .views import (
    View,
    next_power_of_2,
    on_device,
    programs,
    ready,
    rows_per_program,
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


# ---- Forward. ------------------------------------------------------------------------------------


@triton.jit
def kept_columns(lanes, start, N, index, inside, mask, rows, sizes, CAUSAL: tl.constexpr, queries):
    """Which columns of a tile take part, and whether the row has any in it."""
    keep = inside
    if CAUSAL:
        last = index % queries + N - queries
        keep = keep & ((start + lanes)[None, :] <= last[:, None])
    if mask is not None:
        keep = keep & (tl.load(columns(rows, mask, sizes, start, lanes), mask=keep, other=0) != 0)
    return keep


@triton.jit
def biased(z, keep, bias, rows, sizes, start, lanes):
    """The scores with their bias, -inf where nothing takes part."""
    if bias is not None:
        b = tl.load(columns(rows, bias, sizes, start, lanes), mask=keep, other=0.0)
        z += b.to(tl.float32)
    return tl.where(keep, z, float("-inf"))


@triton.jit
def with_sink(m, s, kept, sink, sizes, outer, inner, row_ok, SINK: tl.constexpr):
    """The row's maximum and sum, once the sink has its part in them; and the sink."""
    t = m
    if SINK:
        t = tl.load(pointers(sink, sizes, outer, inner), mask=row_ok, other=0.0).to(tl.float32)
        larger = t > m
        low, high = tl.where(larger, m, t), tl.where(larger, t, m)
        low_s, high_s = tl.where(larger, s, 0.0), tl.where(larger, 0.0, s)
        added = tl.where(low == float("-inf"), low_s, exp(low - finite(high)) * (1.0 + low_s))
        m, s = high, high_s + added
    return m, finished(m, s, kept), t


@triton.jit
def store_sink(y_sink, sink, m, s, kept, index, row_ok, LOG: tl.constexpr):
    """What the sink's own column would have got."""
    if LOG:
        value = sink - m - log1p(s)
    else:
        value = tl.div_rn(exp(sink - m), 1.0 + s)
    emptied = (m == float("-inf")) & (kept == 0)
    value = tl.where(emptied, float("-inf") if LOG else 0.0, value)
    tl.store(y_sink + index, value, mask=row_ok)


@triton.jit
def output(z, m, s, kept, LOG: tl.constexpr):
    """Columns of y from their scores."""
    if LOG:
        y = z - m[:, None] - log1p(s)[:, None]
    else:
        y = exp(z - finite(m)[:, None]) * tl.div_rn(1.0, 1.0 + s)[:, None]
    return tl.where(kept[:, None], y, float("-inf") if LOG else 0.0)


@triton.jit
def softmax_forward_kernel(
    x,
    y,
    bias,
    mask,
    sink,
    y_sink,
    sizes,
    N,
    queries,
    numbers,
    LOG: tl.constexpr,
    CAPPED: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows that fit in a tile: each is read once."""
    # 1. The rows at hand.
    outer, inner, index = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS)
    row_ok = inner < sizes[len(sizes) - 1]
    lanes = tl.arange(0, BLOCK)
    inside = row_ok[:, None] & (lanes < N)[None, :]
    x_rows, y_rows = pointers(x, sizes, outer, inner), pointers(y, sizes, outer, inner)
    bias_rows = x_rows if bias is None else pointers(bias, sizes, outer, inner)
    mask_rows = x_rows if mask is None else pointers(mask, sizes, outer, inner)

    # 2. Scores.
    keep = kept_columns(lanes, 0, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries)
    v = tl.load(columns(x_rows, x, sizes, 0, lanes), mask=keep, other=0.0).to(tl.float32)
    z = biased(score(v, numbers, CAPPED), keep, bias, bias_rows, sizes, 0, lanes)

    # 3. Row maximum and sum.
    kept = tl.max(keep.to(tl.int32), 1) != 0
    m, s = row_sum(z, tl.zeros([ROWS, BLOCK], tl.float32), ROWS, BLOCK)
    m, s, t = with_sink(m, s, kept, sink, sizes, outer, inner, row_ok, sink is not None)
    if sink is not None:
        store_sink(y_sink, t, m, s, kept, index, row_ok, LOG)

    # 4. Write the row.
    value = output(z, m, s, kept, LOG).to(y[0].dtype.element_ty)
    tl.store(columns(y_rows, y, sizes, 0, lanes), value, mask=inside)


@triton.jit
def softmax_forward_looped_kernel(
    x,
    y,
    bias,
    mask,
    sink,
    y_sink,
    sizes,
    N,
    queries,
    numbers,
    LOG: tl.constexpr,
    CAPPED: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of any length, BLOCK columns at a time, in two sweeps."""
    # 1. The rows at hand.
    outer, inner, index = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS)
    row_ok = inner < sizes[len(sizes) - 1]
    lanes = tl.arange(0, BLOCK)
    x_rows, y_rows = pointers(x, sizes, outer, inner), pointers(y, sizes, outer, inner)
    bias_rows = x_rows if bias is None else pointers(bias, sizes, outer, inner)
    mask_rows = x_rows if mask is None else pointers(mask, sizes, outer, inner)

    # 2. Scores; each lane's maximum and sum.
    m_lanes = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
    s_lanes = tl.zeros([ROWS, BLOCK], tl.float32)
    any_kept = tl.zeros([ROWS], tl.int32)
    for start in range(0, N, BLOCK):
        inside = row_ok[:, None] & (lanes < N - start)[None, :]
        keep = kept_columns(lanes, start, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries)
        v = tl.load(columns(x_rows, x, sizes, start, lanes), mask=keep, other=0.0).to(tl.float32)
        z = biased(score(v, numbers, CAPPED), keep, bias, bias_rows, sizes, start, lanes)
        m_lanes, s_lanes = add_exponentials(m_lanes, s_lanes, z)
        any_kept = tl.maximum(any_kept, tl.max(keep.to(tl.int32), 1))

    # 3. Row maximum and sum.
    kept = any_kept != 0
    m, s = row_sum(m_lanes, s_lanes, ROWS, BLOCK)
    m, s, t = with_sink(m, s, kept, sink, sizes, outer, inner, row_ok, sink is not None)
    if sink is not None:
        store_sink(y_sink, t, m, s, kept, index, row_ok, LOG)

    # 4. Write the row.
    for start in range(0, N, BLOCK):
        inside = row_ok[:, None] & (lanes < N - start)[None, :]
        keep = kept_columns(lanes, start, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries)
        v = tl.load(columns(x_rows, x, sizes, start, lanes), mask=keep, other=0.0).to(tl.float32)
        z = biased(score(v, numbers, CAPPED), keep, bias, bias_rows, sizes, start, lanes)
        value = output(z, m, s, kept, LOG).to(y[0].dtype.element_ty)
        tl.store(columns(y_rows, y, sizes, start, lanes), value, mask=inside)


# ---- Backward. -----------------------------------------------------------------------------------


@triton.jit
def load_gradient(dy, y, dy_rows, y_rows, sizes, start, lanes, keep):
    """Columns of dy and of y."""
    g = tl.load(columns(dy_rows, dy, sizes, start, lanes), mask=keep, other=0.0)
    v = tl.load(columns(y_rows, y, sizes, start, lanes), mask=keep, other=0.0)
    return g.to(tl.float32), v.to(tl.float32)


@triton.jit
def gradient(g, v, total, x, x_rows, sizes, start, lanes, keep, numbers, LOG: tl.constexpr):
    """Columns of dx; 0 where nothing takes part, whatever x holds there."""
    if LOG:
        dz = g - exp(v) * total[:, None]
    else:
        dz = v * (g - total[:, None])
    if x is not None:
        u = tl.load(columns(x_rows, x, sizes, start, lanes), mask=keep, other=0.0)
        dx = times_slope(dz, u.to(tl.float32), numbers, True)
    else:
        dx = times_slope(dz, dz, numbers, False)
    return tl.where(keep, dx, 0.0)


@triton.jit
def softmax_backward_kernel(
    dy,
    y,
    x,
    mask,
    dx,
    sizes,
    N,
    queries,
    numbers,
    LOG: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows that fit in a tile: dy and y are read once."""
    # 1. The rows at hand.
    outer, inner, index = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS)
    row_ok = inner < sizes[len(sizes) - 1]
    lanes = tl.arange(0, BLOCK)
    inside = row_ok[:, None] & (lanes < N)[None, :]
    dy_rows, y_rows = pointers(dy, sizes, outer, inner), pointers(y, sizes, outer, inner)
    dx_rows = pointers(dx, sizes, outer, inner)
    x_rows = y_rows if x is None else pointers(x, sizes, outer, inner)
    mask_rows = y_rows if mask is None else pointers(mask, sizes, outer, inner)

    # 2. The row's sum of dy y (log: of dy).
    g, v = load_gradient(dy, y, dy_rows, y_rows, sizes, 0, lanes, inside)
    total = tree_sum(g if LOG else g * v, ROWS, BLOCK)

    # 3. Write the row.
    keep = kept_columns(lanes, 0, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries)
    value = gradient(g, v, total, x, x_rows, sizes, 0, lanes, keep, numbers, LOG)
    tl.store(columns(dx_rows, dx, sizes, 0, lanes), value.to(dx[0].dtype.element_ty), mask=inside)


@triton.jit
def softmax_backward_looped_kernel(
    dy,
    y,
    x,
    mask,
    dx,
    sizes,
    N,
    queries,
    numbers,
    LOG: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of any length, BLOCK columns at a time, in two sweeps."""
    # 1. The rows at hand.
    outer, inner, index = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS)
    row_ok = inner < sizes[len(sizes) - 1]
    lanes = tl.arange(0, BLOCK)
    dy_rows, y_rows = pointers(dy, sizes, outer, inner), pointers(y, sizes, outer, inner)
    dx_rows = pointers(dx, sizes, outer, inner)
    x_rows = y_rows if x is None else pointers(x, sizes, outer, inner)
    mask_rows = y_rows if mask is None else pointers(mask, sizes, outer, inner)

    # 2. The row's sum of dy y (log: of dy).
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, N, BLOCK):
        inside = row_ok[:, None] & (lanes < N - start)[None, :]
        g, v = load_gradient(dy, y, dy_rows, y_rows, sizes, start, lanes, inside)
        sums += g if LOG else g * v
    total = tree_sum(sums, ROWS, BLOCK)

    # 3. Write the row.
    for start in range(0, N, BLOCK):
        inside = row_ok[:, None] & (lanes < N - start)[None, :]
        g, v = load_gradient(dy, y, dy_rows, y_rows, sizes, start, lanes, inside)
        keep = kept_columns(lanes, start, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries)
        value = gradient(g, v, total, x, x_rows, sizes, start, lanes, keep, numbers, LOG)
        at = columns(dx_rows, dx, sizes, start, lanes)
        tl.store(at, value.to(dx[0].dtype.element_ty), mask=inside)


# ---- Launchers: check, allocate, return if empty, plan, launch. ----------------------------------


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
    with on_device(x):
        kernel[(programs(outer, tiles["rows"]),)](
            *operands,
            y_sink,
            outer,
            N,
            queries,
            _numbers(scale, softcap),
            LOG=log,
            CAPPED=softcap > 0,
            CAUSAL=causal,
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

    # Allocate, return if empty.
    dx = torch.empty(sizes, dtype=x_type, device=y.device)
    if dx.numel() == 0:
        return dx

    # Plan and launch.
    N = sizes[dim] if sizes else 1
    views = [View(t) for t in (ready(dy, dim, broadcast=True), ready(y, dim), x, mask, dx)]
    outer, operands = view_rows(op, sizes, dim, views)
    tiles = plan(dx.numel() // N, N, x_type)
    kernel = softmax_backward_kernel if tiles["path"] == "kept" else softmax_backward_looped_kernel
    with on_device(y):
        kernel[(programs(outer, tiles["rows"]),)](
            *operands,
            outer,
            N,
            queries,
            _numbers(scale, softcap),
            LOG=log,
            CAUSAL=causal,
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
