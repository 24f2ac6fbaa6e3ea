"""Where a test's tensors belong: torch's default device, which the active implementation sets.

Numbers are drawn on the CPU, so that they are the same everywhere, and then moved here.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Value = TypeVar("Value")
Make = TypeVar("Make", bound=Callable[..., Any])


def placed_on(device: str) -> AbstractContextManager[Any]:
    """Within this context and thread new tensors are made on ``device``."""
    if torch.get_default_device().type == device:
        return nullcontext()  # torch's own context costs every call of torch some time
    return torch.device(device)


def here(value: Value) -> Value:
    """``value`` with every tensor in it on the default device."""
    device = torch.get_default_device()
    return tree_map_only(
        Tensor, lambda t: t if t.device.type == device.type else t.to(device), value
    )


def drawn_on_cpu(make: Make) -> Make:
    """A function that makes tensors: on the CPU, from a generator there; then they are moved."""

    @functools.wraps(make)
    def moved(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, Tensor.cpu, (args, kwargs))
        with placed_on("cpu"):
            made = make(*args, **kwargs)
        return here(made)

    return moved  # type: ignore[return-value]


def far_apart(rows: Tensor, dim: int = 0) -> Tensor:
    """A copy whose rows along ``dim`` lie 2**31 elements from first to last.

    Its offsets need 64 bits, yet only what holds the rows is ever touched.
    """
    steps = rows.shape[dim] - 1
    away = -(-(2**31) // steps)
    strides = list(torch.empty(rows.select(dim, 0).shape, device="meta").stride())
    strides.insert(dim, away)
    far = torch.empty(steps * away + rows.select(dim, 0).numel(), dtype=rows.dtype)
    return far.as_strided(rows.shape, strides).copy_(rows)


@drawn_on_cpu
def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws from a normal distribution, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
