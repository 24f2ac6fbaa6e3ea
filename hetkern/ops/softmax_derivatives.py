"""The derivatives of the softmax family's ops: backward, double backward, forward mode.

In each, ``y`` is the output, ``p`` the probability (``exp(y)`` for log-softmax), ``z`` the scores.
"""

from __future__ import annotations

import math

import torch

# ---- softmax: x, dim, dtype, scale, softcap, bias, mask, causal, log -> y ------------------------


def save(ctx, inputs, y, *more):
    """Keep ``y``; ``x`` for the slope of a softcap; the mask."""
    x, dim, _, scale, softcap, bias, mask, causal, log = inputs
    ctx.options = dim, x.dtype, scale, softcap, causal, log
    ctx.bias_shape = None if bias is None else bias.shape
    return y, x if softcap else None, mask, *more


def backward(ops, ctx, dy):
    """Gradients of ``x`` and ``bias``."""
    if dy is None:
        return (None,) * 9
    y, x, mask = ctx.saved_tensors
    dx, dbias = _score_gradients(ops, ctx, dy, y, x, mask)
    return dx, None, None, None, None, dbias, None, None, None


def jvp(ops, ctx, x_t, _dim, _dtype, _scale, _softcap, bias_t, _mask, _causal, _log):
    """Tangent of ``y``."""
    y, x, mask = ctx.saved_tensors
    z_t, p = _score_tangent(ctx, y, x, x_t, bias_t)
    return _output_tangent(ctx, y, mask, z_t, p, (p * z_t).sum(ctx.options[0], keepdim=True))


# ---- softmax_sink: the same and sink -> y, y_sink ------------------------------------------------


def save_sink(ctx, inputs, output):
    """Keep what :func:`save` does, and the sink's own output."""
    *plain, sink = inputs
    ctx.sink_shape = sink.shape
    return save(ctx, plain, *output)


def backward_sink(ops, ctx, dy, dy_sink):
    """Gradients of ``x``, ``bias`` and ``sink``."""
    y, x, mask, y_sink = ctx.saved_tensors
    dim, dtype, *_, log = ctx.options
    if dy is None:
        dy = torch.zeros_like(y)
    # The sink's column is one more term of the row's sum, and gets its share of that sum.
    p_sink = y_sink.exp() if log else y_sink
    keep = _kept(y.shape, mask, ctx.options[4], y.device) if log else None
    if keep is not None:  # the logarithm of an emptied row is -inf whatever the sink
        p_sink = p_sink * keep.expand(y.shape).any(dim)
    terms = dy if log else dy.to(p_sink.dtype) * y
    total = _sum(terms.double(), dim).to(p_sink.dtype)
    from_sink = None
    if dy_sink is not None:
        from_sink = dy_sink if log else dy_sink * y_sink
        total = total + from_sink
    dx, dbias = _score_gradients(ops, ctx, dy, y, x, mask, None if log else y_sink, from_sink)
    dsink = -p_sink * total
    if dy_sink is not None:
        dsink = dsink + from_sink
    dsink = _sum_to_size(dsink.to(dtype), ctx.sink_shape)
    return dx, None, None, None, None, dbias, None, None, None, dsink


def jvp_sink(ops, ctx, x_t, _dim, _dtype, _scale, _softcap, bias_t, _mask, _causal, _log, sink_t):
    """Tangents of ``y`` and ``y_sink``."""
    y, x, mask, y_sink = ctx.saved_tensors
    dim, *_, log = ctx.options
    z_t, p = _score_tangent(ctx, y, x, x_t, bias_t)
    p_sink = y_sink.exp() if log else y_sink
    s_t = torch.zeros_like(p_sink) if sink_t is None else sink_t.expand(p_sink.shape)
    mean = (p * z_t).sum(dim, keepdim=True) + (p_sink * s_t).unsqueeze(dim)
    y_sink_t = (s_t - mean.squeeze(dim)) * (1 if log else p_sink)
    return _output_tangent(ctx, y, mask, z_t, p, mean), y_sink_t


# ---- softmax_backward: dy, y, x, dim, dtype of x, scale, softcap, mask, causal, log, y_sink -> dx
# y_sink is what y lacks to a sum of 1: it helps with rounding, and dx does not depend on it.


