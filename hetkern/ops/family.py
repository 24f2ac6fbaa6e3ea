"""Registers a family's ops in every namespace that serves them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from .differentiable import differentiable

# Which namespace an implementation's ops live in. "cpu" and "cuda" are two dispatch keys of one.
NAMESPACES = {"cpu": "hetkern"}
_libraries = {space: torch.library.Library(space, "DEF") for space in set(NAMESPACES.values())}


class Derivative(NamedTuple):
    """How an op is differentiated; ``ops`` are the family's callables in the namespace at hand."""

    save: Callable[..., None]  # (ctx, inputs, output)
    backward: Callable[..., Any]  # (ops, ctx, *output_gradients)
    jvp: Callable[..., Any] | None = None  # (ops, ctx, *input_tangents)


class Op(NamedTuple):
    """One op: its schema, its output shapes, its derivative, its batching rule."""

    schema: str
    fake: Callable[..., Any]
    derivative: Derivative | None = None
    vmap: Callable[..., Any] | None = None  # (op, info, in_dims, *args)


def register(*ops: Op) -> dict[str, SimpleNamespace]:
    """Define the ops in every namespace; return, per implementation, the callables by op name."""
    served = {}
    for space, library in _libraries.items():
        calls = served[space] = SimpleNamespace()
        for schema, fake, derivative, vmap in ops:
            name = schema.split("(")[0]
            library.define(schema, tags=[torch.Tag.pt2_compliant_tag])
            torch.library.register_fake(f"{space}::{name}", fake, lib=library)
            op = getattr(getattr(torch.ops, space), name).default
            if vmap:
                torch.library.register_vmap(
                    f"{space}::{name}", functools.partial(vmap, op), lib=library
                )
            if derivative:
                setattr(calls, name, _with_derivative(op, derivative, calls))
            else:
                setattr(calls, name, op)
    return {implementation: served[space] for implementation, space in NAMESPACES.items()}


def _with_derivative(op: Any, derivative: Derivative, calls: SimpleNamespace) -> Callable[..., Any]:
    backward = functools.partial(derivative.backward, calls)
    jvp = functools.partial(derivative.jvp, calls) if derivative.jvp else None
    return differentiable(op, derivative.save, backward, jvp)
