"""torch.vmap for the RNN family: the batch becomes more rows of the same call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def batch_gates(op: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """Every tensor is rows: V samples of B rows are V B rows."""
    V = info.batch_size

    def folded(t: Any, at: int | None) -> Any:
        if not isinstance(t, Tensor):
            return t
        return _first(t, at, V).flatten(0, 1)

    results = op(*map(folded, args, in_dims))
    batched = tuple(None if _absent(t) else 0 for t in results)
    return tuple(t if _absent(t) else t.unflatten(0, (V, -1)) for t in results), batched


def batch_sequence(op: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """Sample v of row b is row b V + v: a packed step keeps its rows side by side.

    Weights of its own for each sample take a call each.
    """
    names = [argument.name for argument in op._schema.arguments]
    given = dict(zip(names, args, strict=True))
    at = dict(zip(names, in_dims, strict=True))
    if any(at[name] is not None for name in ("w_hh", "b_hh", "batch_sizes")):
        return _one_by_one(op, info, in_dims, args)
    V = info.batch_size
    packed = given["batch_sizes"] is not None
    by_step = 0 if packed else 1  # where x_gates and what is like it have their rows

    def folded(name: str, t: Any) -> Any:
        if not isinstance(t, Tensor) or name in ("w_hh", "b_hh"):
            return t
        if name == "batch_sizes":
            return t * V
        if name in ("gates", "cells") and t.numel() == 0:
            return t.new_empty(0)
        rows = by_step if name in _BY_STEP else 0
        return _first(t, at[name], V).movedim(0, rows + 1).flatten(rows, rows + 1)

    results = op(*(folded(name, t) for name, t in given.items()))

    unfolded: list[Tensor] = []
    batched: list[int | None] = []
    for returned, t in zip(op._schema.returns, results, strict=True):
        if _absent(t):
            unfolded.append(t)
            batched.append(None)
            continue
        rows = by_step if returned.name in _BY_STEP else 0
        unfolded.append(t.unflatten(rows, (-1, V)))
        batched.append(rows + 1)
    return tuple(unfolded), tuple(batched)


_BY_STEP = ("x_gates", "dy", "y", "gates", "cells", "reset", "dgates")


def _one_by_one(op: Any, info: Any, in_dims: tuple[Any, ...], args: tuple) -> tuple[Any, Any]:
    samples = [
        op(*(t if at is None else t.select(at, v) for t, at in zip(args, in_dims, strict=True)))
        for v in range(info.batch_size)
    ]
    stacked = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    batched = tuple(None if _absent(t[0]) else 0 for t in stacked)
    return tuple(t[0] if _absent(t[0]) else t for t in stacked), batched


def _first(t: Tensor, at: int | None, V: int) -> Tensor:
    """The batch dimension first."""
    return t.expand(V, *t.shape) if at is None else t.movedim(at, 0)


def _absent(t: Tensor) -> bool:
    """Whether a result is one that the cell does not have."""
    return t.dim() == 1
