"""What a call of a whole sequence is refused for, by name; the ops check again what they read."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.rnn import GATES


def check_call(op, cell, x, states, weights, rows, options) -> int:
    """Raise unless all arguments agree; return the number of sequences."""
    if not x.is_floating_point():
        raise ValueError(f"{op}: x: wanted a floating dtype, got {x.dtype}")
    for name in ("dropout", "variational_dropout", "recurrent_dropout"):
        if not 0.0 <= getattr(options, name) < 1.0:
            wanted = f"{op}: {name}: wanted a probability in [0, 1)"
            raise ValueError(f"{wanted}, got {getattr(options, name)}")
    lengths, batch_sizes, reset = rows
    T, B = _sizes(op, x, states, batch_sizes, options)
    if T == 0:
        raise RuntimeError(f"{op}: x: wanted a sequence of at least one step, got none")
    if lengths is not None:
        if batch_sizes is not None:
            raise ValueError(f"{op}: lengths: wanted none beside batch_sizes")
        _check_integers(op, "lengths", lengths, (B,), x.device)
    if reset is not None:
        if reset.dtype != torch.bool:
            raise ValueError(f"{op}: reset: wanted a boolean tensor, got {reset.dtype}")
        _check_placed(op, "reset", reset, (B, T), x.device)
    P = _check_weights(op, cell, x, weights, options.bidirectional)
    H = weights[0][1].shape[0] // GATES[cell]
    for name, state, columns in zip(("h0", "c0"), states, (P, H), strict=False):
        if state is not None:
            _check_placed(op, name, state, (len(weights), B, columns), x.device)
            _check_dtype(op, name, state, x)
    return B


def _sizes(op, x, states, batch_sizes, options) -> tuple[int, int]:
    if batch_sizes is None:
        if x.dim() != 3:
            layout = "(B, T, I)" if options.batch_first else "(T, B, I)"
            raise ValueError(f"{op}: x: wanted shape {layout} or (T, I), got {tuple(x.shape)}")
        T, B, _ = x.shape if not options.batch_first else x.transpose(0, 1).shape
        return T, B
    if x.dim() != 2:
        raise ValueError(f"{op}: x: wanted packed rows (rows, I), got {tuple(x.shape)}")
    if batch_sizes.dim() != 1 or batch_sizes.is_floating_point() or not batch_sizes.is_cpu:
        raise ValueError(
            f"{op}: batch_sizes: wanted integers of shape (T,) on the CPU, got {batch_sizes.dtype} "
            f"of shape {tuple(batch_sizes.shape)} on {batch_sizes.device}"
        )
    state = next((s for s in states if s is not None), None)
    if state is not None:
        return batch_sizes.shape[0], state.shape[1]
    return batch_sizes.shape[0], int(batch_sizes[0]) if batch_sizes.shape[0] else 0


def _check_weights(op, cell, x, weights, bidirectional) -> int:
    """The state's width, once every weight has the shape that it follows."""
    directions = 2 if bidirectional else 1
    if len(weights) == 0 or len(weights) % directions:
        raise ValueError(
            f"{op}: weights: wanted one tuple for each layer and direction, got {len(weights)}"
        )
    columns, P = x.shape[-1], weights[0][1].shape[-1]
    H = weights[0][1].shape[0] // GATES[cell]
    for k, layer in enumerate(weights):
        if len(layer) not in (4, 5) or (len(layer) == 5 and cell != "lstm"):
            more = ", with w_hr for a projection" if cell == "lstm" else ""
            raise ValueError(
                f"{op}: weights[{k}]: wanted (w_ih, w_hh, b_ih, b_hh){more}, got {len(layer)}"
            )
        rows = GATES[cell] * H
        wide = columns if k < directions else directions * P
        shapes = ((rows, wide), (rows, P), (rows,), (rows,), (P, H))
        names = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
        for name, weight, shape in zip(names, layer, shapes, strict=False):
            if weight is not None:
                _check_placed(op, f"weights[{k}]: {name}", weight, shape, x.device)
                _check_dtype(op, f"weights[{k}]: {name}", weight, x)
    if (P < H) != (len(weights[0]) == 5) or P > H:
        raise ValueError(
            f"{op}: weights: wanted w_hr (P, H) with P below H and only then, got w_hh with "
            f"{P} columns for H {H}"
        )
    return P


def _check_integers(op, name, t: Tensor, shape, device) -> None:
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise ValueError(f"{op}: {name}: wanted integers, got {t.dtype}")
    _check_placed(op, name, t, shape, device)


def _check_placed(op, name, t: Tensor, shape, device) -> None:
    if tuple(t.shape) != tuple(shape):
        raise ValueError(f"{op}: {name}: wanted shape {tuple(shape)}, got {tuple(t.shape)}")
    if t.device != device:
        raise ValueError(f"{op}: {name}: wanted a tensor on {device}, got one on {t.device}")


def _check_dtype(op, name, t: Tensor, x: Tensor) -> None:
    if t.dtype != x.dtype and (x.is_meta or not torch.is_autocast_enabled(x.device.type)):
        raise ValueError(f"{op}: {name}: wanted {x.dtype}, got {t.dtype}")
