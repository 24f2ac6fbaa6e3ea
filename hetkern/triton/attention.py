"""Attention in Triton: the forward launcher.                (the kernels: attention_kernels.py).

It goes: check, allocate, return if empty, plan, launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_backward import attention_backward
from .attention_call import Call
from .attention_checks import ACCUMULATOR, Scores, checked
from .attention_kernels import attention_forward_kernel
from .attention_parts_kernel import attention_parts_kernel
from .attention_tiles import plan, share
from .views import on_device

__all__ = ["attention", "attention_backward", "plan"]


def _new_out(q: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Heads inside where q's are: the next projection takes the result without a copy."""
    if len(shape) == 4 and shape[2] > 1 and shape[1] > 1 and q.stride(1) < q.stride(2):
        B, Hq, Lq, Dv = shape
        return q.new_empty((B, Lq, Hq, Dv)).transpose(1, 2)
    return q.new_empty(shape)


def attention(q: Tensor, k: Tensor, v: Tensor, *scores: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``hetkern::attention``: out, row_max and log_sum."""
    # Check.
    s = Scores(*scores)
    sizes = checked("attention", q, k, v, s)

    # Allocate, return if empty.
    out = _new_out(q, sizes.out(q))
    row_max = torch.empty(sizes.rows(q), dtype=ACCUMULATOR, device=q.device)
    log_sum = torch.empty_like(row_max)
    if row_max.numel() == 0:
        return out, row_max, log_sum

    # Plan and launch.
    call = Call(q, k, v, sizes, s)
    with on_device(q):
        call.check_lengths()
        tiles = plan(sizes.D, sizes.Dv, q.dtype)["forward"]
        chosen = share(sizes.Hq, sizes.Hkv, sizes.Lq, sizes.Lk)
        parts, split = chosen["parts"], chosen["path"] == "split_keys"
        group = sizes.Hq // sizes.Hkv if chosen["fold"] else 1
        aside = _aside(row_max, parts if split else 1, sizes.Dv) if parts > 1 else None
        over = tiles, group * sizes.Lq, sizes.Hq // group
        results = call.operand(out), call.stats(row_max, log_sum)
        rest = call.features, call.sink, aside
        constants = {"GROUP": group, "PART": chosen["part"]}
        for part in range(1 if split else parts):
            call.launch(
                attention_forward_kernel,
                *over,
                *map(call.operand, (q, k, v)),
                *results,
                *rest,
                part * chosen["part"],
                parts=parts if split else 1,
                SPLIT=split,
                **constants,
            )
        if split:
            call.launch(attention_parts_kernel, *over, *results, *rest, **constants)
    return out, row_max, log_sum


def _aside(row_max: Tensor, parts: int, Dv: int) -> tuple[Any, ...]:
    """Each part's sums, maxima and weights, and how many rows a part has."""
    rows = row_max.numel()
    sums = row_max.new_empty((parts, rows, Dv))
    return sums, row_max.new_empty((parts, rows)), row_max.new_empty((parts, rows)), rows
