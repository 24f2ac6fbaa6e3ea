"""One step of a sequence in Triton, forward and backward: the kernels. (the contract: csrc/rnn.h).

    dh_t = dy_t + what the next step passes on + (dgates_{t+1} W_hh) h_mask
    dgates_t = the cell's gradient of dh_t, dc_t

x_gates, y, gates, cells, dgates: a row a step and sequence, padded (T, B, ...) or packed;
float32, float16 or bfloat16; c, the cells and all arithmetic are float32, as is dh between steps.
The product with W_hh stands before each forward and behind each backward step, and is torch's.
Work:    a program takes a tile of rows and units.
Traffic: forward reads x_gates and the product and writes y, the state and what is saved; backward
         reads what is saved, dy and the product and writes dgates.
Edges:   a step that a row has outlived leaves its state alone, gives y 0 and dgates 0, whatever
         x_gates, dy and the product hold there; a step with ``reset`` begins at zeros, and passes
         nothing back. A length out of range reads and writes nothing out of bounds; it is trapped.

What changes from step to step is a number of its own and never in a tuple, or Triton would compile
the kernel anew for multiples of 16.
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
    read_row,
    step_back,
    tile_of_program,
    write,
    write_gates,
)


@triton.jit
def within(lengths, t, rows, n):
    """Which of a step's first n rows it has: those that have not outlived it."""
    here = rows < n
    if lengths is not None:
        here = here & (t < tl.load(lengths + rows, mask=here, other=0))
    return here


@triton.jit
def kept_where(condition, value):
    """The value of some rows, 0 in the others, whatever it is there."""
    return tl.where(condition[:, None], value, 0.0)


