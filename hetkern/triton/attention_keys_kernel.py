"""Attention in Triton, backward: the pass over keys.          (the contract: csrc/attention.h).

    dk_j = scale sum_i dr_ij q_i    dv_j = sum_i p_ij drop_ij dout_i

Work:    a program takes some keys of a key head, and goes through the group's heads and their
         queries in order: no two programs add to one number.
Traffic: k and v are read once, q and dout once a block of keys; dk and dv are written once.
Edges:   as forward; keys of a cache behind its sequence get zeros.
"""

import triton
import triton.language as tl

from .attention_backward_kernels import stat
from .attention_scores import (
    band_of,
    kept_by_dropout,
    only_finite,
    product,
    scores,
    sequence_of,
    slope_of,
    store_tile,
    tile,
    weights_and_gradients,
)


@triton.jit
def keys_step(
    dk,
    dv,
    k_tile,
    v_tile,
    j0,
    i0,
    q,
    dout,
    stats,
    place,
    sequence,
    features,
    slope,
    seed,
    numbers,
    DK_WANTED: tl.constexpr,
    DV_WANTED: tl.constexpr,
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
    """One block of queries more; a tile's rows are keys."""
    b, h, q0, row = place
    Lq = sequence[0]
    exact: tl.constexpr = k_tile.dtype == tl.float32
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    q_tile = tile(q, b, h, q0 + i0, Lq - i0, D, COLUMNS, WIDTH, CUT)
    dout_tile = tile(dout, b, h, q0 + i0, Lq - i0, DV, COLUMNS, WIDTH_V, CUT)
    here = tl.arange(0, COLUMNS) < Lq - i0
    places = q0 + i0 + tl.arange(0, COLUMNS)
    steps = (stats[3], stats[4])
    m = stat(stats[0], b, h, steps, places, here)[None, :]
    s = stat(stats[1], b, h, steps, places, here)[None, :]
    d = stat(stats[2], b, h, steps, places, here)[None, :]
    qk = product(k_tile, tl.trans(q_tile), zeros, PRECISION)
    dp = product(v_tile, tl.trans(dout_tile), zeros, PRECISION)
    i, j = (i0 + tl.arange(0, COLUMNS))[None, :], (j0 + tl.arange(0, ROWS))[:, None]
    z, t, seen = scores(
        qk, i, j, b, h, sequence, features, slope, numbers, BEFORE, AFTER, CAPPED, CUT
    )
    kept = seen
    if DROPOUT:
        down = (i0 + tl.arange(0, COLUMNS))[:, None]
        kept = kept_by_dropout(seed, numbers[3], down, j0, row, COLUMNS, ROWS, True)
    taken, _, dr = weights_and_gradients(
        z, t, seen, dp, kept, m, s, d, numbers, exact, CAPPED, DROPOUT, CUT
    )
    if DV_WANTED:
        dv = product(taken.to(dout_tile.dtype), dout_tile, dv, PRECISION)
    if DK_WANTED:
        if CUT:
            q_tile, _ = only_finite(q_tile)
        dk = product(dr.to(q_tile.dtype), q_tile, dk, PRECISION)
    return dk, dv


@triton.jit
def attention_dk_dv_kernel(
    q,
    k,
    v,
    dout,
    dk,
    dv,
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
    """Some keys of a key head; dk and dv are None where not wanted."""
    # 1. Which keys; those of a cache behind its sequence get zeros.
    program, blocks = tl.program_id(0), sizes[4]
    heads = sizes[0] // sizes[1]
    j0 = program % blocks * ROWS
    b, h_k = program // blocks // heads, program // blocks % heads
    q0, k0, Lq, Lk = sequence_of(b, lengths, sizes)
    room = Lk
    if lengths[0] is None:
        room = tl.full([], 0, tl.int32) + sizes[3]
    if j0 < room:
        before, after = window
        sequence = (Lq, Lk, before, after)
        k_tile = tile(k, b, h_k, k0 + j0, Lk - j0, D, ROWS, WIDTH, True)
        v_tile = tile(v, b, h_k, k0 + j0, Lk - j0, DV, ROWS, WIDTH_V, True)

        # 2. The queries that see them, in blocks, head after head.
        begin, end, inner_begin, inner_end = band_of(
            j0, Lq - Lk, after, before, Lk, Lq, AFTER, BEFORE, ROWS, COLUMNS
        )
        inner_end = tl.where(j0 + ROWS <= Lk, inner_end, inner_begin)
        end = tl.where(j0 < Lk, end, 0)
        if features[2] is not None:  # a mask: no block is known to be whole
            inner_begin, inner_end = begin, begin
        by_k = tl.zeros([ROWS, WIDTH], tl.float32)
        by_v = tl.zeros([ROWS, WIDTH_V], tl.float32)
        starts = (begin, inner_begin, tl.maximum(inner_begin, inner_end))
        ends = (tl.minimum(inner_begin, end), inner_end, end)
        for of_group in range(0, sizes[1]):
            h = h_k * sizes[1] + of_group
            row = b * sizes[0] + h
            slope = slope_of(features[0], b, h)
            place = (b, h, q0, row)
            for part in tl.static_range(3):
                if (part == 0 and AFTER) or part == 2 or (part == 1 and features[2] is None):
                    for i0 in range(starts[part], ends[part], COLUMNS):
                        by_k, by_v = keys_step(
                            by_k,
                            by_v,
                            k_tile,
                            v_tile,
                            j0,
                            i0,
                            q,
                            dout,
                            stats,
                            place,
                            sequence,
                            features,
                            slope,
                            seed,
                            numbers,
                            dk is not None,
                            dv is not None,
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
        if dk is not None:
            store_tile(dk, b, h_k, k0 + j0, room - j0, by_k * numbers[0], D, ROWS, WIDTH)
        if dv is not None:
            store_tile(dv, b, h_k, k0 + j0, room - j0, by_v, DV, ROWS, WIDTH_V)
