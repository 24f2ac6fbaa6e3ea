"""The attention family as ``check_op`` wants it: calls, the yardstick, random configurations.

A call is dense, packed (``cu_seqlens_q`` among its options) or beside a cache (``cache_seqlens``).
The yardstick is torch's own attention in float32 where it has the features, and else the same
algorithm by torch's operations: below float32 it rounds the weights, the scores' gradients and the
output, whose rounded value gives the gradient's mean, as torch's kernel does, and as every product
of 16-bit operands must (the contract: csrc/attention.h). Torch itself leaves its kernel for
products of float32 for shared key heads, strides and widths of its own choice.
"""

import importlib
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hetkern.reference.scores import accumulation_dtype
from hetkern.testing.cases.configuration import Configuration
from hetkern.testing.cases.families import capped, differences
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.budget import Dims
from hetkern.testing.values.calls import Op
from hetkern.testing.values.check import DTYPES, Case, Summary, check_op

# The package's name for it is the function.
equations = importlib.import_module("hetkern.reference.attention")

#: What a row of scores looks like.
KINDS = ("flat", "normal", "sharp", "shifted", "huge", "one_hot", "constant")
SEED = 1234  # of every dropout: the same mask for all that are compared


def attention_op(impl: str) -> Op:
    """The three public functions behind one signature."""
    import hetkern

    def op(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        if options.get("dropout_p"):
            torch.manual_seed(SEED)
        if "cu_seqlens_q" in options:
            places = [options.pop(name) for name in PACKED]
            return hetkern.attention_varlen(q, k, v, *places, impl=impl, **options)
        if "cache_seqlens" in options:
            return hetkern.attention_decode(q, k, v, impl=impl, **options)
        return hetkern.attention(q, k, v, impl=impl, **options)

    return op


PACKED = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")


def torch_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    """The yardstick."""
    features = {name for name, value in options.items() if value is not None and value is not False}
    if q.dtype == torch.float32 and features <= {"causal", "mask", "scale"}:
        return _by_torch(q, k, v, **options)
    return _by_steps(q, k, v, **options)


def _by_torch(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    mask = options.get("mask")
    if options.get("causal"):
        triangle = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        triangle = triangle.tril(k.shape[2] - q.shape[2])
        mask = triangle if mask is None else triangle & mask
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, mask, scale=options.get("scale"), enable_gqa=grouped
    )


def _by_steps(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool | None = None,
    window: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    cache_seqlens: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
) -> Any:
    packed = cu_seqlens_q is not None
    if causal is None:
        causal = cache_seqlens is not None
    slopes = alibi_slopes
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        places = equations.packed_places(q, k, cu_seqlens_q, cu_seqlens_k)
        slopes = equations.packed_slopes(slopes, places)
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    else:
        places = equations.dense_places(q, k, cache_seqlens)
        if slopes is not None:
            slopes = (slopes if slopes.dim() == 2 else slopes[None])[..., None, None]
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = (t.repeat_interleave(group, 1) if group > 1 else t for t in (k, v))
    dtype, working = q.dtype, accumulation_dtype(q.dtype)
    scale = equations.default_scale(q) if scale is None else scale

    z = _RoundedGradient.apply(q.to(working) @ k.to(working).mT, dtype) * scale
    if softcap is not None:
        z = capped(z, 1.0, softcap) if dtype == torch.float64 else softcap * (z / softcap).tanh()
    if slopes is not None:
        z = z - slopes.to(working) * (places.i + places.diagonal - places.j).abs()
    if bias is not None:
        z = z + bias.to(working)
    keep = equations.kept(places, causal, window, mask)
    if keep is not None:
        z = torch.where(keep, z, -torch.inf)
    last = z.new_full((1,), -torch.inf) if sink is None else sink.to(working)[:, None]
    z = torch.cat([z, last.expand(z.shape[1], 1)[:, None].expand(*z.shape[:-1], 1)], -1)
    nothing = z.isneginf().all(-1, keepdim=True)
    z = torch.where(nothing, 0.0, z)
    factor = torch.ones((), dtype=working)
    if dropout_p:
        torch.manual_seed(SEED)
        seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64)
        factor = equations.kept_by_dropout(places, z[..., :-1], dropout_p, seed)
        factor = factor.to(working) / (1.0 - dropout_p)
    if dtype == torch.float64:
        m, s, d = differences(z)
        p, lse = (s - d).exp()[..., :-1], (m + d).squeeze(-1)
        out = (torch.where(nothing, 0.0, p) * factor) @ v
    else:
        out, lse = _Flash.apply(z, nothing, factor, v, dtype)
    lse = torch.where(nothing[..., 0], -torch.inf, lse)
    out = out.to(dtype)
    if packed:
        out, lse = out[0].transpose(0, 1), lse[0]
    return (out, lse) if return_lse else out