def save_backward(ctx, inputs, output):
    """Keep every tensor."""
    dy, y, x, dim, dtype, scale, softcap, mask, causal, log, y_sink = inputs
    ctx.options = dim, dtype, scale, softcap, causal, log
    return dy, y, x, mask, y_sink


def double_backward(ops, ctx, g):
    """Gradients of ``dy``, ``y`` and ``x``, where ``dx = slope(x) dz(dy, y)``."""
    dy, y, x, mask, y_sink = ctx.saved_tensors
    dim, dtype, scale, softcap, causal, log = ctx.options
    if g is None:
        return (None,) * 11
    g_dz, factor = g, scale
    if softcap:
        g_dz, factor = (g * _slope(x, dtype, scale, softcap)).to(g.dtype), 1.0
    keep = _kept(y.shape, mask, causal, y.device)
    if keep is not None and (log or softcap):
        g_dz = g_dz.masked_fill(~keep, 0)
    g_dy, g_y = ops.softmax_double_backward(g_dz, dy, y, dim, factor, log)
    g_x = None
    if ctx.needs_input_grad[2]:
        dz = ops.softmax_backward(dy, y, None, dim, dtype, 1.0, 0.0, mask, causal, log, y_sink)
        g_x = (g * dz * _curve(x, dtype, scale, softcap)).to(x.dtype)
    return g_dy, g_y, g_x, None, None, None, None, None, None, None, None


def jvp_backward(ops, ctx, dy_t, y_t, x_t, *_constants):
    """Tangent of ``dx``: forward mode over reverse mode."""
    dy, y, x, mask, _ = ctx.saved_tensors
    dim, dtype, scale, softcap, causal, log = ctx.options
    accumulator = _accumulator(dtype)
    dy, y = dy.to(accumulator), y.to(accumulator)
    dy_t, y_t = (torch.zeros_like(y) if t is None else t.to(accumulator) for t in (dy_t, y_t))

    def total(t):
        return t.sum(dim, keepdim=True)

    if log:
        p = y.exp()
        dz, dz_t = dy - p * total(dy), dy_t - p * (y_t * total(dy) + total(dy_t))
    else:
        beside = dy - total(dy * y)
        dz, dz_t = y * beside, y_t * beside + y * (dy_t - total(dy_t * y + dy * y_t))
    dx_t = dz_t * _slope(x, dtype, scale, softcap)
    if x_t is not None and softcap:
        dx_t = dx_t + dz * _curve(x, dtype, scale, softcap) * x_t
    keep = _kept(y.shape, mask, causal, y.device)
    return (dx_t if keep is None else dx_t.masked_fill(~keep, 0)).to(dtype)


# ---- softmax_double_backward ---------------------------------------------------------------------


def save_double_backward(ctx, inputs, output):
    """Keep every tensor."""
    g, dy, y, dim, scale, log = inputs
    ctx.options = dim, scale, log
    return g, dy, y


def triple_backward(ops, ctx, a, b):
    """Gradients of ``g``, ``dy`` and ``y`` for those of ``g_dy`` and ``g_y``.

    By torch's operations, so that derivatives of any order follow. Who asks for this one is
    ``torch.autograd.functional.hvp``.
    """
    g, dy, y = ctx.saved_tensors
    dim, scale, log = ctx.options
    accumulator = torch.promote_types(torch.float32, y.dtype)
    dtypes = g.dtype, dy.dtype, y.dtype
    g, dy, y = (t.to(accumulator) for t in (g, dy, y))
    a, b = (torch.zeros_like(y) if t is None else t.to(accumulator) for t in (a, b))

    def total(t):
        return t.sum(dim, keepdim=True)

    if log:  # of  sum a g - sum a sum g p - sum b g p sum dy
        p = y.exp()
        by_g = a - p * (total(a) + b * total(dy))
        by_dy = -total(b * g * p).expand_as(dy)
        by_y = -g * p * (total(a) + b * total(dy))
    else:  # of  sum (a y + b dy) (g - sum g y) - sum b g sum dy y
        sum_g, sum_dy, sum_a, sum_b = total(g * y), total(dy * y), total(a * y), total(b * dy)
        by_g = y * (a - sum_a - sum_b) + b * (dy - sum_dy)
        by_dy = b * (g - sum_g) - y * total(b * g)
        by_y = a * (g - sum_g) - g * (sum_a + sum_b) - dy * total(b * g)
    gradients = (scale * t for t in (by_g, by_dy, by_y))
    found = (t.to(dtype) for t, dtype in zip(gradients, dtypes, strict=True))
    return *found, None, None, None


