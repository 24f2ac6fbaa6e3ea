"""What the Triton families share: rows, sums in one tree, and the functions of a score.

A program takes ROWS rows, BLOCK columns at a time. Sums over a row go through :func:`tree_sum`,
whose order is written down here and not left to the compiler, so that a row's bits depend on its
length and dtype alone: not on layout, alignment, neighbours or features.

A kernel's operand is a tuple: pointer, the strides of the outer dimensions, and the step from one
element of a row to the next; absent ones are None. ``sizes`` are those of the outer dimensions.
"""

import triton
import triton.language as tl

# ---- Rows. ---------------------------------------------------------------------------------------


@triton.jit
def rows_of_program(program, sizes, ROWS: tl.constexpr, FLAT: tl.constexpr):
    """A program's rows: their outer positions but the last, as one; the last; index; presence.

    They lie along the last outer dimension, so that neighbours are loaded together, or, where that
    one is short, anywhere (FLAT).
    """
    inner_size = sizes[len(sizes) - 1]
    if FLAT:
        index = program * ROWS + tl.arange(0, ROWS)
        outer, inner = index // inner_size, index % inner_size
        return outer, inner, index, outer < outer_size(sizes)
    else:
        blocks = tl.cdiv(inner_size, ROWS)
        outer = program // blocks
        inner = (program % blocks) * ROWS + tl.arange(0, ROWS)
        return outer, inner, outer * inner_size + inner, inner < inner_size


@triton.jit
def outer_size(sizes):
    """The product of all outer sizes but the last."""
    total = tl.full([], 1, tl.int64)
    for d in tl.static_range(len(sizes) - 1):
        total *= sizes[d]
    return total


@triton.jit
def pointers(operand, sizes, outer, inner):
    """The first element of each row of an operand."""
    pointer = operand[0]
    for i in tl.static_range(len(sizes) - 1):
        d: tl.constexpr = len(sizes) - 2 - i
        pointer += (outer % sizes[d]) * operand[1 + d]
        outer = outer // sizes[d]
    return pointer + inner * operand[len(sizes)]


@triton.jit
def columns(row, operand, sizes, start, lanes):
    """Pointers to the columns from ``start`` on."""
    step = operand[len(sizes) + 1]
    return row[:, None] + start * step + (lanes.to(tl.int64) * step)[None, :]


# ---- Sums. ---------------------------------------------------------------------------------------


@triton.jit
def tree_sum(x, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of each row of a (ROWS, BLOCK) tile: neighbours in pairs, then those pairs in pairs.

    In this order the first steps stay in a thread that has loaded 16 bytes, and the next in a warp.
    """
    for i in tl.static_range(1, 24):
        if (BLOCK >> i) > 0:
            x = tl.sum(tl.reshape(x, [ROWS, BLOCK >> i, 2]), 2)
    return tl.reshape(x, [ROWS])


@triton.jit
def add_exponentials(m, s, z):
    """One more score a lane: ``m`` is its maximum, ``s`` sum exp(z - m) without one such term."""
    e = exp(-tl.abs(z - m))
    s = tl.where(z > m, (1.0 + s) * e, tl.where(z == float("-inf"), s, s + e))
    return tl.maximum(m, z), s


@triton.jit
def row_sum(m, s, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The same for a row, from its lanes."""
    top = tl.max(m, 1)
    is_top = m == top[:, None]
    part = tl.where(is_top, s, (1.0 + s) * exp(m - finite(top)[:, None]))
    total = tree_sum(part, ROWS, BLOCK)
    more = (tl.sum(is_top.to(tl.int32), 1) - 1).to(tl.float32)
    return top, tl.where(top == float("-inf"), total, total + more)


@triton.jit
def finite(m):
    """What may be subtracted from scores: 0 where all of them are -inf."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def finished(m, s, kept):
    """NaN where torch gives NaN: +inf in the row, or nothing but -inf though something was kept."""
    bad = (m == float("inf")) | ((m == float("-inf")) & kept)
    return tl.where(bad, float("nan"), s)


# ---- Functions. ----------------------------------------------------------------------------------


@triton.jit
def exp(x):
    """The exponential, below 3 ulp: 2^(x log2 e), with the product's rounding error put back."""
    high = x * 1.4426950216293335
    low = tl.fma(x, 1.4426950216293335, -high) + x * 1.9259629911266175e-08
    e = tl.exp2(high)
    return tl.where(tl.abs(high) < 126.0, tl.fma(e, low * 0.6931471805599453, e), e)


@triton.jit
def log1p(x):
    """The logarithm of 1 + x for x >= 0, below 3 ulp: by the series of 2 atanh where x < 1."""
    t = tl.div_rn(x, 2.0 + x)
    t2 = t * t
    p = 2.0 / 15 + t2 * (2.0 / 17)
    p = 2.0 / 13 + t2 * p
    p = 2.0 / 11 + t2 * p
    p = 2.0 / 9 + t2 * p
    p = 2.0 / 7 + t2 * p
    p = 2.0 / 5 + t2 * p
    p = 2.0 / 3 + t2 * p
    near = 2.0 * t + t * (t2 * p)
    return tl.where(x < 1.0, near, tl.log(1.0 + x))


@triton.jit
def expm1(x):
    """The exponential less 1 for x <= 0, below 3 ulp: its series where x > -1/2."""
    p = 1.0 / 362880 + x * (1.0 / 3628800)
    p = 1.0 / 40320 + x * p
    p = 1.0 / 5040 + x * p
    p = 1.0 / 720 + x * p
    p = 1.0 / 120 + x * p
    p = 1.0 / 24 + x * p
    p = 1.0 / 6 + x * p
    near = tl.fma(x * x, 0.5 + x * p, x)
    return tl.where(x > -0.5, near, exp(x) - 1.0)


@triton.jit
def tanh(x):
    """The hyperbolic tangent, below 3 ulp: a minimax polynomial near 0, else by exp."""
    x2 = x * x
    p = 0.0206505862 + x2 * -0.0057170439
    p = -0.0537434977 + x2 * p
    p = 0.1333149128 + x2 * p
    p = -0.3333328393 + x2 * p
    near = tl.fma(p, x2 * x, x)
    far = 1.0 - tl.div_rn(2.0, exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def score(x, numbers, CAPPED: tl.constexpr):
    """The score of x alone; ``numbers`` begins with scale, softcap, 1 / softcap."""
    z = x * numbers[0]
    if CAPPED:
        z = tanh(z * numbers[2]) * numbers[1]
    return z


@triton.jit
def times_slope(dz, x, numbers, CAPPED: tl.constexpr):
    """Dz times dz/dx."""
    if CAPPED:
        t = tanh(x * numbers[0] * numbers[2])
        return dz * ((1.0 - t * t) * numbers[0])
    else:
        return dz * numbers[0]
