"""Whole sequences of the RNN family: layers and directions over one op each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import impl as _impl
from ..reference import rnn as reference
from ..reference.packed_rows import PackedRows, packed_rows
from ..reference.rnn import CELLS, GATES, accumulator_of
from . import arguments, philox, rnn_fused_layer
from .products import linear
from .rnn import OPS
from .rnn_checks import check_call
from .rnn_derivatives import gates_by

Weights = Sequence[Sequence[Tensor | None]]


class Options(NamedTuple):
    """What a call asks for beside tensors."""

    bidirectional: bool
    batch_first: bool
    dropout: float
    variational_dropout: float
    recurrent_dropout: float


class Rows(NamedTuple):
    """How the rows of a call lie in time; time-major."""

    lengths: Tensor | None  # (B,) int64
    batch_sizes: Tensor | None  # (T,) int64 on the CPU
    reset: Tensor | None  # (T, B), or packed (rows,)
    packed: PackedRows | None  # where packed rows belong, if somebody asks


def run(
    op: str,
    cell: str,
    x: Tensor,
    states: tuple[Tensor | None, ...],
    weights: Weights,
    rows: tuple[Tensor | None, Tensor | None, Tensor | None],
    options: Options,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All layers and directions; ``rows`` is (lengths, batch_sizes, reset) as given."""
    arguments.tensor(op, "x", x)
    if torch.jit.is_tracing():
        raise NotImplementedError(
            f"{op}: torch.jit.trace: wanted torch.export or torch.compile, which take it"
        )
    ops: SimpleNamespace | None = _impl.choose(op, OPS, x, impl)
    lengths, batch_sizes, reset = rows
    named = ("lengths", lengths), ("batch_sizes", batch_sizes), ("reset", reset)
    for name, t in (*named, *zip(("h0", "c0"), states, strict=False)):
        if t is not None:
            arguments.tensor(op, name, t)
    unbatched = batch_sizes is None and x.dim() == 2
    if unbatched:
        x = x.unsqueeze(0 if options.batch_first else 1)
        states = tuple(s if s is None else s.unsqueeze(1) for s in states)
        lengths = lengths if lengths is None or lengths.dim() else lengths.unsqueeze(0)
        reset = None if reset is None else reset.unsqueeze(0)
    B = check_call(op, cell, x, states, weights, (lengths, batch_sizes, reset), options)
    if batch_sizes is None and options.batch_first:
        x = x.transpose(0, 1)

    x, h0, c0, weights = _in_one_dtype(cell, x, states, weights)
    fused = (
        ops is OPS["cpu"]
        and len(weights[0]) == 4
        and options.recurrent_dropout == 0
        and rnn_fused_layer.serves(x, weights)
    )
    if not fused:
        h0, c0 = _or_zeros(cell, x, h0, c0, weights, B)
    at = _rows(x, B, lengths, batch_sizes, reset, options)
    if at.lengths is not None:  # NaN in the padding would be NaN in the weights' gradient
        x = torch.where(_there(x, at.lengths)[..., None], x, 0.0)

    y, h_n, c_n = _layers(ops, cell, x, h0, c0, weights, at, B, options, fused)
    if c_n is not None and c_n.dtype is not y.dtype:
        c_n = c_n.to(y.dtype)
    if batch_sizes is None and options.batch_first:
        y = y.transpose(0, 1)
    if unbatched:
        y = y.squeeze(0 if options.batch_first else 1)
        h_n, c_n = h_n.squeeze(1), c_n if c_n is None else c_n.squeeze(1)
    return y, h_n, c_n


def _layers(ops, cell, x, h0, c0, weights, at, B, options, fused):
    """Time-major x through every layer."""
    directions = 2 if options.bidirectional else 1
    layers = len(weights) // directions
    draws = options.variational_dropout > 0 or options.recurrent_dropout > 0
    seed: Any = philox.seed(x.device) if draws else None
    h_ends, c_ends = [], []
    for layer in range(layers):
        if layer and options.dropout > 0:
            x = F.dropout(x, options.dropout, training=True)
        if options.variational_dropout > 0:
            shape = B, x.shape[-1]
            mask = philox.keep_mask(seed, shape, options.variational_dropout, 2 * layer, x)
            x = x * (mask if at.packed is None else at.packed.of_sequences(mask))
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            w_ih, w_hh, b_ih, b_hh, *w_hr = weights[k]
            h_mask = None
            if options.recurrent_dropout > 0:
                stream = 2 * k + 1
                h_mask = philox.keep_mask(
                    seed, tuple(h0[k].shape), options.recurrent_dropout, stream, x
                )
            reverse = direction == 1
            reset = at.reset
            if reset is not None and reverse:
                reset = _reset_backwards(reset, at)
            h, c = (None if s is None else s[k] for s in (h0, c0))
            given = x, w_ih, b_ih, w_hh, b_hh, h, c, at.lengths, at.batch_sizes, reset
            if fused:
                node = rnn_fused_layer.Layer(cell, reverse, functools.partial(_layer, ops))
                y, h_n, c_n = rnn_fused_layer.run(node, *given)
            else:
                w_hr = w_hr[0] if w_hr else None
                y, h_n, c_n = _layer(ops, cell, reverse, *given, h_mask, w_hr)
            outputs.append(y)
            h_ends.append(h_n)
            c_ends.append(c_n)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    return x, torch.stack(h_ends), torch.stack(c_ends) if cell == "lstm" else None


