"""Attention in Triton, backward: the kernels.                (the contract: csrc/attention.h).

    ds_ij = p_ij (drop_ij dout_i v_j - delta_i)    dr_ij = ds_ij (1 - tanh^2)
    dq_i = scale sum_j dr_ij k_j

Work:    a pass over rows gives delta, one over queries dq; attention_keys_kernel.py has dk and dv,
         attention_bias_kernel.py a bias. No two programs add to one number: the same bits always.
Traffic: dq's pass reads q and dout once, k and v once a block of queries; results are written once.
Edges:   as forward; a gradient that nobody wants is not computed.
"""

import triton
import triton.language as tl

from .attention_scores import (
    band_of,
    distance,
    kept_by_dropout,
    keys_of_rows,
    only_finite,
    power,
    product,
    queries_of_program,
    scores,
    sequence_of,
    slope_of,
    store_tile,
    tile,
    weights_and_gradients,
)
from .rows import finite


@triton.jit
def stat(pointer, b, h, steps, rows, have):
    """One number of each row, 0 for those that are not there."""
    at = b.to(tl.int64) * steps[0] + h.to(tl.int64) * steps[1] + rows
    return tl.load(pointer + at, mask=have, other=0.0)


# ---- Deltas, and the sink's gradient. ------------------------------------------------------------


