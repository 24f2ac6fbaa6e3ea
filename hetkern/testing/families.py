"""Softmax and cross-entropy as ``check_op`` wants them: operation, exact value, torch's own.

The torch computation is the yardstick of the error budget. Below float64 it is the reference's
arithmetic in the dtype under test; in float64, where that would be the exact value itself, it takes
another route to the same value.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hetkern import reference
from hetkern.reference.cross_entropy import CrossEntropyStats
from hetkern.reference.softmax import row_scores
from hetkern.testing.calls import Call, Op
from hetkern.testing.check import DTYPES, Case, Summary, check_op


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
        x, scale, softcap = _capped(x, scale, softcap), 1.0, None
    absent: dict[str, Any] = {"bias": None, "mask": None, "causal": False, "sink": None}
    dim %= x.dim()
    z, emptied = row_scores(x, dim, scale=scale, softcap=softcap, **(absent | options))
    y = _KeptRounded.apply(z, dim, log, columns, x.dtype).narrow(dim, 0, columns)
    if emptied is not None:
        y = torch.where(emptied, -torch.inf if log else 0.0, y)
    return y.to(x.dtype)


class _KeptRounded(torch.autograd.Function):
    """Softmax of z whose first columns are rounded to a dtype; what follows them is the sink's.

    In float64 log y is z - logsumexp z, y its exponential, and dz is p dy - p sum p dy.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, dim: int, log: bool, columns: int, dtype: torch.dtype
    ) -> Tensor:
        if z.dtype == torch.float64:
            y = z - z.logsumexp(dim, keepdim=True)
            y = y if log else y.exp()
        else:
            y = z.log_softmax(dim) if log else z.softmax(dim)
        y.narrow(dim, 0, columns).copy_(y.narrow(dim, 0, columns).to(dtype))
        ctx.save_for_backward(y)
        ctx.options = dim, log
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        dim, log = ctx.options
        if y.dtype == torch.float64:
            p = y.exp() if log else y
            dz = (dy if log else p * dy) - p * (dy if log else p * dy).sum(dim, keepdim=True)
        elif log:
            dz = torch._log_softmax_backward_data(dy, y, dim, y.dtype)
        else:
            dz = torch._softmax_backward_data(dy, y, dim, y.dtype)
        return dz, None, None, None, None


def torch_cross_entropy(input: Tensor, target: Tensor, **options: Any) -> Any:
    """The torch computation: the reference below float64, torch's own functions in float64."""
    if input.dtype != torch.float64:
        return reference.cross_entropy(input, target, **options)
    return_stats, z_loss = options.pop("return_stats", False), options.pop("z_loss", 0.0)
    scale, softcap = options.pop("scale", 1.0), options.pop("softcap", None)
    reduction, ignore_index = options.pop("reduction", "mean"), options.get("ignore_index", -100)
    z = _capped(input, scale, softcap) if softcap else scale * input
    dim = min(1, z.dim() - 1)
    loss = F.cross_entropy(z, target, reduction=reduction, **options)
    lse = z.logsumexp(dim)
    counted = torch.ones_like(lse, dtype=torch.bool)
    if not target.is_floating_point():
        counted = target != ignore_index
    z_term = torch.where(counted, z_loss * lse.square(), 0.0)
    if z_loss:
        total = {"none": z_term, "sum": z_term.sum(), "mean": z_term.sum() / counted.sum()}
        loss = loss + total[reduction]
    if not return_stats:
        return loss
    rows = F.cross_entropy(z, target, reduction="none", **options) + z_term
    plain = {name: value for name, value in options.items() if name == "ignore_index"}
    log_prob = -F.cross_entropy(z, target, reduction="none", **plain)
    log_q = z.log_softmax(dim)
    entropy = -(log_q.exp() * torch.where(log_q == -torch.inf, 0.0, log_q)).sum(dim)
    wanted = target.argmax(dim) if target.is_floating_point() else target
    correct = (z.argmax(dim) == wanted) & counted & ~log_prob.isnan()
    return loss, CrossEntropyStats(rows, lse, z_term, entropy, log_prob, correct)


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
    """Where a cross-entropy's likeliest target stands, in the shape of its logits."""
    x, target = call.args[:2]
    dim = min(1, x.dim() - 1)
    if target.is_floating_point():
        return target > 0.5
    classes = torch.arange(x.shape[dim], device=x.device).reshape(-1, *[1] * (x.dim() - dim - 1))
    return target.unsqueeze(dim) == classes


def _capped(x: Tensor, scale: float, softcap: float) -> Tensor:
    """``softcap tanh(scale x / softcap)`` by way of exp."""
    return softcap * (1.0 - 2.0 / (1.0 + torch.exp(x * (2.0 * scale / softcap))))
