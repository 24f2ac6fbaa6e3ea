"""What attention's Triton kernels share: which tile, its scores, who sees whom, and dropout.

An operand is a tuple: pointer, strides of batch, head, row and column (0 where it is broadcast);
absent ones are None. ``i`` numbers queries and ``j`` keys within their sequence, as blocks of two
dimensions that broadcast, so that the same functions serve a tile whose rows are keys. ``h`` is a
head, or where a tile's rows are of several (attention_kernels.py: ``folded``) a block beside ``i``.
"""

import triton
import triton.language as tl

from .rows import exp, finite, tanh

# ---- Where things stand. -------------------------------------------------------------------------


@triton.jit
def clamp(x, low, high):
    """An integer within bounds: what a wrong length would read is never out of the tensor's."""
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def sequence_of(b, lengths, sizes):
    """A sequence's first query and key among the operand's rows, and how many it has."""
    packed, seqlens_k = lengths[0], lengths[1]
    zero = tl.full([], 0, tl.int32)  # a size of 1 is a constant, and no block's type
    q0, k0, Lq, Lk = zero, zero, zero + sizes[2], zero + sizes[3]
    if packed is not None:
        q0 = clamp(tl.load(packed[0] + b), 0, packed[2])
        Lq = clamp(tl.load(packed[0] + b + 1), q0, packed[2]) - q0
        k0 = clamp(tl.load(packed[1] + b), 0, packed[3])
        Lk = clamp(tl.load(packed[1] + b + 1), k0, packed[3]) - k0
    elif seqlens_k is not None:
        Lk = clamp(tl.load(seqlens_k + b), 0, Lk)
    return q0, k0, Lq, Lk


@triton.jit
def floored(x, BLOCK: tl.constexpr):
    """The multiple of BLOCK at or below x >= 0."""
    return x // BLOCK * BLOCK