@triton.jit
def deltas_by_products(
    i0,
    q,
    k,
    v,
    dout,
    m,
    s,
    row,
    lengths,
    sizes,
    window,
    features,
    seed,
    numbers,
    D: tl.constexpr,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """sum_j p_ij drop_ij (dout_i v_j)."""
    b, h = row // sizes[0], row % sizes[0]
    h_k = h // sizes[1]
    q0, k0, Lq, Lk = sequence_of(b, lengths, sizes)
    before, after = window
    sequence = (Lq, Lk, before, after)
    slope = slope_of(features[0], b, h)
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    q_tile = tile(q, b, h, q0 + i0, Lq - i0, D, ROWS, WIDTH, True)
    dout_tile = tile(dout, b, h, q0 + i0, Lq - i0, DV, ROWS, WIDTH_V, True)
    band = band_of(i0, Lk - Lq, before, after, Lq, Lk, BEFORE, AFTER, ROWS, COLUMNS)
    total = tl.zeros([ROWS], tl.float32)
    for j0 in range(band[0], band[1], COLUMNS):
        k_tile = tile(k, b, h_k, k0 + j0, Lk - j0, D, COLUMNS, WIDTH, True)
        v_tile = tile(v, b, h_k, k0 + j0, Lk - j0, DV, COLUMNS, WIDTH_V, True)
        qk = product(q_tile, tl.trans(k_tile), zeros, PRECISION)
        dp = product(dout_tile, tl.trans(v_tile), zeros, PRECISION)
        i, j = (i0 + tl.arange(0, ROWS))[:, None], (j0 + tl.arange(0, COLUMNS))[None, :]
        z, t, seen = scores(
            qk, i, j, b, h, sequence, features, slope, numbers, BEFORE, AFTER, CAPPED, True
        )
        kept = seen
        if DROPOUT:
            kept = kept_by_dropout(seed, numbers[3], i, j0, row, ROWS, COLUMNS, False)
        _, dz, _ = weights_and_gradients(
            z, t, seen, dp, kept, m[:, None], s[:, None], 0.0, numbers, False, CAPPED, DROPOUT, True
        )
        total += tl.sum(dz, 1)
    return total


@triton.jit
def attention_delta_kernel(
    q,
    k,
    v,
    dout,
    out,
    dlse,
    delta,
    stats,
    features,
    sink,
    sink_sums,
    seed,
    lengths,
    sizes,
    window,
    numbers,
    D: tl.constexpr,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """delta_i = dout_i out_i - dlse_i, and a block's share of dsink.

    Where one key has more than half of a row, the gradients of its scores are a small difference,
    and out, rounded to 16 bits, is too coarse for it: such a row's delta comes of the products that
    it is taken from.
    """
    program, blocks = tl.program_id(0), sizes[4]
    row = program // blocks
    i0 = program % blocks * ROWS
    b, h = row // sizes[0], row % sizes[0]
    q0, _, Lq, _ = sequence_of(b, lengths, sizes)
    if i0 < Lq:
        rows = tl.arange(0, ROWS)
        here = rows < Lq - i0
        places, steps = q0 + i0 + rows, (stats[2], stats[3])
        m = stat(stats[0], b, h, steps, places, here)
        s = stat(stats[1], b, h, steps, places, here)
        g = tile(dout, b, h, q0 + i0, Lq - i0, DV, ROWS, WIDTH_V, True).to(tl.float32)
        o = tile(out, b, h, q0 + i0, Lq - i0, DV, ROWS, WIDTH_V, True).to(tl.float32)
        value = tl.sum(g * o, 1)
        if q[0].dtype.element_ty != tl.float32:
            confident = here & (s < 0.6931472) & (m > float("-inf"))
            if tl.max(confident.to(tl.int32), 0) > 0:
                total = deltas_by_products(
                    i0,
                    q,
                    k,
                    v,
                    dout,
                    m,
                    s,
                    row,
                    lengths,
                    sizes,
                    window,
                    features,
                    seed,
                    numbers,
                    D,
                    DV,
                    ROWS,
                    COLUMNS,
                    WIDTH,
                    WIDTH_V,
                    BEFORE,
                    AFTER,
                    CAPPED,
                    DROPOUT,
                    PRECISION,
                )
                value = tl.where(confident, total, value)
        if dlse is not None:
            value -= stat(dlse, b, h, steps, places, here)
        at = b.to(tl.int64) * steps[0] + h.to(tl.int64) * steps[1] + places
        tl.store(delta + at, value, mask=here)
        if sink_sums is not None:
            share = power((tl.load(sink + h).to(tl.float32) - finite(m)) - s, True)
            tl.store(sink_sums + program, -tl.sum(tl.where(here, share * value, 0.0), 0))


# ---- dq, and a block's share of dslopes. ---------------------------------------------------------


@triton.jit
def queries_step(
    dq,
    slope_sums,
    q_tile,
    dout_tile,
    m,
    s,
    d,
    i0,
    j0,
    k,
    v,
    place,
    sequence,
    features,
    slope,
    seed,
    numbers,
    WANTED: tl.constexpr,
    SLOPES: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    CUT: tl.constexpr,
):
    """One block of keys more."""
    b, h, h_k, k0, row = place
    Lk = sequence[1]
    exact: tl.constexpr = q_tile.dtype == tl.float32
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    k_tile = tile(k, b, h_k, k0 + j0, Lk - j0, D, COLUMNS, WIDTH, CUT)
    v_tile = tile(v, b, h_k, k0 + j0, Lk - j0, DV, COLUMNS, WIDTH_V, CUT)
    qk = product(q_tile, tl.trans(k_tile), zeros, PRECISION)
    dp = product(dout_tile, tl.trans(v_tile), zeros, PRECISION)
    i, j = (i0 + tl.arange(0, ROWS))[:, None], (j0 + tl.arange(0, COLUMNS))[None, :]
    z, t, seen = scores(
        qk, i, j, b, h, sequence, features, slope, numbers, BEFORE, AFTER, CAPPED, CUT
    )
    kept = seen
    if DROPOUT:
        kept = kept_by_dropout(seed, numbers[3], i, j0, row, ROWS, COLUMNS, False)
    _, dz, dr = weights_and_gradients(
        z, t, seen, dp, kept, m, s, d, numbers, exact, CAPPED, DROPOUT, CUT
    )
    if SLOPES:
        slope_sums -= tl.sum(dz * distance(i, j, Lk - sequence[0]), 1)
    if WANTED:
        if CUT:
            k_tile, _ = only_finite(k_tile)
        dq = product(dr.to(k_tile.dtype), k_tile, dq, PRECISION)
    return dq, slope_sums


@triton.jit
def attention_dq_kernel(
    q,
    k,
    v,
    dout,
    dq,
    slope_sums,
    stats,
    features,
    seed,
    lengths,
    sizes,
    window,
    numbers,
    D: tl.constexpr,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some queries of a head; dq and slope_sums are None where not wanted."""
    # 1. Which queries.
    b, h, h_k, i0 = queries_of_program(sizes, ROWS, 1)
    row = b * sizes[0] + h
    q0, k0, Lq, Lk = sequence_of(b, lengths, sizes)
    if i0 < Lq:
        sequence, place = (Lq, Lk, window[0], window[1]), (b, h, h_k, k0, row)
        slope = slope_of(features[0], b, h)
        q_tile = tile(q, b, h, q0 + i0, Lq - i0, D, ROWS, WIDTH, True)
        dout_tile = tile(dout, b, h, q0 + i0, Lq - i0, DV, ROWS, WIDTH_V, True)
        here = tl.arange(0, ROWS) < Lq - i0
        places = q0 + i0 + tl.arange(0, ROWS)
        steps = (stats[3], stats[4])
        m = stat(stats[0], b, h, steps, places, here)[:, None]
        s = stat(stats[1], b, h, steps, places, here)[:, None]
        d = stat(stats[2], b, h, steps, places, here)[:, None]

        # 2. The keys that they see, in blocks.
        begin, end, inner_begin, inner_end = keys_of_rows(
            i0, sequence, features, BEFORE, AFTER, ROWS, COLUMNS, 1
        )
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        by_slope = tl.zeros([ROWS], tl.float32)
        starts = (begin, inner_begin, tl.maximum(inner_begin, inner_end))
        ends = (tl.minimum(inner_begin, end), inner_end, end)
        for part in tl.static_range(3):
            if (part == 0 and BEFORE) or part == 2 or (part == 1 and features[2] is None):
                for j0 in range(starts[part], ends[part], COLUMNS):
                    total, by_slope = queries_step(
                        total,
                        by_slope,
                        q_tile,
                        dout_tile,
                        m,
                        s,
                        d,
                        i0,
                        j0,
                        k,
                        v,
                        place,
                        sequence,
                        features,
                        slope,
                        seed,
                        numbers,
                        dq is not None,
                        slope_sums is not None,
                        D,
                        DV,
                        ROWS,
                        COLUMNS,
                        WIDTH,
                        WIDTH_V,
                        BEFORE,
                        AFTER,
                        CAPPED,
                        DROPOUT,
                        PRECISION,
                        part != 1,
                    )

        # 3. The results.
        if dq is not None:
            store_tile(dq, b, h, q0 + i0, Lq - i0, total * numbers[0], D, ROWS, WIDTH)
        if slope_sums is not None:
            share = tl.sum(tl.where(here, by_slope, 0.0), 0)
            tl.store(slope_sums + row.to(tl.int64) * sizes[4] + i0 // ROWS, share)
