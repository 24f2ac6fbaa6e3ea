"""What the sanitizers watch of attention: every kernel, dtype and feature, tails included."""

import itertools

import torch

import hetkern


def attentions(dtypes, sizes):
    """Calls with forward and backward; of (Lq, Lk, D, Dv), and packed ones, and one of a cache."""
    calls = 0
    for dtype, (Lq, Lk, D, Dv) in itertools.product(dtypes, sizes):
        q, k, v = (_leaf(dtype, 2, *n) for n in ((4, Lq, D), (2, Lk, D), (2, Lk, Dv)))
        slopes = _leaf(torch.float64 if dtype == torch.float64 else torch.float32, 4)
        bias, sink = _leaf(dtype, 2, 1, Lq, Lk), _leaf(dtype, 4)
        features = {
            "softcap": 3.0,
            "bias": bias,
            "mask": torch.rand(1, 4, 1, Lk) < 0.8,
            "alibi_slopes": slopes,
            "sink": sink,
            "dropout_p": 0.2,
            "window": (Lk // 2, 3),
        }
        _both_ways(
            [q, k, v], lambda *t: hetkern.attention(*t, causal=True, return_lse=True), q, k, v
        )
        _both_ways(
            [q, k, v, bias, slopes, sink],
            lambda *t, o=features: hetkern.attention(*t, return_lse=True, **o),
            q,
            k,
            v,
        )
        for shape in ((1, 4, 1, Lk), (1, 1, Lq, 1)):  # sums over what was broadcast
            bias = _leaf(dtype, *shape)
            _both_ways(
                [bias], lambda *t, b=bias: hetkern.attention(*t, bias=b, return_lse=True), q, k, v
            )
        lengths = torch.tensor([0, Lk])
        hetkern.attention_decode(q[:, :, :1].detach(), k.detach(), v.detach(), lengths)
        ends = torch.tensor([0, Lq // 2, Lq // 2, Lq], dtype=torch.int32)
        ends_k = torch.tensor([0, Lk // 3, Lk, Lk], dtype=torch.int32)
        packed = [_leaf(dtype, *n) for n in ((Lq, 4, D), (Lk, 2, D), (Lk, 2, Dv))]
        _both_ways(
            packed,
            lambda *t, e=(ends, ends_k, Lq, Lk): hetkern.attention_varlen(
                *t, *e, causal=True, return_lse=True
            ),
            *packed,
        )
        calls += 6
    return calls


def _leaf(dtype, *shape):
    return torch.randn(shape).to(dtype).requires_grad_()


def _both_ways(leaves, f, *inputs):
    out, lse = f(*inputs)
    finite = torch.where(lse.isfinite(), lse, 0.0).sum()
    torch.autograd.grad(out.float().square().sum() + finite, leaves)
