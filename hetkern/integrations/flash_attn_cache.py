"""flash-attention's attention over a cache of keys and values, by its own signature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops

_NAME = "hetkern: flash_attn_with_kvcache"


def sides(window_size: Any) -> tuple[int, int]:
    """flash-attention's ``window_size``, checked."""
    if len(window_size) != 2:
        raise ValueError(f"hetkern: window_size: wanted (left, right), got {window_size!r}")
    left, right = window_size
    return left, right


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    impl: str = "auto",
) -> Any:
    """Attention of the newest queries over a cache: :func:`hetkern.attention_decode`.

    Args:
        q: ``(B, Lq, Hq, D)``.
        k_cache: ``(B, Lmax, Hkv, D)``; with ``cache_batch_idx`` of any number of sequences.
        v_cache: ``(B, Lmax, Hkv, Dv)``.
        k: ``(B, Lnew, Hkv, D)``, written into the cache behind each sequence's length; or None.
        v: ``(B, Lnew, Hkv, Dv)``, together with ``k``.
        rotary_cos: None: turn q and k before the call.
        rotary_sin: None.
        cache_seqlens: ``(B)`` or one number: keys of each sequence before ``k``; None for Lmax.
        cache_batch_idx: ``(B)``: each sequence's place in the cache, all different where ``k`` is
            written; those places are copied for the call. None: in order.
        cache_leftpad: None.
        block_table: None.
        softmax_scale: factor on the scores; None for ``1 / sqrt(D)``.
        causal: query ``i`` sees keys ``j <= i + Lk - Lq``, where Lk counts the new ones.
        window_size: ``(left, right)``, -1 for a side without bound.
        softcap: soft bound on the scores; 0 for none.
        rotary_interleaved: without rotary_cos of no effect.
        alibi_slopes: ``(Hq)`` or ``(B, Hq)`` in float32.
        num_splits: of no effect: the keys are split by a rule of their number.
        return_softmax_lse: return the lse ``(B, Hq, Lq)`` too.
        impl: as in :func:`hetkern.attention`.

    Returns:
        ``(B, Lq, Hq, Dv)``; with ``return_softmax_lse`` also the lse.

    Raises:
        NotImplementedError: rotary embedding, left padding or a paged cache is wanted.
        ValueError: only one of k and v is there, or the cache is too short for them.
    """
    for name, given in (
        ("rotary_cos", rotary_cos),
        ("rotary_sin", rotary_sin),
        ("cache_leftpad", cache_leftpad),
        ("block_table", block_table),
    ):
        if given is not None:
            raise NotImplementedError(f"{_NAME}: {name} is not implemented")
    if (k is None) != (v is None):
        raise ValueError(f"{_NAME}: k and v: wanted both or none")
    B, most = q.shape[0], k_cache.shape[1]
    lengths = torch.as_tensor(most if cache_seqlens is None else cache_seqlens, device=q.device)
    lengths = lengths.to(torch.int64).expand(B)
    places = torch.arange(B, device=q.device) if cache_batch_idx is None else cache_batch_idx.long()
    if k is not None and v is not None:
        new = k.shape[1]
        if lengths.device.type == "cpu" and B and int(lengths.max()) + new > most:
            wanted = f"room for {int(lengths.max())} keys and {new} more"
            raise ValueError(f"{_NAME}: k_cache: wanted {wanted}, got {most}")
        at = lengths[:, None] + torch.arange(new, device=q.device)
        k_cache[places[:, None], at] = k
        v_cache[places[:, None], at] = v
        lengths = lengths + new
    if cache_batch_idx is not None:
        k_cache, v_cache = k_cache[places], v_cache[places]
    out, lse = ops.attention_decode(
        q.transpose(1, 2),
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        lengths,
        causal=causal,
        window=sides(window_size),
        scale=softmax_scale,
        softcap=softcap or None,
        alibi_slopes=alibi_slopes,
        return_lse=True,
        impl=impl,
    )
    out = out.transpose(1, 2)
    return (out, lse) if return_softmax_lse else out
