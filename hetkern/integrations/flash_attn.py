"""flash-attention's functions by its own signatures: ``(B, L, H, D)``, heads inside.

``from hetkern.integrations.flash_attn import flash_attn_func`` in the place of
``from flash_attn import flash_attn_func``; they run wherever hetkern does, in any of its dtypes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import ops
from .flash_attn_cache import flash_attn_with_kvcache, sides

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    impl: str = "auto",
) -> Any:
    """Attention of ``(B, L, H, D)``: :func:`hetkern.attention` with heads inside.

    Args:
        q: ``(B, Lq, Hq, D)``.
        k: ``(B, Lk, Hkv, D)``.
        v: ``(B, Lk, Hkv, Dv)``.
        dropout_p: probability that a weight is dropped, always on.
        softmax_scale: factor on the scores; None for ``1 / sqrt(D)``.
        causal: query ``i`` sees keys ``j <= i + Lk - Lq``.
        window_size: ``(left, right)``, -1 for a side without bound.
        softcap: soft bound on the scores; 0 for none.
        alibi_slopes: ``(Hq)`` or ``(B, Hq)`` in float32.
        deterministic: always so here.
        return_attn_probs: return ``(out, softmax_lse, None)``: the weights are never all there.
        impl: as in :func:`hetkern.attention`.

    Returns:
        ``(B, Lq, Hq, Dv)``; with ``return_attn_probs`` also the lse ``(B, Hq, Lq)``, and None.
    """
    out, lse = ops.attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        causal=causal,
        window=sides(window_size),
        scale=softmax_scale,
        softcap=softcap or None,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        return_lse=True,
        impl=impl,
    )
    out = out.transpose(1, 2)
    return (out, lse, None) if return_attn_probs else out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Any:
    """Packed attention: :func:`hetkern.attention_varlen`.

    Args:
        q: ``(total_q, Hq, D)``.
        k: ``(total_k, Hkv, D)``.
        v: ``(total_k, Hkv, Dv)``.
        cu_seqlens_q: ``(N + 1)`` int32, checked.
        cu_seqlens_k: the same of the keys.
        max_seqlen_q: no sequence has more queries.
        max_seqlen_k: no sequence has more keys.
        dropout_p: this and what follows as in :func:`flash_attn_func`.
        softmax_scale: see there.
        causal: see there.
        window_size: see there.
        softcap: see there.
        alibi_slopes: see there; ``(Hq)`` or ``(N, Hq)``.
        deterministic: see there.
        return_attn_probs: see there.
        block_table: None; a paged cache is refused by name.
        impl: as in :func:`hetkern.attention`.

    Returns:
        ``(total_q, Hq, Dv)``; with ``return_attn_probs`` also the lse ``(Hq, total_q)``, and None.
    """
    if block_table is not None:
        raise NotImplementedError("hetkern: block_table: paged caches are not implemented")
    out, lse = ops.attention_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        causal=causal,
        window=sides(window_size),
        scale=softmax_scale,
        softcap=softcap or None,
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        return_lse=True,
        impl=impl,
    )
    return (out, lse, None) if return_attn_probs else out


def _packed(name: str, t: Tensor, dim: int, parts: int) -> tuple[Tensor, ...]:
    if t.dim() <= dim or t.shape[dim] != parts:
        wanted = f"wanted {parts} in dimension {dim}"
        raise ValueError(f"hetkern: {name}: {wanted}, got shape {tuple(t.shape)}")
    return t.unbind(dim)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    impl: str = "auto",
) -> Any:
    """:func:`flash_attn_func` of ``qkv`` ``(B, L, 3, H, D)``; what follows is as there."""
    options = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes
    q, k, v = _packed("qkv", qkv, 2, 3)
    return flash_attn_func(q, k, v, *options, deterministic, return_attn_probs, impl=impl)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    impl: str = "auto",
) -> Any:
    """:func:`flash_attn_func` of ``kv`` ``(B, Lk, 2, Hkv, D)``; what follows is as there."""
    options = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes
    k, v = _packed("kv", kv, 2, 2)
    return flash_attn_func(q, k, v, *options, deterministic, return_attn_probs, impl=impl)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    impl: str = "auto",
) -> Any:
    """:func:`flash_attn_varlen_func` of ``qkv`` ``(total, 3, H, D)``; the rest as there."""
    q, k, v = _packed("qkv", qkv, 1, 3)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
        impl=impl,
    )


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    impl: str = "auto",
) -> Any:
    """:func:`flash_attn_varlen_func` of ``kv`` ``(total_k, 2, Hkv, D)``; the rest as there."""
    k, v = _packed("kv", kv, 1, 2)
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
        impl=impl,
    )
