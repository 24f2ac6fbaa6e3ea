"""The end of rows in Triton, and parts of their keys.        (the contract: csrc/attention.h).

    m = max(m_part)    s = sum s_part exp(m_part - m)    out = sum o_part exp(m_part - m) / s

Work:    where there are few queries, programs take 1024 keys each (attention_kernels.py); here a
         program puts together, for the same rows, what each of them gave, in the keys' order.
Traffic: sums, maxima and weights are read once, out and the statistics written once.
Edges:   a part that a row sees nothing of gives nothing; parts that no row sees were not written.
"""

import triton
import triton.language as tl

from .attention_scores import (
    at_folded,
    floored,
    keys_of_rows,
    power,
    queries_of_program,
    sequence_of,
)
from .rows import finite, log1p


@triton.jit
def place_aside(aside, part, b, h, q0, x0, Lq, sizes, lengths):
    """Where a part of a tile's rows begins among what is put aside: a sequence's side by side."""
    before = b.to(tl.int64) * sizes[2]
    if lengths[0] is not None:
        before = q0.to(tl.int64)
    return part.to(tl.int64) * aside[3] + before * sizes[0] + h.to(tl.int64) * Lq + x0


@triton.jit
def put_aside(
    aside, at, have, o, m, s, DV: tl.constexpr, ROWS: tl.constexpr, WIDTH_V: tl.constexpr
):
    """Sums, maxima and weights of the rows from ``at`` on that there are."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH_V)
    inside = (rows < have)[:, None] & (columns < DV)[None, :]
    tl.store(aside[0] + at * DV + (rows[:, None] * DV + columns[None, :]), o, mask=inside)
    tl.store(aside[1] + at + rows, m, mask=rows < have)
    tl.store(aside[2] + at + rows, s, mask=rows < have)


@triton.jit
def put_back(aside, at, have, DV: tl.constexpr, ROWS: tl.constexpr, WIDTH_V: tl.constexpr):
    """What ``put_aside`` wrote."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH_V)
    inside = (rows < have)[:, None] & (columns < DV)[None, :]
    cells = aside[0] + at * DV + (rows[:, None] * DV + columns[None, :])
    o = tl.load(cells, mask=inside, other=0.0)
    m = tl.load(aside[1] + at + rows, mask=rows < have, other=float("-inf"))
    return o, m, tl.load(aside[2] + at + rows, mask=rows < have, other=0.0)


@triton.jit
def finish(
    o,
    m,
    s,
    x0,
    place,
    Lq,
    to,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH_V: tl.constexpr,
    GROUP: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """The sink, and the results."""
    b, h, q0 = place
    out, stats, sink, numbers = to
    rows, columns = x0 + tl.arange(0, ROWS), tl.arange(0, WIDTH_V)
    here = rows < Lq * GROUP
    i, heads = rows, h
    if GROUP > 1:
        i, heads = rows // GROUP, h + rows % GROUP
    if sink is not None:
        last = tl.load(sink + heads).to(tl.float32)
        top = tl.maximum(m, last)
        shrunk = power(m - finite(top), True)
        s = s * shrunk + power(last - finite(top), True)
        o, m = o * shrunk[:, None], top
    nothing = s == 0.0
    part = tl.where(nothing, 0.0, tl.div_rn(1.0, s))
    if DROPOUT:
        part *= numbers[4]
    o = tl.where(nothing[:, None], 0.0, o * part[:, None])
    inside = here[:, None] & (columns < DV)[None, :]
    cells = at_folded(out, b, h, q0, x0, WIDTH_V, ROWS, GROUP)
    tl.store(cells, o.to(out[0].dtype.element_ty), mask=inside)
    at = b.to(tl.int64) * stats[2] + heads.to(tl.int64) * stats[3] + q0 + i
    tl.store(stats[0] + at, m, mask=here)
    log_sum = tl.where(nothing, 0.0, log1p(s - 1.0))
    tl.store(stats[1] + at, log_sum, mask=here)


@triton.jit
def put_together(o, m, s, o_part, m_part, s_part, EXACT: tl.constexpr):
    """What a part of the keys gave, on top of those before: which product is fused is written."""
    top = tl.maximum(m, m_part)
    of_all, of_part = power(m - finite(top), EXACT), power(m_part - finite(top), EXACT)
    o = tl.fma(o_part, tl.broadcast_to(of_part[:, None], o.shape), o * of_all[:, None])
    return o, top, tl.fma(s_part, of_part, s * of_all)


@triton.jit
def attention_parts_kernel(
    out,
    stats,
    features,
    sink,
    aside,
    lengths,
    sizes,
    window,
    numbers,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH_V: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    DROPOUT: tl.constexpr,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
):
    """Puts together, in their order, what the parts of the keys gave to some rows."""
    b, h, _, x0 = queries_of_program(sizes, ROWS, GROUP)
    q0, _, Lq, Lk = sequence_of(b, lengths, sizes)
    if x0 < Lq * GROUP:
        sequence = (Lq, Lk, window[0], window[1])
        begin, end, _, _ = keys_of_rows(x0, sequence, features, BEFORE, AFTER, ROWS, COLUMNS, GROUP)
        exact: tl.constexpr = out[0].dtype.element_ty == tl.float32
        o = tl.zeros([ROWS, WIDTH_V], tl.float32)
        m = tl.full([ROWS], float("-inf"), tl.float32)
        s = tl.zeros([ROWS], tl.float32)
        for j0 in range(floored(begin, PART), end, PART):
            at = place_aside(aside, j0 // PART, b, h, q0, x0, Lq, sizes, lengths)
            o_part, m_part, s_part = put_back(aside, at, Lq * GROUP - x0, DV, ROWS, WIDTH_V)
            o, m, s = put_together(o, m, s, o_part, m_part, s_part, exact)
        to = (out, stats, sink, numbers)
        finish(o, m, s, x0, (b, h, q0), Lq, to, DV, ROWS, WIDTH_V, GROUP, DROPOUT)
