"""Several sequences one after another in the rows of a batch, for transformers' models.

``ends`` are ``(N + 1)``: where each begins in all rows as one, and the end, as flash-attention's
``cu_seqlens``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops


def ends(sequences: Tensor) -> Tensor:
    """Where the packed sequences ``(B, L)`` begin, all rows as one, and the end."""
    total = sequences.numel()
    first = torch.ones_like(sequences, dtype=torch.bool)
    first[:, 1:] = sequences[:, 1:] != sequences[:, :-1]
    if torch.compiler.is_compiling() or not first.is_cpu:  # nobody waits: most have no tokens
        row = torch.arange(total, device=first.device)
        starts = torch.where(first.flatten(), row, total).sort().values
        return torch.cat([starts, starts.new_full((1,), total)])
    return torch.cat([first.flatten().nonzero()[:, 0], torch.tensor([total])])


def of_one_sequence(query: Tensor, key: Tensor, ends_q: Any, ends_k: Any) -> Tensor:
    """``(B, 1, Lq, Lk)``: whether a query and a key are of the same packed sequence."""

    def numbers(t: Tensor, ends: Tensor) -> Tensor:
        B, L = t.shape[0], t.shape[2]
        row = torch.arange(B * L, device=ends.device, dtype=ends.dtype)
        return torch.searchsorted(ends, row, right=True).view(B, 1, L)

    return numbers(query, ends_q)[..., :, None] == numbers(key, ends_k)[..., None, :]


def attend(
    query: Tensor, key: Tensor, value: Tensor, ends_q: Any, ends_k: Any, options: dict[str, Any]
) -> Tensor:
    """Each sequence by itself, without the scores between them."""
    if "bias" in options:
        raise NotImplementedError(
            "hetkern in transformers: position_bias: not honoured in packed sequences"
        )
    Lq, Lk = query.shape[2], key.shape[2]
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    out = ops.attention_varlen(q, k, v, ends_q, ends_k, Lq, Lk, **options)
    return out.unflatten(0, (query.shape[0], Lq))