# ---- Shared steps. -------------------------------------------------------------------------------


def _accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sum(t, dims):
    """``t.sum(dims)`` in an order that depends on no thread count.

    A sum with one result is cut over the threads by torch; of two equal ones it cuts neither.
    """
    if t.dim() == 0:
        return t
    dims = [d % t.dim() for d in ([dims] if isinstance(dims, int) else dims)]
    if any(size != 1 for d, size in enumerate(t.shape) if d not in dims):
        return t.sum(dims)
    return t.expand(2, *t.shape).sum([d + 1 for d in dims])[0]


def _sum_to_size(t, shape):
    """``t.sum_to_size(shape)`` in an order that depends on no thread count."""
    if math.prod(shape) != 1 or t.numel() <= 1:
        return t.sum_to_size(shape)
    return _sum(t, tuple(range(t.dim()))).reshape(shape)


def _slope(x, dtype, scale, softcap):
    """dz/dx: ``scale (1 - tanh²(scale x / softcap))``, a number without a softcap."""
    if not softcap:
        return scale
    t = (x.to(_accumulator(dtype)) * (scale / softcap)).tanh()
    return scale * (1 - t * t)


def _curve(x, dtype, scale, softcap):
    """d²z/dx², of a softcap."""
    t = (x.to(_accumulator(dtype)) * (scale / softcap)).tanh()
    return -2 * scale * scale / softcap * t * (1 - t * t)


def _score_gradients(ops, ctx, dy, y, x, mask, y_sink=None, from_sink=None):
    """Gradients of ``x`` and ``bias``; ``from_sink`` is the sink's term of the row's sum."""
    dim, dtype, scale, softcap, causal, log = ctx.options
    wants_dx, wants_dbias = ctx.needs_input_grad[0], ctx.needs_input_grad[5]
    if not wants_dbias and from_sink is None:
        if not wants_dx:
            return None, None
        dx = ops.softmax_backward(dy, y, x, dim, dtype, scale, softcap, mask, causal, log, y_sink)
        return dx, None
    # dz takes a call of its own, since it is not dx.
    dz = ops.softmax_backward(dy, y, None, dim, dtype, 1.0, 0.0, mask, causal, log, y_sink)
    if from_sink is not None:
        dz = dz - ((y.exp() if log else y) * from_sink.unsqueeze(dim)).to(dtype)
    dx = None
    if wants_dx:
        dx = (dz * _slope(x, dtype, scale, softcap)).to(dtype)
        keep = _kept(y.shape, mask, causal, y.device) if softcap else None
        if keep is not None:  # what is masked may be NaN, and so its slope
            dx = dx.masked_fill(~keep, 0)
    return dx, _sum_to_size(dz, ctx.bias_shape) if wants_dbias else None


def _score_tangent(ctx, y, x, x_t, bias_t):
    """Tangent of the scores, and the probabilities."""
    _, dtype, scale, softcap, _, log = ctx.options
    p = (y.exp() if log else y).to(_accumulator(dtype))
    z_t = torch.zeros_like(p)
    if x_t is not None:
        z_t = z_t + x_t * _slope(x, dtype, scale, softcap)
    if bias_t is not None:
        z_t = z_t + bias_t
    return z_t, p


def _output_tangent(ctx, y, mask, z_t, p, mean):
    *_, causal, log = ctx.options
    y_t = z_t - mean if log else p * (z_t - mean)
    keep = _kept(y.shape, mask, causal, y.device)
    if log and keep is not None:
        y_t = y_t.masked_fill(~keep, 0)
    return y_t.to(y.dtype)


def _kept(shape, mask, causal, device):
    """The boolean mask of a call, causal edge included; None if every column is kept."""
    if causal:
        edge = torch.ones(shape[-2:], dtype=torch.bool, device=device).tril(shape[-1] - shape[-2])
        return edge if mask is None else edge & mask
    return mask
