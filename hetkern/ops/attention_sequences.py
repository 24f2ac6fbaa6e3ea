"""The public attention of sequences of their own lengths: packed, and beside a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import impl as _impl
from ..reference.attention import Window
from . import arguments
from .attention import OPS, plan, run


def _lengths(op: str, name: str, t: Any) -> Tensor:
    """``t`` as int32, elements side by side; what int32 does not hold stays out of range."""
    arguments.tensor(op, name, t)
    if t.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{op}: {name}: wanted int32 or int64, got {t.dtype}")
    if t.dtype is torch.int64:
        t = t.clamp(-1, 2**31 - 1)
    return t.to(torch.int32).contiguous()


@_impl.explainable("hetkern.attention_varlen", OPS, plan)
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    impl: str = "auto",
) -> Any:
    """:func:`hetkern.attention` within each of N sequences whose rows lie one behind the other.

    No padding is computed or stored; a sequence of length 0 is allowed.

    Args:
        q: ``(total_q, Hq, D)``, any strides; float32, float64, float16 or bfloat16.
        k: ``(total_k, Hkv, D)``.
        v: ``(total_k, Hkv, Dv)``.
        cu_seqlens_q: ``(N + 1)`` int32 or int64 on q's device: the first row of each sequence, and
            the end: from 0, never falling, to total_q. The CPU checks it, a GPU on the device.
        cu_seqlens_k: the same of the keys.
        max_seqlen_q: no sequence has more queries.
        max_seqlen_k: no sequence has more keys.
        causal: this and what follows as in :func:`hetkern.attention`, with a sequence's own lengths
            for Lq and Lk.
        window: see there.
        scale: see there.
        softcap: see there.
        alibi_slopes: ``(Hq)`` or ``(N, Hq)``.
        sink: see there.
        dropout_p: see there; a sequence gets the mask that it gets in a dense batch at its place.
        return_lse: see there.
        impl: see there.

    Returns:
        ``out`` ``(total_q, Hq, Dv)``; with ``return_lse`` also ``lse`` ``(Hq, total_q)``.

    Raises:
        ValueError: a rank, shape, dtype or value does not fit.
        NotImplementedError: the named implementation cannot run here.
    """
    op = "hetkern.attention_varlen"
    for name, most in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        if isinstance(most, float):
            raise ValueError(f"{op}: {name}: wanted an integer, got {most}")
    cu_seqlens = (
        _lengths(op, "cu_seqlens_q", cu_seqlens_q),
        _lengths(op, "cu_seqlens_k", cu_seqlens_k),
    )
    result = run(
        op,
        q,
        k,
        v,
        causal=causal,
        window=window,
        scale=scale,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sink=sink,
        dropout_p=dropout_p,
        return_lse=return_lse,
        impl=impl,
        cu_seqlens=cu_seqlens,
        max_seqlens=(max_seqlen_q, max_seqlen_k),
    )
    if _impl.thread.logs:
        _impl.note(
            attention_varlen,
            q=q,
            k=k,
            v=v,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            causal=causal,
            window=window,
            impl=impl,
        )
    return result


@_impl.explainable("hetkern.attention_decode", OPS, plan)
def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    causal: bool = True,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    impl: str = "auto",
) -> Any:
    """:func:`hetkern.attention` of the newest queries over a cache that is filled in part.

    The cache is read once, by all query heads that share a key head, split over the keys. What lies
    behind a sequence's length is not read; it may hold anything.

    Args:
        q: ``(B, Hq, Lq, D)``: the last Lq tokens of each sequence, mostly 1.
        k_cache: ``(B, Hkv, Lmax, D)``, the keys of those tokens included.
        v_cache: ``(B, Hkv, Lmax, Dv)``.
        cache_seqlens: ``(B)`` int32 or int64 on q's device, in [0, Lmax]: how many keys each
            sequence has; it stands for Lk in what follows.
        causal: as in :func:`hetkern.attention`, but on: each query sees what came before it.
        window: this and what follows as in :func:`hetkern.attention`.
        scale: see there.
        softcap: see there.
        bias: see there; broadcasts to ``(B, Hq, Lq, Lmax)``.
        mask: see there; broadcasts to ``(B, Hq, Lq, Lmax)``.
        alibi_slopes: see there.
        sink: see there.
        dropout_p: see there.
        return_lse: see there.
        impl: see there.

    Returns:
        ``out`` ``(B, Hq, Lq, Dv)``; with ``return_lse`` also ``lse`` ``(B, Hq, Lq)``.

    Raises:
        ValueError: a rank, shape, dtype or value does not fit.
        NotImplementedError: the named implementation cannot run here.
    """
    op = "hetkern.attention_decode"
    seqlens_k = _lengths(op, "cache_seqlens", cache_seqlens)
    result = run(
        op,
        q,
        k_cache,
        v_cache,
        causal=causal,
        window=window,
        scale=scale,
        softcap=softcap,
        bias=bias,
        mask=mask,
        alibi_slopes=alibi_slopes,
        sink=sink,
        dropout_p=dropout_p,
        return_lse=return_lse,
        impl=impl,
        seqlens_k=seqlens_k,
    )
    if _impl.thread.logs:
        _impl.note(
            attention_decode,
            q=q,
            k_cache=k_cache,
            v_cache=v_cache,
            cache_seqlens=cache_seqlens,
            causal=causal,
            window=window,
            impl=impl,
        )
    return result
