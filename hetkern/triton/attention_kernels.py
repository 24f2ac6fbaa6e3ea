"""Attention in Triton, forward: the kernels.                 (the contract: csrc/attention.h).

    lse_i = log(sum_j exp(s_ij) + exp(sink))    out_i = sum_j exp(s_ij - lse_i) drop_ij v_j

q, k, v, out: float32, float16 or bfloat16, up to 256 columns; scores, sums, row_max and log_sum are
float32.
Work:    a program takes some queries of a head and the keys that they see, a block after another;
         a row's maximum and sum go along (Milakov & Gimelshein 2018, Alg. 3; Dao et al. 2022).
         Every 1024 keys are a launch of their own, on top of what those before put aside. Few
         queries are folded, a tile's rows being those of all heads of a group, and programs of one
         launch take the parts, which another kernel puts together in the same order: the bits are
         the same.
Traffic: q is read once a part, k and v once a block of queries, folded so once a group; out and the
         statistics are written once; beyond 1024 keys sums go aside and come back once a part.
Edges:   an emptied row gives 0; NaN stays with the rows that see it.
"""

import triton
import triton.language as tl

from .attention_parts_kernel import finish, place_aside, put_aside, put_back, put_together
from .attention_scores import (
    at_folded,
    clamp,
    folded,
    kept_by_dropout,
    keys_of_rows,
    only_finite,
    power,
    product,
    queries_of_program,
    scores,
    sees,
    sequence_of,
    slope_of,
    tile,
)
from .rows import finite

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
    i,
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
    j = (j0 + tl.arange(0, COLUMNS))[None, :]
    z, _, _ = scores(qk, i, j, b, h, sequence, features, slope, numbers, BEFORE, AFTER, CAPPED, CUT)
    top = tl.maximum(m, tl.max(z, 1))
    p = power(z - finite(top)[:, None], exact)
    before = power(m - finite(top), exact)
    s = s * before + tl.sum(p, 1)
    if DROPOUT:
        kept = kept_by_dropout(seed, numbers[3], i, j0, row, ROWS, COLUMNS, False)
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
    i,
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
        j = (j0 + tl.arange(0, COLUMNS))[None, :]
        seen = sees(i, j, b, h, sequence, mask, BEFORE, AFTER)
        one = tl.broadcast_to(seen, [ROWS, COLUMNS]).to(tl.float16)
        nan = x != x
        plus = product(one, (nan | (x == float("inf"))).to(tl.float16), zeros, PRECISION)
        minus = product(one, (nan | (x == float("-inf"))).to(tl.float16), zeros, PRECISION)
        o += tl.where(plus > 0, float("inf"), 0.0)
        o += tl.where(minus > 0, float("-inf"), 0.0)
    return o


@triton.jit
def over_keys(
    q_tile,
    i,
    keys,
    operands,
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
    """Sums of values, largest scores and sums of weights over some keys, block by block."""
    k, v, place, sequence, features, slope, seed, numbers = operands
    begin, end, inner_begin, inner_end = keys
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
                    i,
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
            i,
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
    return o, m, s


@triton.jit
def part_of(keys, low, PART: tl.constexpr):
    """Of a range of keys, what lies among the PART from ``low`` on."""
    begin, end, inner_begin, inner_end = keys
    high = low + PART
    inner_begin, inner_end = clamp(inner_begin, low, high), clamp(inner_end, low, high)
    return tl.maximum(begin, low), tl.minimum(end, high), inner_begin, inner_end


@triton.jit
def attention_forward_kernel(
    q,
    k,
    v,
    out,
    stats,
    features,
    sink,
    aside,
    low,
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
    GROUP: tl.constexpr,
    PART: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Some queries of a head, or of the GROUP heads that share their keys.

    sizes: Hq, Hq / Hkv, Lq, Lk (packed: the longest), blocks of rows; numbers: scale, softcap,
    1 / softcap, dropout's threshold, 1 / (1 - dropout_p); aside: None where there are at most PART
    keys, else room for what a part of them gives: sums, their rows' maxima and weights, rows of all
    heads; low: where the part of this launch begins; SPLIT: a program takes one, which has room of
    its own.
    """
    # 1. Which queries.
    b, h, h_k, x0 = queries_of_program(sizes, ROWS, GROUP)
    q0, k0, Lq, Lk = sequence_of(b, lengths, sizes)
    if x0 < Lq * GROUP:
        sequence = (Lq, Lk, window[0], window[1])
        keys = keys_of_rows(x0, sequence, features, BEFORE, AFTER, ROWS, COLUMNS, GROUP)
        wanted, begin, end = True, keys[0], keys[1]
        if aside is not None:
            if SPLIT:
                low = tl.program_id(1) * PART
            elif begin >= end:  # rows that see nothing have the first part
                begin, end = begin * 0, begin * 0 + 1
            wanted = (begin < low + PART) & (low < end)  # what is split is not looked at elsewhere
            keys = part_of(keys, low, PART)
        if wanted:
            i, heads = folded(x0, h, ROWS, GROUP)
            place = (b, heads, h_k, k0, b * sizes[0] + heads)
            slope = slope_of(features[0], b, heads)
            have = Lq * GROUP - x0
            inside = (tl.arange(0, ROWS) < have)[:, None] & (tl.arange(0, WIDTH) < D)[None, :]
            q_tile = tl.load(at_folded(q, b, h, q0, x0, WIDTH, ROWS, GROUP), mask=inside, other=0.0)

            # 2. The keys that they see.
            operands = (k, v, place, sequence, features, slope, seed, numbers)
            o, m, s = over_keys(
                q_tile,
                i,
                keys,
                operands,
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

            # 3. The results, or what the next part is put on top of.
            last = True
            if aside is not None:
                exact: tl.constexpr = q_tile.dtype == tl.float32
                part = low // PART if SPLIT else low * 0
                at = place_aside(aside, part, b, h, q0, x0, Lq, sizes, lengths)
                if SPLIT:
                    last = False
                else:
                    last = end <= low + PART
                    if begin < low:
                        o_before, m_before, s_before = put_back(aside, at, have, DV, ROWS, WIDTH_V)
                        o, m, s = put_together(o_before, m_before, s_before, o, m, s, exact)
                if SPLIT or not last:
                    put_aside(aside, at, have, o, m, s, DV, ROWS, WIDTH_V)
            if not SPLIT and last:
                to = (out, stats, sink, numbers)
                finish(o, m, s, x0, (b, h, q0), Lq, to, DV, ROWS, WIDTH_V, GROUP, DROPOUT)