# ---- Forward. ------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["start", "n"])
def rnn_step_forward_kernel(
    x_gates,
    product,
    b_hh,
    state,
    left,
    places,
    y,
    saved,
    start,
    n,
    H,
    CELL: tl.constexpr,
    GATES: tl.constexpr,
    CHECKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step ``start`` (packed: the step whose rows begin there), which n rows have.

    ``state``: h and c, rows of both, replaced; ``left``: what the next product reads and h_mask, or
    None; ``places``: lengths, reset and T; ``saved``: gates and cells, each may be None.
    """
    # 1. The rows and units at hand.
    rows, units = tile_of_program(H, ROWS, BLOCK)
    start = tl.cast(start, tl.int64)
    there = units < H
    if CHECKED:
        length = tl.load(places[0] + rows, mask=rows < n, other=0)
        tl.device_assert(
            (length >= 0) & (length <= places[2]),
            "hetkern::rnn_sequence: lengths: wanted values in [0, T]",
        )
    here = within(places[0], start, rows, n)
    old = here  # whose state was not put back to zeros
    if places[1] is not None:
        old = here & (read_row(places[1], start, rows, here) == 0)
    ok, ok_old = here[:, None] & there[None, :], old[:, None] & there[None, :]

    # 2. Gates, and the next state.
    x = read_gates(x_gates, start, rows, units, H, ok, GATES)
    h_gates = read_gates(product, 0, rows, units, H, ok_old, GATES)
    if b_hh is not None:
        bias = read_gates(b_hh, 0, rows, units, H, ok, GATES)
        a, b = h_gates[0] + bias[0], h_gates[1] + bias[1]
        h_gates = (a, b, h_gates[2] + bias[2], h_gates[3] + bias[3])
    act = activate(x, h_gates, CELL)
    h_before, c_before = act[0], act[0]
    if CELL == GRU:
        h_before = read(state[0], 0, rows, units, ok_old)
    if CELL == LSTM:
        c_before = read(state[1], 0, rows, units, ok_old)
    h_next, c_next = next_state(act, h_before, c_before, CELL)

    # 3. Write the row.
    in_step = (rows < n)[:, None] & there[None, :]
    write(state[0], 0, rows, units, h_next, ok)
    write(y, start, rows, units, kept_where(here, h_next), in_step)
    if left is not None:
        rounded = h_next.to(state[0][0].dtype.element_ty).to(tl.float32)
        write(left[0], 0, rows, units, rounded * read(left[1], 0, rows, units, ok), ok)
    if CELL == LSTM:
        write(state[1], 0, rows, units, c_next, ok)
        write(saved[1], start, rows, units, kept_where(here, c_next), in_step)
    if saved[0] is not None:
        a, b = kept_where(here, act[0]), kept_where(here, act[1])
        c, d = kept_where(here, act[2]), kept_where(here, act[3])
        write_gates(saved[0], start, rows, units, H, (a, b, c, d), in_step, 4)


# ---- Backward. -----------------------------------------------------------------------------------


@triton.jit
def before_step(steps, first, before, rows, units, ok, from_step):
    """A state before the step: of the step before, or the first one; 0 outside ``ok``."""
    ok_step = ok & from_step[:, None]
    of_step = read(steps, before, rows, units, ok_step)
    return tl.where(ok_step, of_step, read(first, 0, rows, units, ok & ~ok_step))


@triton.jit(do_not_specialize=["start", "n", "n_next", "n_before"])
def rnn_step_backward_kernel(
    dy,
    carried,
    product,
    places,
    saved,
    first,
    dgates,
    start,
    n,
    n_next,
    n_before,
    H,
    CELL: tl.constexpr,
    D_GATES: tl.constexpr,
    REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step ``start`` of n rows; the next and the one before, as the walk went, have as many.

    ``carried``: dh and dc, float32 of all rows, replaced; ``product``: dgates_{t+1} W_hh and
    h_mask; ``places``: lengths, reset; ``saved``: y, gates, cells; ``first``: h0, c0. With n 0 the
    walk has left its first step, and dh takes up what that step passed on.
    """
    # 1. The rows and units at hand, and the steps on both sides.
    rows, units = tile_of_program(H, ROWS, BLOCK)
    start = tl.cast(start, tl.int64)
    if PACKED:
        after, before = start + n, start - n_before
        if REVERSE:
            after, before = start - n_next, start + n
    else:
        after, before = start + 1, start - 1
        if REVERSE:
            after, before = start - 1, start + 1
    there = (units < H)[None, :]
    here, passing = within(places[0], start, rows, n), within(places[0], after, rows, n_next)
    old, from_step = here, within(places[0], before, rows, n_before)
    if places[1] is not None:
        passing = passing & (read_row(places[1], after, rows, passing) == 0)
        old = here & (read_row(places[1], start, rows, here) == 0)
    ok, ok_old = here[:, None] & there, old[:, None] & there

    # 2. The state's gradient.
    in_row = (rows < tl.maximum(n, n_next))[:, None] & there
    ok_passing = passing[:, None] & there
    through = read(product[0], 0, rows, units, ok_passing)
    if product[1] is not None:
        through *= read(product[1], 0, rows, units, ok_passing)
    dh = read(carried[0], 0, rows, units, in_row) + through
    total = dh + read(dy, start, rows, units, ok)

    # 3. The gates' gradients.
    zeros = tl.zeros(dh.shape, tl.float32)
    h_before, c_before, c_next, dc = zeros, zeros, zeros, zeros
    if CELL == LSTM:
        act = read_gates(saved[1], start, rows, units, H, ok, 4)
        c_next = read(saved[2], start, rows, units, ok)
        c_before = before_step(saved[2], first[1], before, rows, units, ok_old, from_step)
        dc = read(carried[1], 0, rows, units, ok)
    elif CELL == GRU:
        act = read_gates(saved[1], start, rows, units, H, ok, 4)
        h_before = before_step(saved[0], first[0], before, rows, units, ok_old, from_step)
    else:
        act = read_gates(saved[0], start, rows, units, H, ok, 1)
    d, kept, dc = step_back(act, h_before, c_before, c_next, total, dc, CELL)

    # 4. Write the row.
    write(carried[0], 0, rows, units, tl.where(here[:, None], kept_where(old, kept), dh), in_row)
    if CELL == LSTM:
        write(carried[1], 0, rows, units, kept_where(old, dc), ok)
    in_step = (rows < n)[:, None] & there
    a, b = kept_where(here, d[0]), kept_where(here, d[1])
    e, f = kept_where(here, d[2]), kept_where(here, d[3])
    write_gates(dgates, start, rows, units, H, (a, b, e, f), in_step, D_GATES)
