"""The attention family: schemas and shapes, and the public attention of a dense batch.

Packed batches and decoding are in attention_sequences.py, derivatives in attention_derivatives.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import impl as _impl
from .. import overrides, reference
from ..reference.attention import Window, default_scale
from ..reference.scores import accumulation_dtype
from . import arguments, philox
from . import attention_derivatives as derivatives
from .attention_batching import batch_attention
from .attention_sharding import shard_backward, shard_forward
from .family import Derivative, Op, register

# ---- Schemas and shapes. -------------------------------------------------------------------------


def _fake(q, k, v, *scores):
    *_, cu_seqlens_q, _, _, _, _ = scores
    row = accumulation_dtype(q.dtype)
    if cu_seqlens_q is not None:
        total, Hq, _ = q.shape
        rows: tuple[Any, ...] = Hq, total
        out = q.new_empty(total, Hq, v.shape[-1])
    else:
        B, Hq, Lq, _ = q.shape
        rows = B, Hq, Lq
        # Heads inside, as a projection leaves them: the next one takes the result without a copy.
        if Lq > 1 and Hq > 1 and q.stride(1) < q.stride(2):
            out = q.new_empty(B, Lq, Hq, v.shape[-1]).transpose(1, 2)
        else:
            out = q.new_empty(B, Hq, Lq, v.shape[-1])
    return out, q.new_empty(rows, dtype=row), q.new_empty(rows, dtype=row)


def _fake_backward(dout, dlse, q, k, v, out, row_max, log_sum, *scores_and_needs):
    scores, needs = derivatives.Scores(*scores_and_needs[:-1]), scores_and_needs[-1]
    like = {"q": q, "k": k, "v": v}
    like |= {name: getattr(scores, name) for name in ("bias", "sink", "alibi_slopes")}
    return tuple(
        q.new_empty(0) if not needs & bit else like[name].new_empty(like[name].shape)
        for name, bit in derivatives.NEEDS.items()
    )


_SCORES = (
    "float scale, float softcap, bool causal, int window_left, int window_right, "
    "Tensor? alibi_slopes, Tensor? bias, Tensor? mask, Tensor? sink, float dropout_p, "
    "Tensor? seed, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt max_seqlen_q, "
    "SymInt max_seqlen_k, Tensor? seqlens_k"
)
OPS = register(
    "attention",
    Op(
        f"attention(Tensor q, Tensor k, Tensor v, {_SCORES}) "
        "-> (Tensor out, Tensor row_max, Tensor log_sum)",
        _fake,
        Derivative(derivatives.save, derivatives.backward, constant=(1,)),
        batch_attention,
        shard_forward,
    ),
    Op(
        "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, "
        f"Tensor row_max, Tensor log_sum, {_SCORES}, int needs) "
        "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsink, Tensor dslopes)",
        _fake_backward,
        Derivative(derivatives.save_backward, derivatives.double_backward),
        batch_attention,
        shard_backward,
    ),
)


# ---- What the public functions share. ------------------------------------------------------------


def plan(impl: str, q: Tensor, **named: Any) -> dict[str, Any]:
    """Which path a call of a public function takes, as the native library says of the CPU."""
    k, v = (named[name] if name in named else named[f"{name}_cache"] for name in "kv")
    packed = "cu_seqlens_q" in named
    sides = ("q", q), ("k", k)
    Lq, Lk = (named[f"max_seqlen_{name}"] if packed else t.shape[2] for name, t in sides)
    if impl == "triton":
        from ..triton.attention_tiles import plan as tiles
        from ..triton.attention_tiles import share

        forward = tiles(q.shape[-1], v.shape[-1], q.dtype)["forward"]
        return {**share(q.shape[1], k.shape[1], Lq, Lk), **forward}
    if impl != "cpu" or _impl.native is None:
        return {}
    causal, reach = named.get("causal", False), named.get("window") or (None, None)
    left, right = (-1 if side is None else side for side in reach)
    if causal:
        right = 0
    dtype = str(q.dtype).removeprefix("torch.")
    B, rows = (named["cu_seqlens_q"].shape[0] - 1, q.shape[0]) if packed else (q.shape[0], 0)
    sizes = B, q.shape[1], k.shape[1], Lq, Lk, q.shape[-1], v.shape[-1]
    window = left + right + 1 if left >= 0 and right >= 0 else 0
    chosen = _impl.native.attention_plan(*sizes, dtype, causal, window, rows)
    return {"isa": _impl.native.isa(), **chosen}


def run(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: Window | None,
    scale: float | None,
    softcap: float | None,
    alibi_slopes: Tensor | None,
    sink: Tensor | None,
    dropout_p: float,
    return_lse: bool,
    impl: str,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Any = (None, None),
    max_seqlens: tuple[int, int] = (0, 0),
    seqlens_k: Tensor | None = None,
) -> Any:
    """Check what an op cannot, cast, and call the implementation that serves ``q``."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        arguments.tensor(op, name, t)
    for name, added in (("bias", bias), ("mask", mask)):
        if added is not None:
            arguments.check_has_values(op, name, added)
    ops: SimpleNamespace | None = _impl.choose(op, OPS, q, impl)
    lse: Tensor | None
    left, right = _sides(op, window)
    scale = default_scale(q) if scale is None else arguments.number(op, "scale", scale)
    if softcap is not None:
        softcap = arguments.number(op, "softcap", softcap)
        arguments.check_softcap(op, softcap)
    dropout_p = _probability(op, dropout_p)
    q, k, v, bias, sink = _under_autocast(q, k, v, bias, sink)
    if alibi_slopes is not None and not alibi_slopes.is_floating_point():
        raise ValueError(f"{op}: alibi_slopes: wanted a floating dtype, got {alibi_slopes.dtype}")
    out_dtype = q.dtype
    if torch.compiler.is_compiling() and any(map(arguments.varies, (scale, softcap, dropout_p))):
        q, k, v, bias, sink = _scale_outside(op, q, k, v, bias, sink, scale, softcap, dropout_p)
        scale = 1.0
    seed = philox.seed(q.device) if dropout_p > 0.0 else None
    if ops is None:
        options: dict[str, Any] = {
            "causal": causal,
            "window": (left, right),
            "scale": scale,
            "softcap": softcap,
            "alibi_slopes": alibi_slopes,
            "sink": sink,
            "dropout_p": dropout_p,
            "seed": seed,
        }
        if cu_seqlens[0] is not None:
            out, lse = reference.attention_varlen(q, k, v, *cu_seqlens, **options)
        else:
            options |= {"bias": _four(bias), "mask": _four(mask), "seqlens_k": seqlens_k}
            out, lse = reference.attention(q, k, v, **options)
    else:
        if alibi_slopes is not None:
            alibi_slopes = alibi_slopes.to(accumulation_dtype(q.dtype))
        out, row_max, log_sum = ops.attention(
            q,
            k,
            v,
            scale,
            softcap or 0.0,
            causal,
            left,
            right,
            alibi_slopes,
            _four(bias),
            _four(mask),
            sink,
            dropout_p,
            seed,
            *cu_seqlens,
            *max_seqlens,
            seqlens_k,
        )
        lse = row_max + log_sum if return_lse else None
    if out.dtype is not out_dtype:
        out = out.to(out_dtype)
    return (out, lse) if return_lse else out


