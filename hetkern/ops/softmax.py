"""The softmax family: public functions, schemas, shapes and derivatives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import impl as _impl
from .. import reference
from .batching import batch_rows
from .family import Derivative, Op, register

# ---- softmax: x, dim, dtype, scale, softcap, bias, mask, causal, sink, log -> y, y_sink ----------


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake(x, dim, dtype, scale, softcap, bias, mask, causal, sink, log):
    rows = list(x.shape)
    if rows:
        del rows[dim]
    y = x.new_empty(x.shape, dtype=dtype or x.dtype)
    return y, x.new_empty(rows if sink is not None else [0], dtype=_accumulator(x.dtype))


def _save(ctx, inputs, output):
    x, dim, _, scale, softcap, bias, mask, causal, sink, log = inputs
    y, y_sink = output
    if sink is None:
        ctx.mark_non_differentiable(y_sink)
    saved = (y, None if sink is None else y_sink, x if softcap else None, mask)
    ctx.save_for_backward(*saved)
    if hasattr(ctx, "save_for_forward"):
        ctx.save_for_forward(*saved)
    ctx.options = dim, x.dtype, scale, softcap, causal, log
    ctx.bias_shape = None if bias is None else bias.shape
    ctx.sink_shape = None if sink is None else sink.shape


def _backward(ops, ctx, dy, dy_sink):
    y, y_sink, x, mask = ctx.saved_tensors
    dim, dtype, scale, softcap, causal, log = ctx.options
    wants = ctx.needs_input_grad
    if dy is None:
        dy = torch.zeros_like(y)
    dz: Any = None
    dx = dbias = dsink = None
    # dz takes a call of its own only where it is not dx.
    if wants[5] or dy_sink is not None:
        dz = ops.softmax_backward(dy, y, None, dim, dtype, 1.0, 0.0, mask, causal, log)
    if dy_sink is not None:  # the sink's column is one more term of the row's sum
        p_sink_dy = dy_sink if log else dy_sink * y_sink
        p = y.exp() if log else y
        dz = dz - (p * p_sink_dy.unsqueeze(dim)).to(dtype)
    if wants[0]:
        if dz is None:
            dx = ops.softmax_backward(dy, y, x, dim, dtype, scale, softcap, mask, causal, log)
        else:
            dx = (dz * _slope(x, dtype, scale, softcap)).to(dtype)
    if wants[5]:
        dbias = dz.sum_to_size(ctx.bias_shape)
    if wants[8]:
        p_sink = y_sink.exp() if log else y_sink
        terms = dy if log else dy.to(p_sink.dtype) * y
        dsink = -p_sink * terms.sum(dim, dtype=p_sink.dtype)
        if dy_sink is not None:
            dsink = dsink + (dy_sink - p_sink * dy_sink if log else p_sink * (dy_sink - p_sink_dy))
        dsink = dsink.to(dtype).sum_to_size(ctx.sink_shape)
    return dx, None, None, None, None, dbias, None, None, dsink, None


def _slope(x, dtype, scale, softcap):
    """dz/dx, a number without a softcap."""
    if not softcap:
        return scale
    t = (x.to(_accumulator(dtype)) * (scale / softcap)).tanh()
    return scale * (1 - t * t)


def _jvp(ops, ctx, x_t, _dim, _dtype, _scale, _softcap, bias_t, _mask, _causal, sink_t, _log):
    y, y_sink, x, mask = ctx.saved_tensors
    dim, dtype, scale, softcap, causal, log = ctx.options
    p = (y.exp() if log else y).to(_accumulator(dtype))
    z_t = torch.zeros_like(p)
    if x_t is not None:
        z_t = z_t + x_t * _slope(x, dtype, scale, softcap)
    if bias_t is not None:
        z_t = z_t + bias_t
    mean = (p * z_t).sum(dim, keepdim=True)
    y_sink_t = None
    if y_sink is not None:
        p_sink = y_sink.exp() if log else y_sink
        s_t = torch.zeros_like(p_sink) if sink_t is None else sink_t.expand(p_sink.shape)
        mean = mean + (p_sink * s_t).unsqueeze(dim)
        y_sink_t = (s_t - mean.squeeze(dim)) * (1 if log else p_sink)
    y_t = z_t - mean if log else p * (z_t - mean)
    keep = _keep(y.shape, mask, causal, y.device)
    if log and keep is not None:
        y_t = y_t.masked_fill(~keep, 0)
    return y_t.to(y.dtype), y_sink_t


def _keep(shape, mask, causal, device):
    """The boolean mask of a call, causal edge included; None if every column is kept."""
    if causal:
        edge = torch.ones(shape[-2:], dtype=torch.bool, device=device).tril(shape[-1] - shape[-2])
        return edge if mask is None else edge & mask
    return mask


# ---- softmax_backward: dy, y, x, dim, dtype of x, scale, softcap, mask, causal, log -> dx --------


def _fake_backward(dy, y, x, dim, dtype, scale, softcap, mask, causal, log):
    return y.new_empty(y.shape, dtype=dtype)


def _save_backward(ctx, inputs, output):
    dy, y, x, dim, dtype, scale, softcap, mask, causal, log = inputs
    ctx.save_for_backward(dy, y, x, mask)
    ctx.options = dim, dtype, scale, softcap, causal, log


def _double_backward(ops, ctx, g):
    dy, y, x, mask = ctx.saved_tensors
    dim, dtype, scale, softcap, causal, log = ctx.options
    if g is None:
        return (None,) * 10
    # dx = slope(x) dz: the slope's share of g, then dz's own derivatives.
    g_dz, factor = g, scale
    if softcap:
        g_dz, factor = (g * _slope(x, dtype, scale, softcap)).to(g.dtype), 1.0
    keep = _keep(y.shape, mask, causal, y.device)
    if log and keep is not None:
        g_dz = g_dz.masked_fill(~keep, 0)
    g_dy, g_y = ops.softmax_double_backward(g_dz, dy, y, dim, factor, log)
    g_x = None
    if ctx.needs_input_grad[2]:
        dz = ops.softmax_backward(dy, y, None, dim, dtype, 1.0, 0.0, mask, causal, log)
        t = (x.to(_accumulator(dtype)) * (scale / softcap)).tanh()
        g_x = (g * dz * (-2 * scale * scale / softcap * t * (1 - t * t))).to(x.dtype)
    return g_dy, g_y, g_x, None, None, None, None, None, None, None


# ---- softmax_double_backward: g, dy, y, dim, scale, log -> g_dy, g_y -----------------------------


def _fake_double_backward(g, dy, y, dim, scale, log):
    return y.new_empty(y.shape), y.new_empty(y.shape)


def _save_nothing(ctx, inputs, output):
    pass


def _no_third_derivative(ops, ctx, *gradients):
    raise NotImplementedError("hetkern::softmax: derivatives past the second are not implemented")


_OPS = register(
    Op(
        "softmax(Tensor x, int dim, ScalarType? dtype, float scale, float softcap, Tensor? bias, "
        "Tensor? mask, bool causal, Tensor? sink, bool log) -> (Tensor y, Tensor y_sink)",
        _fake,
        Derivative(_save, _backward, _jvp),
        batch_rows(full=(0,), broadcast=(5, 6), rows=(8,), dim=1),
    ),
    Op(
        "softmax_backward(Tensor dy, Tensor y, Tensor? x, int dim, ScalarType dtype, float scale, "
        "float softcap, Tensor? mask, bool causal, bool log) -> Tensor",
        _fake_backward,
        Derivative(_save_backward, _double_backward),
        batch_rows(full=(0, 1, 2), broadcast=(7,), dim=3),
    ),
    Op(
        "softmax_double_backward(Tensor g, Tensor dy, Tensor y, int dim, float scale, bool log) "
        "-> (Tensor g_dy, Tensor g_y)",
        _fake_double_backward,
        Derivative(_save_nothing, _no_third_derivative),
        batch_rows(full=(0, 1, 2), dim=3),
    ),
)


# ---- Public functions. ---------------------------------------------------------------------------


def _plan(x, dim=-1, dtype=None, **features: Any) -> dict[str, Any]:
    if _impl.native is None:
        return {}
    dim = dim % max(x.dim(), 1)
    N = x.shape[dim] if x.dim() else 1
    inner = x.shape[dim + 1 :].numel()
    read = x.dtype if dtype is None or _casts_inside(x.dtype, dtype) else dtype
    names = [str(t).removeprefix("torch.") for t in (read, dtype or read)]
    plan = _impl.native.softmax_plan(x.numel() // max(N, 1), N, inner > 1, *names)
    return {"isa": _impl.native.isa(), **plan}


def _call(x, dim, dtype, scale, softcap, bias, mask, causal, sink, log, impl) -> Tensor:
    op = "hetkern.log_softmax" if log else "hetkern.softmax"
    ops: SimpleNamespace | None = _impl.choose(op, _OPS, x, impl)
    given = x, dtype
    if dtype is None:  # under autocast as torch's own softmax: float32 on a GPU
        if not x.is_cpu and not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.float32 if x.dtype != torch.float64 else None
    elif dtype is not x.dtype and not _casts_inside(x.dtype, dtype):  # torch casts first
        x, dtype = x.to(dtype), None
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{op}: softcap: wanted a value above 0, or None, got {softcap}")
    if ops is None:
        masks = {"bias": bias, "mask": mask, "causal": causal, "sink": sink}
        y = reference.softmax(x, dim, dtype, scale=scale, softcap=softcap, log=log, **masks)
    else:
        if dim >= 0:
            rank = x.dim()
            dim = dim - rank if dim < rank else dim  # from the end: stays right under vmap
        y = ops.softmax(x, dim, dtype, scale, softcap or 0.0, bias, mask, causal, sink, log)[0]
    if _impl.thread.logs:
        public = log_softmax if log else softmax
        _impl.note(public, x=given[0], dim=dim, dtype=given[1], impl=impl)
    return y


def _casts_inside(x: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether the kernel itself casts, from 16 bits to float32."""
    return dtype is torch.float32 and x in (torch.float16, torch.bfloat16)


