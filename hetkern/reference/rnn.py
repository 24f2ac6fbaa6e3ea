"""RNN cells and one layer of a sequence, in one direction.

    x', h'       = x_gates, W_hh h~ + b_hh              h~ = h, or h times its dropout mask
    tanh, relu     h_next = tanh(x' + h')  or  max(x' + h', 0)
    lstm           i, f, o = sigma(x' + h'),  g = tanh(x' + h');  c_next = f c + i g
                   h_next = o tanh(c_next)
    gru            r, z = sigma(x' + h');  n = tanh(x' + r h');  h_next = n + z (h - n)

Gate order is torch's: i f g o, and r z n. Gate arithmetic and c are float32 (float64 for float64),
h is rounded to its own dtype at each step.

Edges: a step that a row has outlived leaves its state alone, gives y 0 and no gradient, whatever x
holds there; so a row of length 0 ends where it began.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .packed_rows import packed_rows

CELLS = ("tanh", "relu", "lstm", "gru")  #: in the order of csrc/rnn.h
GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}
State = tuple[Tensor, Tensor | None]


def rnn_gates(
    cell: str, x_gates: Tensor, h_gates: Tensor, h: Tensor | None = None, c: Tensor | None = None
) -> State:
    """The step behind its two products (equations above).

    Args:
        cell: "tanh", "relu", "lstm" or "gru".
        x_gates: ``(B, gates H)``.
        h_gates: the same, ``W_hh h + b_hh``.
        h: ``(B, H)``, the state before: gru alone needs it.
        c: ``(B, H)`` in float32 (float64 for float64): lstm alone.

    Returns:
        ``h`` after the step in the dtype of ``x_gates``, and ``c`` or None.
    """
    dtype = x_gates.dtype
    accumulator = accumulator_of(dtype)
    x_gates, h_gates = x_gates.to(accumulator), h_gates.to(accumulator)
    if cell == "lstm":
        assert c is not None
        i, f, g, o = (x_gates + h_gates).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return (o.sigmoid() * c.tanh()).to(dtype), c
    if cell == "gru":
        assert h is not None
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates.chunk(3, -1), h_gates.chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        return (n + z * (h.to(accumulator) - n)).to(dtype), None
    both = x_gates + h_gates
    return (both.tanh() if cell == "tanh" else both.relu()).to(dtype), None


def rnn_sequence(
    cell: str,
    x_gates: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor | None = None,
    *,
    w_hr: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    h_mask: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    gates: Callable[..., State] = rnn_gates,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer in one direction, step by step.

    Args:
        cell: "tanh", "relu", "lstm" or "gru".
        x_gates: ``(T, B, gates H)``, or packed ``(rows, gates H)`` with ``batch_sizes``.
        w_hh: ``(gates H, H)``, or with a projection ``(gates H, P)``.
        b_hh: ``(gates H,)``, or one a step, ``(T, B, gates H)``; None for none.
        h0: ``(B, H)`` or ``(B, P)``.
        c0: ``(B, H)`` in float32 (float64 for float64): lstm alone.
        w_hr: ``(P, H)``, projects h of an lstm.
        lengths: ``(B,)``, integers in ``[0, T]``.
        batch_sizes: ``(T,)``, integers on the CPU: the rows that step t has.
        h_mask: ``(B, H)`` or ``(B, P)``, a factor of h in the product with ``w_hh``.
        reset: boolean, ``(T, B)`` or packed ``(rows,)``: the step begins at a state of zeros.
        reverse: from step T - 1 to 0, each row from its own end.
        gates: what computes a step behind its products.

    Returns:
        ``y`` in the layout of ``x_gates``, and h and c after each row's last step.
    """
    if batch_sizes is not None:
        rows = packed_rows(batch_sizes, x_gates.shape[0], h0.shape[0], x_gates.device)
        x_gates, lengths = rows.padded(x_gates), rows.lengths
        reset = None if reset is None else rows.padded(reset)
        b_hh = rows.padded(b_hh) if b_hh is not None and b_hh.dim() > 1 else b_hh
    T = x_gates.shape[0]
    inside = None
    if lengths is not None:
        inside = (torch.arange(T, device=lengths.device)[:, None] < lengths)[..., None]
        x_gates = torch.where(inside, x_gates, 0.0)  # NaN there would be a NaN gradient

    h, c, outputs = h0, c0, [x_gates.new_empty(0)] * T
    for t in reversed(range(T)) if reverse else range(T):
        h_before, c_before = h, c
        if inside is not None:  # and so would NaN in the state of a row that has no such step
            h = torch.where(inside[t], h, 0.0)
            c = c if c is None else torch.where(inside[t], c, 0.0)
        if reset is not None:
            h = torch.where(reset[t, :, None], 0.0, h)
            c = c if c is None else torch.where(reset[t, :, None], 0.0, c)
        left = h if h_mask is None else h * h_mask
        if b_hh is None or b_hh.dim() == 1:
            h_gates = F.linear(left, w_hh, b_hh)
        else:
            h_gates = F.linear(left, w_hh) + b_hh[t]
        h, c = gates(cell, x_gates[t], h_gates, h, c)
        if w_hr is not None:
            h = F.linear(h, w_hr)
        outputs[t] = h
        if inside is not None:
            outputs[t] = torch.where(inside[t], h, 0.0)
            h = torch.where(inside[t], h, h_before)
            if c is not None and c_before is not None:
                c = torch.where(inside[t], c, c_before)
    y = torch.stack(outputs) if T else x_gates.new_empty(0, *h0.shape)
    return (y if batch_sizes is None else rows.packed(y)), h, c


def accumulator_of(dtype: torch.dtype) -> torch.dtype:
    """In which gates and c are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32
