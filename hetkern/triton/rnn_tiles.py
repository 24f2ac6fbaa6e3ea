"""From tensors to the operands of the RNN's kernels, and in what tiles they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .views import Operand, next_power_of_2

# A tile is small, so that one step of a small batch fills the GPU, and a thread has 16 bytes of it.
TILE = 512


def plan(B: int, H: int, dtype: torch.dtype) -> dict[str, Any]:
    """In what tiles the gates of a step run, and how many programs they are."""
    block = min(next_power_of_2(H), TILE)
    rows = TILE // block
    programs = -(-B // rows) * -(-H // block)
    warps = TILE * dtype.itemsize // (32 * 16)
    return {"block": block, "rows": rows, "warps": warps, "programs": programs}


def options(tiles: dict[str, Any]) -> dict[str, Any]:
    """What a launch says of its tiles."""
    return {"ROWS": tiles["rows"], "BLOCK": tiles["block"], "num_warps": tiles["warps"]}


def ready(t: Tensor) -> Tensor:
    """``t``, copied if its neighbours in a row do not lie side by side."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def rows_operand(t: Tensor | None) -> Operand | None:
    """A tensor of rows; None for one that is absent or has no element."""
    if t is None or t.numel() == 0:
        return None
    t = ready(t)
    return (t, t.stride(0))


def steps_operand(t: Tensor | None, packed: bool) -> Operand | None:
    """A tensor of a row a step and sequence: the strides from step to step and row to row.

    A packed one's steps are counted in rows.
    """
    if t is None or t.numel() == 0:
        return None
    t = ready(t)
    return (t, t.stride(0), t.stride(0 if packed else 1))
