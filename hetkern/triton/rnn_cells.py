"""What one RNN step does behind its products, in Triton: a tile of rows and units at a time.

    x' = x_gates, h' = h_gates, one block of H columns a gate         (the contract: csrc/rnn.h)
    tanh, relu   h_next = tanh(x' + h') or max(x' + h', 0)
    lstm         i, f, o = sigma(x' + h'), g = tanh(x'_g + h'_g);  c_next = f c + i g
                 h_next = o tanh(c_next)
    gru          r, z = sigma(x' + h');  n = tanh(x'_n + r h'_n);  h_next = n + z (h - n)

Gates come as four tiles of float32: i f g o, r z n h'_n, or the one that the plain cells have,
named four times. (the same functions on the CPU: csrc/cpu/rnn_cells.h)

An operand is a tuple: pointer and the stride from row to row, for sequences also from step to step
before it; an absent one is None and reads as zeros.
"""

import triton
import triton.language as tl

from .rows import exp, tanh

TANH = tl.constexpr(0)
RELU = tl.constexpr(1)
LSTM = tl.constexpr(2)
GRU = tl.constexpr(3)

# ---- Tiles. --------------------------------------------------------------------------------------


@triton.jit
def tile_of_program(H, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program's rows and units."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(H, BLOCK)
    rows = (program // blocks) * ROWS + tl.arange(0, ROWS)
    units = (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    return rows, units


@triton.jit
def row_at(operand, start, rows):
    """The first element of each row of a step, or of each row."""
    if len(operand) == 3:
        return operand[0] + start * operand[1] + rows * operand[2]
    else:
        return operand[0] + rows * operand[1]


@triton.jit
def load(at, ok):
    """A tile in float32, 0 outside ``ok``."""
    return tl.load(at, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def read(operand, start, rows, columns, ok):
    """Some columns in float32, 0 outside ``ok``."""
    if operand is None:
        return tl.zeros(ok.shape, tl.float32)
    else:
        return load(row_at(operand, start, rows)[:, None] + columns[None, :], ok)


@triton.jit
def read_row(operand, start, rows, ok):
    """One value a row."""
    return tl.load(row_at(operand, start, rows), mask=ok, other=0)


@triton.jit
def write(operand, start, rows, columns, value, ok):
    """Round and store some columns, if there is an operand."""
    if operand is not None:
        at = row_at(operand, start, rows)[:, None] + columns[None, :]
        tl.store(at, value.to(operand[0].dtype.element_ty), mask=ok)


@triton.jit
def read_gates(operand, start, rows, units, H, ok, GATES: tl.constexpr):
    """The column blocks of one operand, as four tiles."""
    if operand is None:
        a = tl.zeros(ok.shape, tl.float32)
        return a, a, a, a
    else:
        at = row_at(operand, start, rows)[:, None] + units[None, :]
        a = load(at, ok)
        if GATES == 1:
            return a, a, a, a
        else:
            b, c = load(at + H, ok), load(at + 2 * H, ok)
            if GATES == 3:
                return a, b, c, c
            else:
                return a, b, c, load(at + 3 * H, ok)


@triton.jit
def write_gates(operand, start, rows, units, H, gates, ok, GATES: tl.constexpr):
    """The column blocks of one operand."""
    kind: tl.constexpr = operand[0].dtype.element_ty
    at = row_at(operand, start, rows)[:, None] + units[None, :]
    tl.store(at, gates[0].to(kind), mask=ok)
    if GATES > 1:
        tl.store(at + H, gates[1].to(kind), mask=ok)
        tl.store(at + 2 * H, gates[2].to(kind), mask=ok)
    if GATES > 3:
        tl.store(at + 3 * H, gates[3].to(kind), mask=ok)


# ---- Forward. ------------------------------------------------------------------------------------


@triton.jit
def sigmoid(x):
    """The logistic function."""
    return tl.div_rn(1.0, 1.0 + exp(-x))


@triton.jit
def activate(x, h, CELL: tl.constexpr):
    """The gates after their functions (gru: and h'_n)."""
    a = x[0] + h[0]
    if CELL == TANH:
        y = tanh(a)
        return y, y, y, y
    elif CELL == RELU:
        y = tl.where(a <= 0.0, 0.0, a)  # NaN stays
        return y, y, y, y
    elif CELL == LSTM:
        return sigmoid(a), sigmoid(x[1] + h[1]), tanh(x[2] + h[2]), sigmoid(x[3] + h[3])
    else:
        r = sigmoid(a)
        return r, sigmoid(x[1] + h[1]), tanh(x[2] + r * h[2]), h[2]


@triton.jit
def next_state(act, h, c, CELL: tl.constexpr):
    """The state behind the step: h, c."""
    if CELL == LSTM:
        c_next = act[1] * c + act[0] * act[2]
        return act[3] * tanh(c_next), c_next
    elif CELL == GRU:
        return act[2] + act[1] * (h - act[2]), c
    else:
        return act[0], c


# ---- Backward. -----------------------------------------------------------------------------------


@triton.jit
def slope(y):
    """The derivative of tanh where its value is y."""
    return 1.0 - y * y


@triton.jit
def step_back(act, h, c, c_next, dh, dc, CELL: tl.constexpr):
    """Gradients of the gates; what of dh does not pass W_hh; dc before the step.

    gru: of dn r, which h'_n has, then of r z n.
    """
    if CELL == LSTM:
        i, f, g, o = act[0], act[1], act[2], act[3]
        t = tanh(c_next)
        d_c = dc + dh * o * slope(t)
        d_i = d_c * g * i * (1.0 - i)
        d_f = d_c * c * f * (1.0 - f)
        d_g = d_c * i * slope(g)
        d_o = dh * t * o * (1.0 - o)
        return (d_i, d_f, d_g, d_o), tl.zeros(dh.shape, tl.float32), d_c * f
    elif CELL == GRU:
        r, z, n = act[0], act[1], act[2]
        dn = dh * (1.0 - z) * slope(n)
        dr = dn * act[3] * r * (1.0 - r)
        dz = dh * (h - n) * z * (1.0 - z)
        return (dn * r, dr, dz, dn), dh * z, dc
    else:
        y = act[0]
        d = tl.where(y <= 0.0, 0.0, dh) if CELL == RELU else dh * slope(y)
        return (d, d, d, d), tl.zeros(dh.shape, tl.float32), dc


# ---- Double backward: gradients by dh, dc, the gates of x, those of h, h and c. ------------------


@triton.jit
def second_plain(act, gx, dh, CELL: tl.constexpr):
    """By dh, and by x_gates and h_gates alike."""
    y = act[0]
    if CELL == RELU:
        return tl.where(y <= 0.0, 0.0, gx[0]), tl.zeros(dh.shape, tl.float32)
    else:
        by_dh = gx[0] * slope(y)
        return by_dh, -2.0 * y * by_dh * dh


@triton.jit
def second_lstm(act, c, c_next, gx, g_dc, dh, dc):
    """With m the tangent of c_next in the direction g, and d_c the gradient of c_next.

    Then sum g d = d_c m + g_o dh t o (1 - o).
    """
    i, f, g, o = act[0], act[1], act[2], act[3]
    t = tanh(c_next)
    si, sf, so = i * (1.0 - i), f * (1.0 - f), o * (1.0 - o)
    sg, st = slope(g), slope(t)
    d_c = dc + dh * o * st
    m = gx[0] * g * si + gx[1] * c * sf + gx[2] * i * sg + g_dc * f
    by_dh = m * o * st + gx[3] * t * so
    q = gx[3] * dh * so * st - 2.0 * m * dh * o * t * st  # by c_next, through t
    by_i = d_c * si * (gx[0] * g * (1.0 - 2.0 * i) + gx[2] * sg) + q * g * si
    by_f = d_c * sf * (gx[1] * c * (1.0 - 2.0 * f) + g_dc) + q * c * sf
    by_g = d_c * sg * (gx[0] * si - 2.0 * g * gx[2] * i) + q * i * sg
    by_o = so * dh * (m * st + gx[3] * t * (1.0 - 2.0 * o))
    return by_dh, m, (by_i, by_f, by_g, by_o), d_c * gx[1] * sf + q * f


@triton.jit
def second_gru(act, h, gx, gh, g_dh, dh):
    """With p the tangent of n's argument in the direction g."""
    r, z, n, hn = act[0], act[1], act[2], act[3]
    sr, sz, sn, away = r * (1.0 - r), z * (1.0 - z), slope(n), 1.0 - z
    gr, gz = gx[0] + gh[0], gx[1] + gh[1]
    by_r = gh[2] + gr * hn * (1.0 - 2.0 * r)
    p = gx[2] + gh[2] * r + gr * hn * sr
    by_dh = away * sn * p + gz * (h - n) * sz + g_dh * z
    by_n = dh * (-2.0 * away * n * sn * p - gz * sz * sn)  # by n's argument
    e = dh * away * sn
    by_r = by_n * hn * sr + e * sr * by_r
    by_z = dh * sz * (gz * (h - n) * (1.0 - 2.0 * z) + g_dh - sn * p)
    by_hn = by_n * r + e * gr * sr
    return by_dh, (by_r, by_z, by_n, by_n), (by_r, by_z, by_hn, by_hn), dh * gz * sz
