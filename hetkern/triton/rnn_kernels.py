"""The gates of one RNN step in Triton: the kernels.       (the contract: csrc/rnn.h).

x_gates, h_gates (B, gates H), h (B, H): float32, float16 or bfloat16; c (B, H) and all arithmetic
are float32. The equations are in rnn_cells.py.
Work:    a program takes a tile of rows and units.
Traffic: forward reads 2 gates H a row and writes H (lstm: reads and writes c as well); backward
         reads that again and writes gates H (gru: twice): nothing is saved between them.
Edges:   a missing gradient is 0; B = 0 is the launcher's affair.
"""

import triton
import triton.language as tl

from .rnn_cells import (
    GRU,
    LSTM,
    activate,
    next_state,
    read,
    read_gates,
    second_gru,
    second_lstm,
    second_plain,
    step_back,
    tile_of_program,
    write,
    write_gates,
)


@triton.jit
def read_step(inputs, rows, units, H, ok, CELL: tl.constexpr, GATES: tl.constexpr):
    """The gates after their functions, h and c, of x_gates, h_gates, h and c."""
    x = read_gates(inputs[0], 0, rows, units, H, ok, GATES)
    h_gates = read_gates(inputs[1], 0, rows, units, H, ok, GATES)
    h, c = read(inputs[2], 0, rows, units, ok), read(inputs[3], 0, rows, units, ok)
    return activate(x, h_gates, CELL), h, c


# ---- Forward. ------------------------------------------------------------------------------------


@triton.jit
def rnn_gates_forward_kernel(
    inputs,
    h_next,
    c_next,
    B,
    H,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``inputs``: x_gates, h_gates, h (gru), c (lstm)."""
    # 1. The rows and units at hand.
    rows, units = tile_of_program(H, ROWS, BLOCK)
    ok = (rows < B)[:, None] & (units < H)[None, :]

    # 2. Gates, and the next state.
    act, h, c = read_step(inputs, rows, units, H, ok, CELL, GATES)
    h, c = next_state(act, h, c, CELL)

    # 3. Write the row.
    write(h_next, 0, rows, units, h, ok)
    write(c_next, 0, rows, units, c, ok)


# ---- Backward. -----------------------------------------------------------------------------------


@triton.jit
def rnn_gates_backward_kernel(
    given,
    inputs,
    dx_gates,
    dh_gates,
    dh,
    dc,
    B,
    H,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``given``: dh_next, dc_next; ``inputs`` as forward's."""
    # 1. The rows and units at hand.
    rows, units = tile_of_program(H, ROWS, BLOCK)
    ok = (rows < B)[:, None] & (units < H)[None, :]

    # 2. Gates once more, and their gradients.
    act, h, c = read_step(inputs, rows, units, H, ok, CELL, GATES)
    _, c_next = next_state(act, h, c, CELL)
    dh_next, dc_next = read(given[0], 0, rows, units, ok), read(given[1], 0, rows, units, ok)
    d, kept, dc_before = step_back(act, h, c, c_next, dh_next, dc_next, CELL)

    # 3. Write the row.
    if CELL == GRU:
        write_gates(dx_gates, 0, rows, units, H, (d[1], d[2], d[3]), ok, 3)
        write_gates(dh_gates, 0, rows, units, H, (d[1], d[2], d[0]), ok, 3)
        write(dh, 0, rows, units, kept, ok)
    else:
        write_gates(dx_gates, 0, rows, units, H, d, ok, GATES)
    write(dc, 0, rows, units, dc_before, ok)


# ---- Double backward. ----------------------------------------------------------------------------


@triton.jit
def rnn_gates_double_backward_kernel(
    gradients,
    given,
    inputs,
    by_given,
    by_gates,
    by_states,
    B,
    H,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``gradients``: g by dx_gates, dh_gates, dh, dc; ``given`` and ``inputs`` as backward's.

    Results: by dh_next and dc_next, by x_gates and h_gates (gru), by h (gru) and c (lstm).
    """
    # 1. The rows and units at hand.
    rows, units = tile_of_program(H, ROWS, BLOCK)
    ok = (rows < B)[:, None] & (units < H)[None, :]

    # 2. Gates once more, and what backward was given.
    act, h, c = read_step(inputs, rows, units, H, ok, CELL, GATES)
    gx = read_gates(gradients[0], 0, rows, units, H, ok, GATES)
    dh = read(given[0], 0, rows, units, ok)

    # 3. The second derivatives; write the row.
    if CELL == LSTM:
        _, c_next = next_state(act, h, c, CELL)
        g_dc = read(gradients[3], 0, rows, units, ok)
        dc = read(given[1], 0, rows, units, ok)
        by_dh, by_dc, by_x, by_c = second_lstm(act, c, c_next, gx, g_dc, dh, dc)
        write(by_given[1], 0, rows, units, by_dc, ok)
        write_gates(by_gates[0], 0, rows, units, H, by_x, ok, 4)
        write(by_states[1], 0, rows, units, by_c, ok)
    elif CELL == GRU:
        gh = read_gates(gradients[1], 0, rows, units, H, ok, 3)
        g_dh = read(gradients[2], 0, rows, units, ok)
        by_dh, by_x, by_h_gates, by_h = second_gru(act, h, gx, gh, g_dh, dh)
        write_gates(by_gates[0], 0, rows, units, H, by_x, ok, 3)
        write_gates(by_gates[1], 0, rows, units, H, by_h_gates, ok, 3)
        write(by_states[0], 0, rows, units, by_h, ok)
    else:
        by_dh, by_x0 = second_plain(act, gx, dh, CELL)
        write(by_gates[0], 0, rows, units, by_x0, ok)
    write(by_given[0], 0, rows, units, by_dh, ok)
