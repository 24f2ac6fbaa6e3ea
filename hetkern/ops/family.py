"""Registers a family's ops in every namespace that serves them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from . import sharding
from .differentiable import differentiable

# Which namespace an implementation's ops live in. "cpu" and "cuda" are two dispatch keys of one.
NAMESPACES = {"cpu": "hetkern", "cuda": "hetkern", "triton": "hetkern_triton"}


class Derivative(NamedTuple):
    """How an op is differentiated; ``ops`` are the family's callables in the namespace at hand."""

    save: Callable[..., tuple]  # (ctx, inputs, output) -> the tensors to save
    backward: Callable[..., Any]  # (ops, ctx, *output_gradients)
    jvp: Callable[..., Any] | None = None  # (ops, ctx, *input_tangents)
    constant: tuple[int, ...] = ()  # outputs that nothing is differentiated by


class Op(NamedTuple):
    """One op: its schema, output shapes, derivative, and its rules for vmap and for DTensor."""

    schema: str
    fake: Callable[..., Any]
    derivative: Derivative | None = None
    vmap: Callable[..., Any] | None = None  # (op, info, in_dims, *args)
    sharding: sharding.Rule | None = None


class _Family(NamedTuple):
    name: str
    ops: tuple[Op, ...]
    served: dict[str, SimpleNamespace]  # implementation: the callables by op name


_families: list[_Family] = []
_libraries: dict[str, torch.library.Library] = {}


def register(name: str, *ops: Op) -> dict[str, SimpleNamespace]:
    """Define a family's ops in every namespace; return, per implementation, the callables by name.

    What serves them is native, or for Triton ``hetkern.triton.NAME``, imported by the first call.
    """
    family = _Family(name, ops, {})
    _families.append(family)
    for implementation, space in NAMESPACES.items():
        if implementation == "cuda":
            family.served["cuda"] = family.served["cpu"]
        else:
            _define(family, implementation, space)
    return family.served


def serve(implementation: str, space: str) -> None:
    """Define all families' ops in one more namespace, whose kernels somebody else registers."""
    for family in _families:
        _define(family, implementation, space)


def _define(family: _Family, implementation: str, space: str) -> None:
    if space not in _libraries:
        _libraries[space] = torch.library.Library(space, "DEF")
    library = _libraries[space]
    calls = family.served[implementation] = SimpleNamespace()
    for schema, fake, derivative, vmap, shards in family.ops:
        name = schema.split("(")[0]
        library.define(schema, tags=[torch.Tag.pt2_compliant_tag])
        op = getattr(getattr(torch.ops, space), name).default
        torch.library.register_fake(f"{space}::{name}", _on_one_device(op, fake), lib=library)
        if implementation == "triton":
            for key in ("CPU", "CUDA"):
                library.impl(name, _first_called(f"hetkern.triton.{family.name}", name), key)
        if vmap:
            torch.library.register_vmap(
                f"{space}::{name}", functools.partial(vmap, op), lib=library
            )
        if shards:
            sharding.add(op, shards)
        if derivative:
            setattr(calls, name, _with_derivative(op, library, derivative, calls))
        else:
            setattr(calls, name, op)


#: Arguments that the host reads, and that are on the CPU beside tensors of any device.
ON_THE_CPU = ("batch_sizes",)


def _on_one_device(op: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    """``fake``, but a tensor on another device than the first one's is refused.

    Kernels check it as well, but one tensor without data ("meta") is enough for torch to ask here.
    """
    names = [argument.name for argument in op._schema.arguments]

    def checked(*args: Any) -> Any:
        tensors = [(n, t) for n, t in zip(names, args, strict=False) if isinstance(t, torch.Tensor)]
        device = tensors[0][1].device
        for name, tensor in tensors:
            if tensor.device != device and not (name in ON_THE_CPU and tensor.is_cpu):
                raise ValueError(
                    f"{op.name()}: {name}: wanted a tensor on {device}, got one on {tensor.device}"
                )
        return fake(*args)

    return checked


def _first_called(module: str, name: str) -> Callable[..., Any]:
    """The function of that name, whose module is imported when it is called."""

    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return run


def _with_derivative(
    op: Any, library: torch.library.Library, derivative: Derivative, calls: SimpleNamespace
) -> Callable[..., Any]:
    # Plain functions: torch.compile's own autograd traces no functools.partial.
    def backward(ctx: Any, *gradients: Any) -> Any:
        return derivative.backward(calls, ctx, *gradients)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        assert derivative.jvp is not None
        return derivative.jvp(calls, ctx, *tangents)

    forward_mode = jvp if derivative.jvp else None
    return differentiable(op, library, derivative.save, backward, forward_mode, derivative.constant)
