"""Attention in Triton, forward: the kernels.                 (the contract: csrc/attention.h).

    lse_i = log(sum_j exp(s_ij) + exp(sink))    out_i = sum_j exp(s_ij - lse_i) drop_ij v_j

q, k, v, out: float32, float16 or bfloat16, up to 256 columns; scores, sums, row_max and log_sum are
float32.
Work:    a program takes some queries of a head and the keys that they see, a block after another;
         a row's maximum and sum go along (Milakov & Gimelshein 2018, Alg. 3; Dao et al. 2022).
Traffic: q is read once, k and v once a block of queries; out and the statistics are written once.
Edges:   an emptied row gives 0; NaN stays with the rows that see it.
"""

import triton
import triton.language as tl

from .attention_scores import (
    band_of,
    kept_by_dropout,
    only_finite,
    power,
    product,
    scores,
    sees,
    sequence_of,
    slope_of,
    store_tile,
    tile,
)
from .rows import finite, log1p

# ---- Lengths. ------------------------------------------------------------------------------------


@triton.jit
def attention_lengths_kernel(lengths, sizes, B, BLOCK: tl.constexpr):
    """Trap on ends of sequences that do not rise from 0 to the rows, and lengths beyond a cache."""
    packed, seqlens_k = lengths
    for start in range(0, B, BLOCK):
        b = start + tl.arange(0, BLOCK)
        if packed is not None:
            for side in tl.static_range(2):
                first = tl.load(packed[side] + b, mask=b < B, other=0)
                end = tl.load(packed[side] + b + 1, mask=b < B, other=0)
                wanted = tl.where(b == B - 1, end == packed[2 + side], end >= first)
                wanted = wanted & (end >= first) & (end - first <= sizes[2 + side])
                wanted = wanted & tl.where(b == 0, first == 0, first >= 0)
                tl.device_assert((b >= B) | wanted, "cu_seqlens: wanted rising from 0 to the rows")
        if seqlens_k is not None:
            have = tl.load(seqlens_k + b, mask=b < B, other=0)
            tl.device_assert((have >= 0) & (have <= sizes[3]), "seqlens_k: wanted 0 to Lk")


# ---- Forward. ------------------------------------------------------------------------------------


