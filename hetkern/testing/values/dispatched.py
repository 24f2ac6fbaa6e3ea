"""Which registered ops a piece of code calls, with their arguments: whatever their schemas are.

So that ``torch.library.opcheck`` and gradcheck can run on every op of a family, backward and double
backward included, without a test knowing their signatures.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class dispatched(TorchDispatchMode):
    """``with dispatched("hetkern") as calls:`` collects (op, arguments) of a namespace's ops.

    Args:
        namespace: "hetkern", which stands for "hetkern_triton" and the like too, or one of these.
    """

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.calls: list[tuple[torch._ops.OpOverload, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the call, then let it pass."""
        if f"{func.namespace}_".startswith(f"{self.namespace}_"):
            self.calls.append((func, tree_map_only(Tensor, Tensor.detach, args)))
        return func(*args, **(kwargs or {}))


def ops_of(
    function: Callable[..., Any], *inputs: Tensor, order: int = 2, namespace: str = "hetkern"
) -> dict[str, tuple[torch._ops.OpOverload, tuple[Any, ...]]]:
    """Every op that ``function(*inputs)`` and its derivatives up to ``order`` call: one call an op.

    Upstream gradients are ones, plus a ramp so that softmax's do not vanish.
    """
    leaves = [t.detach().requires_grad_() if t.is_floating_point() else t for t in inputs]
    variables = [t for t in leaves if t.requires_grad]
    with dispatched(namespace) as recorder:
        results: Sequence[Tensor] = [function(*leaves)]
        for _ in range(order):
            results = [y for y in results if y is not None and y.requires_grad]
            upstream = [_ramp(y) for y in results]
            results = torch.autograd.grad(
                results, variables, upstream, create_graph=True, allow_unused=True
            )
            variables = variables + upstream
    return {op.name(): (op, args) for op, args in reversed(recorder.calls)}


def _ramp(y: Tensor) -> Tensor:
    steps = torch.arange(y.numel(), dtype=y.dtype, device=y.device)
    ramp = 1.0 + steps.reshape(y.shape) / max(y.numel(), 1)
    return ramp.requires_grad_()
