"""The loss put together from its rows' terms, where the op cannot reduce them itself.

That is where a number differs from call to call of a compiled graph, and where the rows of a mean
lie on several processors.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..reference import CrossEntropyStats
from . import arguments


def by_rows(
    ops: SimpleNamespace,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: Any,
    scale: float,
    softcap: float,
    z_loss: Any,
    return_stats: bool,
) -> Tensor | tuple[Tensor, CrossEntropyStats]:
    """As :func:`hetkern.cross_entropy` of checked arguments; numbers may be tensors or symbolic."""
    dim = 1 if input.dim() > 1 else 0

    plain = not return_stats and isinstance(z_loss, float) and z_loss == 0.0
    run = ops.cross_entropy if plain else ops.cross_entropy_stats

    def rows_of(smoothing: float) -> Any:
        return run(input, target, weight, dim, ignore_index, 0, smoothing, scale, softcap, 0.0)

    if arguments.varies(label_smoothing):
        rows, stats = _smoothed(rows_of, label_smoothing)
    else:
        outputs = rows_of(label_smoothing)
        rows, stats = outputs[0], outputs[3:]
    each, counted = counts(rows, target, weight, ignore_index)
    z_rows = (
        torch.zeros_like(rows)
        if plain
        else z_loss * torch.where(counted > 0, stats[1], 0.0).square()
    )
    total = rows + z_rows
    if reduction == "none":
        loss = total
    elif reduction == "sum":
        loss = total.sum()
    else:
        loss = rows.sum() / each.sum()
        if not plain:
            loss = loss + z_rows.sum() / counted.sum()
    if not return_stats:
        return loss
    _, lse, _, *more = stats
    return loss, CrossEntropyStats(total, lse, z_rows, *more)


def _smoothed(rows_of: Any, label_smoothing: Any) -> tuple[Tensor, Any]:
    """Rows and statistics, of which only the rows depend on the smoothing, and linearly."""
    if not isinstance(label_smoothing, Tensor) and not 0 <= label_smoothing <= 1:
        raise ValueError(
            "hetkern.cross_entropy: label_smoothing: wanted a value in [0, 1], "
            f"got {label_smoothing}"
        )
    sharp, even = rows_of(0.0), rows_of(1.0)
    eps = label_smoothing * torch.ones_like(sharp[0])
    return _share(1 - eps, sharp[0]) + _share(eps, even[0]), sharp[3:]


def _share(factor: Tensor, rows: Tensor) -> Tensor:
    """``factor * rows``; no share of an infinite row is nothing."""
    return torch.where(factor > 0, factor * rows, 0.0)


def counts(
    rows: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """What each row adds to the divisors of a mean: ``D_0`` and ``D_1`` of the contract."""
    if target.is_floating_point():
        return (torch.ones_like(rows),) * 2
    counted = target != ignore_index
    ones = counted.to(rows.dtype)
    if weight is None:
        return ones, ones
    return torch.where(counted, weight[torch.where(counted, target, 0)], 0.0), ones
