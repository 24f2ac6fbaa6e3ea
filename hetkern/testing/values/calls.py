"""One call of an operation with everything that comes out of it: results and gradients by name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Op = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """The same call with every tensor changed."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        kwargs = {name: changed(value) for name, value in self.kwargs.items()}
        return Call(tuple(changed(value) for value in self.args), kwargs)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor argument by name: the keyword, or ``argument 0`` and so on."""
        named = {f"argument {i}": value for i, value in enumerate(self.args)} | dict(self.kwargs)
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def run(op: Op, call: Call, *, constant: Collection[str] = (), upstream: Op) -> dict[str, Tensor]:
    """Call ``op``, then its backward.

    Args:
        op: returns a tensor or a (nested) tuple of tensors.
        call: its arguments; floating tensors get a gradient.
        constant: names of tensors that get none.
        upstream: ``upstream(index, output)`` gives the gradient that enters at the output of that
            place among all outputs.

    Returns:
        ``{"output": …}`` (a named tuple's fields under their own names, other tuples' as
        ``output 0`` and so on) and ``{"gradient of NAME": …}``; zeros where nothing depends.
    """
    call = call.map(lambda t: t.detach())
    leaves = {
        name: t.requires_grad_()
        for name, t in call.tensors().items()
        if t.is_floating_point() and name not in constant
    }
    results = _named(op(*call.args, **call.kwargs), "output")
    entering = [(y, upstream(i, y)) for i, y in enumerate(results.values()) if y.requires_grad]
    if entering and leaves:
        gradients = torch.autograd.grad(
            [y for y, _ in entering],
            list(leaves.values()),
            [dy for _, dy in entering],
            allow_unused=True,
            materialize_grads=True,
        )
        results |= {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: value.detach() for name, value in results.items()}


def random_upstream(seed: int, layout: Callable[[Tensor], Tensor] = lambda t: t) -> Op:
    """Upstream gradients drawn from a normal distribution in float32, laid out as wanted."""

    def upstream(index: int, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed + index)
        drawn = torch.randn(output.shape, generator=generator, device="cpu")
        return layout(drawn.to(output.device, output.dtype))

    return upstream


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point():
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        a, b = a.contiguous().view(bits), b.contiguous().view(bits)
    return torch.equal(a, b)


def _named(value: Any, name: str) -> dict[str, Tensor]:
    """The tensors in an operation's result by name."""
    if isinstance(value, Tensor):
        return {name: value}
    fields = getattr(value, "_fields", [f"{name} {i}" for i in range(len(value))])
    named: dict[str, Tensor] = {}
    for part_name, part in zip(fields, value, strict=True):
        named |= _named(part, part_name)
    return named
