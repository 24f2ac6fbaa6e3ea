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
    """The functions that a model takes from a kernel library.

    Attributes:
        name: what was asked for: ``"hetkern"``, ``"torch"`` or an implementation such as ``"cpu"``.
        attention: ``(q (B, Hq, Lq, D), k, v (B, Hkv, Lk, D), window, dropout) -> (B, Hq, Lq, D)``,
            ``softmax(q k^T / √D) v``. Query ``i`` sees the last ``window`` keys of those with
            ``j <= i + Lk - Lq``, all of them for 0; Hkv divides Hq; ``dropout`` of the weights.
        cross_entropy: ``(logits (M, V), targets (M,), reduction) -> nats``; reduction is ``"mean"``
            or ``"sum"`` (a scalar) or ``"none"`` (``(M,)``).
    """

    name: str
    attention: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
    cross_entropy: Callable[[Tensor, Tensor, str], Tensor]


def choose_kernels(name: str = "hetkern", device: torch.device | str = "cpu") -> Kernels:
    """The kernels called ``name``.

    Args:
        name: ``"torch"`` for torch's own ops; ``"hetkern"`` for ours, the implementation chosen
            automatically; or one implementation by name (``"cpu"``, ``"reference"``).
        device: where the model will run, and the implementation is tried.

    Raises:
        ValueError, RuntimeError: hetkern knows no such implementation, or it cannot run here.
    """
    if name == "torch":
        return Kernels(name, _torch_attention, _torch_cross_entropy)
    impl = "auto" if name == "hetkern" else name
    kernels = Kernels(
        name,
        functools.partial(_hetkern_attention, impl=impl),
        functools.partial(_hetkern_cross_entropy, impl=impl),
    )
    # One element through each: a name that cannot run says so now, not in the first step.
    one = torch.zeros(1, 1, 1, 1, device=device)
    kernels.attention(one, one, one, 0, 0.0)
    target = torch.zeros(1, dtype=torch.long, device=device)
    kernels.cross_entropy(one.view(1, 1), target, "mean")
    return kernels


# hetkern's public functions are imported when called: `import hetkern` imports this module.


def _hetkern_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, dropout: float, *, impl: str
) -> Tensor:
    import hetkern

    sides = (window - 1, None) if window else None
    out = hetkern.attention(q, k, v, causal=True, window=sides, dropout_p=dropout, impl=impl)
    assert isinstance(out, Tensor)  # a pair only with return_lse
    return out


def _hetkern_cross_entropy(logits: Tensor, targets: Tensor, reduction: str, *, impl: str) -> Tensor:
    import hetkern

    loss = hetkern.cross_entropy(logits, targets, reduction=reduction, impl=impl)
    assert isinstance(loss, Tensor)  # a pair only with return_stats
    return loss


def _torch_attention(q: Tensor, k: Tensor, v: Tensor, window: int, dropout: float) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    mask = None
    if 0 < window < keys or 1 < queries < keys:
        mask = _in_window(q, k, window if window else keys)
        mask &= torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    causal = mask is None and queries > 1  # a single query sees every key
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _in_window(q: Tensor, k: Tensor, window: int) -> Tensor:
    """(Lq, Lk), true where a key is none of those before the query's window."""
    queries, keys = q.shape[2], k.shape[2]
    every = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    return every.triu(keys - queries - window + 1)


def _torch_cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(logits.float(), targets, reduction=reduction)