@triton.jit
def forward_step(
    o,
    m,
    s,
    bad,
    q_tile,
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
    k_tile = tile(k, b, h_k, k0 + j0, Lk - j0, D, COLUMNS, WIDTH, CUT)
    qk = product(q_tile, tl.trans(k_tile), tl.zeros([ROWS, COLUMNS], tl.float32), PRECISION)
    i, j = (i0 + tl.arange(0, ROWS))[:, None], (j0 + tl.arange(0, COLUMNS))[None, :]
    z, _, _ = scores(qk, i, j, b, h, sequence, features, slope, numbers, BEFORE, AFTER, CAPPED, CUT)
    top = tl.maximum(m, tl.max(z, 1))
    p = power(z - finite(top)[:, None], exact)
    before = power(m - finite(top), exact)
    s = s * before + tl.sum(p, 1)
    if DROPOUT:
        kept = kept_by_dropout(seed, numbers[3], i0, j0, row, ROWS, COLUMNS, False)
        p = tl.where(kept, p, 0.0)
    v_tile = tile(v, b, h_k, k0 + j0, Lk - j0, DV, COLUMNS, WIDTH_V, CUT)
    o = o * before[:, None]
    if CUT:
        v_tile, here = only_finite(v_tile)
        bad = tl.maximum(bad, here)
    o = product(p.to(v_tile.dtype), v_tile, o, PRECISION)
    return o, top, s, bad


@triton.jit
def reached_by_bad_values(
    o,
    i0,
    begin,
    end,
    v,
    place,
    sequence,
    mask,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """NaN and infinities of values, for the rows that see them and no other."""
    b, h, h_k, k0, _ = place
    Lk = sequence[1]
    zeros = tl.zeros([ROWS, WIDTH_V], tl.float32)
    for j0 in range(begin, end, COLUMNS):
        x = tile(v, b, h_k, k0 + j0, Lk - j0, DV, COLUMNS, WIDTH_V, True).to(tl.float32)
        i, j = (i0 + tl.arange(0, ROWS))[:, None], (j0 + tl.arange(0, COLUMNS))[None, :]
        seen = sees(i, j, b, h, sequence, mask, BEFORE, AFTER)
        one = tl.broadcast_to(seen, [ROWS, COLUMNS]).to(tl.float16)
        nan = x != x
        plus = product(one, (nan | (x == float("inf"))).to(tl.float16), zeros, PRECISION)
        minus = product(one, (nan | (x == float("-inf"))).to(tl.float16), zeros, PRECISION)
        o += tl.where(plus > 0, float("inf"), 0.0)
        o += tl.where(minus > 0, float("-inf"), 0.0)
    return o


@triton.jit
def attention_forward_kernel(
    q,
    k,
    v,
    out,
    stats,
    features,
    sink,
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
    """Some queries of a head.

    sizes: Hq, Hq / Hkv, Lq, Lk (packed: the longest), blocks of queries; numbers: scale, softcap,
    1 / softcap, dropout's threshold, 1 / (1 - dropout_p).
    """
    # 1. Which queries; a causal head's longest rows come first.
    program, blocks = tl.program_id(0), sizes[4]
    row = program // blocks
    i0 = (blocks - 1 - program % blocks) * ROWS
    b, h = row // sizes[0], row % sizes[0]
    h_k = h // sizes[1]
    q0, k0, Lq, Lk = sequence_of(b, lengths, sizes)
    if i0 < Lq:
        before, after = window
        sequence = (Lq, Lk, before, after)
        place = (b, h, h_k, k0, row)
        slope = slope_of(features[0], b, h)
        q_tile = tile(q, b, h, q0 + i0, Lq - i0, D, ROWS, WIDTH, True)

        # 2. The keys that they see, in blocks.
        begin, end, inner_begin, inner_end = band_of(
            i0, Lk - Lq, before, after, Lq, Lk, BEFORE, AFTER, ROWS, COLUMNS
        )
        if features[1] is not None:  # a bias is read inside its bounds alone
            inner_end = tl.where(i0 + ROWS <= Lq, inner_end, inner_begin)
        if features[2] is not None:  # a mask: no block is known to be whole
            inner_begin, inner_end = begin, begin
        o = tl.zeros([ROWS, WIDTH_V], tl.float32)
        m = tl.full([ROWS], float("-inf"), tl.float32)
        s = tl.zeros([ROWS], tl.float32)
        bad = tl.full([], 0, tl.int32)
        starts = (begin, inner_begin, tl.maximum(inner_begin, inner_end))
        ends = (tl.minimum(inner_begin, end), inner_end, end)
        for part in tl.static_range(3):  # before, within and behind the blocks that all rows see
            if (part == 0 and BEFORE) or part == 2 or (part == 1 and features[2] is None):
                for j0 in range(starts[part], ends[part], COLUMNS):
                    o, m, s, bad = forward_step(
                        o,
                        m,
                        s,
                        bad,
                        q_tile,
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

        if bad > 0:
            o = reached_by_bad_values(
                o,
                i0,
                begin,
                end,
                v,
                place,
                sequence,
                features[2],
                DV,
                ROWS,
                COLUMNS,
                WIDTH_V,
                BEFORE,
                AFTER,
                PRECISION,
            )

        # 3. The sink, and the results.
        if sink is not None:
            last = tl.load(sink + h).to(tl.float32)
            top = tl.maximum(m, last)
            shrunk = power(m - finite(top), True)
            s = s * shrunk + power(last - finite(top), True)
            o, m = o * shrunk[:, None], top
        nothing = s == 0.0
        part = tl.where(nothing, 0.0, tl.div_rn(1.0, s))
        if DROPOUT:
            part *= numbers[4]
        o = tl.where(nothing[:, None], 0.0, o * part[:, None])
        store_tile(out, b, h, q0 + i0, Lq - i0, o, DV, ROWS, WIDTH_V)
        rows = tl.arange(0, ROWS)
        at = b.to(tl.int64) * stats[2] + h.to(tl.int64) * stats[3] + (q0 + i0) + rows
        tl.store(stats[0] + at, m, mask=rows < Lq - i0)
        log_sum = tl.where(nothing, 0.0, log1p(s - 1.0))
        tl.store(stats[1] + at, log_sum, mask=rows < Lq - i0)
