"""The derivatives of the attention family's ops: backward, and double backward.

The second derivative runs the equations of ``hetkern.reference.attention`` again, a block of
queries at a time: right, slow, and in memory of a block's scores. It is made of torch's operations,
so that derivatives of higher order are right as well, in memory of all scores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.attention import Places, attend, dense_places, packed_places, packed_slopes
from ..reference.scores import accumulation_dtype

#: Bits of ``needs``, the gradients that a backward op computes, by the forward op's arguments.
NEEDS = {"q": 1, "k": 2, "v": 4, "bias": 8, "sink": 16, "alibi_slopes": 32}
BLOCK_ELEMENTS = 1 << 22  # scores that double backward holds at once: a few tensors of so many


class Options(NamedTuple):
    """Arguments of the forward op that are no tensors."""

    scale: float
    softcap: float
    causal: bool
    window_left: int
    window_right: int
    dropout_p: float
    max_seqlen_q: int
    max_seqlen_k: int


class Scores(NamedTuple):
    """The arguments behind q, k and v in the order of the schemas."""

    scale: float
    softcap: float
    causal: bool
    window_left: int
    window_right: int
    alibi_slopes: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    sink: Tensor | None
    dropout_p: float
    seed: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    max_seqlen_q: int
    max_seqlen_k: int
    seqlens_k: Tensor | None


TENSORS = (
    "alibi_slopes",
    "bias",
    "mask",
    "sink",
    "seed",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "seqlens_k",
)


def _apart(scores: Scores) -> tuple[Options, list[Tensor | None]]:
    """What a context keeps as it is, and the tensors that it saves."""
    options = Options(*(getattr(scores, name) for name in Options._fields))
    return options, [getattr(scores, name) for name in TENSORS]


def _together(options: Options, tensors: Any) -> Scores:
    return Scores(**options._asdict(), **dict(zip(TENSORS, tensors, strict=True)))


# ---- attention: q, k, v, scores -> out, row_max, log_sum -----------------------------------------


def save(ctx, inputs, output):
    """Keep the inputs and every result."""
    ctx.options, tensors = _apart(Scores(*inputs[3:]))
    return *inputs[:3], *output, *tensors


def backward(ops, ctx, dout, _row_max, dlse):
    """Gradients of q, k, v, bias, sink and slopes; what enters at log_sum is the lse's."""
    arguments = ("q", "k", "v", *Scores._fields)
    if dout is None and dlse is None:
        return (None,) * len(arguments)
    q, k, v, out, row_max, log_sum, *tensors = ctx.saved_tensors
    scores = _together(ctx.options, tensors)
    if dout is None:
        dout = torch.zeros_like(out)
    asked = dict(zip(arguments, ctx.needs_input_grad, strict=False))  # and, in a kernel, its mode
    needs = sum(bit for name, bit in NEEDS.items() if asked[name])
    results = ops.attention_backward(dout, dlse, q, k, v, out, row_max, log_sum, *scores, needs)
    gradients = dict(zip(NEEDS, results, strict=True))
    return tuple(gradients[name] if name in NEEDS and asked[name] else None for name in arguments)


# ---- attention_backward: dout, dlse, q, k, v, out, row_max, log_sum, scores, needs ---------------
#                          -> dq, dk, dv, dbias, dsink, dslopes


def save_backward(ctx, inputs, output):
    """Keep what attention begins with; out, row_max and log_sum follow from it."""
    ctx.options, tensors = _apart(Scores(*inputs[8:-1]))
    ctx.needs = inputs[-1]
    return *inputs[:5], *tensors


def double_backward(ops, ctx, *gradients):
    """Gradients of dout, dlse, q, k, v, bias, sink and slopes, block by block."""
    count = 9 + len(Scores._fields)
    given = {
        name: g
        for (name, bit), g in zip(NEEDS.items(), gradients, strict=True)
        if g is not None and ctx.needs & bit
    }
    if not given:
        return (None,) * count
    dout, dlse, q, k, v, *tensors = ctx.saved_tensors
    scores = _together(ctx.options, tensors)
    found = _second(dout, dlse, q, k, v, scores, given)
    by_scores = (found.get(name) for name in Scores._fields)
    return (
        found["dout"],
        found.get("dlse"),
        found["q"],
        found["k"],
        found["v"],
        None,
        None,
        None,
        *by_scores,
        None,
    )


# ---- The second derivative. ----------------------------------------------------------------------


