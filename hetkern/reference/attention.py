"""Attention: scores of queries and keys, a softmax over the keys, and a mean of the values.

    s_ij  = scale q_i . k_j   or   softcap tanh(scale q_i . k_j / softcap)
            - slope |i + Lk - Lq - j|,   + bias_ij,   -inf where query i does not see key j
    lse_i = log(sum_j exp(s_ij) + exp(sink))
    p_ij  = exp(s_ij - lse_i)
    out_i = sum_j p_ij v_j,   with dropout sum_j p_ij kept_ij / (1 - dropout_p) v_j

Query i stands beside key i + Lk - Lq: causal and window count from there (bottom-right). Query head
h reads key head h // (Hq / Hkv). In a packed batch a query sees its own sequence alone.

Edges: a row that sees nothing, or nothing but -inf, gives out 0 and lse -inf (lse = sink with one)
and passes no gradient, whatever q holds there. NaN in a query stays in its row; a key or value that
holds NaN or an infinity reaches the rows that see it and no other, forward and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hetkern.reference.philox import philox4x32
from hetkern.reference.scores import accumulation_dtype

Window = tuple[int | None, int | None]


class Places(NamedTuple):
    """Where queries and keys stand; integers that broadcast to (B, Hq, Lq, Lk)."""

    i: Tensor  #: (…, Lq, 1), a query's number in its sequence
    j: Tensor  #: (…, 1, Lk), a key's
    diagonal: Tensor | int  #: Lk - Lq of the query's sequence
    sequence: Tensor  #: its number in the batch
    inside: Tensor | None  #: whether the key is one of the sequence; None for all

    def rows(self, start: int, stop: int) -> Places:
        """Those of some of the queries."""

        def cut(t: Any) -> Any:
            rows = isinstance(t, Tensor) and t.dim() > 1 and t.shape[-2] > 1
            return t[..., start:stop, :] if rows else t

        return Places(self.i[..., start:stop, :], self.j, *map(cut, self[2:]))


def dense_places(q: Tensor, k: Tensor, seqlens_k: Tensor | None) -> Places:
    """Those of ``q`` (B, Hq, Lq, D) and ``k`` (B, Hkv, Lk, D), of which a batch may use less."""
    B, Lq, Lk = q.shape[0], q.shape[2], k.shape[2]
    i, j = (torch.arange(L, device=q.device) for L in (Lq, Lk))
    sequence = torch.arange(B, device=q.device)[:, None, None, None]
    if seqlens_k is None:
        return Places(i[:, None], j, Lk - Lq, sequence, None)
    used = seqlens_k.long()[:, None, None, None]
    return Places(i[:, None], j, used - Lq, sequence, j < used)


def packed_places(q: Tensor, k: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Places:
    """Those of the rows of ``q`` (total_q, …) and ``k`` (total_k, …)."""
    first_q, first_k = cu_seqlens_q.long(), cu_seqlens_k.long()
    i, of_q = _numbers(q.shape[0], first_q)
    j, of_k = _numbers(k.shape[0], first_k)
    diagonal = first_k.diff()[of_q] - first_q.diff()[of_q]
    return Places(i[:, None], j, diagonal[:, None], of_q[:, None], of_q[:, None] == of_k)


def _numbers(total: int, first: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's number in its sequence, and that sequence."""
    row = torch.arange(total, device=first.device)
    sequence = torch.searchsorted(first[1:], row, right=True)
    return row - first[sequence], sequence


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    seqlens_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention by the equations above.

    Args:
        q: ``(B, Hq, Lq, D)``; float32, float64, float16 or bfloat16; any strides.
        k: ``(B, Hkv, Lk, D)``.
        v: ``(B, Hkv, Lk, Dv)``.
        causal: query i sees keys ``j <= i + Lk - Lq``.
        window: ``(left, right)``: it sees ``i + Lk - Lq - left <= j <= i + Lk - Lq + right``; None
            or -1 for a side without bound.
        scale: factor on the scores; None for ``1 / sqrt(D)``.
        softcap: bound of the scaled scores; None for none.
        bias: added to the scores; four dimensions, broadcasts to ``(B, Hq, Lq, Lk)``.
        mask: boolean, True keeps; likewise.
        alibi_slopes: ``(Hq)`` or ``(B, Hq)``.
        sink: ``(Hq)``, one raw logit a head.
        dropout_p: probability that a weight is dropped, in [0, 1).
        seed: int64, one element, with dropout.
        seqlens_k: ``(B)`` integers, how many keys each sequence has; None for Lk.

    Returns:
        ``out`` ``(B, Hq, Lq, Dv)`` in q's dtype, and ``lse`` ``(B, Hq, Lq)`` in the accumulation
        dtype.

    Raises:
        ValueError: ranks, head counts, shapes or values do not fit.
    """
    _check(q, k, v, 4, softcap, mask, window, dropout_p)
    _check_heads(q, q.shape[0], alibi_slopes, sink)
    slopes = None
    if alibi_slopes is not None:
        slopes = (alibi_slopes if alibi_slopes.dim() == 2 else alibi_slopes[None])[..., None, None]
    out, lse = attend(
        q,
        k,
        v,
        dense_places(q, k, seqlens_k),
        scale=default_scale(q) if scale is None else scale,
        softcap=softcap,
        causal=causal,
        window=window,
        slopes=slopes,
        bias=_broadcast("bias", bias, q, k),
        mask=_broadcast("mask", mask, q, k),
        sink=sink,
        dropout_p=dropout_p,
        seed=seed,
    )
    return out.to(q.dtype), lse


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention within each of N sequences whose rows lie one behind the other.

    Args:
        q: ``(total_q, Hq, D)``.
        k: ``(total_k, Hkv, D)``.
        v: ``(total_k, Hkv, Dv)``.
        cu_seqlens_q: ``(N + 1)`` integers: where each sequence starts, and the end.
        cu_seqlens_k: the same of the keys.
        causal: this and what follows as in :func:`attention`; N stands for B.
        window: see there.
        scale: see there.
        softcap: see there.
        alibi_slopes: see there.
        sink: see there.
        dropout_p: see there.
        seed: see there.

    Returns:
        ``out`` ``(total_q, Hq, Dv)`` and ``lse`` ``(Hq, total_q)``.
    """
    _check(q, k, v, 3, softcap, None, window, dropout_p)
    _check_heads(q, cu_seqlens_q.shape[0] - 1, alibi_slopes, sink)
    places = packed_places(q, k, cu_seqlens_q, cu_seqlens_k)
    out, lse = attend(
        q.transpose(0, 1).unsqueeze(0),
        k.transpose(0, 1).unsqueeze(0),
        v.transpose(0, 1).unsqueeze(0),
        places,
        scale=default_scale(q) if scale is None else scale,
        softcap=softcap,
        causal=causal,
        window=window,
        slopes=packed_slopes(alibi_slopes, places),
        bias=None,
        mask=None,
        sink=sink,
        dropout_p=dropout_p,
        seed=seed,
    )
    return out[0].transpose(0, 1).to(q.dtype), lse[0]


