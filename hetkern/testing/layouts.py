"""The same values in other places: strides and offsets that kernels get wrong.

Whatever lies between the elements is poison (NaN, or an absurd integer), so that reading it shows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def poison(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """A tensor of NaN, of a far negative integer, or of True: what must never be read."""
    if dtype.is_floating_point:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype, device=device)
    return torch.full(shape, torch.iinfo(dtype).min, dtype=dtype, device=device)


def dense(x: Tensor) -> Tensor:
    """Row-major, aligned."""
    return x.clone(memory_format=torch.contiguous_format)


def permuted(x: Tensor) -> Tensor:
    """Dimensions in reverse order in memory: the last is the slowest."""
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).clone(memory_format=torch.contiguous_format).permute(order)


def sliced(x: Tensor) -> Tensor:
    """A slice of wider rows that starts one element in: unaligned, with gaps between rows."""
    return _inside(x, before=1, after=2, step=1)


def step2(x: Tensor) -> Tensor:
    """Every second element of rows twice as long."""
    return _inside(x, before=0, after=0, step=2)


def expanded(x: Tensor) -> Tensor:
    """The first slice of dimension 0 seen everywhere, stride 0. These are other values than x's."""
    return x if x.dim() == 0 or x.shape[0] == 0 else x[:1].clone().expand(x.shape)


def odd_strides(x: Tensor) -> Tensor:
    """Strides of dimensions of size 1 are nonsense, as they may be."""
    x = dense(x)
    strides = [
        12345 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)
    ]
    return x.as_strided(x.shape, strides)


def _inside(x: Tensor, before: int, after: int, step: int) -> Tensor:
    """The values of x in a poisoned buffer, ``step`` apart along the last dimension."""
    if x.dim() == 0:
        return x.clone()
    width = before + step * x.shape[-1] + after
    buffer = poison((*x.shape[:-1], width), x.dtype, x.device)
    view = buffer[..., before : before + step * x.shape[-1] : step]
    view.copy_(x)
    return view


#: Every layout, by name. ``expanded`` alone changes the values.
LAYOUTS: dict[str, Layout] = {
    make.__name__: make for make in (dense, permuted, sliced, step2, expanded, odd_strides)
}
