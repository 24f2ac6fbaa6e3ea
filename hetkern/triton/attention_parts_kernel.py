"""The end of rows in Triton, and parts of their keys.        (the contract: csrc/attention.h).

    m = max(m_part)    s = sum s_part exp(m_part - m)    out = sum o_part exp(m_part - m) / s

Work:    where there are few queries, programs take 1024 keys each (attention_kernels.py); here a
         program puts together, for the same rows, what each of them gave, in the keys' order.
Traffic: sums, maxima and weights are read once, out and the statistics written once.
Edges:   a part that a row sees nothing of gives nothing; behind a sequence's end there is none.
"""

import triton
import triton.language as tl

from .attention_scores import at_folded, power, sequence_of
from .rows import finite, log1p


@triton.jit
def rows_of_program(sizes, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """A program's sequence, its head or the first of its group, that one's keys' head, its rows.

    A causal head's longest rows come first.
    """
    program, blocks = tl.program_id(0), sizes[4]
    row = program // blocks
    x0 = (blocks - 1 - program % blocks) * ROWS
    if GROUP > 1:
        heads = sizes[0] // GROUP
        b, h_k = row // heads, row % heads
        h = h_k * GROUP
    else:
        b, h = row // sizes[0], row % sizes[0]
        h_k = h // sizes[1]
    return b, h, h_k, x0


@triton.jit
def place_aside(aside, part, b, h, q0, Lq, sizes, lengths):
    """Where a part of a sequence's rows begins among what is put aside."""
    before = b.to(tl.int64) * sizes[2]
    if lengths[0] is not None:
        before = q0.to(tl.int64)
    row = before * sizes[0] + h.to(tl.int64) * Lq
    return part.to(tl.int64) * aside[3] + row


@triton.jit
def finish(
    o,
    m,
    s,
    x0,
    out,
    stats,
    place,
    Lq,
    sink,
    numbers,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH_V: tl.constexpr,
    GROUP: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """The sink, and the results."""
    b, h, q0 = place
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
    to = at_folded(out, b, h, q0, x0, WIDTH_V, ROWS, GROUP)
    tl.store(to, o.to(out[0].dtype.element_ty), mask=inside)
    at = b.to(tl.int64) * stats[2] + heads.to(tl.int64) * stats[3] + q0 + i
    tl.store(stats[0] + at, m, mask=here)
    log_sum = tl.where(nothing, 0.0, log1p(s - 1.0))
    tl.store(stats[1] + at, log_sum, mask=here)


@triton.jit
def attention_parts_kernel(
    out,
    stats,
    sink,
    aside,
    lengths,
    sizes,
    numbers,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH_V: tl.constexpr,
    DROPOUT: tl.constexpr,
    GROUP: tl.constexpr,
    PART: tl.constexpr,
):
    """Puts together, in their order, what the parts of the keys gave to some rows."""
    b, h, _, x0 = rows_of_program(sizes, ROWS, GROUP)
    q0, _, Lq, Lk = sequence_of(b, lengths, sizes)
    if x0 < Lq * GROUP:
        exact: tl.constexpr = out[0].dtype.element_ty == tl.float32
        rows, columns = x0 + tl.arange(0, ROWS), tl.arange(0, WIDTH_V)
        here = rows < Lq * GROUP
        inside = here[:, None] & (columns < DV)[None, :]
        o = tl.zeros([ROWS, WIDTH_V], tl.float32)
        m = tl.full([ROWS], float("-inf"), tl.float32)
        s = tl.zeros([ROWS], tl.float32)
        for j0 in range(0, Lk, PART):
            at = place_aside(aside, j0 // PART, b, h, q0, Lq, sizes, lengths) + rows
            m_part = tl.load(aside[1] + at, mask=here, other=float("-inf"))
            s_part = tl.load(aside[2] + at, mask=here, other=0.0)
            o_part = tl.load(
                aside[0] + (at[:, None] * DV + columns[None, :]), mask=inside, other=0.0
            )
            top = tl.maximum(m, m_part)
            of_all, of_part = power(m - finite(top), exact), power(m_part - finite(top), exact)
            o = o * of_all[:, None] + o_part * of_part[:, None]
            s, m = s * of_all + s_part * of_part, top
        finish(
            o,
            m,
            s,
            x0,
            out,
            stats,
            (b, h, q0),
            Lq,
            sink,
            numbers,
            DV,
            ROWS,
            WIDTH_V,
            GROUP,
            DROPOUT,
        )
