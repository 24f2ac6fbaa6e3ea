"""Which kernels a model runs on: hetkern's own, or torch's for comparison."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """The two functions that a Transformer takes from a kernel library.

    Attributes:
        name: what was asked for: ``"hetkern"``, ``"torch"`` or an implementation such as ``"cpu"``.
        softmax_causal: ``(scores (..., Lq, Lk), scale) -> weights (..., Lq, Lk)``; query ``i`` sees
            keys ``j <= i + Lk - Lq``.
        cross_entropy: ``(logits (M, V), targets (M,), reduction) -> nats``; reduction is ``"mean"``
            or ``"sum"`` (a scalar) or ``"none"`` (``(M,)``).
    """

    name: str
    softmax_causal: Callable[[Tensor, float], Tensor]
    cross_entropy: Callable[[Tensor, Tensor, str], Tensor]


def choose_kernels(name: str = "hetkern") -> Kernels:
    """The kernels called ``name``.

    Args:
        name: ``"torch"`` for torch's own ops; ``"hetkern"`` for ours, the implementation chosen
            automatically; or one implementation by name (``"cpu"``, ``"reference"``).

    Raises:
        ValueError, RuntimeError: hetkern knows no such implementation, or it cannot run here.
    """
    if name == "torch":
        return Kernels(name, _torch_softmax_causal, _torch_cross_entropy)
    impl = "auto" if name == "hetkern" else name
    kernels = Kernels(
        name,
        functools.partial(_hetkern_softmax_causal, impl=impl),
        functools.partial(_hetkern_cross_entropy, impl=impl),
    )
    # One element through each: a name that cannot run says so now, not in the first step.
    kernels.softmax_causal(torch.zeros(1, 1), 1.0)
    kernels.cross_entropy(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), "mean")
    return kernels


# hetkern's public functions are imported when called: `import hetkern` imports this module.


def _hetkern_softmax_causal(scores: Tensor, scale: float, *, impl: str) -> Tensor:
    import hetkern

    return hetkern.softmax(scores, scale=scale, causal=True, impl=impl)


def _hetkern_cross_entropy(logits: Tensor, targets: Tensor, reduction: str, *, impl: str) -> Tensor:
    import hetkern

    loss = hetkern.cross_entropy(logits, targets, reduction=reduction, impl=impl)
    assert isinstance(loss, Tensor)  # a pair only with return_stats
    return loss


def _torch_softmax_causal(scores: Tensor, scale: float) -> Tensor:
    queries, keys = scores.shape[-2:]
    future = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
    future = future.triu(keys - queries + 1)
    return (scale * scores).masked_fill(future, float("-inf")).softmax(-1)


def _torch_cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction=reduction)