class _RoundedGradient(torch.autograd.Function):
    """The scores' gradients are rounded before the products with q and k."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return z.clone()

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return dz.to(ctx.dtype).to(dz.dtype), None


class _Flash(torch.autograd.Function):
    """Softmax and the mean of the values, whose gradient is taken from the rounded output."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, nothing: Tensor, factor: Tensor, v: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        p = torch.where(nothing, 0.0, z.softmax(-1))
        weights = (p[..., :-1] * factor).to(dtype).to(z.dtype)
        out = (weights @ v.to(z.dtype)).to(dtype)
        ctx.save_for_backward(p, factor, weights, v, out)
        return out, z.logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple:  # type: ignore[override]
        p, factor, weights, v, out = ctx.saved_tensors
        dout = dout.to(p.dtype)
        dp = (dout @ v.to(p.dtype).mT) * factor
        delta = (dout * out.to(p.dtype)).sum(-1, keepdim=True) - dlse[..., None]
        dz = torch.cat([p[..., :-1] * (dp - delta), -p[..., -1:] * delta], -1)
        return dz, None, None, (weights.mT @ dout).to(v.dtype), None


def rows_of_heads(name: str, value: Tensor) -> Dims:
    """What makes a row of a result: the features of one token, of a gradient those of one head.

    The gradient of a confident token is what cancelled terms leave: of one that sees a single key
    it is 0, and rounding.
    """
    if name in ("gradient of argument 0", "gradient of argument 1", "gradient of argument 2"):
        return (-2, -1) if value.dim() == 4 else (0, -1)
    if name.startswith("gradient"):  # a sum over tokens, sequences or heads
        return tuple(range(value.dim()))
    return -1


def check_attention(impl: str, *cases: Case, **options: Any) -> Summary:
    """``check_op`` for the public functions."""
    dtypes = options.get("dtypes", DTYPES)
    options["dtypes"] = [t for t in dtypes if impl != "triton" or t != torch.float64] or dtypes
    options.setdefault("device", torch.get_default_device())
    return check_op(
        attention_op(impl), attention_op("reference"), cases, baseline=torch_attention, **options
    )


# ---- Cases. --------------------------------------------------------------------------------------


