"""torch's scaled_dot_product_attention on hetkern's attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import ops, overrides
from ..ops import arguments


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
    sink: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """As ``torch.nn.functional.scaled_dot_product_attention``, in memory of a row at any mask.

    Equation and errors are those of :func:`hetkern.attention`.

    Args:
        query: ``(…, Hq, L, E)`` or ``(L, E)``; leading dimensions broadcast with the others'.
        key: ``(…, H, S, E)`` or ``(S, E)``.
        value: ``(…, H, S, Ev)`` or ``(S, Ev)``.
        attn_mask: broadcasts to ``(…, Hq, L, S)``: boolean, True = keep; or floating, added to the
            scores in the dtype of ``query``, with a gradient; or ``torch.nn.attention.bias``'s
            ``causal_upper_left`` or ``causal_lower_right``, as in torch.
        dropout_p: probability that a weight is dropped, always on.
        is_causal: query ``i`` sees keys ``j <= i``: aligned top-left, torch's rule, unlike
            :func:`hetkern.attention`; also together with ``attn_mask``.
        scale: factor on the scores; None for ``1 / sqrt(E)``.
        enable_gqa: H may be a divisor of Hq: each key head serves ``Hq / H`` query heads in turn.
        softcap: soft bound on the scaled scores, above 0; None for none.
        sink: ``(Hq,)``, one raw logit a head that takes part in the sum.
        impl: as in :func:`hetkern.attention`.

    Returns:
        ``(…, Hq, L, Ev)``. A row that sees nothing is 0.
    """
    if overrides.any_stands_in(query, key, value, attn_mask, scale, softcap, sink):
        tensors = {"query": query, "key": key, "value": value, "attn_mask": attn_mask}
        options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        options |= {"enable_gqa": enable_gqa, "softcap": softcap, "sink": sink, "impl": impl}
        return overrides.handed_over(scaled_dot_product_attention, **tensors, **options)
    name = "scaled_dot_product_attention"
    for argument, t in (("query", query), ("key", key), ("value", value)):
        arguments.tensor(name, argument, t)
        if t.dim() < 2:
            raise ValueError(f"{name}: {argument}: wanted shape (…, L, E), got {tuple(t.shape)}")
    rank = max(query.dim(), key.dim(), value.dim())
    q, k, v = (t[(*[None] * (3 - t.dim()), ...)] for t in (query, key, value))
    lead = _broadcast("leading dimensions", q, k, v, slice(-3))
    heads = q.shape[-3]
    if not enable_gqa:
        heads = _broadcast("heads (enable_gqa shares keys)", q, k, v, slice(-3, -2))[0]
        q = q.expand(*q.shape[:-3], heads, *q.shape[-2:])
        if k.shape[-3] != v.shape[-3]:
            k, v = (t.expand(*t.shape[:-3], heads, *t.shape[-2:]) for t in (k, v))
    B = math.prod(lead)
    q, k, v = (t.expand(*lead, *t.shape[-3:]).reshape(B, *t.shape[-3:]) for t in (q, k, v))
    mask = bias = None
    bottom_right = False
    if type(attn_mask).__name__ == "CausalBias":  # whose module takes torch.compile's with it
        bottom_right = _is_bottom_right(attn_mask, is_causal, q.shape[2], k.shape[2])
        is_causal = not bottom_right
    elif attn_mask is not None:
        attn_mask = _four(attn_mask, lead)
        if attn_mask.dtype == torch.bool:
            mask = attn_mask
        elif attn_mask.is_floating_point():
            bias = attn_mask.to(q.dtype)
        else:
            wanted = "a boolean or floating dtype"
            raise ValueError(f"{name}: attn_mask: wanted {wanted}, got {attn_mask.dtype}")
    more: dict[str, Any] = {
        "scale": scale,
        "softcap": softcap,
        "sink": sink,
        "dropout_p": dropout_p,
        "impl": impl,
    }
    if bottom_right:
        out = ops.attention(q, k, v, causal=True, **more)
    else:
        out = top_left_attention(q, k, v, mask, bias, is_causal, **more)
    out = out.view(*lead, *out.shape[1:]) if len(lead) != 1 else out
    return out if rank > 2 else out[0]


def top_left_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    **more: Any,
) -> Tensor:
    """:func:`hetkern.attention` of four dimensions, where causal is torch's rule: ``j <= i``."""
    L, S = q.shape[2], k.shape[2]
    window = None
    if is_causal and S > L:  # no query sees the keys behind, and bottom-right is top-left
        k, v = k[:, :, :L], v[:, :, :L]
        mask, bias = (t if t is None or t.shape[3] == 1 else t[..., :L] for t in (mask, bias))
    elif is_causal and L > S:
        is_causal, window = False, (None, L - S)
    return ops.attention(q, k, v, causal=is_causal, window=window, mask=mask, bias=bias, **more)


def _is_bottom_right(triangle: Any, is_causal: bool, L: int, S: int) -> bool:
    """Whether torch's CausalBias is aligned so. Its elements mean nothing: nobody wrote them."""
    if is_causal:
        wanted = "wanted False beside a CausalBias, which is a triangle itself"
        raise ValueError(f"scaled_dot_product_attention: is_causal: {wanted}")
    size = triangle.seq_len_q, triangle.seq_len_kv
    if triangle.variant.name == "UPPER_LEFT" or size[0] == size[1]:
        return False
    if size != (L, S):
        wanted = f"scaled_dot_product_attention: attn_mask: wanted a CausalBias of {(L, S)}"
        raise ValueError(f"{wanted}, got one of {size}")
    return True


def _broadcast(what: str, q: Tensor, k: Tensor, v: Tensor, dims: slice) -> torch.Size:
    try:
        return torch.broadcast_shapes(*(t.shape[dims] for t in (q, k, v)))
    except RuntimeError:
        got = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(
            f"scaled_dot_product_attention: query, key, value: wanted {what} that broadcast, "
            f"got {got}"
        ) from None


def _four(mask: Tensor, lead: torch.Size) -> Tensor:
    """A mask of any number of dimensions as one that broadcasts to (B, H, L, S)."""
    if mask.dim() < 4:
        return mask[(*[None] * (4 - mask.dim()), ...)]
    given = mask.shape[:-3]
    if all(size == 1 for size in given):
        return mask.reshape(1, *mask.shape[-3:])
    behind = lead[-len(given) :]
    if len(behind) < len(given) or any(a not in (1, b) for a, b in zip(given, behind, strict=True)):
        raise ValueError(
            "scaled_dot_product_attention: attn_mask: wanted leading dimensions that broadcast to "
            f"{tuple(lead)}, got {tuple(mask.shape)}"
        )
    return mask.expand(*lead, *mask.shape[-3:]).reshape(math.prod(lead), *mask.shape[-3:])