def _project(x, w_ih, b_ih):
    """The input product of all steps, in the order in which x lies in memory.

    Of other rows torch's linear rounds a product of 16 bits before it adds the bias.
    """
    if x.dim() == 3 and not x.is_contiguous():
        if x.transpose(0, 1).is_contiguous():
            return linear(x.transpose(0, 1), w_ih, b_ih).transpose(0, 1)
        x = x.contiguous()
    return linear(x, w_ih, b_ih)


def _layer(
    ops,
    cell,
    reverse,
    x,
    w_ih,
    b_ih,
    w_hh,
    b_hh,
    h0,
    c0,
    lengths,
    batch_sizes,
    reset,
    h_mask=None,
    w_hr=None,
):
    """One layer in one direction: the input product of all steps, and the walk."""
    x_gates = _project(x, w_ih, b_ih)
    if ops is None or w_hr is not None:
        return reference.rnn_sequence(
            cell,
            x_gates,
            w_hh,
            b_hh,
            h0,
            c0,
            w_hr=w_hr,
            lengths=lengths,
            batch_sizes=batch_sizes,
            h_mask=h_mask,
            reset=reset,
            reverse=reverse,
            gates=reference.rnn_gates if ops is None else gates_by(ops),
        )
    save = torch.is_grad_enabled()
    where = lengths, batch_sizes, h_mask, reset
    y, h_n, c_n, _, _ = ops.rnn_sequence(
        CELLS.index(cell), x_gates, w_hh, b_hh, h0, c0, *where, reverse, save
    )
    return y, h_n, c_n if cell == "lstm" else None


def _there(rows, lengths):
    """(T, B): where a time-major tensor's steps are within their rows."""
    return torch.arange(rows.shape[0], device=rows.device)[:, None] < lengths


def _reset_backwards(reset, at):
    """A state that may not pass from step t - 1 to t may not pass from t to t - 1 either.

    Behind a row's end is no step that a state could come from, whatever ``reset`` says there.
    """
    if at.packed is not None:
        reset = at.packed.padded(reset)
    elif at.lengths is not None:
        reset = reset & _there(reset, at.lengths)
    back = torch.cat([reset[1:], torch.zeros_like(reset[:1])])
    return back if at.packed is None else at.packed.packed(back)


def _rows(x, B, lengths, batch_sizes, reset, options) -> Rows:
    packed = None
    if batch_sizes is not None:
        batch_sizes = batch_sizes.to(torch.int64)
        if reset is not None or options.variational_dropout > 0:
            packed = packed_rows(batch_sizes, x.shape[0], B, x.device)
    if lengths is not None:
        lengths = lengths.to(torch.int64)
    if reset is not None:
        reset = reset.t()
        if packed is not None:
            reset = packed.packed(reset)
    return Rows(lengths, batch_sizes, reset, packed)


def _in_one_dtype(cell, x, states, weights):
    """Everything that is there in x's dtype, under autocast in its."""
    device = x.device.type
    dtype = x.dtype
    if not x.is_meta and torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
        weights = [[w if w is None else w.to(dtype) for w in layer] for layer in weights]
    h0, c0 = (*states, None)[:2]
    if h0 is not None:
        h0 = h0.to(dtype)
    if c0 is not None:
        c0 = c0.to(accumulator_of(dtype))
    return x, h0, c0, weights


def _or_zeros(cell, x, h0, c0, weights, B):
    """States of zeros where there are none."""
    _, w_hh, _, _, *w_hr = weights[0]
    H = w_hh.shape[0] // GATES[cell]
    if h0 is None:
        h0 = x.new_zeros(len(weights), B, w_hr[0].shape[0] if w_hr else H)
    if cell == "lstm" and c0 is None:
        c0 = h0.new_zeros(len(weights), B, H, dtype=accumulator_of(x.dtype))
    return h0, c0


def plan(impl: str, x: Tensor, *args: Any, cell: str, weights: Weights, **named: Any) -> dict:
    """The plan of the first layer's forward pass."""
    packed, lengths = named.get("batch_sizes"), named.get("lengths")
    if packed is not None:
        T, B = packed.shape[0], int(packed[0]) if packed.shape[0] else 0
    else:
        sizes = x.shape[:-1] if x.dim() == 3 else (x.shape[0], 1)
        T, B = reversed(sizes) if named.get("batch_first") and x.dim() == 3 else sizes
    w_hh = weights[0][1]
    if impl == "triton" and w_hh is not None:
        from ..triton.rnn_tiles import plan as tiles

        return {"path": "step_by_step", **tiles(B, w_hh.shape[0] // GATES[cell], x.dtype)}
    native = _impl.native
    if impl not in ("cpu", "cuda") or native is None:
        return {}
    isa = {"isa": native.isa()} if impl == "cpu" else {}
    if w_hh is None or len(weights[0]) > 4:
        return isa | {"path": "step_by_step"}
    shape = cell, T, B, w_hh.shape[1]
    ragged = packed is not None or lengths is not None
    dtype = str(x.dtype).removeprefix("torch.")
    plan_of = native.rnn_plan if impl == "cpu" else native.rnn_plan_cuda
    return isa | plan_of(*shape, dtype, ragged, False)
