"""torch.vmap for ops that reduce one dimension.

The batch becomes one more outer dimension of the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def batch_rows(
    full: tuple[int, ...],
    dim: int,
    broadcast: tuple[int, ...] = (),
    rows: tuple[int, ...] = (),
    full_rows: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """The batching rule of an op, from the places of its arguments.

    Args:
        full: tensors of the reduced shape; the first is always there.
        dim: the reduced dimension.
        broadcast: tensors that broadcast to the reduced shape.
        rows: tensors that broadcast to it without the reduced dimension.
        full_rows: tensors of its shape without the reduced dimension.
    """

    def rule(op: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        lead, lead_at = args[full[0]], in_dims[full[0]]
        rank = lead.dim() - (lead_at is not None)
        args_list = list(args)
        if rank == 0:  # a scalar is a row of one element
            for at in (*full, *broadcast):
                if args[at] is not None:
                    args_list[at] = args[at].unsqueeze(-1)
            args_list[dim] = -1
            outputs, batched = rule(op, info, in_dims, *args_list)
            if isinstance(outputs, Tensor):
                return outputs.squeeze(-1), batched
            return tuple(t.squeeze(-1) if t.dim() == 2 else t for t in outputs), batched
        for at in (*full, *broadcast, *rows, *full_rows):
            if args[at] is None:
                continue
            if in_dims[at] is not None:
                wanted = rank - 1 if at in rows or at in full_rows else rank
                args_list[at] = _front(args[at], in_dims[at], wanted)
            elif at in full or at in full_rows:
                args_list[at] = args[at].unsqueeze(0).expand(info.batch_size, *args[at].shape)
        if args_list[dim] >= 0:
            args_list[dim] += 1
        output = op(*args_list)
        if isinstance(output, Tensor):
            return output, 0
        batched = tuple(
            0 if t.dim() >= rank and t.shape[0] == info.batch_size else None for t in output
        )
        return output, batched

    return rule


def _front(t: Tensor, at: int, rank: int) -> Tensor:
    """The batch dimension first, then as many ones as ``t`` lacks of ``rank``."""
    t = torch.movedim(t, at, 0)
    return t[(slice(None), *([None] * (rank - (t.dim() - 1))))]
