"""Softmax and cross-entropy as ``check_op`` wants them: operation, exact value, torch's own.

The torch computation is the yardstick of the error budget. Below float64 it is the reference's
arithmetic in the dtype under test. In float64, where that would be the exact value itself, it takes
another route to the same value, and what they differ by stands for the error of both.
"""

import importlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hetkern import reference
from hetkern.reference.softmax import row_scores
from hetkern.testing.values.calls import Call, Op
from hetkern.testing.values.check import DTYPES, Case, Summary, check_op


def softmax_op(impl: str) -> Op:
    """The public softmax and log-softmax behind one signature."""
    import hetkern

    def op(x: Tensor, *, log: bool = False, **options: Any) -> Tensor:
        public = hetkern.log_softmax if log else hetkern.softmax
        return public(x, impl=impl, **options)

    return op


def cross_entropy_op(impl: str) -> Op:
    """The public cross-entropy."""
    import hetkern

    def op(input: Tensor, target: Tensor, **options: Any) -> Any:
        return hetkern.cross_entropy(input, target, impl=impl, **options)

    return op


def exact_softmax(x: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    """The reference, whose ``dtype=`` rounds x but keeps float64 as the working dtype."""
    if dtype is not None and x.dtype == torch.float64:
        rounded = x.to(dtype).double()
        x = torch.where(rounded == x, x, x + (rounded - x).detach())
        dtype = None
    return reference.softmax(x, dtype=dtype, **options)


def torch_softmax(
    x: Tensor,
    *,
    dim: int = -1,
    dtype: torch.dtype | None = None,
    log: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    **options: Any,
) -> Tensor:
    """The torch computation: like ``torch.softmax`` it keeps for backward y as it was rounded."""
    if dtype is not None:
        x = x.to(dtype)
    columns = x.shape[dim]
    if x.dtype == torch.float64 and softcap:
        x, scale, softcap = capped(x, scale, softcap), 1.0, None
    absent: dict[str, Any] = {"bias": None, "mask": None, "causal": False, "sink": None}
    dim %= x.dim()
    z, emptied = row_scores(x, dim, scale=scale, softcap=softcap, **(absent | options))
    if x.dtype == torch.float64 and z.shape[dim] > 0:
        _, s, d = differences(z.movedim(dim, -1))
        y = (s - d if log else (s - d).exp()).movedim(-1, dim)
    else:
        y = _KeptRounded.apply(z, dim, log, columns, x.dtype)
    y = y.narrow(dim, 0, columns)
    if emptied is not None:
        y = torch.where(emptied, -torch.inf if log else 0.0, y)
    return y.to(x.dtype)


class _KeptRounded(torch.autograd.Function):
    """Softmax of z whose first columns are rounded to a dtype; what follows them is the sink's."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, dim: int, log: bool, columns: int, dtype: torch.dtype
    ) -> Tensor:
        y = z.log_softmax(dim) if log else z.softmax(dim)
        y.narrow(dim, 0, columns).copy_(y.narrow(dim, 0, columns).to(dtype))
        ctx.save_for_backward(y)
        ctx.options = dim, log
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        dim, log = ctx.options
        if log:
            dz = torch._log_softmax_backward_data(dy, y, dim, y.dtype)
        else:
            dz = torch._softmax_backward_data(dy, y, dim, y.dtype)
        return dz, None, None, None, None


def torch_cross_entropy(input: Tensor, target: Tensor, **options: Any) -> Any:
    """The torch computation: the reference's, in float64 by differences from the maximum."""
    if input.dtype != torch.float64:
        return reference.cross_entropy(input, target, **options)
    if softcap := options.pop("softcap", None):
        input = capped(input, options.pop("scale", 1.0), softcap)
    equations = importlib.import_module("hetkern.reference.cross_entropy")
    with mock.patch.object(equations, "_log_sum_exp", _log_sum_exp_of_differences):
        return reference.cross_entropy(input, target, **options)


def differences(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``m = max z``, ``s = z - m`` and ``d = log sum exp(s)`` of the last dimension.

    The largest score's own term is 1 and no function of z, so that no derivative is a difference of
    large numbers where that score has nearly all of the probability. There torch's own softmax has
    few digits left, in float64 as well; it has more where the scores are flat.
    """
    first_largest = z.argmax(-1, keepdim=True)
    m = z.gather(-1, first_largest)
    nothing = (m - m).detach()  # 0, or NaN for an infinite or missing maximum
    s = (z - m).scatter(-1, first_largest, nothing)
    d = torch.log1p(s.exp().scatter(-1, first_largest, nothing).sum(-1, keepdim=True))
    return m, s, d


def capped(x: Tensor, scale: float, softcap: float) -> Tensor:
    """``softcap tanh(scale x / softcap)`` by way of exp."""
    return softcap * (1.0 - 2.0 / (1.0 + torch.exp(x * (2.0 * scale / softcap))))


def _log_sum_exp_of_differences(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m, s, d = differences(z)
    return s, d, (m + d).squeeze(-1)


def check_softmax(impl: str, *cases: Case, **options: Any) -> Summary:
    """``check_op`` for the public softmax; ``log=True`` in a case asks for log-softmax."""
    options["dtypes"] = _served(impl, options.get("dtypes", DTYPES))
    options.setdefault("device", torch.get_default_device())
    return check_op(softmax_op(impl), exact_softmax, cases, baseline=torch_softmax, **options)


def check_cross_entropy(impl: str, *cases: Case, **options: Any) -> Summary:
    """``check_op`` for the public cross-entropy."""
    options["dtypes"] = _served(impl, options.get("dtypes", DTYPES))
    options.setdefault("device", torch.get_default_device())
    return check_op(
        cross_entropy_op(impl),
        reference.cross_entropy,
        cases,
        baseline=torch_cross_entropy,
        **options,
    )


def _served(impl: str, dtypes: Sequence[torch.dtype]) -> Sequence[torch.dtype]:
    """Those that the implementation has; all if it has none of them, so that it says so."""
    return [t for t in dtypes if impl != "triton" or t != torch.float64] or dtypes


def target_classes(call: Call) -> Tensor:
    """Where a cross-entropy's target stands, in the shape of its logits.

    A class probability stands apart where it is nearly all: others leave gradients of a size.
    """
    x, target = call.args[:2]
    dim = min(1, x.dim() - 1)
    if target.is_floating_point():
        return target > 0.9
    classes = torch.arange(x.shape[dim], device=x.device).reshape(-1, *[1] * (x.dim() - dim - 1))
    return target.unsqueeze(dim) == classes
