"""The cross-entropy family: public function, schemas and shapes.

(derivatives: cross_entropy_derivatives.py)
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import impl as _impl
from .. import overrides, reference
from ..reference import CrossEntropyStats
from . import arguments
from . import cross_entropy_derivatives as derivatives
from .cross_entropy_by_rows import by_rows
from .family import Derivative, Op, register
from .sharding import shard_rows

# ---- Schemas and shapes. -------------------------------------------------------------------------


def _with(shape, dim, *elements):
    """``shape`` with ``elements`` in place of dimension ``dim``."""
    dim = dim % len(shape)
    return [*shape[:dim], *elements, *shape[dim + 1 :]]


def _fake(x, target, weight, dim, ignore_index, reduction, label_smoothing, scale, softcap, z_loss):
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    loss = x.new_empty([] if reduction else _with(x.shape, dim), dtype=accumulator)
    saved = _with(x.shape, dim, 4 if target.is_floating_point() else 2)
    divisors = _with([1] * x.dim(), dim, 2)
    return (loss, *(x.new_empty(shape, dtype=accumulator) for shape in (saved, divisors)))


def _fake_stats(x, target, weight, dim, *options):
    outputs = _fake(x, target, weight, dim, *options)
    rows = _with(x.shape, dim)
    values = [x.new_empty(rows, dtype=outputs[0].dtype) for _ in range(5)]
    return *outputs, *values, x.new_empty(rows, dtype=torch.bool)


def _shard(outputs: str):
    """Rows apart, of class indices or of class probabilities."""
    by_index = shard_rows(outputs, full=(0,), full_rows=(1,), dim=3, reduction=5)
    by_probability = shard_rows(outputs, full=(0, 1), dim=3, reduction=5)
    return lambda *args: (by_probability if _probable(args[:2]) else by_index)(*args)


def _shard_backward(outputs: str):
    rows = 0, 1, 2, 3, 4, 5, 11
    by_index = shard_rows(outputs, full=(6, 9), full_rows=(*rows, 7), dim=12)
    by_probability = shard_rows(outputs, full=(6, 7, 9), full_rows=rows, dim=12)
    return lambda *args: (by_probability if _probable(args[6:8]) else by_index)(*args)


def _probable(x_and_target) -> bool:
    x, target = x_and_target
    return len(x.shape) == len(target.shape)


def _fake_backward(*arguments):
    return torch.empty_like(arguments[6], memory_format=torch.contiguous_format)


def _fake_backward_target(*arguments):
    return _fake_backward(*arguments), _fake_backward(*arguments)


# Statistics, and the gradient of class probabilities, are further outputs: an output costs every
# call some microseconds, so they make ops of their own.
_FORWARD = (
    "Tensor x, Tensor target, Tensor? weight, int dim, int ignore_index, int reduction, "
    "float label_smoothing, float scale, float softcap, float z_loss"
)
_BACKWARD = (
    "Tensor? d_loss, Tensor? d_row_loss, Tensor? d_lse, Tensor? d_z_loss, Tensor? d_entropy, "
    "Tensor? d_log_prob, Tensor x, Tensor target, Tensor? weight, Tensor saved, Tensor divisors, "
    "Tensor? entropy, int dim, int ignore_index, float label_smoothing, float scale, "
    "float softcap, float z_loss"
)
_OPS = register(
    "cross_entropy",
    Op(
        f"cross_entropy({_FORWARD}) -> (Tensor loss, Tensor saved, Tensor divisors)",
        _fake,
        Derivative(derivatives.save, derivatives.backward, derivatives.jvp, (1, 2)),
        derivatives.batch_forward,
        _shard("rf-"),
    ),
    Op(
        f"cross_entropy_stats({_FORWARD}) -> (Tensor loss, Tensor saved, Tensor divisors, "
        "Tensor row_loss, Tensor lse, Tensor z_loss, Tensor entropy, Tensor log_prob, "
        "Tensor correct)",
        _fake_stats,
        Derivative(derivatives.save, derivatives.backward, derivatives.jvp, (1, 2, 8)),
        derivatives.batch_forward,
        _shard("rf-rrrrrr"),
    ),
    Op(
        f"cross_entropy_backward({_BACKWARD}) -> Tensor",
        _fake_backward,
        Derivative(
            derivatives.save_backward,
            derivatives.double_backward,
            derivatives.jvp_backward_of_logits,
        ),
        derivatives.batch_backward,
        _shard_backward("f"),
    ),
    Op(
        f"cross_entropy_backward_target({_BACKWARD}) -> (Tensor dx, Tensor d_target)",
        _fake_backward_target,
        Derivative(
            derivatives.save_backward, derivatives.double_backward, derivatives.jvp_backward
        ),
        derivatives.batch_backward,
        _shard_backward("ff"),
    ),
)


# ---- Public function. ----------------------------------------------------------------------------


def _plan(impl, input, target=None, **features: Any) -> dict[str, Any]:
    if not input.dim():
        raise ValueError("hetkern.cross_entropy: input: wanted a class dimension, got a scalar")
    dim = 1 if input.dim() > 1 else 0
    classes = input.shape[dim]
    rows = input.numel() // max(classes, 1)
    if impl == "triton":
        from ..triton import cross_entropy as triton_cross_entropy

        return triton_cross_entropy.plan(rows, classes, input.dtype)
    if _impl.native is None:
        return {}
    inner = input.shape[dim + 1 :].numel()
    dtype = str(input.dtype).removeprefix("torch.")
    if impl == "cuda":
        return _impl.native.cross_entropy_plan_cuda(rows, classes, inner > 1, dtype)
    plan = _impl.native.cross_entropy_plan(rows, classes, inner > 1, dtype)
    return {"isa": _impl.native.isa(), **plan}


_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


@_impl.explainable("hetkern.cross_entropy", _OPS, _plan)
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    return_stats: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, CrossEntropyStats]:
    """Negative log-likelihood of ``target`` under ``softmax(z)``, in nats.

    With ``z = softcap * tanh(scale * input / softcap)``, ``m = max z``, ``d = log sum_j
    exp(z_j - m)`` and ``log p_j = z_j - m - d``, a row's loss is
    ``-sum_j t_j log p_j + z_loss * (m + d)**2``, where

    * class indices: ``t_j = (1 - eps) w_t [j == t] + eps / C w_j``,
    * class probabilities: ``t_j = w_j ((1 - eps) target_j + eps / C)``,

    ``eps`` is ``label_smoothing`` and ``w`` are the class weights. "mean" divides the sum of the
    first part as torch does (by the sum of the counted rows' ``w_t``; class probabilities: by the
    number of rows) and that of the second by the number of counted rows.

    Equals ``F.cross_entropy(input.float(), …)`` where scale, softcap and z_loss are left out; sums
    are float32. The softmax is never stored: forward reads the logits once and allocates nothing of
    their size; it keeps ``m`` and ``d`` for backward, which reads them once more and writes the
    gradient.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, …)``; float32, float64, float16 or
            bfloat16; any strides.
        target: class indices of input's shape without C, int64 (or uint8), in ``[0, C)`` or
            ``ignore_index``; or class probabilities of input's shape and dtype, which have a
            gradient.
        weight: ``(C)``, class weights of input's dtype or the loss's, without a gradient; None for
            ones.
        ignore_index: the class index of rows that do not count; it need not be a class.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1]: the share of the target that all classes divide.
        scale: factor on the logits.
        softcap: soft bound on the scaled logits, above 0; None for none.
        z_loss: factor on the squared log-sum-exp of counted rows, outside the class weights.
        return_stats: also return one value a row of ``loss`` (before the reduction), ``lse``,
            ``z_loss``, ``entropy`` (nats), ``log_prob`` and ``correct``, all differentiable but the
            last.
        impl: "auto", "cpu", "cuda", "triton" or "reference"; a named one never falls back.

    Returns:
        The loss, float32 (float64 for float64): a scalar or, for "none", input's shape without C;
        with ``return_stats`` a pair of it and :class:`CrossEntropyStats`. A mean over nothing
        counted is NaN, as torch's.

    Raises:
        ValueError: a dtype, shape or value does not fit; the message names op, argument, wanted and
            got.
        IndexError: a target on the CPU is out of range. A GPU is not waited for: its kernel prints
            the target's row and value (Triton: what was wanted) and traps, and a later call raises
            the CUDA error.
        NotImplementedError: the named implementation cannot run here, or ``weight`` requires a
            gradient.

    Source: Milakov & Gimelshein (2018), arXiv:1805.02867, Algorithm 3; the z-loss: Chowdhery et
    al. (2022), arXiv:2204.02311, section 5.
    """
    op = "hetkern.cross_entropy"
    apart = False  # on several processors
    plain = weight is None and softcap is None and type(scale) is type(z_loss) is float
    if not plain or type(input) is not Tensor or type(target) is not Tensor:
        numbers = {"label_smoothing": label_smoothing, "scale": scale, "z_loss": z_loss}
        if overrides.any_stands_in(input, target, weight, softcap, *numbers.values()):
            return overrides.handed_over(
                cross_entropy,
                input=input,
                target=target,
                weight=weight,
                ignore_index=ignore_index,
                reduction=reduction,
                softcap=softcap,
                return_stats=return_stats,
                impl=impl,
                **numbers,
            )
        apart = arguments.tensor(op, "input", input)
        arguments.tensor(op, "target", target)
    ops: SimpleNamespace | None = _impl.choose(op, _OPS, input, impl)
    given = input
    if type(scale) is not float:
        scale = arguments.number(op, "scale", scale)
    if type(z_loss) is not float:
        z_loss = arguments.number(op, "z_loss", z_loss)
    if softcap is not None:
        if type(softcap) is not float:
            softcap = arguments.number(op, "softcap", softcap)
        arguments.check_softcap(op, softcap)
    if target.dtype is not torch.int64 or weight is not None:
        input, target, weight = _matched(input, target, weight)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction: wanted 'none', 'mean' or 'sum', got {reduction!r}")
    may_vary = scale, softcap, z_loss, label_smoothing
    result: Tensor | tuple[Tensor, CrossEntropyStats]
    if ops is None:
        result = reference.cross_entropy(
            input,
            target,
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            scale=scale,
            softcap=softcap,
            z_loss=z_loss,
            return_stats=return_stats,
        )
    elif apart or (torch.compiler.is_compiling() and any(map(arguments.varies, may_vary))):
        if apart:
            _refuse_sharded_classes(op, input)
        if arguments.varies(scale) or arguments.varies(softcap):
            beside = target if target.is_floating_point() else None
            input, scale, softcap, beside = arguments.scaled_outside(input, scale, softcap, beside)
            target = target if beside is None else beside
        given_options = ignore_index, reduction, label_smoothing, scale, softcap or 0.0, z_loss
        result = by_rows(ops, input, target, weight, *given_options, return_stats)
    else:
        dim = 1 if input.dim() > 1 else 0
        options = (ignore_index, _REDUCTIONS[reduction], label_smoothing, scale, softcap or 0.0)
        if return_stats:
            outputs = ops.cross_entropy_stats(input, target, weight, dim, *options, z_loss)
            result = outputs[0], CrossEntropyStats(*outputs[3:])
        else:
            result = ops.cross_entropy(input, target, weight, dim, *options, z_loss)[0]
    if _impl.thread.logs:
        _impl.note(cross_entropy, input=given, target=target, impl=impl)
    return result


def _refuse_sharded_classes(op: str, input: Any) -> None:
    dim = 1 if input.dim() > 1 else 0
    if any(placement.is_shard(dim) for placement in input.placements):
        raise NotImplementedError(
            f"{op}: input: the classes (dimension {dim}) lie on several processors, got "
            f"{input.placements}: redistribute them, or shard another dimension"
        )


def _matched(
    input: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast what torch takes in other dtypes to the op's; under autocast, what differs too."""
    op = "hetkern.cross_entropy"
    autocast = not input.is_meta and torch.is_autocast_enabled(input.device.type)
    if target.dtype == torch.uint8:
        target = target.long()
    elif target.is_floating_point() and target.dtype != input.dtype and autocast:
        wide = torch.promote_types(torch.promote_types(input.dtype, target.dtype), torch.float32)
        input, target = input.to(wide), target.to(wide)
    if weight is not None:
        accumulator = torch.float64 if input.dtype == torch.float64 else torch.float32
        if not autocast and weight.dtype not in (input.dtype, accumulator):
            wanted = " or ".join(dict.fromkeys((str(input.dtype), str(accumulator))))
            raise ValueError(f"{op}: weight: wanted {wanted}, got {weight.dtype}")
        if torch.is_grad_enabled() and weight.requires_grad:
            raise NotImplementedError(
                f"{op}: weight: class weights have no gradient, got a tensor that requires one"
            )
        weight = weight.to(accumulator)
    return input, target, weight
