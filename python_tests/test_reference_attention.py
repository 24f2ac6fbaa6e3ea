"""The reference of attention, against its equations one score at a time, and against torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from hetkern import reference
from hetkern.reference.philox import philox4x32
from hetkern.testing import assert_close_to_exact
from hetkern.testing.devices import normal

F64 = torch.float64


def random(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=F64)


def kept_one(seed, p, i, j, row):
    """Whether a weight outlives dropout, of four plain integers."""
    words = philox4x32(
        tuple(torch.tensor(n) for n in (j // 4, i, row, 0)),
        (torch.tensor(seed & 0xFFFFFFFF), torch.tensor(seed >> 32)),
    )
    return int(words[j % 4]) >= math.floor(p * 2**32)


def by_loop(q, k, v, b=0, **o):
    """One sequence, ``q`` (Hq, Lq, D): every score from its equation."""
    Hq, Lq, D = q.shape
    Lk = o["seqlen"] if o.get("seqlen") is not None else k.shape[1]
    left, right = (math.inf if side in (None, -1) else side for side in o.get("window") or (-1, -1))
    scale = o.get("scale") or D**-0.5
    out, lse = torch.zeros(Hq, Lq, v.shape[-1], dtype=F64), torch.zeros(Hq, Lq, dtype=F64)
    for h in range(Hq):
        g = h // (Hq // k.shape[0])
        for i in range(Lq):
            at = i + Lk - Lq
            logits = {}
            for j in range(Lk):
                s = scale * float(q[h, i] @ k[g, j])
                if o.get("softcap"):
                    s = o["softcap"] * math.tanh(s / o["softcap"])
                if o.get("slopes") is not None:
                    s -= float(o["slopes"][h]) * abs(at - j)
                if o.get("bias") is not None:
                    s += float(o["bias"][h, i, j])
                hidden = o.get("mask") is not None and not o["mask"][h, i, j]
                if not (hidden or (o.get("causal") and j > at) or not at - left <= j <= at + right):
                    logits[j] = s
            terms = [
                *logits.values(),
                *([float(o["sink"][h])] if o.get("sink") is not None else []),
            ]
            if not terms:
                lse[h, i] = -math.inf
                continue
            m = max(terms)
            lse[h, i] = m + math.log(sum(math.exp(s - m) for s in terms))
            for j, s in logits.items():
                weight = math.exp(s - float(lse[h, i]))
                if p := o.get("dropout_p"):
                    weight *= kept_one(o["seed"], p, i, j, b * Hq + h) / (1 - p)
                out[h, i] += weight * v[g, j]
    return out, lse


B, HQ, HKV, LQ, LK, D, DV = 2, 4, 2, 3, 5, 4, 3
BIAS, MASK = random(B, HQ, LQ, LK, seed=4), random(B, HQ, LQ, LK, seed=5) > -0.3
FEATURES = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (1, None)},
    "window on both sides": {"window": (1, 1)},
    "causal window": {"causal": True, "window": (2, 3)},
    "softcap": {"softcap": 1.5, "scale": 0.7},
    "slopes": {"alibi_slopes": random(B, HQ, seed=6).abs()},
    "bias": {"bias": BIAS},
    "mask": {"mask": MASK},
    "sink": {"sink": random(HQ, seed=7)},
    "dropout": {"dropout_p": 0.4, "seed": torch.tensor(0x123456789ABCDEF)},
    "lengths": {"seqlens_k": torch.tensor([4, 0])},
}
EVERYTHING = {name: value for options in FEATURES.values() for name, value in options.items()}


@pytest.mark.parametrize("options", [*FEATURES.values(), EVERYTHING], ids=[*FEATURES, "everything"])
def test_attention_is_its_equations(options):
    q, k, v = random(B, HQ, LQ, D), random(B, HKV, LK, D, seed=1), random(B, HKV, LK, DV, seed=2)
    out, lse = reference.attention(q, k, v, **options)
    for b in range(B):
        one = dict(options)
        one["slopes"] = one.pop("alibi_slopes")[b] if "alibi_slopes" in one else None
        one["seqlen"] = int(one.pop("seqlens_k")[b]) if "seqlens_k" in one else None
        one["seed"] = int(one["seed"]) if "seed" in one else None
        one |= {name: one[name][b] for name in ("bias", "mask") if name in one}
        wanted = by_loop(q[b], k[b], v[b], b, **one)
        torch.testing.assert_close((out[b], lse[b]), wanted)


@pytest.mark.parametrize(
    "feature", ["plain", "causal", "causal window", "sink", "dropout", "slopes"]
)
def test_packed_attention_is_its_equations_in_each_sequence(feature):
    options, slopes = dict(FEATURES[feature]), None
    lengths_q, lengths_k = [3, 0, 2, 1], [2, 4, 0, 5]
    ends_q, ends_k = (torch.tensor([0, *n]).cumsum(0) for n in (lengths_q, lengths_k))
    q, k, v = random(6, HQ, D), random(11, HKV, D, seed=1), random(11, HKV, DV, seed=2)
    if "alibi_slopes" in options:
        options["alibi_slopes"] = slopes = random(4, HQ, seed=6).abs()
    out, lse = reference.attention_varlen(q, k, v, ends_q, ends_k, **options)
    for b in range(4):
        one = dict(options, slopes=None if slopes is None else slopes[b])
        one["seed"] = int(one["seed"]) if "seed" in one else None
        rows_q, rows_k = (slice(int(e[b]), int(e[b + 1])) for e in (ends_q, ends_k))
        parts = (t[rows].transpose(0, 1) for t, rows in ((q, rows_q), (k, rows_k), (v, rows_k)))
        wanted, wanted_lse = by_loop(*parts, b, **one)
        torch.testing.assert_close(out[rows_q].transpose(0, 1), wanted)
        torch.testing.assert_close(lse[:, rows_q], wanted_lse)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
def test_attention_is_torchs_over_torchs_arguments(dtype):
    bias = random(4, 6, 6, seed=3)
    calls = {
        "plain": ({}, {}),
        "causal": ({"causal": True}, {"is_causal": True}),
        "scale": ({"scale": 0.3}, {"scale": 0.3}),
        "mask": ({"mask": MASK[:1, :, :1, :1]}, {"attn_mask": MASK[:1, :, :1, :1]}),
        "bias": ({"bias": bias[None]}, {"attn_mask": bias}),
    }

    def results(function, options, dtype):
        drawn = (random(2, 4, 6, 8, seed=s).to(dtype).to(F64) for s in range(3))
        q, k, v = (t.to(dtype).requires_grad_() for t in drawn)
        options = {
            n: t.to(dtype) if n in ("bias", "attn_mask") and t.is_floating_point() else t
            for n, t in options.items()
        }
        out = function(q, k, v, **options)
        return out, *torch.autograd.grad(out, (q, k, v), random(2, 4, 6, 8, seed=9).to(dtype))

    def ours_of(q, k, v, **options):
        return reference.attention(q, k, v, **options)[0]

    for name, (ours, torchs) in calls.items():
        got = results(ours_of, ours, dtype)
        wanted = results(F.scaled_dot_product_attention, torchs, dtype)
        if dtype == F64:
            torch.testing.assert_close(got, wanted)
            continue
        for a, exact, b in zip(
            got, results(F.scaled_dot_product_attention, torchs, F64), wanted, strict=True
        ):
            # All heads are a row: of one head torch's error is luck, another on each processor.
            assert_close_to_exact(a, exact, b, dim=(-3, -2, -1), name=name)


def test_attention_has_right_gradients():
    q, k, v = random(B, HQ, LQ, D), random(B, HKV, LK, D, seed=1), random(B, HKV, LK, DV, seed=2)
    slopes, bias, sink = FEATURES["slopes"]["alibi_slopes"], BIAS, FEATURES["sink"]["sink"]
    options = {"softcap": 1.5, "causal": True, "mask": MASK, **FEATURES["dropout"]}

    def call(q, k, v, slopes, bias, sink):
        return reference.attention(q, k, v, alibi_slopes=slopes, bias=bias, sink=sink, **options)

    leaves = [t.clone().requires_grad_() for t in (q, k, v, slopes, bias, sink)]
    assert torch.autograd.gradcheck(call, leaves)


def test_the_sum_of_a_rows_weights_is_one_or_with_dropout_one_on_average():
    v = torch.ones(1, 1, 4000, 1)
    q, k = normal(1, 1, 3, 8), normal(1, 1, 4000, 8, seed=1)
    assert torch.allclose(reference.attention(q, k, v)[0], torch.ones(1))
    dropped, _ = reference.attention(0 * q, k, v, dropout_p=0.25, seed=torch.tensor(5))
    assert ((dropped - 1).abs() < 4 * math.sqrt(0.25 / 0.75 / 4000)).all() and dropped.ne(1).all()