def packed_slopes(slopes: Tensor | None, places: Places) -> Tensor | None:
    """Slopes as :func:`attend` takes them: one a row where each sequence has its own."""
    if slopes is None or slopes.dim() == 1:
        return None if slopes is None else slopes[None, :, None, None]
    return slopes[places.sequence[:, 0]].transpose(0, 1)[None, :, :, None]


def default_scale(q: Tensor) -> float:
    """``1 / sqrt(D)``; without features every score is 0 and any number will do."""
    return q.shape[-1] ** -0.5 if q.shape[-1] > 0 else 1.0


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Places,
    *,
    scale: float,
    softcap: float | None,
    causal: bool,
    window: Window | None,
    slopes: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    sink: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` of some queries, in the accumulation dtype.

    ``q`` is (B, Hq, Lq, D), ``k`` and ``v`` (B, Hkv, Lk, …); ``slopes``, ``bias`` and ``mask``
    broadcast to (B, Hq, Lq, Lk).
    """
    with without_autocast(q):
        dtype = accumulation_dtype(q.dtype)
        q, k, v = (t.to(dtype) for t in (q, k, v))
        if (group := q.shape[1] // max(k.shape[1], 1)) > 1:
            k, v = (t.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2) for t in (k, v))
        keep = kept(places, causal, window, mask)

        z = _products(q, k, keep) * scale
        if keep is not None:  # before the cap, whose slope at NaN is NaN
            z = torch.where(keep, z, 0.0)
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        if slopes is not None:
            z = z - slopes.to(dtype) * (places.i + places.diagonal - places.j).abs()
        if bias is not None:
            z = z + bias.to(dtype)
        if keep is not None:
            z = torch.where(keep, z, -torch.inf)
        last = z.new_full((1, 1, 1, 1), -torch.inf)
        if sink is not None:
            last = sink.to(dtype)[:, None, None]
        z = torch.cat([z, last.expand(*z.shape[:3], 1)], -1)

        nothing = z.isneginf().all(-1, keepdim=True)
        z = torch.where(nothing, 0.0, z)
        m = z.amax(-1, keepdim=True).detach()  # kept apart: lse's gradient is exact beside any m
        e = (z - m).exp()
        d = e.sum(-1, keepdim=True)
        p = torch.where(nothing, 0.0, e / d)[..., :-1]
        lse = torch.where(nothing, -torch.inf, m + d.log()).squeeze(-1)
        if keep is not None:  # a row of NaN has NaN where it sees nothing as well
            p = torch.where(keep, p, 0.0)
        if dropout_p > 0.0:
            assert seed is not None
            p = torch.where(kept_by_dropout(places, p, dropout_p, seed), p / (1.0 - dropout_p), 0.0)
        return _mean(p, v, keep), lse


def without_autocast(q: Tensor) -> Any:
    """A context in which products of float32 are float32."""
    device = "cpu" if q.is_meta else q.device.type
    return torch.autocast(device, enabled=False)


def kept_by_dropout(places: Places, p: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    """Which weights stay: word ``j % 4`` of Philox's numbers for (j // 4, i, b Hq + h)."""
    head = torch.arange(p.shape[1], device=p.device)[:, None, None]
    row = places.sequence * p.shape[1] + head
    counter = torch.broadcast_tensors(places.j // 4, places.i, row, torch.zeros_like(row))
    words = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    word = words[0]
    for number in (1, 2, 3):
        word = torch.where(places.j % 4 == number, words[number], word)
    return word >= int(dropout_p * 2**32)


def kept(places: Places, causal: bool, window: Window | None, mask: Tensor | None) -> Tensor | None:
    """Which keys each query sees; None for all."""
    keep = places.inside
    left, right = (None if w is None or w < 0 else w for w in window or (None, None))
    if causal:
        right = 0 if right is None else min(right, 0)
    beside = places.i + places.diagonal
    for bound in (
        None if left is None else places.j >= beside - left,
        None if right is None else places.j <= beside + right,
        mask,
    ):
        if bound is not None:
            keep = bound if keep is None else keep & bound
    return keep


def _products(q: Tensor, k: Tensor, keep: Tensor | None) -> Tensor:
    """``q_i . k_j``, where 0 times NaN is 0 for derivatives by what is not seen."""
    if keep is None:
        return q @ k.mT
    bad_q, bad_k = (~t.isfinite().all(-1) for t in (q, k))
    finite_q, finite_k = (torch.where(t.isfinite(), t, 0.0) for t in (q, k))
    bad = bad_q.unsqueeze(-1) | bad_k.unsqueeze(-2)
    return finite_q @ finite_k.mT + torch.where(bad, q.detach() @ k.detach().mT, 0.0)


def _mean(p: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    """``sum_j p_ij v_j``, where a value reaches those who see it alone."""
    if keep is None:
        return p @ v
    seen = keep.expand(p.shape).to(p.dtype)
    plus, minus = (
        (seen @ (v.isnan() | (v == bad)).to(p.dtype)) > 0 for bad in (torch.inf, -torch.inf)
    )
    bad = torch.where(plus, torch.inf, 0.0) + torch.where(minus, -torch.inf, 0.0)
    finite = p @ torch.where(v.isfinite(), v, 0.0)
    # Times the sum of weights, which is what derivatives by them turn NaN with.
    reached = torch.where(plus | minus, torch.where(keep, p, 0.0).sum(-1, keepdim=True) * bad, 0.0)
    return finite + reached


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rank: int,
    softcap: float | None,
    mask: Tensor | None,
    window: Window | None,
    dropout_p: float,
) -> None:
    def refuse(argument: str, wanted: str, got: object) -> None:
        raise ValueError(f"attention: {argument}: wanted {wanted}, got {got}")

    if not q.is_floating_point():
        refuse("q", "a floating dtype", q.dtype)
    layout = "(B, H, L, D)" if rank == 4 else "(total, H, D)"
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != rank:
            refuse(name, f"shape {layout}", tuple(t.shape))
        if t.dtype != q.dtype:
            refuse(name, str(q.dtype), t.dtype)
    if k.shape[-1] != q.shape[-1]:
        refuse("k", f"D = {q.shape[-1]} as q", tuple(k.shape))
    if rank == 4 and k.shape[0] != q.shape[0]:
        refuse("k", f"B = {q.shape[0]} as q", tuple(k.shape))
    if v.shape[:-1] != k.shape[:-1]:
        refuse("v", f"{tuple(k.shape[:-1])} and Dv, as k", tuple(v.shape))
    if k.shape[1] == 0 != q.shape[1] or q.shape[1] % max(k.shape[1], 1):
        refuse("k", f"a number of heads that divides q's {q.shape[1]}", k.shape[1])
    if softcap is not None and not softcap > 0.0:
        refuse("softcap", "a value above 0 or None", softcap)
    if mask is not None and mask.dtype != torch.bool:
        refuse("mask", "torch.bool (True keeps)", mask.dtype)
    for side in window or ():
        if side is not None and side < -1:
            refuse("window", "(left, right), each 0 or above, or -1 or None for no bound", window)
    if not 0.0 <= dropout_p < 1.0:
        refuse("dropout_p", "a probability in [0, 1)", dropout_p)


def _check_heads(q: Tensor, sequences: int, slopes: Tensor | None, sink: Tensor | None) -> None:
    Hq = q.shape[1]
    for name, t, shapes in (
        ("alibi_slopes", slopes, ((Hq,), (sequences, Hq))),
        ("sink", sink, ((Hq,),)),
    ):
        if t is not None and tuple(t.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"attention: {name}: wanted shape {wanted}, got {tuple(t.shape)}")


def _broadcast(name: str, t: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """``t``, once it is sure that it broadcasts to the scores."""
    if t is None:
        return None
    scores = (*q.shape[:3], k.shape[2])
    if t.dim() != 4 or any(a not in (1, b) for a, b in zip(t.shape, scores, strict=True)):
        raise ValueError(
            f"attention: {name}: wanted a shape of four dimensions that broadcasts to {scores}, "
            f"got {tuple(t.shape)}"
        )
    return t