@_impl.explainable("hetkern.softmax", _OPS, _plan)
def softmax(
    x: Tensor,
    dim: int = -1,
    dtype: torch.dtype | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    sink: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Softmax over ``dim`` of scaled, capped, biased and masked scores, in one sweep.

    ``y_j = exp(z_j - m) / (sum_k exp(z_k - m) + exp(sink - m))`` with
    ``z = softcap * tanh(scale * x / softcap) + bias``, ``-inf`` where masked, and ``m = max z``.

    Equals ``F.softmax(scale * x + bias, dim, dtype=dtype)``; sums are float32 (float64 for
    float64).

    Args:
        x: any shape and strides; float32, float64, float16 or bfloat16 (others with ``dtype=``).
        dim: the dimension that sums to one.
        dtype: of the result; ``x`` is cast first, as torch does (16 bits to float32 inside the
            kernel).
        scale: factor on ``x``.
        softcap: soft bound on the scaled scores, above 0; None for none.
        bias: added to the scores; broadcasts to ``x``; ``x``'s dtype; has a gradient.
        mask: boolean, True = keep; broadcasts to ``x``.
        causal: query ``i`` (dimension -2) sees keys ``j <= i + Lk - Lq``: aligned bottom-right.
            Needs ``dim=-1``.
        sink: a raw logit more in each row, whose column is not returned; broadcasts to ``x``'s
            shape without ``dim``; ``x``'s dtype; has a gradient.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.

    Returns:
        ``x``'s shape, contiguous. A row that mask or causal empties is 0 and passes no gradient; a
        row of ``-inf`` is NaN, as torch's.

    Raises:
        ValueError: a dtype, shape or value does not fit; the message names op, argument, wanted and
            got.
        IndexError: ``dim`` is out of range.
        NotImplementedError: the named implementation cannot run here.

    Source: Milakov & Gimelshein (2018), arXiv:1805.02867, Algorithm 3.
    """
    return _call(x, dim, dtype, scale, softcap, bias, mask, causal, sink, False, impl)


@_impl.explainable("hetkern.log_softmax", _OPS, _plan)
def log_softmax(
    x: Tensor,
    dim: int = -1,
    dtype: torch.dtype | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    sink: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Logarithm of :func:`softmax`, in nats.

    ``y_j = z_j - m - log(sum_k exp(z_k - m) + exp(sink - m))``.

    Arguments, edges and errors are those of :func:`softmax`; a masked column is ``-inf`` and has no
    gradient, and an emptied row is ``-inf`` throughout. The logarithm is ``log1p`` of the terms
    beside the maximum's own, so that a confident row is right to rounding.
    """
    return _call(x, dim, dtype, scale, softcap, bias, mask, causal, sink, True, impl)
