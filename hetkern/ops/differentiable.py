"""One wiring of an op's derivatives for eager calls, torch.ops, torch.compile and torch.func.

``register_autograd`` alone serves torch.compile and direct calls, but costs an eager call several
microseconds and refuses torch.func. So an eager call goes through a plain ``autograd.Function``
that runs the op below the Autograd key, and a torch.func transform through a Function with a
separate ``setup_context``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# torch.library uses this guard itself; it has no public name yet.
_below_autograd = torch._C._AutoDispatchBelowAutograd


def differentiable(
    op: torch._ops.OpOverload,
    setup_context: Callable[[Any, tuple, Any], tuple],
    backward: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
    constant: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Give ``op`` its derivatives, and return the callable that eager code should use.

    Args:
        op: an op whose kernels know nothing of autograd.
        setup_context: ``(ctx, inputs, output)``, returns the tensors that backward needs.
        backward: ``(ctx, *output_gradients)``, returns one gradient an input.
        jvp: ``(ctx, *input_tangents)``, forward mode; without it forward mode raises by name.
        constant: outputs that nothing is differentiated by; their tangents are zeros, or None of
            what is no floating-point number.
    """

    def save(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.set_materialize_grads(False)
        if constant:
            ctx.mark_non_differentiable(*[output[i] for i in constant])
        ctx.save_for_backward(*setup_context(ctx, inputs, output))

    # Nothing is marked as constant: torch's rule for vmap would look for the batched tensor's mark,
    # find none, and take no None for a tangent.
    def save_for_both_modes(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.set_materialize_grads(False)
        tensors = setup_context(ctx, inputs, output)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)  # an eager call must not: it would keep its own output alive

    torch.library.register_autograd(op, backward, setup_context=save)

    dispatch = op._op  # what OpOverload.__call__ calls, a microsecond later

    def forward(*args: Any) -> Any:
        with _below_autograd():
            return dispatch(*args)

    def eager_forward(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        save(ctx, args, output)
        return output

    def no_jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(f"{op.name()}: forward-mode derivatives are not implemented")

    def function(**body: Any) -> type[torch.autograd.Function]:
        methods = {k: staticmethod(v) if callable(v) else v for k, v in body.items()}
        return type(op.name(), (torch.autograd.Function,), methods)

    # A Function with a setup_context binds its arguments by inspect.signature (35 us): only
    # transforms take that one.
    eager = function(forward=eager_forward, backward=backward)
    transform = function(
        forward=forward,
        setup_context=save_for_both_modes,
        backward=backward,
        jvp=jvp or no_jvp,
        generate_vmap_rule=True,
    )
    is_compiling = torch.compiler.is_compiling
    transforms_active = torch._C._are_functorch_transforms_active
    is_grad_enabled = torch.is_grad_enabled
    any_requires_grad = torch._C._any_requires_grad
    forward_ad = torch.autograd.forward_ad
    # What Function.apply does where no transform is active, without what it asks anew each time.
    unwrap = torch._C._functorch.unwrap_if_dead
    apply = super(torch.autograd.Function, eager).apply  # type: ignore[misc]

    def call(*args: Any) -> Any:
        if is_compiling():
            return op(*args)
        if transforms_active() or forward_ad._current_level >= 0:
            return transform.apply(*args)
        if is_grad_enabled() and any_requires_grad(*args):
            return apply(*[unwrap(a) if isinstance(a, Tensor) else a for a in args])
        return forward(*args)

    return call
