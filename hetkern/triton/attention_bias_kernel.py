"""Attention in Triton, backward: the gradient of a bias.     (the contract: csrc/attention.h).

    dbias = ds, summed over what was broadcast

Work:    a program takes a tile of the bias' own queries and keys, of its own batch and head, and
         adds up whatever was broadcast onto it, in order: no two programs add to one number.
Traffic: what the other passes read, once for each tile of scores; dbias is written once.
"""

import triton
import triton.language as tl

from .attention_backward_kernels import stat
from .attention_scores import (
    kept_by_dropout,
    product,
    scores,
    sequence_of,
    slope_of,
    tile,
    weights_and_gradients,
)


@triton.jit
def attention_dbias_kernel(
    q,
    k,
    v,
    dout,
    dbias,
    shape,
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
    ALL_QUERIES: tl.constexpr,
    ALL_KEYS: tl.constexpr,
):
    """A tile of the bias.

    shape: batch and heads of the bias, its tiles of queries and of keys, its queries and keys; then
    batch, heads, and tiles of queries and keys that are broadcast onto one of them.
    ALL_QUERIES, ALL_KEYS: the bias has one for all.
    """
    # 1. Which tile.
    program = tl.program_id(0)
    own_j, rest = program % shape[3], program // shape[3]
    own_i, rest = rest % shape[2], rest // shape[2]
    own_h, own_b = rest % shape[1], rest // shape[1]
    before, after = window
    exact: tl.constexpr = q[0].dtype.element_ty == tl.float32
    zeros = tl.zeros([ROWS, COLUMNS], tl.float32)
    total = zeros

    # 2. Everything that it was added to.
    for n in range(0, shape[6] * shape[7] * shape[8] * shape[9]):
        j0, more = (own_j + n % shape[9]) * COLUMNS, n // shape[9]
        i0, more = (own_i + more % shape[8]) * ROWS, more // shape[8]
        h, b = own_h + more % shape[7], own_b + more // shape[7]
        q0, k0, Lq, Lk = sequence_of(b, lengths, sizes)
        near = (i0 < Lq) & (j0 < Lk)
        if BEFORE:
            near = near & (j0 + COLUMNS > i0 + Lk - Lq - before)
        if AFTER:
            near = near & (j0 < i0 + ROWS + Lk - Lq + after)
        if near:
            sequence, h_k = (Lq, Lk, before, after), h // sizes[1]
            q_tile = tile(q, b, h, q0 + i0, Lq - i0, D, ROWS, WIDTH, True)
            dout_tile = tile(dout, b, h, q0 + i0, Lq - i0, DV, ROWS, WIDTH_V, True)
            k_tile = tile(k, b, h_k, k0 + j0, Lk - j0, D, COLUMNS, WIDTH, True)
            v_tile = tile(v, b, h_k, k0 + j0, Lk - j0, DV, COLUMNS, WIDTH_V, True)
            qk = product(q_tile, tl.trans(k_tile), zeros, PRECISION)
            dp = product(dout_tile, tl.trans(v_tile), zeros, PRECISION)
            here = tl.arange(0, ROWS) < Lq - i0
            places = q0 + i0 + tl.arange(0, ROWS)
            steps = (stats[3], stats[4])
            m = stat(stats[0], b, h, steps, places, here)[:, None]
            s = stat(stats[1], b, h, steps, places, here)[:, None]
            d = stat(stats[2], b, h, steps, places, here)[:, None]
            i, j = (i0 + tl.arange(0, ROWS))[:, None], (j0 + tl.arange(0, COLUMNS))[None, :]
            slope = slope_of(features[0], b, h)
            z, t, seen = scores(
                qk, i, j, b, h, sequence, features, slope, numbers, BEFORE, AFTER, CAPPED, True
            )
            kept = seen
            if DROPOUT:
                row = b * sizes[0] + h
                kept = kept_by_dropout(seed, numbers[3], i, j0, row, ROWS, COLUMNS, False)
            _, dz, _ = weights_and_gradients(
                z, t, seen, dp, kept, m, s, d, numbers, exact, CAPPED, DROPOUT, True
            )
            total += dz

    # 3. The result, over what was broadcast along a side.
    i, j = own_i * ROWS + tl.arange(0, ROWS), own_j * COLUMNS + tl.arange(0, COLUMNS)
    to = dbias + (own_b * shape[1] + own_h).to(tl.int64) * shape[4] * shape[5]
    at = to + (i.to(tl.int64)[:, None] * shape[5] + j[None, :])
    have = (i < shape[4])[:, None] & (j < shape[5])[None, :]
    if ALL_QUERIES:
        total = tl.broadcast_to(tl.sum(total, 0)[None, :], [ROWS, COLUMNS])
    if ALL_KEYS:
        total = tl.broadcast_to(tl.sum(total, 1)[:, None], [ROWS, COLUMNS])
    tl.store(at, total.to(dbias.dtype.element_ty), mask=have)
