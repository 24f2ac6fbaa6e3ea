"""The derivatives of the cross-entropy family's ops, and how they batch under torch.vmap.

(the equations: csrc/cross_entropy.h) First order runs in the backward op. Forward mode and second
order are composed of torch's own differentiable operations on ``log_softmax(z)``, so that
derivatives of any order exist; they take tensors of the logits' size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.scores import scaled_scores
from .batching import batch_rows
from .cross_entropy_by_rows import counts

# ---- First order. --------------------------------------------------------------------------------


def save(ctx, inputs, output):
    """Keep what backward needs: the logits, and two numbers a row (class probabilities: four)."""
    x, target, weight, dim, ignore_index, _, label_smoothing, scale, softcap, z_loss = inputs
    _, saved, divisors, *stats = output
    entropy = stats[3] if stats else None
    ctx.options = dim, ignore_index, label_smoothing, scale, softcap, z_loss
    ctx.reduced = inputs[5] != 0
    return x, target, weight, saved, divisors, entropy


def backward(ops, ctx, d_loss, _saved, _divisors, *d_stats):
    """Gradients of the logits and of class probabilities."""
    x, target, weight, saved, divisors, entropy = ctx.saved_tensors
    upstream = (d_loss, *d_stats[:5]) if d_stats else (d_loss, None, None, None, None, None)
    arguments = (*upstream, x, target, weight, saved, divisors, entropy, *ctx.options)
    if ctx.needs_input_grad[1]:
        dx, d_target = ops.cross_entropy_backward_target(*arguments)
    else:
        dx, d_target = ops.cross_entropy_backward(*arguments), None
    return dx, d_target, None, None, None, None, None, None, None, None


def save_backward(ctx, inputs, output):
    """Keep the backward op's own inputs for its derivative."""
    upstream, (x, target, weight, _, divisors, _) = inputs[:6], inputs[6:12]
    ctx.options = inputs[12:]
    return *upstream, x, target, weight, divisors


# ---- The rows' terms as functions of the logits. -------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """What the contract's equations are made of, in the accumulation dtype."""

    log_p: Tensor
    p: Tensor
    slope: Tensor | float  # dz/dx
    curve: Tensor | float  # d²z/dx²
    counted: Tensor | None  # None: all
    index: Tensor | None  # of the class, the class dimension kept; None for probabilities
    q: Any  # class probabilities; None for indices
    w: Tensor | float  # class weights, broadcasting to the logits
    lse: Tensor
    entropy: Tensor
    dim: int
    label_smoothing: float
    z_loss: float

    def count(self, row: Tensor) -> Tensor:
        """0 where the row is ignored."""
        return row if self.counted is None else torch.where(self.counted, row, 0.0)

    def along_q(self, g: Tensor) -> Tensor:
        """sum_j q_j g_j."""
        if self.index is not None:
            return g.gather(self.dim, self.index).squeeze(self.dim)
        return (self.q * g).sum(self.dim)

    def along_t(self, g: Tensor) -> Tensor:
        """sum_j t_j g_j."""
        weighted, eps = self.w * g, self.label_smoothing
        sharp = (1 - eps) * self.along_q(weighted)
        return sharp + eps / g.shape[self.dim] * weighted.sum(self.dim) if eps else sharp

    def spread(self, row: Tensor) -> Tensor:
        """A row's value for each of its columns."""
        return row.unsqueeze(self.dim)


def _rows(x, target, weight, dim, ignore_index, label_smoothing, scale, softcap, z_loss) -> _Rows:
    dim = dim % x.dim() - x.dim()  # from the end: a batched call has divisors of fewer dimensions
    z = scaled_scores(x, scale, softcap or None)
    slope, curve = scale, 0.0
    if softcap:
        t = z / softcap
        slope = scale * (1 - t * t)
        curve = -2 * scale / softcap * t * slope
    log_p = torch.log_softmax(z, dim)
    p = log_p.exp()
    counted = index = q = None
    if target.is_floating_point():
        q = target.to(z.dtype)
    else:
        counted = target != ignore_index
        index = torch.where(counted, target, 0).unsqueeze(dim)
    w: Tensor | float = 1.0
    if weight is not None:
        w = weight.reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    lse = torch.logsumexp(z, dim)
    entropy = -(p * _finite(log_p)).sum(dim)
    return _Rows(
        log_p, p, slope, curve, counted, index, q, w, lse, entropy, dim, label_smoothing, z_loss
    )


def _finite(log_p: Tensor) -> Tensor:
    """A class of probability 0 adds 0 to an entropy."""
    return torch.where(log_p == -torch.inf, 0.0, log_p)


class _Tangents(NamedTuple):
    """Directional derivatives of the rows' terms and statistics."""

    row: Tensor
    z_term: Tensor
    lse: Tensor
    entropy: Tensor
    log_prob: Tensor