def drawn(
    kind: str, shape_q: tuple[int, ...], shape_k: tuple[int, ...], Dv: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in float32 whose scores are of a kind, for a scale of ``1 / sqrt(D)``."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(shape, generator=generator) for shape in (shape_q, shape_k, (*shape_k[:-1], Dv))
    )
    D = shape_q[-1]
    root = max(D, 1) ** 0.5
    if kind == "flat":
        q = 0.1 * q
    elif kind == "sharp":
        q = 4.0 * q
    elif kind == "shifted":  # by -2500
        q[..., D // 2], k[..., D // 2] = 50.0, -50.0 * root
    elif kind == "huge":  # one key is every query's
        if k.numel():
            q[..., 0] = 64.0
            k[..., 0] = 0.0
            k.flatten(0, -2)[0, 0] = 400.0 * root
    elif kind == "one_hot":
        q, k = torch.zeros_like(q), torch.zeros_like(k)
        for t in (q, k):
            rows = t.flatten(0, -2)
            rows[torch.arange(len(rows)), torch.arange(len(rows)) % D] = 5.0 * root**0.5
            t.copy_(rows.view(t.shape))
    elif kind == "constant":  # of a constant k the gradient by q would be rounding alone
        q = torch.zeros_like(q)
    return q, k, v


def dense_case(
    B: int,
    heads: int | tuple[int, int],
    Lq: int,
    Lk: int,
    D: int,
    Dv: int | None = None,
    *,
    kind: str = "normal",
    seed: int = 0,
    repro: str | None = None,
    **options: Any,
) -> Case:
    """A dense call."""
    Hq, Hkv = heads if isinstance(heads, tuple) else (heads, heads)
    args = drawn(kind, (B, Hq, Lq, D), (B, Hkv, Lk, D), D if Dv is None else Dv, seed)
    name = f"{kind} B {B} heads {Hq}/{Hkv} Lq {Lq} Lk {Lk} D {D} {text(options)}"
    return Case(name, args, options, rows=rows_of_heads, repro=repro)


def packed_case(
    lengths_q: list[int],
    lengths_k: list[int],
    heads: int | tuple[int, int],
    D: int,
    Dv: int | None = None,
    *,
    kind: str = "normal",
    seed: int = 0,
    repro: str | None = None,
    **options: Any,
) -> Case:
    """A packed call."""
    Hq, Hkv = heads if isinstance(heads, tuple) else (heads, heads)
    q, k, v = drawn(
        kind, (sum(lengths_q), Hq, D), (sum(lengths_k), Hkv, D), D if Dv is None else Dv, seed
    )
    options |= {
        "cu_seqlens_q": cumulated(lengths_q),
        "cu_seqlens_k": cumulated(lengths_k),
        "max_seqlen_q": max(lengths_q, default=0),
        "max_seqlen_k": max(lengths_k, default=0),
    }
    name = f"{kind} packed {lengths_q} {lengths_k} heads {Hq}/{Hkv} D {D} {text(options)}"
    return Case(name, (q, k, v), options, rows=rows_of_heads, repro=repro)


def cumulated(lengths: list[int]) -> Tensor:
    """The ends of sequences of these lengths, from 0."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def attention(seed: int) -> Configuration:
    """A dense, packed or decoding call with any features."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    Hkv, group = draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2, 4])
    Hq = Hkv * group
    D = draw.choice([1, 3, 8, 16, 17, 32, 40, 64, 80])
    Dv = D if draw.random() < 0.7 else draw.choice([1, 5, 16, 33, 64])
    lengths = [1, 1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 65, 100]
    mode = draw.choice(["dense", "dense", "packed", "decode"])
    B = draw.choice([1, 2, 3])
    options: dict[str, Any] = {}
    if draw.random() < 0.5:
        options["causal"] = draw.random() < 0.8
    if draw.random() < 0.3:
        options["window"] = (draw.choice([-1, 0, 2, 20]), draw.choice([-1, 0, 1, 20]))
    if draw.random() < 0.3:
        options["scale"] = draw.choice([0.05, 0.5, -0.2])
    if draw.random() < 0.25:
        options["softcap"] = draw.choice([2.0, 30.0])
    if draw.random() < 0.25:
        shape = (Hq,) if draw.random() < 0.5 else (B, Hq)
        options["alibi_slopes"] = torch.rand(shape, generator=generator)
    if draw.random() < 0.25:
        options["sink"] = torch.randn(Hq, generator=generator)
    if draw.random() < 0.15:
        options["dropout_p"] = draw.choice([0.1, 0.5])
    options["return_lse"] = draw.random() < 0.5
    kind, dtype, layout = draw.choice(KINDS), draw.choice(DTYPES), draw.choice(list(LAYOUTS))
    more: dict[str, Any] = {"kind": kind, "seed": seed, "repro": f"{REPRO} --seed {seed}"}
    if mode == "packed":
        lengths_k = [draw.choice([0, *lengths]) for _ in range(B)]
        same = draw.random() < 0.5
        lengths_q = lengths_k if same else [draw.choice([0, *lengths]) for _ in range(B)]
        case = packed_case(lengths_q, lengths_k, (Hq, Hkv), D, Dv, **more, **options)
        layout = "dense" if layout == "expanded" else layout  # no ends of sequences
    else:
        Lq, Lk = draw.choice(lengths), draw.choice(lengths)
        if mode == "decode":
            Lq = draw.choice([1, 1, 2, 5])
            options["cache_seqlens"] = torch.randint(Lk + 1, (B,), generator=generator)
        broadcast = tuple(draw.choice([size, 1]) for size in (B, Hq, Lq))
        if draw.random() < 0.3:
            options["bias"] = torch.randn(*broadcast, Lk, generator=generator)
        if draw.random() < 0.3:
            options["mask"] = torch.rand(*broadcast, Lk, generator=generator) < 0.7
        case = dense_case(B, (Hq, Hkv), Lq, Lk, D, Dv, **more, **options)
    return Configuration(case, dtype, layout, seed)


REPRO = "python -m hetkern.testing.repro attention"


def text(options: dict[str, Any]) -> str:
    """Options on one line."""
    return ", ".join(
        f"{name}={tuple(value.shape) if isinstance(value, Tensor) else value}"
        for name, value in options.items()
    )
