"""What attention checks of its arguments in Triton: the checks of csrc/, with the same messages.

(csrc/attention.cpp)
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import (
    check_broadcasts,
    check_float,
    check_like,
    check_shape,
    check_softcap,
    shape_text,
    value_error,
)

#: What scores, sums and statistics are.
ACCUMULATOR = torch.float32
MOST_COLUMNS = 256
_MOST_ROWS = 2**31 - 65536  # positions are numbers of 32 bits, with room for a block


class Scores(NamedTuple):
    """The arguments behind q, k and v in the order of the schemas."""

    scale: float
    softcap: float
    causal: bool
    window_left: int
    window_right: int
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    sink: Tensor | None
    dropout_p: float
    seed: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int
    seqlens_k: Tensor | None


class Sizes(NamedTuple):
    """What every op of the family knows of its call; packed: B sequences, of Lq and Lk at most."""

    packed: bool
    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    Dv: int

    def out(self, q: Tensor) -> tuple[int, ...]:
        """The shape of out."""
        rows = (q.shape[0], self.Hq) if self.packed else (self.B, self.Hq, self.Lq)
        return *rows, self.Dv

    def rows(self, q: Tensor) -> tuple[int, ...]:
        """The shape of row_max."""
        return (self.Hq, q.shape[0]) if self.packed else (self.B, self.Hq, self.Lq)


def checked(op: str, q: Tensor, k: Tensor, v: Tensor, s: Scores) -> Sizes:
    """The sizes, once a call's arguments fit together."""
    check_float(op, "q", q)
    rows: tuple[int, ...]
    packed = s.cu_seqlens_q is not None
    wanted = "(rows, heads, columns)" if packed else "(B, heads, L, columns)"
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != (3 if packed else 4):
            value_error(op, name, f"shape {wanted}", shape_text(t.shape))
    check_like(op, "k", k, q, q.dtype)
    check_like(op, "v", v, q, q.dtype)
    Hq, Hkv, D, Dv = q.shape[1], k.shape[1], q.shape[-1], v.shape[-1]
    if s.cu_seqlens_q is not None:
        if s.cu_seqlens_k is None:
            raise ValueError(f"hetkern::{op}: cu_seqlens_k: wanted a tensor beside cu_seqlens_q")
        B, Lq, Lk = s.cu_seqlens_q.numel() - 1, s.max_seqlen_q, s.max_seqlen_k
        rows = k.shape[0], Hkv
    else:
        if s.cu_seqlens_k is not None:
            raise ValueError(f"hetkern::{op}: cu_seqlens_k: wanted none without cu_seqlens_q")
        B, Lq, Lk = q.shape[0], q.shape[2], k.shape[2]
        rows = B, Hkv, Lk
    check_shape(op, "k", k, (*rows, D))
    check_shape(op, "v", v, (*rows, Dv))
    if Hq != 0 if Hkv == 0 else Hq % Hkv != 0:
        value_error(op, "k", f"a number of heads that divides q's {Hq}", Hkv)
    sizes = Sizes(packed, B, Hq, Hkv, Lq, Lk, D, Dv)
    for name, columns in (("q", D), ("v", Dv)):
        if columns > MOST_COLUMNS:
            raise NotImplementedError(
                f"hetkern::{op}: {name}: wanted at most {MOST_COLUMNS} columns of impl='triton', "
                f"got {columns}"
            )
    _check_scores(op, q, sizes, s)
    _check_lengths(op, q, k, sizes, s)
    return sizes