@triton.jit
def band_of(
    x0,
    offset,
    before,
    after,
    X,
    Y,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Columns that rows x0 .. x0 + ROWS - 1 see: begin, end, and between which all see all.

    Row x sees columns x + offset - before to x + offset + after, of those from 0 to Y - 1. Blocks
    of columns begin at multiples of COLUMNS; begin and the inner two are such multiples.
    """
    begin, end = tl.full([], 0, tl.int32), Y
    inner_begin, inner_end = tl.full([], 0, tl.int32), Y
    last = tl.minimum(x0 + ROWS, X) - 1
    if BEFORE:
        begin = floored(tl.maximum(x0 + offset - before, 0), COLUMNS)
        inner_begin = tl.maximum(last + offset - before, 0) + (COLUMNS - 1)
        inner_begin = floored(inner_begin, COLUMNS)
    if AFTER:
        end = clamp(last + offset + after + 1, 0, Y)
        inner_end = clamp(x0 + offset + after + 1, 0, Y)
    inner_end = floored(inner_end, COLUMNS)
    return begin, end, inner_begin, inner_end


@triton.jit
def queries_of_program(sizes, ROWS: tl.constexpr, GROUP: tl.constexpr):
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
def keys_of_rows(
    x0,
    sequence,
    features,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The keys that a tile's rows see, as ``band_of``: between the inner two nothing is looked up.

    A row is one of the GROUP heads of a query (``folded``).
    """
    Lq, Lk, before, after = sequence
    queries: tl.constexpr = (ROWS - 1) // GROUP + (1 if GROUP == 1 else 2)
    begin, end, inner_begin, inner_end = band_of(
        x0 // GROUP, Lk - Lq, before, after, Lq, Lk, BEFORE, AFTER, queries, COLUMNS
    )
    if features[1] is not None:  # a bias is read inside its bounds alone
        inner_end = tl.where(x0 + ROWS <= Lq * GROUP, inner_end, inner_begin)
    if features[2] is not None:  # a mask: no block is known to be whole
        inner_begin, inner_end = begin, begin
    return begin, end, inner_begin, inner_end


@triton.jit
def element(operand, b, h, row):
    """Where a row begins."""
    at = b.to(tl.int64) * operand[1] + h.to(tl.int64) * operand[2]
    return operand[0] + (at + row.to(tl.int64) * operand[3])


@triton.jit
def tile(
    operand,
    b,
    h,
    row,
    have,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CUT: tl.constexpr,
):
    """ROWS rows of N columns from ``row`` on, zeros beyond the ``have`` that there are."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = element(operand, b, h, row) + rows.to(tl.int64)[:, None] * operand[3]
    at += columns.to(tl.int64)[None, :] * operand[4]
    if CUT:
        x = tl.load(at, mask=(rows < have)[:, None] & (columns < N)[None, :], other=0.0)
    elif N < WIDTH:
        x = tl.load(at, mask=(columns < N)[None, :], other=0.0)
    else:
        x = tl.load(at)
    return x


@triton.jit
def store_tile(
    operand, b, h, row, have, x, N: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Write what ``tile`` would read."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = element(operand, b, h, row) + rows.to(tl.int64)[:, None] * operand[3]
    at += columns.to(tl.int64)[None, :] * operand[4]
    inside = (rows < have)[:, None] & (columns < N)[None, :]
    tl.store(at, x.to(operand[0].dtype.element_ty), mask=inside)


@triton.jit
def folded(x0, h, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """A tile's queries and their heads: of a group from ``h`` on, those of a query side by side."""
    x = (x0 + tl.arange(0, ROWS))[:, None]
    i, heads = x, h
    if GROUP > 1:
        i, heads = x // GROUP, h + x % GROUP
    return i, heads


@triton.jit
def at_folded(operand, b, h, q0, x0, WIDTH: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """Where the elements of a tile of queries are."""
    i, heads = folded(x0, h, ROWS, GROUP)
    at = element(operand, b, heads, q0 + i)
    return at + tl.arange(0, WIDTH).to(tl.int64)[None, :] * operand[4]


@triton.jit
def only_finite(x):
    """``x``, 0 where it is NaN or infinite, and whether it is so anywhere.

    What a row does not see has the factor 0 in its products, and 0 times NaN is NaN. In a branch,
    since it is rare, and since a product's operand that is computed is held in registers whole.
    """
    bad = tl.max(tl.max((tl.abs(x.to(tl.float32)) < float("inf")).to(tl.int32) ^ 1, 1), 0)
    if bad > 0:
        x = tl.where(tl.abs(x.to(tl.float32)) < float("inf"), x, 0.0)
    return x, bad


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """A product in float32 on top of ``acc``."""
    return tl.dot(a, b, acc=acc, input_precision=PRECISION)


# ---- Scores. -------------------------------------------------------------------------------------


@triton.jit
def power(x, EXACT: tl.constexpr):
    """The exponential: below 3 ulp, or for results of 16 bits what one multiplication gives."""
    return exp(x) if EXACT else tl.exp2(x * 1.4426950408889634)


@triton.jit
def slope_of(slopes, b, h):
    """The head's slope; 0 without."""
    slope = tl.full([], 0.0, tl.float32)
    if slopes is not None:
        slope = tl.load(slopes[0] + b.to(tl.int64) * slopes[1] + h)
    return slope


@triton.jit
def distance(i, j, diagonal):
    """How far a key stands from the one beside the query."""
    return tl.abs(i + diagonal - j).to(tl.float32)


@triton.jit
def at_cells(operand, b, h, i, j):
    """Where the cells of a bias or a mask are."""
    at = operand[0] + (b.to(tl.int64) * operand[1] + h.to(tl.int64) * operand[2])
    return at + (i.to(tl.int64) * operand[3] + j.to(tl.int64) * operand[4])


@triton.jit
def sees(i, j, b, h, sequence, mask, BEFORE: tl.constexpr, AFTER: tl.constexpr):
    """Which keys each query sees."""
    Lq, Lk, before, after = sequence
    beside = i + (Lk - Lq)
    seen = (i < Lq) & (j < Lk)
    if mask is not None:
        seen = seen & (tl.load(at_cells(mask, b, h, i, j), mask=seen, other=0) != 0)
    if BEFORE:
        seen = seen & (j >= beside - before)
    if AFTER:
        seen = seen & (j <= beside + after)
    return seen


@triton.jit
def scores(
    qk,
    i,
    j,
    b,
    h,
    sequence,
    features,
    slope,
    numbers,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    CAPPED: tl.constexpr,
    CUT: tl.constexpr,
):
    """Scores of a tile of products, -inf where the key is not seen; the cap's tanh; who is seen.

    Without CUT the whole tile lies inside and is seen.
    """
    Lq, Lk, _, _ = sequence
    slopes, bias, mask = features
    diagonal = Lk - Lq
    inside = (i < Lq) & (j < Lk)
    # Sums of products that nothing else is fused with: a row has the same bits with CUT.
    z = tl.fma(qk, numbers[0], 0.0)
    t = z
    if CAPPED:
        t = tanh(z * numbers[2])
        z = tl.fma(t, numbers[1], 0.0)
    if slopes is not None:
        z = tl.fma(distance(i, j, diagonal), -slope, z)
    if bias is not None:
        at = at_cells(bias, b, h, i, j)
        if CUT:
            z += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        else:
            z += tl.load(at).to(tl.float32)
    seen = inside
    if CUT:
        seen = sees(i, j, b, h, sequence, mask, BEFORE, AFTER)
        z = tl.where(seen, z, float("-inf"))
    return z, t, seen


@triton.jit
def kept_by_dropout(
    seed,
    threshold,
    i,
    j0,
    row,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    KEYS_FIRST: tl.constexpr,
):
    """Which weights stay: word j mod 4 of Philox's numbers for (j // 4, i, b Hq + h = row).

    ``i``: the queries, one below another.
    """
    zeros = tl.full([QUERIES, KEYS // 4], 0, tl.int32)
    fours = zeros + (j0 // 4 + tl.arange(0, KEYS // 4))[None, :]
    queries = zeros + i
    w0, w1, w2, w3 = tl.philox(tl.load(seed), fours, queries, zeros + row, zeros)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    kept = words.to(tl.int64) >= threshold
    return tl.trans(kept) if KEYS_FIRST else kept


# ---- Gradients of scores. ------------------------------------------------------------------------


@triton.jit
def weights_and_gradients(
    z,
    t,
    seen,
    dp,
    kept,
    m,
    s,
    delta,
    numbers,
    EXACT: tl.constexpr,
    CAPPED: tl.constexpr,
    DROPOUT: tl.constexpr,
    CUT: tl.constexpr,
):
    """The weights as out had them, the gradients of scores, and those before the cap.

    m, s: the row's maximum and the logarithm of its sum, as blocks that broadcast.
    """
    p = power((z - finite(m)) - s, EXACT)
    if CUT:  # a row of NaN has NaN where it sees nothing as well
        p = tl.where(seen, p, 0.0)
    taken = p
    if DROPOUT:
        taken = tl.where(kept, p * numbers[4], 0.0)
        dp = tl.where(kept, dp * numbers[4], 0.0)
    dz = p * (dp - delta)
    if CUT:
        dz = tl.where(seen, dz, 0.0)
    dr = dz
    if CAPPED:
        dr = dz * (1.0 - t * t)
        if CUT:
            dr = tl.where(seen, dr, 0.0)
    return taken, dz, dr
