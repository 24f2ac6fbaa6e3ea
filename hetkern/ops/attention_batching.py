"""torch.vmap for the attention family: the batch becomes more sequences of the same call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_derivatives import NEEDS

# Tensors with a sequence's dimension first; bias, mask and slopes may lack it.
_BY_SEQUENCE = ("dout", "dlse", "q", "k", "v", "out", "row_max", "log_sum", "seqlens_k")
_QUERIES_AND_KEYS = NEEDS["q"] | NEEDS["k"] | NEEDS["v"]


def batch_attention(op: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """V samples of B sequences are V B sequences.

    What the sequences of a call share (a sink, the numbers of a dropout), packed rows, and the
    gradients of bias, sink and slopes, which are sums over sequences, take a call a sample.
    """
    names = [argument.name for argument in op._schema.arguments]
    given = dict(zip(names, args, strict=True))
    at = dict(zip(names, in_dims, strict=True))
    needs = given.get("needs", 0)
    if (
        given["cu_seqlens_q"] is not None
        or given["dropout_p"] > 0.0
        or at["sink"] is not None
        or needs & ~_QUERIES_AND_KEYS
    ):
        return _one_by_one(op, info, in_dims, args)
    V = info.batch_size

    def folded(name: str, t: Any) -> Any:
        if not isinstance(t, Tensor) or name == "sink":
            return t
        if name in _BY_SEQUENCE:
            return _first(t, at[name], V).flatten(0, 1)
        shared = t.dim() == 1 if name == "alibi_slopes" else t.shape[0] == 1
        if at[name] is None and shared:
            return t
        t = _first(t, at[name], V)  # now (V, Hq), or (V, 1 or B, …)
        if name == "alibi_slopes" and t.dim() == 2:
            t = t.unsqueeze(1)
        B = given["q"].shape[0 if at["q"] is None else (1 if at["q"] == 0 else 0)]
        return t.expand(V, B, *t.shape[2:]).flatten(0, 1)

    results = op(*(folded(name, t) for name, t in given.items()))
    batched = tuple(None if _absent(t) else 0 for t in results)
    return tuple(t if _absent(t) else t.unflatten(0, (V, -1)) for t in results), batched


def _one_by_one(op: Any, info: Any, in_dims: tuple[Any, ...], args: tuple) -> tuple[Any, Any]:
    samples = [
        op(*(t if at is None else t.select(at, v) for t, at in zip(args, in_dims, strict=True)))
        for v in range(info.batch_size)
    ]
    stacked = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    return tuple(stacked), (0,) * len(stacked)


def _first(t: Tensor, at: int | None, V: int) -> Tensor:
    """The batch dimension first."""
    return t.expand(V, *t.shape) if at is None else t.movedim(at, 0)


def _absent(t: Tensor) -> bool:
    """Whether a result is a gradient that nobody asked for."""
    return t.dim() == 1 and t.shape[0] == 0