def _check_scores(op: str, q: Tensor, sizes: Sizes, s: Scores) -> None:
    B, Hq = sizes.B, sizes.Hq
    check_softcap(op, s.softcap)
    for name, side in (("window_left", s.window_left), ("window_right", s.window_right)):
        if side < -1:
            value_error(op, name, "0 or above, or -1 for no bound", side)
    if s.alibi_slopes is not None:
        check_like(op, "alibi_slopes", s.alibi_slopes, q, ACCUMULATOR)
        if tuple(s.alibi_slopes.shape) not in ((Hq,), (B, Hq)):
            wanted = f"shape ({Hq},) or ({B}, {Hq})"
            value_error(op, "alibi_slopes", wanted, shape_text(s.alibi_slopes.shape))
    for name, t, dtype in (("bias", s.bias, q.dtype), ("mask", s.mask, torch.bool)):
        if t is None:
            continue
        if sizes.packed:
            raise ValueError(f"hetkern::{op}: {name}: wanted none with packed sequences")
        check_like(op, name, t, q, dtype)
        if t.dim() != 4:
            value_error(op, name, "four dimensions", shape_text(t.shape))
        check_broadcasts(op, name, t.shape, (B, Hq, sizes.Lq, sizes.Lk))
    if s.sink is not None:
        check_like(op, "sink", s.sink, q, q.dtype)
        check_shape(op, "sink", s.sink, (Hq,))
    if not 0 <= s.dropout_p < 1:
        value_error(op, "dropout_p", "a probability in [0, 1)", f"{s.dropout_p:g}")
    if s.dropout_p > 0:
        if s.seed is None:
            raise ValueError(f"hetkern::{op}: seed: wanted a tensor with dropout")
        check_like(op, "seed", s.seed, q, torch.int64)
        if s.seed.numel() != 1:
            value_error(op, "seed", "one element", f"shape {shape_text(s.seed.shape)}")


def _check_lengths(op: str, q: Tensor, k: Tensor, sizes: Sizes, s: Scores) -> None:
    """A GPU's values are checked by a kernel: the host does not wait for them."""
    if s.cu_seqlens_q is not None and s.cu_seqlens_k is not None:
        _check_sequences(op, "q", s.cu_seqlens_q, q, sizes.B, q.shape[0], sizes.Lq)
        _check_sequences(op, "k", s.cu_seqlens_k, q, sizes.B, k.shape[0], sizes.Lk)
        if s.seqlens_k is not None:
            raise ValueError(f"hetkern::{op}: seqlens_k: wanted none with packed sequences")
    if max(sizes.Lq, sizes.Lk) > _MOST_ROWS:
        got = f"{sizes.Lq} and {sizes.Lk}"
        value_error(op, "q, k", f"fewer than {_MOST_ROWS} rows", got)
    if s.seqlens_k is not None:
        check_like(op, "seqlens_k", s.seqlens_k, q, torch.int32)
        check_shape(op, "seqlens_k", s.seqlens_k, (sizes.B,))
        if s.seqlens_k.is_cpu:
            for b, n in enumerate(s.seqlens_k.tolist()):
                if not 0 <= n <= sizes.Lk:
                    value_error(op, "seqlens_k", f"lengths in [0, {sizes.Lk}]", f"{n} for row {b}")


def _check_sequences(
    op: str, side: str, ends: Tensor, q: Tensor, B: int, total: int, most: int
) -> None:
    name = f"cu_seqlens_{side}"
    check_like(op, name, ends, q, torch.int32)
    if ends.dim() != 1 or ends.shape[0] != B + 1 or B < 0:
        wanted = f"shape ({B + 1 if B >= 0 else 1},)"
        value_error(op, name, wanted, shape_text(ends.shape))
    if most < 0:
        value_error(op, f"max_seqlen_{side}", "0 or above", most)
    if not ends.is_cpu:
        return
    numbers = ends.tolist()
    if numbers[0] != 0:
        value_error(op, name, "0 first", numbers[0])
    for b, (first, end) in enumerate(pairwise(numbers)):
        if end < first:
            value_error(op, name, "rising numbers", f"{first} before {end} at {b + 1}")
        if end - first > most:
            wanted = f"at least {end - first}, sequence {b}'s length"
            value_error(op, f"max_seqlen_{side}", wanted, most)
    if numbers[-1] != total:
        value_error(op, name, f"{total}, the number of rows, last", numbers[-1])
