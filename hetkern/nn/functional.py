"""``torch.nn.functional`` by its own signatures, on hetkern's kernels.

Each function takes what torch's takes, in torch's order, legacy arguments included; hetkern's own
options follow by keyword. So ``import hetkern.nn.functional as F`` serves existing calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn.functional import _get_softmax_dim  # type: ignore[attr-defined]

from .. import ops, overrides
from .functional_attention import scaled_dot_product_attention

if TYPE_CHECKING:
    from ..reference import CrossEntropyStats

__all__ = ["cross_entropy", "log_softmax", "scaled_dot_product_attention", "softmax"]


def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
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
    """As ``torch.nn.functional.softmax``: equation, shapes and errors of :func:`hetkern.softmax`.

    Args:
        input: any shape and strides.
        dim: the dimension that sums to one; None is torch's deprecated guess (0 for zero, one or
            three dimensions, else 1), with torch's warning.
        _stacklevel: of that warning.
        dtype: of the result; ``input`` is cast first.
        scale: this and what follows as in :func:`hetkern.softmax`.
        softcap: see there.
        bias: see there.
        mask: see there.
        causal: see there.
        sink: see there.
        impl: see there.
    """
    if dim is None:
        if overrides.any_stands_in(input):  # it does not tell its rank yet
            scores = {"input": input, "bias": bias, "mask": mask, "sink": sink}
            options = {"scale": scale, "softcap": softcap, "causal": causal, "impl": impl}
            return overrides.handed_over(softmax, **scores, dtype=dtype, **options)
        dim = _get_softmax_dim("softmax", input.dim(), _stacklevel)
    return ops.softmax(
        input,
        dim,
        dtype,
        scale=scale,
        softcap=softcap,
        bias=bias,
        mask=mask,
        causal=causal,
        sink=sink,
        impl=impl,
    )


def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
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
    """As ``torch.nn.functional.log_softmax``; arguments as in :func:`softmax`."""
    if dim is None:
        if overrides.any_stands_in(input):  # it does not tell its rank yet
            scores = {"input": input, "bias": bias, "mask": mask, "sink": sink}
            options = {"scale": scale, "softcap": softcap, "causal": causal, "impl": impl}
            return overrides.handed_over(log_softmax, **scores, dtype=dtype, **options)
        dim = _get_softmax_dim("log_softmax", input.dim(), _stacklevel)
    return ops.log_softmax(
        input,
        dim,
        dtype,
        scale=scale,
        softcap=softcap,
        bias=bias,
        mask=mask,
        causal=causal,
        sink=sink,
        impl=impl,
    )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    return_stats: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, CrossEntropyStats]:
    """As ``torch.nn.functional.cross_entropy``, with a float32 loss for 16-bit logits.

    Equation, shapes and errors are those of :func:`hetkern.cross_entropy`.

    Args:
        input: logits ``(C)``, ``(N, C)`` or ``(N, C, d1, …)``.
        target: class indices or class probabilities.
        weight: ``(C)``, class weights.
        size_average: deprecated, as in torch: with ``reduce`` it overrules ``reduction``.
        ignore_index: the class index of rows that do not count.
        reduce: deprecated, as in torch.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        scale: this and what follows as in :func:`hetkern.cross_entropy`.
        softcap: see there.
        z_loss: see there.
        return_stats: see there.
        impl: see there.
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return ops.cross_entropy(
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
        impl=impl,
    )
