"""Row softmax in Triton: the kernels.                     (the contract: csrc/softmax.h).

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

import triton
import triton.language as tl

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

# ---- Forward. ------------------------------------------------------------------------------------


@triton.jit
def kept_columns(lanes, start, N, index, inside, mask, rows, sizes, CAUSAL: tl.constexpr, queries):
    """Which columns of a tile to load, in whole vectors, and which of them take part."""
    wanted = inside
    if CAUSAL:
        last = index % queries + N - queries - start
        wanted = inside & (lanes[None, :] < ((last // 16 + 1) * 16)[:, None])
    keep = wanted
    if CAUSAL:
        keep = keep & (lanes[None, :] <= last[:, None])
    if mask is not None:
        at = columns(rows, mask, sizes, start, lanes)
        keep = keep & (tl.load(at, mask=wanted, other=0) != 0)
    return wanted, keep


@triton.jit
def load_scores(
    x, x_rows, bias, bias_rows, sizes, start, lanes, wanted, keep, numbers, CAPPED: tl.constexpr
):
    """The scores of a tile, -inf where nothing takes part, whatever x holds there."""
    v = tl.load(columns(x_rows, x, sizes, start, lanes), mask=wanted, other=0.0)
    z = score(v.to(tl.float32), numbers, CAPPED)
    if bias is not None:
        b = tl.load(columns(bias_rows, bias, sizes, start, lanes), mask=wanted, other=0.0)
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
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows that fit in a tile: each is read once."""
    # 1. The rows at hand.
    outer, inner, index, row_ok = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS, FLAT)
    lanes = tl.arange(0, BLOCK)
    inside = row_ok[:, None] & (lanes < N)[None, :]
    x_rows, y_rows = pointers(x, sizes, outer, inner), pointers(y, sizes, outer, inner)
    bias_rows = x_rows if bias is None else pointers(bias, sizes, outer, inner)
    mask_rows = x_rows if mask is None else pointers(mask, sizes, outer, inner)

    # 2. Scores.
    wanted, keep = kept_columns(lanes, 0, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries)
    z = load_scores(x, x_rows, bias, bias_rows, sizes, 0, lanes, wanted, keep, numbers, CAPPED)

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
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of any length, BLOCK columns at a time, in two sweeps."""
    # 1. The rows at hand.
    outer, inner, index, row_ok = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS, FLAT)
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
        wanted, keep = kept_columns(
            lanes, start, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries
        )
        z = load_scores(
            x, x_rows, bias, bias_rows, sizes, start, lanes, wanted, keep, numbers, CAPPED
        )
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
        wanted, keep = kept_columns(
            lanes, start, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries
        )
        z = load_scores(
            x, x_rows, bias, bias_rows, sizes, start, lanes, wanted, keep, numbers, CAPPED
        )
        value = output(z, m, s, kept, LOG).to(y[0].dtype.element_ty)
        tl.store(columns(y_rows, y, sizes, start, lanes), value, mask=inside)


# ---- Backward. -----------------------------------------------------------------------------------


@triton.jit
def load_gradient(dy, y, dy_rows, y_rows, sizes, start, lanes, wanted):
    """Columns of dy and of y."""
    g = tl.load(columns(dy_rows, dy, sizes, start, lanes), mask=wanted, other=0.0)
    v = tl.load(columns(y_rows, y, sizes, start, lanes), mask=wanted, other=0.0)
    return g.to(tl.float32), v.to(tl.float32)


@triton.jit
def sink_share(y_sink, sizes, outer, inner, row_ok):
    """What the sink took of each row."""
    if y_sink is None:
        return 0.0
    else:
        return tl.load(pointers(y_sink, sizes, outer, inner), mask=row_ok, other=0.0)


@triton.jit
def dy_mean(rest, y_rest, g, v, p_sink, ROWS: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr):
    """What is subtracted from dy: dy of a column that stands apart, then the rest of dy's mean.

    The mean is sum_k dy_k y_k; in lanes, ``rest`` and ``y_rest`` of earlier columns, and one more,
    ``g`` and ``v``. A y above a half, of which a softmax has one at most, stands apart: where it is
    nearly 1, dy - mean loses all its digits, and dy_k - dy_top - sum_{j != top} (dy_j - dy_top) y_j
    loses none, though it is the same number. The rounded y do not add up to 1, which they are
    divided by; but only if they can have been meant to, whatever y holds.
    """
    top_y = tl.max(v, 1)
    is_top = (v == top_y[:, None]) & (v > 0.5)
    top_dy = tl.sum(tl.where(is_top, g, 0.0), 1)
    alone = (tl.sum(is_top.to(tl.int32), 1) == 1) & (tl.abs(top_dy) < float("inf"))
    apart = is_top & alone[:, None]
    rest = tree_sum(rest + tl.where(apart, 0.0, g * v), ROWS, BLOCK)
    y_rest = tree_sum(y_rest + tl.where(apart, 0.0, v), ROWS, BLOCK)
    top_dy, top_y = tl.where(alone, top_dy, 0.0), tl.where(alone, top_y, 0.0)
    beside = y_rest + p_sink
    total = beside + top_y
    # The top's half ulp and the others'; a float32's y has some more.
    rounding = EPS * 4.0 if EPS < 1e-6 else EPS * (0.25 + beside * 0.5)
    rounded = tl.abs(total - 1.0) <= rounding
    mean = tl.div_rn(rest - beside * top_dy, tl.where(rounded, total, 1.0))
    return top_dy, tl.where(rounded, mean, rest - (1.0 - top_y) * top_dy)


@triton.jit
def gradient(
    g, v, top_dy, mean, x, x_rows, sizes, start, lanes, wanted, keep, numbers, LOG: tl.constexpr
):
    """Columns of dx; 0 where nothing takes part, whatever x holds there."""
    if LOG:
        dz = g - exp(v) * mean[:, None]
    else:
        dz = v * (g - top_dy[:, None] - mean[:, None])
    if x is not None:
        u = tl.load(columns(x_rows, x, sizes, start, lanes), mask=wanted, other=0.0)
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
    y_sink,
    sizes,
    N,
    queries,
    numbers,
    LOG: tl.constexpr,
    CAUSAL: tl.constexpr,
    EPS: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows that fit in a tile: dy and y are read once."""
    # 1. The rows at hand.
    outer, inner, index, row_ok = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS, FLAT)
    lanes = tl.arange(0, BLOCK)
    inside = row_ok[:, None] & (lanes < N)[None, :]
    dy_rows, y_rows = pointers(dy, sizes, outer, inner), pointers(y, sizes, outer, inner)
    dx_rows = pointers(dx, sizes, outer, inner)
    x_rows = y_rows if x is None else pointers(x, sizes, outer, inner)
    mask_rows = y_rows if mask is None else pointers(mask, sizes, outer, inner)

    # 2. The row's sum of dy y (log: of dy).
    wanted, keep = kept_columns(lanes, 0, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries)
    g, v = load_gradient(dy, y, dy_rows, y_rows, sizes, 0, lanes, inside if LOG else wanted)
    if LOG:
        mean = tree_sum(g, ROWS, BLOCK)
        top_dy = mean
    else:
        p_sink = sink_share(y_sink, sizes, outer, inner, row_ok)
        top_dy, mean = dy_mean(0.0, 0.0, g, v, p_sink, ROWS, BLOCK, EPS)

    # 3. Write the row.
    value = gradient(g, v, top_dy, mean, x, x_rows, sizes, 0, lanes, wanted, keep, numbers, LOG)
    tl.store(columns(dx_rows, dx, sizes, 0, lanes), value.to(dx[0].dtype.element_ty), mask=inside)


