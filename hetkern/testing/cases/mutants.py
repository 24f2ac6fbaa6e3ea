"""Operations with one planted error each: what a test must be able to fail on.

A mutant computes what the operation does and then spoils it the way a broken kernel would. A check
that lets one of them through proves nothing about the operation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hetkern.testing.values.calls import Op

TILE = 64


class _Replaced(torch.autograd.Function):
    """The value is replaced and the gradient is not, or the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Callable, gradient: Callable) -> Tensor:
        ctx.gradient = gradient
        return value(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient(upstream.clone(memory_format=torch.contiguous_format)), None, None


def _same(t: Tensor) -> Tensor:
    return t


def zeros(t: Tensor) -> Tensor:
    """Nothing was written."""
    return torch.zeros_like(t)


def stale_row(t: Tensor) -> Tensor:
    """The last row still holds the row before it."""
    if t.dim() and t.shape[0] > 1:
        t[-1] = t[-2]
    return t


def unwritten_tile(t: Tensor) -> Tensor:
    """The last tile of columns was never written."""
    if t.dim():
        t[..., -TILE:] = 0
    return t


def dropped_element(t: Tensor) -> Tensor:
    """The very last element was never written."""
    t.view(-1)[-1:] = 0
    return t


#: Errors of a result, by name.
SPOILED = {f.__name__: f for f in (zeros, stale_row, unwritten_tile, dropped_element)}


def spoiled_value(op: Op, spoil: Callable[[Tensor], Tensor], which: int = 0) -> Op:
    """``op`` whose result, or one of several, is spoiled and whose gradients are right.

    Results in tuples within a tuple count one after another.
    """

    def mutant(*args: Any, **kwargs: Any) -> Any:
        tensors, nesting = tree_flatten(op(*args, **kwargs))
        tensors[which] = _Replaced.apply(tensors[which], spoil, _same)
        return tree_unflatten(tensors, nesting)

    return mutant


def changed_argument(op: Op, index: int, change: Callable[[Tensor], Tensor]) -> Op:
    """``op`` that computes with another argument than it was given, gradients included."""

    def mutant(*args: Any, **kwargs: Any) -> Any:
        return op(*args[:index], change(args[index]), *args[index + 1 :], **kwargs)

    return mutant


def spoiled_gradient(op: Op, spoil: Callable[[Tensor], Tensor]) -> Op:
    """``op`` whose result is right and whose first argument's gradient is spoiled."""

    def mutant(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return op(_Replaced.apply(x, _same, spoil), *args, **kwargs)

    return mutant


def skipped_last_tile(op: Op) -> Op:
    """``op`` that never reads the last tile of columns of its first argument."""

    def mutant(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        unread = torch.arange(x.shape[-1], device=x.device) >= x.shape[-1] - TILE
        return op(x.masked_fill(unread, -torch.inf), *args, **kwargs)

    return mutant


def dropped_target_term(cross_entropy: Op, *, in_gradient: bool = False) -> Op:
    """Cross-entropy without its target's logit: each row is lse, or each gradient softmax(x).

    For rows of class indices ``(N, C)``, ``reduction="none"``, no class weights, nothing ignored.
    """

    def mutant(x: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        loss = cross_entropy(x, target, **kwargs)
        picked = x.gather(1, target[:, None]).squeeze(1).to(loss.dtype)
        return loss + (picked - picked.detach() if in_gradient else picked.detach())

    return mutant


@contextmanager
def planted(owner: Any, name: str, make_mutant: Callable[[Op], Op]) -> Iterator[None]:
    """While open, ``owner.name`` is its own mutant.

    Example: ``with planted(hetkern, "softmax", lambda op: spoiled_value(op, zeros)): …``
    """
    with mock.patch.object(owner, name, make_mutant(getattr(owner, name))):
        yield
