"""The softmax family: public functions, schemas and shapes.

Its derivatives are in softmax_derivatives.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import impl as _impl
from .. import overrides, reference
from . import arguments
from . import softmax_derivatives as derivatives
from .batching import batch_rows
from .family import Derivative, Op, register
from .sharding import shard_rows

# ---- Schemas and shapes. -------------------------------------------------------------------------


def _fake(x, dim, dtype, scale, softcap, bias, mask, causal, log):
    return x.new_empty(x.shape, dtype=dtype or x.dtype)


def _fake_sink(x, dim, dtype, scale, softcap, bias, mask, causal, log, sink):
    rows = list(x.shape)
    if rows:
        del rows[dim]
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape, dtype=dtype or x.dtype), x.new_empty(rows, dtype=accumulator)


def _fake_backward(dy, y, x, dim, dtype, scale, softcap, mask, causal, log, y_sink):
    return y.new_empty(y.shape, dtype=dtype)


def _fake_double_backward(g, dy, y, dim, scale, log):
    return y.new_empty(y.shape), y.new_empty(y.shape)


# A second output would cost every call without a sink some microseconds: so two ops.
_SCORES = (
    "Tensor x, int dim, ScalarType? dtype, float scale, float softcap, Tensor? bias, Tensor? mask, "
    "bool causal, bool log"
)
_OPS = register(
    "softmax",
    Op(
        f"softmax({_SCORES}) -> Tensor",
        _fake,
        Derivative(derivatives.save, derivatives.backward, derivatives.jvp),
        batch_rows(full=(0,), broadcast=(5, 6), dim=1),
        shard_rows("f", full=(0,), broadcast=(5, 6), dim=1, causal=7),
    ),
    Op(
        f"softmax_sink({_SCORES}, Tensor sink) -> (Tensor y, Tensor y_sink)",
        _fake_sink,
        Derivative(derivatives.save_sink, derivatives.backward_sink, derivatives.jvp_sink),
        batch_rows(full=(0,), broadcast=(5, 6), rows=(9,), dim=1),
        shard_rows("fr", full=(0,), broadcast=(5, 6), rows=(9,), dim=1, causal=7),
    ),
    Op(
        "softmax_backward(Tensor dy, Tensor y, Tensor? x, int dim, ScalarType dtype, float scale, "
        "float softcap, Tensor? mask, bool causal, bool log, Tensor? y_sink) -> Tensor",
        _fake_backward,
        Derivative(
            derivatives.save_backward, derivatives.double_backward, derivatives.jvp_backward
        ),
        batch_rows(full=(0, 1, 2), broadcast=(7,), full_rows=(10,), dim=3),
        shard_rows("f", full=(0, 1, 2), broadcast=(7,), full_rows=(10,), dim=3, causal=8),
    ),
    Op(
        "softmax_double_backward(Tensor g, Tensor dy, Tensor y, int dim, float scale, bool log) "
        "-> (Tensor g_dy, Tensor g_y)",
        _fake_double_backward,
        Derivative(derivatives.save_double_backward, derivatives.triple_backward),
        batch_rows(full=(0, 1, 2), dim=3),
        shard_rows("ff", full=(0, 1, 2), dim=3),
    ),
)


# ---- Public functions. ---------------------------------------------------------------------------


def _plan(impl, x, dim=-1, dtype=None, **features: Any) -> dict[str, Any]:
    dim = dim % max(x.dim(), 1)
    N = x.shape[dim] if x.dim() else 1
    M = x.numel() // max(N, 1)
    read = x.dtype if dtype is None or _casts_inside(x.dtype, dtype) else dtype
    if impl == "triton":
        from ..triton import softmax as triton_softmax

        return triton_softmax.plan(M, N, read)
    if _impl.native is None:
        return {}
    inner = x.shape[dim + 1 :].numel()
    names = [str(t).removeprefix("torch.") for t in (read, dtype or read)]
    if impl == "cuda":
        return _impl.native.softmax_plan_cuda(M, N, inner > 1, *names)
    plan = _impl.native.softmax_plan(M, N, inner > 1, *names)
    return {"isa": _impl.native.isa(), **plan}


def _call(x, dim, dtype, scale, softcap, bias, mask, causal, sink, log, impl) -> Tensor:
    op = "hetkern.log_softmax" if log else "hetkern.softmax"
    plain = bias is None and mask is None and sink is None and softcap is None
    if not plain or type(x) is not Tensor or type(scale) is not float:
        if overrides.any_stands_in(x, scale, softcap, bias, mask, sink):
            options = {"scale": scale, "softcap": softcap, "causal": causal, "impl": impl}
            tensors = {"x": x, "bias": bias, "mask": mask, "sink": sink}
            public = log_softmax if log else softmax
            return overrides.handed_over(public, **tensors, dim=dim, dtype=dtype, **options)
        arguments.tensor(op, "x", x)
        for name, t in (("bias", bias), ("mask", mask)):
            if t is not None:
                arguments.check_has_values(op, name, t)
    ops: SimpleNamespace | None = _impl.choose(op, _OPS, x, impl)
    given = x, dtype
    if type(scale) is not float:
        scale = arguments.number(op, "scale", scale)
    if softcap is not None:
        if type(softcap) is not float:
            softcap = arguments.number(op, "softcap", softcap)
        arguments.check_softcap(op, softcap)
    if dtype is None:  # under autocast as torch's own softmax: float32 on a GPU
        if not x.is_cpu and not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.float32 if x.dtype != torch.float64 else None
    elif not dtype.is_floating_point:
        raise ValueError(f"{op}: dtype: wanted a floating dtype, got {dtype}")
    elif dtype is not x.dtype and not _casts_inside(x.dtype, dtype):  # torch casts first
        x, dtype = x.to(dtype), None
    beside = bias is not None or sink is not None  # asked first: the question costs 6 us
    if beside and torch.is_autocast_enabled(x.device.type if not x.is_meta else "cpu"):
        bias, sink = (t if t is None or t.dtype is x.dtype else t.to(x.dtype) for t in (bias, sink))
    result_type = None
    if torch.compiler.is_compiling() and any(map(arguments.varies, (scale, softcap))):
        result_type, dtype = dtype or x.dtype, None
        x, scale, softcap, bias, sink = arguments.scaled_outside(x, scale, softcap, bias, sink)
    if ops is None:
        masks = {"bias": bias, "mask": mask, "causal": causal, "sink": sink}
        y = reference.softmax(x, dim, dtype, scale=scale, softcap=softcap, log=log, **masks)
    else:
        if dim >= 0:
            rank = x.dim()
            dim = dim - rank if dim < rank else dim  # from the end: stays right under vmap
        softcap = softcap or 0.0
        if sink is None:
            y = ops.softmax(x, dim, dtype, scale, softcap, bias, mask, causal, log)
        else:
            y, _ = ops.softmax_sink(x, dim, dtype, scale, softcap, bias, mask, causal, log, sink)
    if result_type is not None:
        y = y.to(result_type)
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
            shape without ``dim``; ``x``'s dtype; has a gradient, which torch sums: for float64
            its bits may depend on the threads, everything else's do not.
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