@triton.jit
def softmax_backward_looped_kernel(
    dy,
    y,
    x,
    mask,
    dx,
    y_sink,
    sizes,
    N,
    queries,
    numbers,
    LOG: tl.constexpr,
    CAUSAL: tl.constexpr,
    EPS: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of any length, BLOCK columns at a time, in two sweeps."""
    # 1. The rows at hand.
    outer, inner, index, row_ok = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS, FLAT)
    lanes = tl.arange(0, BLOCK)
    dy_rows, y_rows = pointers(dy, sizes, outer, inner), pointers(y, sizes, outer, inner)
    dx_rows = pointers(dx, sizes, outer, inner)
    x_rows = y_rows if x is None else pointers(x, sizes, outer, inner)
    mask_rows = y_rows if mask is None else pointers(mask, sizes, outer, inner)

    # 2. The row's sum of dy y (log: of dy).
    rest = tl.zeros([ROWS, BLOCK], tl.float32)
    y_rest, top_g, top_v = rest, rest, rest
    for start in range(0, N, BLOCK):
        inside = row_ok[:, None] & (lanes < N - start)[None, :]
        wanted = inside
        if not LOG:  # what takes no part has y = 0
            wanted, _ = kept_columns(
                lanes, start, N, index, inside, None, mask_rows, sizes, CAUSAL, queries
            )
        g, v = load_gradient(dy, y, dy_rows, y_rows, sizes, start, lanes, wanted)
        if LOG:
            rest += g
        else:  # the last one stays apart, whatever y holds
            apart = (v > 0.5) & (tl.abs(g) < float("inf"))
            rest += tl.where(apart, top_g * top_v, g * v)
            y_rest += tl.where(apart, top_v, v)
            top_g, top_v = tl.where(apart, g, top_g), tl.where(apart, v, top_v)
    if LOG:
        mean = tree_sum(rest, ROWS, BLOCK)
        top_dy = mean
    else:
        p_sink = sink_share(y_sink, sizes, outer, inner, row_ok)
        top_dy, mean = dy_mean(rest, y_rest, top_g, top_v, p_sink, ROWS, BLOCK, EPS)

    # 3. Write the row.
    for start in range(0, N, BLOCK):
        inside = row_ok[:, None] & (lanes < N - start)[None, :]
        wanted, keep = kept_columns(
            lanes, start, N, index, inside, mask, mask_rows, sizes, CAUSAL, queries
        )
        g, v = load_gradient(dy, y, dy_rows, y_rows, sizes, start, lanes, wanted)
        value = gradient(
            g, v, top_dy, mean, x, x_rows, sizes, start, lanes, wanted, keep, numbers, LOG
        )
        at = columns(dx_rows, dx, sizes, start, lanes)
        tl.store(at, value.to(dx[0].dtype.element_ty), mask=inside)