def _second(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Scores,
    given: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Gradients of every input of backward, by name, of ``sum <given, backward's results>``."""
    cu_seqlens_q, cu_seqlens_k = scores.cu_seqlens_q, scores.cu_seqlens_k
    packed = cu_seqlens_q is not None
    types = {"q": q, "k": k, "v": v, "dout": dout, "dlse": dlse}
    types |= {name: getattr(scores, name) for name in ("bias", "sink", "alibi_slopes")}
    dtype = accumulation_dtype(q.dtype)

    def worked(t: Any, name: str) -> Any:
        """As ``attend`` has it: a batch of heads, in the accumulation dtype."""
        if t is None:
            return None
        if packed and name in ("q", "k", "v", "dout"):
            t = t.transpose(0, 1).unsqueeze(0)
        elif packed and name == "dlse":
            t = t.unsqueeze(0)
        return t.to(dtype)

    inputs = {name: worked(t, name) for name, t in types.items()}
    inputs = {name: t for name, t in inputs.items() if t is not None}
    weights = {name: worked(g, name) for name, g in given.items()}
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        places = packed_places(q, k, cu_seqlens_q, cu_seqlens_k)
    else:
        places = dense_places(q, k, scores.seqlens_k)

    B, Hq, Lq, _ = inputs["q"].shape
    block = max(1, BLOCK_ELEMENTS // max(1, B * Hq * inputs["k"].shape[2]))
    total: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    for start in range(0, Lq, block):
        stop = min(start + block, Lq)
        cut = {name: _rows(name, t, start, stop, Lq) for name, t in inputs.items()}
        of_weights = {name: _rows(name, t, start, stop, Lq) for name, t in weights.items()}
        mask = None if scores.mask is None else _rows("bias", scores.mask, start, stop, Lq)
        one = _second_of_block(cut, of_weights, scores, places.rows(start, stop), mask)
        for name, g in one.items():
            if _has_rows(name, inputs[name], Lq):
                rows.setdefault(name, []).append(g)
            else:
                total[name] = total[name] + g if name in total else g
    for name, parts in rows.items():
        total[name] = torch.cat(parts, 2)

    found = {}
    for name, t in types.items():
        if t is None:
            continue
        g = total[name] if name in total else torch.zeros_like(inputs[name])
        if packed and name in ("q", "k", "v", "dout"):
            g = g[0].transpose(0, 1)
        elif packed and name == "dlse":
            g = g[0]
        found[name] = g.to(t.dtype)
    return found


def _has_rows(name: str, t: Tensor, Lq: int) -> bool:
    """Whether dimension 2 numbers the queries."""
    return name in ("q", "dout", "dlse") or (name == "bias" and t.shape[2] == Lq)


def _rows(name: str, t: Tensor, start: int, stop: int, Lq: int) -> Tensor:
    return t[:, :, start:stop] if _has_rows(name, t, Lq) else t


def _second_of_block(
    inputs: dict[str, Tensor],
    weights: dict[str, Tensor],
    scores: Scores,
    places: Places,
    mask: Tensor | None,
) -> dict[str, Tensor]:
    """The same of a block's rows; sums over all queries are its share."""
    primal = [name for name in NEEDS if name in inputs]
    upstream = [name for name in ("dout", "dlse") if name in inputs]

    def of_block(*tensors: Tensor) -> tuple[Tensor, ...]:
        t = dict(zip(primal, tensors, strict=True))
        slopes = t.get("alibi_slopes")
        if slopes is not None and scores.cu_seqlens_q is not None:
            slopes = packed_slopes(slopes, places)
        elif slopes is not None:
            slopes = (slopes if slopes.dim() == 2 else slopes[None])[..., None, None]
        out, lse = attend(
            t["q"],
            t["k"],
            t["v"],
            places,
            scale=scores.scale,
            softcap=scores.softcap or None,
            causal=scores.causal,
            window=(scores.window_left, scores.window_right),
            slopes=slopes,
            bias=t.get("bias"),
            mask=mask,
            sink=t.get("sink"),
            dropout_p=scores.dropout_p,
            seed=scores.seed,
        )
        return (out, lse) if "dlse" in inputs else (out,)

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        _, pull = torch.func.vjp(of_block, *tensors[: len(primal)])  # type: ignore[misc]
        found = dict(zip(primal, pull(tuple(tensors[len(primal) :])), strict=True))
        return tuple(found[name] for name in weights)

    names = primal + upstream
    _, pull = torch.func.vjp(backward, *(inputs[name] for name in names))  # type: ignore[misc]
    return dict(zip(names, pull(tuple(weights.values())), strict=True))
