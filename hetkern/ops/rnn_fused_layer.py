"""A layer of an eager call on the CPU in one op each way: input product, walk, all gradients.

The same as the input product and the sequence after one another, for float32 and float64. A short
sequence takes less time than the dispatch of its products, sums and views, and torch's products of
such sizes are slower than the walk's own. Whatever is traced, transformed or differentiated twice
takes the two ways of rnn_layers.py and of torch, whose derivatives are these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.rnn import CELLS
from .differentiable import forward_ad, functorch

# ---- The ops: for the CPU alone, seen by no tracer, without derivatives of their own. ------------

_WHERE = "Tensor? lengths, Tensor? batch_sizes, Tensor? reset, bool reverse"
_library = torch.library.Library("hetkern", "FRAGMENT")
_library.define(
    "rnn_layer(int cell, Tensor x, Tensor w_ih, Tensor? b_ih, Tensor w_hh, Tensor? b_hh, "
    f"Tensor? h0, Tensor? c0, {_WHERE}, bool save) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)"
)
_library.define(
    "rnn_layer_backward(int cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor y, Tensor gates, "
    "Tensor cells, Tensor x, Tensor w_ih, Tensor w_hh, Tensor? h0, Tensor? c0, "
    f"{_WHERE}, int asked) -> (Tensor dx, Tensor dw_ih, Tensor db_ih, Tensor dw_hh, "
    "Tensor db_hh, Tensor dh0, Tensor dc0)"
)
_ops = torch.ops.hetkern
_below_autograd = torch._C._AutoDispatchBelowAutograd
_any_requires_grad = torch._C._any_requires_grad
_transforms_active = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_PLAIN = (Tensor, torch.nn.Parameter)


class Layer(NamedTuple):
    """One layer in one direction, beside its tensors."""

    cell: str
    reverse: bool
    by_nodes: Any  # (cell, reverse, *tensors) -> y, h_n, c_n, by the ops that are differentiable


def serves(x: Tensor, weights: Any) -> bool:
    """Whether a call is eager, of plain tensors on the CPU, and of float32 or float64."""
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and type(x) in _PLAIN
        and all(w is None or type(w) in _PLAIN for layer in weights for w in layer)
        and not _transforms_active()
        and forward_ad._current_level < 0
        and not _modes()
    )


def run(layer: Layer, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n and c_n.

    ``tensors`` are x, w_ih, b_ih, w_hh, b_hh, h0, c0, lengths, batch_sizes, reset; h0 and c0 may be
    None for zeros.
    """
    if torch.is_grad_enabled() and _any_requires_grad(*tensors):
        plain = [t if t is None else functorch.unwrap_if_dead(t) for t in tensors]
        return _apply(layer, *plain)
    return _forward(layer, tensors, False)[:3]


def _forward(layer, tensors, save):
    with _below_autograd():
        return _ops.rnn_layer(CELLS.index(layer.cell), *tensors, layer.reverse, save)


def _forward_and_save(ctx, layer, *tensors):
    ctx.set_materialize_grads(False)
    y, h_n, c_n, gates, cells = _forward(layer, tensors, True)
    ctx.layer = layer
    ctx.save_for_backward(*tensors, y, gates, cells)
    if layer.cell != "lstm":
        ctx.mark_non_differentiable(c_n)
    return y, h_n, c_n


def _backward(ctx, dy, dh_n, dc_n):
    layer = ctx.layer
    lstm = layer.cell == "lstm"
    if dy is None and dh_n is None and (dc_n is None or not lstm):
        return (None,) * 11
    *tensors, y, gates, cells = ctx.saved_tensors
    if torch.is_grad_enabled():
        return None, *_differentiable_gradients(layer, tensors, (dy, dh_n, dc_n))
    x, w_ih, _, w_hh, _, *states_and_rows = tensors
    needs = ctx.needs_input_grad
    asked = sum(1 << k for k in range(5) if needs[k + 1])
    with _below_autograd():
        *gradients, dh0, dc0 = _ops.rnn_layer_backward(
            CELLS.index(layer.cell),
            dy,
            dh_n,
            dc_n if lstm else None,
            y,
            gates,
            cells,
            x,
            w_ih,
            w_hh,
            *states_and_rows,
            layer.reverse,
            asked,
        )
    return (
        None,
        *(g if needs[k + 1] else None for k, g in enumerate(gradients)),
        dh0 if needs[6] else None,
        dc0 if lstm and needs[7] else None,
        *(None,) * 3,
    )


def _differentiable_gradients(layer, tensors, upstream):
    """Gradients as functions of every input."""
    # Other names for the inputs, so that what one of them was made from gets no gradient here.
    named = [t.view_as(t) if t is not None and t.is_floating_point() else t for t in tensors]
    B = tensors[0].shape[-2] if tensors[8] is None else int(tensors[8][0])
    for k in (5, 6) if layer.cell == "lstm" else (5,):
        if named[k] is None:
            named[k] = tensors[0].new_zeros(B, tensors[3].shape[-1])
    outputs = layer.by_nodes(layer.cell, layer.reverse, *named)
    asked = [t for t in named if t is not None and t.requires_grad]
    used = [(o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in used], asked, [g for _, g in used], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if t is not None and t.requires_grad else None for t in named]


def _node(base: type) -> Any:
    body = {"forward": staticmethod(_forward_and_save), "backward": staticmethod(_backward)}
    return type("hetkern::rnn_layer", (base,), body)


# What Function.apply does where no transform is active, without what it asks anew each time.
_apply = super(torch.autograd.Function, _node(torch.autograd.Function)).apply