def _tangents(r: _Rows, x_t: Tensor | None, q_t: Tensor | None) -> _Tangents:
    """Along ``x_t`` in the logits and ``q_t`` in the class probabilities."""
    g = torch.zeros_like(r.p) if x_t is None else x_t * r.slope
    ones = torch.ones_like(g)
    lse = (r.p * g).sum(r.dim)
    row = r.along_t(ones) * lse - r.along_t(g)
    entropy = -(r.p * g * (_finite(r.log_p) + r.spread(r.entropy))).sum(r.dim)
    log_prob = r.along_q(g) - r.along_q(ones) * lse
    if q_t is not None:
        row = row - (1 - r.label_smoothing) * (r.w * q_t * r.log_p).sum(r.dim)
        log_prob = log_prob + (q_t * r.log_p).sum(r.dim)
    return _Tangents(
        r.count(row), r.count(2 * r.z_loss * r.lse * lse), lse, entropy, r.count(log_prob)
    )


def _divisors(divisors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """D_0 and D_1, broadcasting to the rows."""
    d0, d1 = divisors.unbind(dim)
    return d0, d1


# ---- Forward mode. -------------------------------------------------------------------------------


def jvp(ops, ctx, x_t, q_t, *_constants):
    """Tangents of the loss and of every statistic."""
    x, target, weight, saved, divisors, stats = ctx.saved_tensors
    r = _rows(x, target, weight, *ctx.options)
    t = _tangents(r, x_t, q_t)
    d0, d1 = _divisors(divisors, r.dim)
    loss = t.row / d0 + t.z_term / d1
    if ctx.reduced:
        loss = loss.sum()
    constant = torch.zeros_like(saved), torch.zeros_like(divisors)
    if stats is None:
        return loss, *constant
    return loss, *constant, t.row + t.z_term, t.lse, t.z_term, t.entropy, t.log_prob, None


# ---- Second order. -------------------------------------------------------------------------------


def double_backward(ops, ctx, g_dx, g_dq=None):
    """Gradients of ``sum g_dx dx + sum g_dq dq`` by every gradient from above, x and target."""
    *upstream, x, target, weight, divisors = ctx.saved_tensors
    wants = ctx.needs_input_grad
    r = _rows(_without_ignored(upstream, x, target, ctx.options), target, weight, *ctx.options)
    d0, d1 = _divisors(divisors, r.dim)
    gradients: list[Any] = [None] * 18

    # dx and dq are linear in what comes from above: its gradients are the terms' derivatives along
    # g_dx and g_dq.
    if any(wants[:6]):
        t = _tangents(r, g_dx, g_dq)
        along = (
            t.row / d0 + t.z_term / d1,
            t.row + t.z_term,
            t.lse,
            t.z_term,
            t.entropy,
            t.log_prob,
        )
        for i, (given, gradient) in enumerate(zip(upstream, along, strict=True)):
            if wants[i]:
                gradients[i] = gradient.sum_to_size(given.shape)
    if wants[6] or wants[7]:
        by_x, by_q = _along(r, _coefficients(r, upstream, d0, d1), g_dx, g_dq)
        gradients[6] = by_x.to(x.dtype) if wants[6] else None
        gradients[7] = by_q.to(target.dtype) if wants[7] else None
    return tuple(gradients)


def jvp_backward(ops, ctx, *tangents):
    """Tangents of ``dx`` and ``dq``: forward mode over reverse mode."""
    *upstream, x, target, weight, divisors = ctx.saved_tensors
    upstream_t, x_t, q_t = tangents[:6], tangents[6], tangents[7]
    asked = [u if t is None else t for u, t in zip(upstream, upstream_t, strict=True)]
    r = _rows(_without_ignored(asked, x, target, ctx.options), target, weight, *ctx.options)
    d0, d1 = _divisors(divisors, r.dim)
    # The gradients are linear in what comes from above, and the rows' Hessian is symmetric.
    c = _coefficients(r, upstream_t, d0, d1)
    dx, dq = _dz(r, c) * r.slope, c.k * r.log_p
    if x_t is not None or q_t is not None:
        along_x, along_q = _along(r, _coefficients(r, upstream, d0, d1), x_t, q_t)
        dx, dq = dx + along_x, dq + along_q
    return dx.to(x.dtype), dq.to(x.dtype)


def jvp_backward_of_logits(ops, ctx, *tangents):
    """The same where ``dx`` is the only output."""
    return jvp_backward(ops, ctx, *tangents)[0]


def _without_ignored(upstream: Any, x: Tensor, target: Tensor, options: Any) -> Tensor:
    """Without its own lse or entropy an ignored row does not matter, whatever it holds."""
    if upstream[2] is not None or upstream[4] is not None or target.is_floating_point():
        return x
    dim, ignore_index = options[:2]
    return torch.where((target != ignore_index).unsqueeze(dim), x, 0.0)


class _Coefficients(NamedTuple):
    """What reaches the rows' terms, by the contract's names, for each of their columns."""

    u: Tensor
    v: Tensor
    a: Tensor
    h: Tensor  # g_H
    k: Tensor


def _coefficients(r: _Rows, upstream: Any, d0: Tensor, d1: Tensor) -> _Coefficients:
    d_loss, d_row, d_lse, d_z, d_entropy, d_log_prob = (0.0 if u is None else u for u in upstream)
    zero = torch.zeros_like(r.lse)
    u = r.count(zero + d_loss / d0 + d_row)
    v = r.count(zero + d_loss / d1 + d_row + d_z)
    s = r.count(zero + d_log_prob)
    h = zero + d_entropy
    ones = torch.ones_like(r.p)
    a = u * r.along_t(ones) + 2 * r.z_loss * r.lse * v + d_lse - s * r.along_q(ones) - h * r.entropy
    k = r.spread(s) - r.spread(u) * (1 - r.label_smoothing) * r.w
    return _Coefficients(r.spread(u), r.spread(v), r.spread(a), r.spread(h), k)


def _dz(r: _Rows, c: _Coefficients) -> Tensor:
    """The gradient of the scores."""
    dz = r.p * (c.a - c.h * _finite(r.log_p))
    if r.label_smoothing:
        dz = dz - c.u * r.label_smoothing / dz.shape[r.dim] * r.w
    if r.index is None:
        return dz + r.q * c.k
    return dz.scatter_add(r.dim, r.index, (c.k + torch.zeros_like(dz)).gather(r.dim, r.index))


def _along(r: _Rows, c: _Coefficients, g_dx: Any, g_dq: Any) -> tuple[Tensor, Tensor]:
    """The Hessian of the rows' terms by logits and probabilities, times ``(g_dx, g_dq)``."""
    log_p = _finite(r.log_p)
    g = torch.zeros_like(r.p) if g_dx is None else g_dx * r.slope
    mean = r.spread((r.p * g).sum(r.dim))
    b = r.spread((r.p * g * log_p).sum(r.dim))
    by_z = r.p * (
        c.a * (g - mean)
        + mean * (2 * r.z_loss * c.v + c.h * (log_p + r.spread(r.entropy)))
        - c.h * (g * (log_p + 1) - b - mean)
    )
    if g_dq is not None:
        by_z = by_z + g_dq * c.k - r.p * (g_dq * c.k).sum(r.dim, keepdim=True)
    by_x = by_z * r.slope
    if g_dx is not None and isinstance(r.curve, Tensor):
        by_x = by_x + g_dx * r.curve * _dz(r, c)
    return by_x, c.k * (g - mean)


# ---- torch.vmap: the batch becomes one more dimension of rows. -----------------------------------


def batch_forward(
    op,
    info,
    in_dims,
    x,
    target,
    weight,
    dim,
    ignore_index,
    reduction,
    label_smoothing,
    scale,
    softcap,
    z_loss,
):
    """One call without reduction for the whole batch; each sample's rows are reduced after it."""
    if in_dims[2] is not None:
        raise NotImplementedError(f"{op.name()}: vmap over class weights is not implemented")

    def batched(t, at):
        return t.unsqueeze(0).expand(info.batch_size, *t.shape) if at is None else t.movedim(at, 0)

    x, target = batched(x, in_dims[0]), batched(target, in_dims[1])
    dim = dim % (x.dim() - 1) + 1
    splits = reduction == 1 and z_loss != 0.0  # a mean divides the two terms by different numbers
    run = getattr(torch.ops, op.namespace).cross_entropy_stats.default if splits else op
    loss, saved, ones, *stats = run(
        x, target, weight, dim, ignore_index, 0, label_smoothing, scale, softcap, z_loss
    )
    divisors = ones.expand(info.batch_size, *ones.shape[1:])
    if reduction == 1:
        d0, d1 = map(_sum_rows, counts(loss, target, weight, ignore_index))
        z_term = stats[2] if splits else torch.zeros_like(loss)
        loss = _sum_rows(loss - z_term) / d0 + (_sum_rows(z_term) / d1 if splits else 0.0)
        divisors = torch.stack([d0, d1], 1).reshape(divisors.shape)
    elif reduction == 2:
        loss = _sum_rows(loss)
    outputs = (loss, saved, divisors, *stats)[: len(op._schema.returns)]
    return outputs, (0,) * len(outputs)


def _sum_rows(rows: Tensor) -> Tensor:
    """The sum of each sample's rows."""
    return rows.flatten(1).sum(1) if rows.dim() > 1 else rows


def batch_backward(op, info, in_dims, *args):
    """Upstream gradients, saved values and divisors carry the batch like the logits do."""
    if in_dims[8] is not None:
        raise NotImplementedError(f"{op.name()}: vmap over class weights is not implemented")
    rows = 0, 1, 2, 3, 4, 5, 11
    if args[7].is_floating_point():
        rule = batch_rows(full=(6, 7, 9), broadcast=(10,), rows=rows, dim=12)
    else:
        rule = batch_rows(full=(6, 9), full_rows=(7,), broadcast=(10,), rows=rows, dim=12)
    return rule(op, info, in_dims, *args)
