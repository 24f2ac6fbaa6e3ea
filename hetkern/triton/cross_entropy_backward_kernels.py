"""Row cross-entropy in Triton: backward.                   (the contract: csrc/cross_entropy.h).

    dx_ij = (exp(z_ij - m_i - d_i) a_i - ...) dz/dx        dq_ij = k_ij log p_ij

x, dx, q, dq: M rows of N; float32, float16 or bfloat16; the rest is float32.
Work:    there are no sums, so that programs take blocks of all rows.
Traffic: reads MN elements and writes MN; with probabilities twice that.
Edges:   an ignored row's gradient is 0, whatever it holds.

``numbers`` are scale, softcap, 1 / softcap, 1 - eps, eps / N and z_loss.
"""

import triton
import triton.language as tl

from .cross_entropy_kernels import class_of, zeros_like_row
from .rows import columns, exp, expm1, pointers, rows_of_program, score, times_slope


@triton.jit
def upstream(operand, row, row_ok):
    """One value a row, 0 where it is absent."""
    value = tl.where(row_ok, 0.0, 0.0)
    if operand is not None:
        value = tl.load(operand[0] + row * operand[1], mask=row_ok, other=0.0)
    return value


@triton.jit
def cross_entropy_backward_kernel(
    x,
    index,
    q,
    weights,
    saved,
    divisors,
    gradients,
    dx,
    dq,
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
    """``gradients`` of loss, row_loss, lse, z_loss, entropy, log_prob; then the entropy.

    With s = z - m, p = exp(s - d), u and v as in the contract:

        dz_j = p_j (f0 - f1 s_j) + u (T p_j - t_j) - g (Q p_j - q_j)
        dq_j = g log p_j - u (1 - eps) w_j log p_j

    For class indices t_j is w_j, T their sum and u has the factor eps / N; the target's own column
    is set apart. The differences are not multiplied out: they vanish where p is the target.
    """
    # 1. The rows and the block at hand.
    blocks = tl.cdiv(N, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    start = (program % blocks) * BLOCK
    outer, inner, row, row_ok = rows_of_program(program // blocks, sizes, ROWS, FLAT)
    lanes = tl.arange(0, BLOCK)
    column_ok = lanes < N - start
    inside = row_ok[:, None] & column_ok[None, :]
    x_rows = pointers(x, sizes, outer, inner)
    saved_rows = pointers(saved, sizes, outer, inner)
    step = saved[len(sizes) + 1]
    m = tl.load(saved_rows, mask=row_ok, other=0.0)
    d = tl.load(saved_rows + step, mask=row_ok, other=0.0)
    inverse = exp(-d)
    weight = weights[0]
    SAME: tl.constexpr = q is not None and not SMOOTHED and weights[0] is None
    PLAIN: tl.constexpr = q is None and not SMOOTHED and gradients[4] is None

    # 2. What reaches the row's two terms and its statistics.
    counted = row_ok
    t = row * 0
    if q is None:
        t, counted = class_of(index, sizes, outer, inner, row_ok, N, ignore_index, CHECKED)
    u = upstream(gradients[1], row, row_ok)
    v = u + upstream(gradients[3], row, row_ok)
    if gradients[0] is not None:
        d_loss = upstream(gradients[0], row, row_ok)
        by = divisors[0] + row * divisors[1]
        u += tl.div_rn(d_loss, tl.load(by, mask=row_ok, other=1.0))
        v += tl.div_rn(d_loss, tl.load(by + divisors[2], mask=row_ok, other=1.0))
    u, v = tl.where(counted, u, 0.0), tl.where(counted, v, 0.0)
    g = tl.where(counted, upstream(gradients[5], row, row_ok), 0.0)
    f0 = upstream(gradients[2], row, row_ok)
    f1 = upstream(gradients[4], row, row_ok)
    if gradients[4] is not None:  # p (f0 - d_entropy (log p + H)), log p = s - d
        f0 += f1 * (d - upstream(gradients[6], row, row_ok))
    f0 += tl.where(counted & (numbers[5] != 0), 2.0 * numbers[5] * (m + d) * v, 0.0)

    # 3. The rows' numbers.
    T, Q = u * 0.0, u * 0.0
    dx_t = zeros_like_row(u)
    if q is not None:
        if SAME:
            u, g = u - g, zeros_like_row(u)
        T = tl.load(saved_rows + 2 * step, mask=row_ok, other=0.0)
        Q = tl.load(saved_rows + 3 * step, mask=row_ok, other=0.0)
    else:
        w_t = zeros_like_row(u) + 1.0
        if weight is not None:
            w_t = tl.load(weight + t, mask=counted, other=0.0)
        # dz_t has own (p_t - 1), where p_t - 1 keeps its digits; other columns have own p_j.
        own = tl.where(counted, u * numbers[3] * w_t - g, 0.0)
        T = zeros_like_row(u) + (N if weights[1] is None else tl.load(weights[1]))
        u *= numbers[4]
        x_t = tl.load(x_rows + t * x[len(sizes) + 1], mask=counted, other=0.0).to(tl.float32)
        s_t = score(x_t, numbers, CAPPED) - m
        p_t = exp(s_t) * inverse
        dz_t = p_t * (f0 - f1 * tl.maximum(s_t, -1e4)) + own * expm1(s_t - d)
        if SMOOTHED:
            dz_t += u * (T * p_t - w_t)
        dx_t = times_slope(dz_t, x_t, numbers, CAPPED)
        f0 += own
        g = zeros_like_row(u)

    # 4. Write the block.
    something = counted  # an ignored row's zeros stand whatever it holds
    if gradients[2] is not None or gradients[4] is not None:
        something = row_ok
    x_block = columns(x_rows, x, sizes, start, lanes)
    value = tl.load(x_block, mask=inside & something[:, None], other=0.0).to(tl.float32)
    s = score(value, numbers, CAPPED) - m[:, None]
    w = tl.zeros([ROWS, BLOCK], tl.float32) + 1.0
    if weight is not None:
        w = w * tl.load(weight + start + lanes, mask=column_ok, other=0.0)[None, :]
    if PLAIN:
        dz = exp(s) * (inverse * f0)[:, None]
    else:
        p = exp(s) * inverse[:, None]
        dz = p * (f0[:, None] - f1[:, None] * tl.maximum(s, -1e4))
        if q is None:
            dz += u[:, None] * (T[:, None] * p - w)
        else:
            q_rows = pointers(q, sizes, outer, inner)
            target = tl.load(columns(q_rows, q, sizes, start, lanes), mask=inside, other=0.0)
            target = target.to(tl.float32)
            share = target if SAME else w * (numbers[3] * target + numbers[4])
            dz += u[:, None] * (T[:, None] * p - share) - g[:, None] * (Q[:, None] * p - target)
    gradient = times_slope(dz, value, numbers, CAPPED)
    if q is None:
        at_target = counted[:, None] & ((start + lanes)[None, :] == t[:, None])
        gradient = tl.where(at_target, dx_t[:, None], gradient)
    gradient = tl.where(something[:, None], gradient, 0.0)
    to = columns(pointers(dx, sizes, outer, inner), dx, sizes, start, lanes)
    tl.store(to, gradient.to(dx[0].dtype.element_ty), mask=inside)
    if dq is not None:
        log_p = s - d[:, None]
        own_q = -(u[:, None] * numbers[3] * w) * log_p
        if gradients[5] is not None and not SAME:
            own_q = g[:, None] * log_p + own_q
        to = columns(pointers(dq, sizes, outer, inner), dq, sizes, start, lanes)
        tl.store(to, own_q.to(dq[0].dtype.element_ty), mask=inside)