def _sides(op: str, window: Window | None) -> tuple[int, int]:
    """A window's two sides, -1 for none."""
    if window is None:
        return -1, -1
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise ValueError(f"{op}: window: wanted (left, right) or None, got {window!r}")
    left, right = (-1 if side is None else side for side in window)
    if isinstance(left, float) or isinstance(right, float) or left < -1 or right < -1:
        raise ValueError(
            f"{op}: window: wanted integers of 0 or above, or -1 or None for no bound, "
            f"got {window!r}"
        )
    return left, right


def _probability(op: str, dropout_p: Any) -> float:
    dropout_p = arguments.number(op, "dropout_p", dropout_p)
    if not isinstance(dropout_p, Tensor) and not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{op}: dropout_p: wanted a probability in [0, 1), got {dropout_p}")
    return dropout_p


def _under_autocast(q: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Everything in autocast's dtype where it is on, but float64."""
    if q.dtype != torch.float64:
        device = "cpu" if q.is_meta else q.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            return tuple(t if t is None or t.dtype is dtype else t.to(dtype) for t in (q, *others))
    return q, *others


def _scale_outside(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sink: Tensor | None,
    scale: Any,
    softcap: Any,
    dropout_p: Any,
) -> tuple[Any, ...]:
    """Take a scale that changes between calls of a graph to q: see ``arguments.varies``."""
    for name, value in (("softcap", softcap), ("dropout_p", dropout_p)):
        if arguments.varies(value):
            raise NotImplementedError(
                f"{op}: {name}: wanted a number that is the same in every call of a compiled graph"
            )
    dtype = accumulation_dtype(q.dtype)
    others = (t if t is None else t.to(dtype) for t in (k, v, bias, sink))
    return q.to(dtype) * scale, *others


def _four(t: Tensor | None) -> Tensor | None:
    """With ones for the leading dimensions that it lacks."""
    if t is None or t.dim() >= 4:
        return t
    return t[(*[None] * (4 - t.dim()), ...)]


# ---- The public function. ------------------------------------------------------------------------


@_impl.explainable("hetkern.attention", OPS, plan)
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
    return_lse: bool = False,
    impl: str = "auto",
) -> Any:
    """Attention, exact and blockwise: no tensor of Lq times Lk, forward or backward.

    ``out_i = sum_j exp(s_ij - lse_i) v_j`` with ``lse_i = log(sum_j exp(s_ij) + exp(sink))`` and
    ``s_ij = softcap tanh(scale q_i . k_j / softcap) - slope |i + Lk - Lq - j| + bias_ij``, ``-inf``
    where query ``i`` does not see key ``j``.

    Sums are float32 (float64 for float64). Query head ``h`` reads key head ``h // (Hq / Hkv)``.

    Args:
        q: ``(B, Hq, Lq, D)``, any strides; float32, float64, float16 or bfloat16.
        k: ``(B, Hkv, Lk, D)``; Hkv divides Hq.
        v: ``(B, Hkv, Lk, Dv)``.
        causal: query ``i`` sees keys ``j <= i + Lk - Lq``: aligned bottom-right.
        window: ``(left, right)``: it sees keys ``i + Lk - Lq - left`` to ``i + Lk - Lq + right``,
            both included; None or -1 for a side without bound. Keys outside cost nothing.
        scale: factor on the scores; None for ``1 / sqrt(D)``.
        softcap: soft bound on the scaled scores, above 0; None for none.
        bias: added to the scores; broadcasts to ``(B, Hq, Lq, Lk)`` and is never expanded; q's
            dtype; has a gradient.
        mask: boolean, True = keep; broadcasts likewise.
        alibi_slopes: ``(Hq)`` or ``(B, Hq)``; has a gradient.
        sink: ``(Hq)``, one raw logit a head that takes part in the sum; q's dtype; has a gradient.
        dropout_p: probability that a weight is dropped, always on; the mask is Philox's of a seed
            from torch's generator, the same in every implementation and in backward.
        return_lse: whether ``lse`` is returned as well.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.

    Returns:
        ``out`` ``(B, Hq, Lq, Dv)``, laid out in memory with the heads inside where q is; with
        ``return_lse`` also ``lse`` ``(B, Hq, Lq)``, float32 (float64 for float64), differentiable.
        A row that sees nothing has out 0 and lse ``-inf`` (or the sink) and passes no gradient.

    Raises:
        ValueError: a rank, shape, dtype or value does not fit; the message names op, argument,
            wanted and got.
        NotImplementedError: the named implementation cannot run here.

    Source: Rabe & Staats (2021), arXiv:2112.05682; Dao et al. (2022), arXiv:2205.14135.
    """
    if overrides.any_stands_in(q, k, v, scale, softcap, bias, mask, alibi_slopes, sink):
        return overrides.handed_over(
            attention,
            q=q,
            k=k,
            v=v,
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
        )
    result = run(
        "hetkern.attention",
        q,
        k,
        v,
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
    )
    if _impl.thread.logs:
        _impl.note(attention, q=q, k=k, v=v, causal=causal, window=window, impl=impl)
    return result
