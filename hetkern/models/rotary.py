"""Rotary positions: pair i of a head's features at position t is turned by t · 10000^(-2i / D).

So q k^T depends on how far apart two tokens are. The last feature of an odd D stays.

y_1 = x_1 cos - x_2 sin        y_2 = x_2 cos + x_1 sin        x_1, x_2: the halves of a head
dx is dy turned by the opposite angle.

Source: Su et al. (2021), "RoFormer", arXiv:2104.09864.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Splits heads into queries, keys and values, and turns queries and keys."""

    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, D: int) -> None:
        super().__init__()
        self.pairs = D // 2
        rates = 10000.0 ** (-torch.arange(self.pairs) * 2 / D)
        angles = torch.outer(torch.arange(context).float(), rates)[:, None]
        rest = torch.ones(context, 1, D % 2)
        cos = torch.cat([angles.cos(), angles.cos(), rest], -1)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self, heads: Tensor, queries: int, keys: int, begin: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of tokens at positions ``begin`` on.

        Args:
            heads: (B, T, Hq + 2 Hkv, D), those of the queries first, then keys, then values.
            queries: Hq.
            keys: Hkv.
            begin: position of the first token.

        Returns:
            (B, Hq, T, D), and twice (B, Hkv, T, D), in the dtype of ``heads``.
        """
        end = begin + heads.shape[1]
        cos, sin = self.cos[begin:end], self.sin[begin:end]
        return _Turned.apply(heads, cos, sin, queries, keys)


class _Turned(torch.autograd.Function):
    """Autograd's own gradient writes zeros and copies for each slice: a tenth of a step."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        heads: Tensor, cos: Tensor, sin: Tensor, queries: int, keys: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        turned = _turn(heads[..., : queries + keys, :], cos, sin)
        q, k = turned.transpose(-3, -2).split([queries, keys], -3)
        return q, k, heads[..., queries + keys :, :].transpose(-3, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, cos, sin, *ctx.sizes = inputs
        ctx.save_for_backward(cos, sin)
        ctx.save_for_forward(cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        dq, dk, dv = (grad.transpose(-3, -2) for grad in grads)
        dx = torch.cat([_turn(dq, cos, -sin), _turn(dk, cos, -sin), dv], -2)
        return dx, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return _Turned.apply(tangent, *ctx.saved_tensors, *ctx.sizes)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Both halves of each head by the angles; ``x``: (…, T, heads, D)."""
    pairs = sin.shape[-1]
    y = x * cos
    y[..., :pairs].addcmul_(x[..., pairs : 2 * pairs], sin, value=-1)
    y[..., pairs : 2 * pairs].addcmul_(x[..., :pairs], sin)
    return y.to(x.dtype)
