"""One wiring of an op's derivatives for eager calls, torch.ops, torch.compile and torch.func.

One set of derivatives, two ``autograd.Function``s. An eager call applies the lean one and runs the
op below the Autograd key. Everything else (a direct call of ``torch.ops``, what torch.compile or
torch.jit traces, a torch.func transform, forward mode) calls the op, whose kernel for the Autograd
key applies the other, as torch's own operators do: that serves every transform and every order of
them. ``register_autograd`` would not: it knows no forward mode, and drops a tangent without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# torch.library uses these itself; they have no public names yet.
_below_autograd = torch._C._AutoDispatchBelowAutograd
functorch = torch._C._functorch
forward_ad = torch.autograd.forward_ad
_unpack_dual = torch._VF._unpack_dual  # type: ignore[attr-defined]


def differentiable(
    op: torch._ops.OpOverload,
    library: torch.library.Library,
    setup_context: Callable[[Any, tuple, Any], tuple],
    backward: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
    constant: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Give ``op`` its derivatives, and return the callable that eager code should use.

    Args:
        op: an op whose kernels know nothing of autograd.
        library: the fragment that defines it.
        setup_context: ``(ctx, inputs, output)``, returns the tensors that backward needs.
        backward: ``(ctx, *output_gradients)``, returns one gradient an input.
        jvp: ``(ctx, *input_tangents)``, forward mode; without it forward mode raises by name.
        constant: outputs that nothing is differentiated by; their tangents are zeros, or None of
            what is no floating-point number.
    """
    dispatch = op._op  # what OpOverload.__call__ calls, a microsecond later

    def run(*args: Any) -> Any:
        with _below_autograd():
            return dispatch(*args)

    def keep(ctx: Any, args: tuple, output: Any) -> tuple:
        ctx.set_materialize_grads(False)
        tensors = setup_context(ctx, args, output)
        ctx.save_for_backward(*tensors)
        return tensors

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        keep(ctx, args, output)
        if constant:
            ctx.mark_non_differentiable(*[output[i] for i in constant])
        return output

    def forward_in_kernel(ctx: Any, *args_and_mode: Any) -> Any:
        *args, mode = args_and_mode
        # A transform further out differentiates what runs below this one, where a Function's own
        # forward would switch derivatives off.
        with torch.set_grad_enabled(mode.grad), forward_ad._set_fwd_grad_enabled(True):
            output = run(*args)
        tensors = keep(ctx, tuple(args), output)
        if mode.dual:  # else nothing may be saved so: it keeps its own output alive
            ctx.save_for_forward(*tensors)
        elif constant:  # in forward mode a constant number has a tangent of zeros, and no mark
            ctx.mark_non_differentiable(*[output[i] for i in constant])
        return output

    def backward_in_kernel(ctx: Any, *gradients: Any) -> Any:
        return *backward(ctx, *gradients), None

    def jvp_in_kernel(ctx: Any, *tangents_and_mode: Any) -> Any:
        if jvp is None:
            raise NotImplementedError(f"{op.name()}: forward-mode derivatives are not implemented")
        return jvp(ctx, *tangents_and_mode[:-1])

    def function(base: type, **body: Any) -> Any:
        return type(op.name(), (base,), {k: staticmethod(v) for k, v in body.items()})

    # What Function.apply does where no transform is active, without what it asks anew each time.
    eager = function(torch.autograd.Function, forward=forward, backward=backward)
    apply = super(torch.autograd.Function, eager).apply
    # Inside the kernel a transform's tensors are tensors like any other, of one level.
    apply_in_kernel = function(
        torch.autograd.function._SingleLevelFunction,
        forward=forward_in_kernel,
        backward=backward_in_kernel,
        jvp=jvp_in_kernel,
    ).apply
    is_compiling = torch.compiler.is_compiling
    is_tracing = torch._C._is_tracing
    transforms_active = torch._C._are_functorch_transforms_active
    is_grad_enabled = torch.is_grad_enabled
    any_requires_grad = torch._C._any_requires_grad
    unwrap = functorch.unwrap_if_dead
    is_derivative = "backward" in op._opname
    is_batched_by_the_older_vmap = functorch.is_legacy_batchedtensor

    def autograd_kernel(*args: Any) -> Any:
        mode = _Mode(is_grad_enabled(), any(map(_has_tangent, args)))
        if mode.dual or (mode.grad and any_requires_grad(*args)):
            before = functorch.get_single_level_autograd_function_allowed()
            functorch.set_single_level_autograd_function_allowed(True)
            try:
                return apply_in_kernel(*args, mode)
            finally:
                functorch.set_single_level_autograd_function_allowed(before)
        return run(*args)

    library.impl(op._opname, autograd_kernel, "Autograd")

    def call(*args: Any) -> Any:
        if is_compiling() or transforms_active() or forward_ad._current_level >= 0 or is_tracing():
            return op(*args)
        if is_grad_enabled() and any_requires_grad(*args):
            # is_grads_batched: the graph belongs to the tensors inside, unseen by a Function.
            if is_derivative and any(
                is_batched_by_the_older_vmap(a) for a in args if isinstance(a, Tensor)
            ):
                return op(*args)
            return apply(*[unwrap(a) if isinstance(a, Tensor) else a for a in args])
        return run(*args)

    return call


class _Mode(NamedTuple):
    """How the kernel for the Autograd key was called."""

    grad: bool  # gradients are wanted
    dual: bool  # an argument has a tangent


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and _unpack_dual(value, level=0).tangent is not None
