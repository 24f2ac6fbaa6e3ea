"""Row cross-entropy in Triton: forward.                    (the contract: csrc/cross_entropy.h).

    m_i   = max_j z_ij         d_i = log1p(sum_{j != argmax} exp(z_ij - m_i))
    row_i = w_t (m_i - z_it + d_i)

x: M rows of N; float32, float16 or bfloat16; m, d, losses and statistics are float32.
Work:    a program takes a tile of short rows, or a row in blocks, each lane with sums of its own.
Traffic: reads MN elements (and the probabilities) once.
Edges:   a class out of range is skipped and trapped; nothing counted gives a mean of NaN.

``numbers`` are scale, softcap, 1 / softcap, 1 - eps, eps / N and z_loss.
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
    tree_sum,
)

# ---- Forward: what a row's lanes add up to. ------------------------------------------------------


@triton.jit
def shifted(dot, weight, by):
    """Sum w (z - m) for another maximum: ``by`` is the old one minus the new one."""
    return tl.where((by == 0) | (weight == 0), dot, dot + weight * by)


@triton.jit
def grouped(x, ROWS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """A row's lanes in groups of neighbours, which a thread has loaded together."""
    return tl.reshape(x, [ROWS, BLOCK // GROUP, GROUP])


@triton.jit
def group_sum(x, ROWS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """Sum of each group, in pairs."""
    return tree_sum(x, ROWS * (BLOCK // GROUP), GROUP).reshape([ROWS, BLOCK // GROUP])


@triton.jit
def distance(m, top):
    """The old maximum minus the new one, where they differ: -inf - -inf is 0 here."""
    return tl.where(m == top, 0.0, m - top)


@triton.jit
def add_moment(moment, m, s, z):
    """One more score a lane in sum exp(z - m) (z - m); ``m`` and ``s`` are those before it."""
    by = -tl.abs(z - m)
    e = exp(by)
    grown = tl.where(m == float("-inf"), moment * 0.0, e * (moment + by * (1.0 + s)))
    # exp underflows to 0 long before the bound; a product with it must not be NaN.
    more = tl.where(z == float("-inf"), moment, moment + e * tl.maximum(by, -1e4))
    return tl.where(z > m, grown, more)


@triton.jit
def row_moment(moment, m, s, top, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The same for a row, from its lanes."""
    by = m - finite(top)[:, None]
    moved = exp(by) * (moment + tl.maximum(by, -1e4) * (1.0 + s))
    own = (m == top[:, None]) | (m == float("-inf"))
    return tree_sum(tl.where(own, moment, moved), ROWS, BLOCK)


@triton.jit
def first_of_largest(largest, first, N):
    """The first column of a row that holds its largest value, from its lanes."""
    top = tl.max(largest, 1)
    return tl.min(tl.where(largest == top[:, None], first, N), 1)


@triton.jit
def class_of(index, sizes, outer, inner, row_ok, N, ignore_index, CHECKED: tl.constexpr):
    """The rows' classes, and which of them count; one out of range does not, and is trapped."""
    t = tl.load(pointers(index, sizes, outer, inner), mask=row_ok, other=0)
    valid = (t >= 0) & (t < N)
    counted = row_ok & valid & (t != ignore_index)
    if CHECKED:
        tl.device_assert(
            valid | (t == ignore_index) | ~row_ok,
            "hetkern::cross_entropy: target: wanted a class in [0, C) or ignore_index",
        )
    return tl.where(counted, t, 0), counted


@triton.jit
def cross_entropy_forward_kernel(
    x,
    index,
    q,
    weight,
    saved,
    terms,
    stats,
    sizes,
    N,
    ignore_index,
    numbers,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    CHECKED: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``terms``: the loss, or planes of terms, z-loss terms, weights and counts; each may be None.

    ``stats``: row_loss, lse, z_loss, entropy, log_prob, correct; or None.
    """
    # 1. The rows at hand.
    outer, inner, row, row_ok = rows_of_program(tl.program_id(0).to(tl.int64), sizes, ROWS, FLAT)
    lanes = tl.arange(0, BLOCK)
    x_rows = pointers(x, sizes, outer, inner)
    q_rows = x_rows if q is None else pointers(q, sizes, outer, inner)
    WEIGHS: tl.constexpr = SMOOTHED or q is not None  # sums over all classes' targets
    PLAIN: tl.constexpr = q is not None and (SMOOTHED or weight is not None)  # other sums of q

    # 2. Scores; each lane's maximum and sums.
    zeros = tl.zeros([ROWS, BLOCK], tl.float32)
    m, s = zeros + float("-inf"), zeros
    moment = zeros
    # Sums over targets: lanes loaded together share a maximum and a float64 that adds up blocks.
    # A float32 would round at every block: 128257 equal terms lose 6 eps.
    GROUP: tl.constexpr = min(128 // x[0].dtype.element_ty.primitive_bitwidth, BLOCK)
    dot = tl.zeros([ROWS, BLOCK // GROUP], tl.float64)
    total, dot_q, total_q = dot, dot, dot
    largest_q = zeros + float("-inf")
    first = tl.zeros([ROWS, BLOCK], tl.int32)
    first_q = tl.zeros([ROWS, BLOCK], tl.int32)
    for start in range(0, N, BLOCK):
        column_ok = lanes < N - start
        inside = row_ok[:, None] & column_ok[None, :]
        v = tl.load(columns(x_rows, x, sizes, start, lanes), mask=inside, other=0.0).to(tl.float32)
        z = tl.where(inside, score(v, numbers, CAPPED), float("-inf"))
        if stats is not None:
            moment = add_moment(moment, m, s, z)
            first = tl.where(z > m, (start + lanes)[None, :], first)
        before = tl.max(grouped(m, ROWS, BLOCK, GROUP), 2)
        m, s = add_exponentials(m, s, z)
        if WEIGHS:
            top = tl.max(grouped(m, ROWS, BLOCK, GROUP), 2)
            by = distance(before, top)
            away = grouped(z, ROWS, BLOCK, GROUP) - finite(top)[:, :, None]
            away = tl.reshape(away, [ROWS, BLOCK])
            w = zeros + 1.0
            if weight is not None:
                w = zeros + tl.load(weight + start + lanes, mask=column_ok, other=0.0)[None, :]
            t = w
            if q is not None:
                p = tl.load(columns(q_rows, q, sizes, start, lanes), mask=inside, other=0.0)
                p = p.to(tl.float32)
                t = w * (numbers[3] * p + numbers[4]) if PLAIN else p
                if PLAIN:
                    dot_q = shifted(dot_q, total_q, by)
                    dot_q += group_sum(tl.where(inside, p * away, 0.0), ROWS, BLOCK, GROUP)
                    total_q += group_sum(tl.where(inside, p, 0.0), ROWS, BLOCK, GROUP)
                if stats is not None:
                    p = tl.where(inside, p, float("-inf"))
                    first_q = tl.where(p > largest_q, (start + lanes)[None, :], first_q)
                    largest_q = tl.maximum(largest_q, p)
            dot = shifted(dot, total, by)
            dot += group_sum(tl.where(inside, t * away, 0.0), ROWS, BLOCK, GROUP)
            total += group_sum(tl.where(inside, t, 0.0), ROWS, BLOCK, GROUP)

    # 3. Row maximum and sums.
    top, all_but_one = row_sum(m, s, ROWS, BLOCK)
    all_but_one = finished(top, all_but_one, True)
    d = log1p(all_but_one)
    lse = top + d
    by = distance(tl.max(grouped(m, ROWS, BLOCK, GROUP), 2), top[:, None])
    row_dot, row_total = d * 0.0, d * 0.0
    if WEIGHS:
        row_dot = tree_sum(shifted(dot, total, by), ROWS, BLOCK // GROUP)
        row_total = tree_sum(total, ROWS, BLOCK // GROUP)
    weighed = (row_total * d - row_dot).to(tl.float32)

    # 4. The row's term.
    counted = row_ok
    if q is None:
        t, counted = class_of(index, sizes, outer, inner, row_ok, N, ignore_index, CHECKED)
        x_t = tl.load(x_rows + t * x[len(sizes) + 1], mask=counted, other=0.0).to(tl.float32)
        w_t = zeros_like_row(d) + 1.0
        if weight is not None:
            w_t = tl.load(weight + t, mask=counted, other=0.0)
        log_prob = (score(x_t, numbers, CAPPED) - top) - d
        term = -(w_t * log_prob)
        if SMOOTHED:
            term = numbers[3] * term + numbers[4] * weighed
        log_prob, term = tl.where(counted, log_prob, 0.0), tl.where(counted, term, 0.0)
        if terms[2] is not None:
            tl.store(terms[2] + row, tl.where(counted, w_t, 0.0), mask=row_ok)
        if terms[3] is not None:
            tl.store(terms[3] + row, counted.to(tl.float32), mask=row_ok)
    else:
        term = weighed
        row_dot_q, row_total_q = row_dot, row_total
        if PLAIN:
            row_dot_q = tree_sum(shifted(dot_q, total_q, by), ROWS, BLOCK // GROUP)
            row_total_q = tree_sum(total_q, ROWS, BLOCK // GROUP)
        log_prob = (row_dot_q - row_total_q * d).to(tl.float32)
    z_term = tl.where(counted & (numbers[5] != 0), numbers[5] * (lse * lse), 0.0)

    # 5. What backward needs, and what the reduction adds up.
    saved_rows = pointers(saved, sizes, outer, inner)
    step = saved[len(sizes) + 1]
    tl.store(saved_rows, top, mask=row_ok)
    tl.store(saved_rows + step, d, mask=row_ok)
    if q is not None:
        tl.store(saved_rows + 2 * step, row_total.to(tl.float32), mask=row_ok)
        tl.store(saved_rows + 3 * step, row_total_q.to(tl.float32), mask=row_ok)
    if terms[1] is not None:
        tl.store(terms[0] + row, term, mask=row_ok)
        tl.store(terms[1] + row, z_term, mask=row_ok)
    else:
        tl.store(terms[0] + row, term + z_term, mask=row_ok)

    # 6. Statistics.
    if stats is not None:
        entropy = d - tl.div_rn(row_moment(moment, m, s, top, ROWS, BLOCK), 1.0 + all_but_one)
        best = first_of_largest(m, first, N)
        if q is None:
            correct = counted & (t == best)
        else:
            correct = first_of_largest(largest_q, first_q, N) == best
        tl.store(stats[0] + row, term + z_term, mask=row_ok)
        tl.store(stats[1] + row, lse, mask=row_ok)
        tl.store(stats[2] + row, z_term, mask=row_ok)
        tl.store(stats[3] + row, entropy, mask=row_ok)
        tl.store(stats[4] + row, log_prob, mask=row_ok)
        tl.store(stats[5] + row, correct & (lse == lse), mask=row_ok)


@triton.jit
def zeros_like_row(d):
    """A zero a row, whatever ``d`` holds."""
    return tl.where(d == d, 0.0, 0.0)


# ---- The reduction: a second kernel, one program, one tree. --------------------------------------


@triton.jit
def sum_plane(plane, M, BLOCK: tl.constexpr):
    """Sum of M terms, in float64."""
    lanes = tl.arange(0, BLOCK)
    sums = tl.zeros([1, BLOCK], tl.float64)
    for start in range(0, M, BLOCK):
        sums += tl.load(plane + start + lanes, mask=lanes < M - start, other=0.0).to(tl.float64)[
            None, :
        ]
    return tl.sum(tree_sum(sums, 1, BLOCK), 0)


@triton.jit
def cross_entropy_reduction_kernel(
    terms, loss, divisors, M, MEAN: tl.constexpr, Z_LOSS: tl.constexpr, BLOCK: tl.constexpr
):
    """The planes of terms to a loss; to D_0 and D_1 for a mean."""
    total = sum_plane(terms[0], M, BLOCK)
    z_total = total * 0.0
    if Z_LOSS:
        z_total = sum_plane(terms[1], M, BLOCK)
    if MEAN:
        counted = (M + tl.zeros([1], tl.int64)).to(tl.float64)
        if terms[3] is not None:
            counted = sum_plane(terms[3], M, BLOCK) + tl.zeros([1], tl.float64)
        weight = counted
        if terms[2] is not None:
            weight = sum_plane(terms[2], M, BLOCK) + tl.zeros([1], tl.float64)
        at = tl.arange(0, 1)
        tl.store(divisors + at, weight.to(tl.float32))
        tl.store(divisors + 1 + at, counted.to(tl.float32))
        result = total / weight
        if Z_LOSS:
            result += z_total / counted
        tl.store(loss + at, result.to(tl.float32))
    else:
        result = total + z_total if Z_LOSS else total
        tl.store(loss, result.to(tl.float32))
