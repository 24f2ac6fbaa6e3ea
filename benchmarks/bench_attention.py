"""Attention beside torch: forward, and forward + backward, by ratio, arithmetic, memory and error.

Arithmetic is 4 B H Lq Lk D forward, half if causal, of a window what is inside it; backward 2.5
times as much. Beside each figure stands the share of what torch's own product of large square
matrices reaches in the same run. Decoding is bound by memory: beside it stands how long torch
takes to read the cache once, by a sum over its bits as float32, and the share of that speed.
``--threads 1 --cpu-time`` counts what the thread worked, which holds on a busy machine. Memory is
what the process grows by; the error is the worst row's, against the reference in float64 over the
first head.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_rnn import product_speed
from harness import RESULTS, arguments, best_of, peak_mb, row_error, save, table, vendor
from torch import Tensor

import hetkern

BOTH = (torch.float32, torch.bfloat16)
# B, H, L, D.
CAUSAL = [(4, 8, 1024, 64), (1, 8, 4096, 64), (8, 8, 256, 64), (1, 4, 2048, 128)]
WINDOW = (1, 8, 4096, 64)


def seen(Lq: int, Lk: int, window: int | None) -> float:
    """Pairs of a causal call that are computed."""
    diagonal = torch.arange(Lq) + Lk - Lq + 1
    return float((diagonal if window is None else diagonal.clamp_max(window)).sum())


def drawn(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Leaves."""
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def both_ways(f: Callable[[], Tensor], leaves: list[Tensor]) -> list[Callable[[], Any]]:
    """Forward without gradients, and forward and backward."""

    def forward() -> Tensor:
        with torch.no_grad():
            return f()

    dy = torch.randn_like(forward())
    return [forward, lambda: torch.autograd.grad(f(), leaves, dy)]


def measured(
    name, calls, leaves, pairs, D, dtype, limit, options, error, passes=(0, 1), reading=None
):
    """A row a pass; ``pairs`` counts scores of all heads, ``reading`` reads what memory holds."""
    built = {who: both_ways(f, leaves) for who, f in calls.items()}
    for k in passes:
        turns: dict[str, Callable[[], Any]] = {who: pair[k] for who, pair in built.items()}
        if reading is not None:
            turns["reading"] = reading
        best = best_of(turns, options.repeats, options.clock)
        flop = 4.0 * pairs * D * (1.0, 3.5)[k]
        speed = 1e-6 * flop / best["hetkern"]
        row = {
            "work": f"{name}, {('forward', 'forward + backward')[k]}",
            "dtype": str(dtype).removeprefix("torch."),
            "torch ms": round(best["torch"], 2),
            "ms": round(best["hetkern"], 2),
            "torch ÷ this": round(best["torch"] / best["hetkern"], 2),
            "GFLOP/s": round(speed),
            "% of torch's product": round(100 * speed / limit),
            "torch MB": round(peak_mb(built["torch"][k]), 1),
            "MB": round(peak_mb(built["hetkern"][k]), 1),
            "error": f"{error:.1e}",
        }
        if reading is not None:
            row["reading alone, ms"] = round(best["reading"], 2)
            row["% of reading"] = round(100 * best["reading"] / best["hetkern"])
        print(table([row]), flush=True)
        yield row


def error_of(f: Callable[..., Any], leaves: list[Tensor], **options: Any) -> float:
    """The worst row's of the first head."""
    q, k, v = (t[:1, :1].detach() for t in leaves)
    exact = hetkern.attention(q.double(), k.double(), v.double(), impl="reference", **options)
    return row_error(f(q, k, v), exact)


def dense(shape, dtype, limit, options, window=None):
    """A causal call, perhaps with a window, which torch has as a mask."""
    B, H, L, D = shape
    leaves = drawn([shape] * 3, dtype)
    given = {"causal": True, "window": None if window is None else (window - 1, 0)}
    mask = None
    if window is not None:
        mask = torch.ones(L, L, dtype=torch.bool).tril().triu(1 - window)
    calls = {
        "hetkern": lambda: hetkern.attention(*leaves, **given),
        "torch": lambda: F.scaled_dot_product_attention(*leaves, mask, is_causal=mask is None),
    }
    error = error_of(lambda *t: hetkern.attention(*t, **given), leaves, **given)
    name = f"causal {B}×{H}×{L}×{D}" if window is None else f"window {window} of {B}×{H}×{L}×{D}"
    pairs = B * H * seen(L, L, window)
    yield from measured(name, calls, leaves, pairs, D, dtype, limit, options, error)


def decode(dtype, limit, options):
    """One query a sequence over a cache, heads shared."""
    B, Hq, Hkv, L, D = (2, 4, 1, 128, 64) if options.quick else (16, 32, 8, 4096, 128)
    leaves = drawn([(B, Hq, 1, D), (B, Hkv, L, D), (B, Hkv, L, D)], dtype)
    lengths = torch.full((B,), L)
    calls = {
        "hetkern": lambda: hetkern.attention_decode(*leaves, lengths),
        "torch": lambda: F.scaled_dot_product_attention(*leaves, enable_gqa=True),
    }
    error = error_of(hetkern.attention, leaves)
    name = f"decode {B}×{Hq}/{Hkv}×{L}×{D}"
    pairs = B * Hq * L
    # Both passes over the cache are sums of float32, so that no conversion counts.
    cache = [t.detach().view(torch.float32) for t in leaves[1:]]
    yield from measured(
        name, calls, leaves, pairs, D, dtype, limit, options, error, (0,),
        lambda: [t.sum() for t in cache],
    )  # fmt: skip


def packed(dtype, limit, options):
    """Sequences of other lengths, against padding and masking."""
    N, longest, H, D = (4, 32, 2, 64) if options.quick else (32, 512, 8, 64)
    lengths = torch.randint(1, longest + 1, (N,), generator=torch.Generator().manual_seed(0))
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    leaves = drawn([(int(ends[-1]), H, D)] * 3, dtype)
    there = torch.arange(longest) < lengths[:, None]
    triangle = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = there[:, None, None] & triangle

    def padding() -> Tensor:
        four = [
            t.new_zeros(N, longest, H, D).masked_scatter(there[..., None, None], t) for t in leaves
        ]
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in four), mask)
        return out.transpose(1, 2)[there]

    calls = {
        "hetkern": lambda: hetkern.attention_varlen(
            *leaves, ends, ends, longest, longest, causal=True
        ),
        "torch": padding,
    }
    one = [t[: int(lengths[0])].transpose(0, 1)[None] for t in leaves]
    error = error_of(lambda *t: hetkern.attention(*t, causal=True), one, causal=True)
    pairs = H * sum(seen(int(n), int(n), None) for n in lengths)
    name = f"{N} sequences of 1…{longest}"
    yield from measured(name, calls, leaves, pairs, D, dtype, limit, options, error)


def gemma(dtype, limit, options):
    """A layer's attention as Gemma 2 has it in transformers, against its ``eager``."""
    B, Hq, Hkv, L, D, window = (
        (1, 4, 2, 64, 64, 16) if options.quick else (1, 8, 4, 4096, 128, 1024)
    )
    try:
        from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
    except ImportError as error:
        print(f"Gemma 2 is left out: {error}")
        return

    from hetkern.integrations.transformers import Structure, attention_forward

    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.head_dim = Hq // Hkv, D  # type: ignore[assignment]
    leaves = drawn([(B, Hq, L, D), (B, Hkv, L, D), (B, Hkv, L, D)], dtype)
    given = {"scaling": D**-0.5, "softcap": 50.0}
    structure = Structure((B, 1, L, L), True, (window - 1, 0))
    keep = torch.ones(L, L, dtype=torch.bool).tril().triu(1 - window)
    mask = torch.zeros((), dtype=dtype).masked_fill(~keep, torch.finfo(dtype).min)[None, None]
    calls = {
        "hetkern": lambda: attention_forward(layer, *leaves, structure, **given)[0],
        "torch": lambda: eager_attention_forward(layer, *leaves, mask, **given)[0],
    }
    options_of = {"causal": True, "window": (window - 1, 0), "softcap": 50.0}
    error = error_of(lambda *t: hetkern.attention(*t, **options_of), leaves, **options_of)
    pairs = B * Hq * seen(L, L, window)
    name = f"Gemma 2: softcap 50, window {window}, {B}×{Hq}/{Hkv}×{L}×{D}, beside eager"
    yield from measured(name, calls, leaves, pairs, D, dtype, limit, options, error)


def parts(quick: bool, options: Any = None) -> dict[str, Callable[..., Any]]:
    """{part: its rows of a dtype}."""
    shapes, window, at = CAUSAL, 256, WINDOW
    if quick:
        shapes, window, at = [(1, 2, 64, 64)], 16, (1, 2, 64, 64)

    def causal(dtype, limit):
        for shape in shapes:
            yield from dense(shape, dtype, limit, options)

    return {
        "causal": causal,
        "window": lambda dtype, limit: dense(at, dtype, limit, options, window),
        "decode": lambda dtype, limit: decode(dtype, limit, options),
        "packed": lambda dtype, limit: packed(dtype, limit, options),
        "gemma": lambda dtype, limit: gemma(dtype, limit, options),
    }


def main() -> None:
    """Measure, print, save; of a part alone what is saved already stays, but for its works."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cpu-time", action="store_true")
    more, sys.argv[1:] = parser.parse_known_args()
    options = arguments(__doc__ or "", parts=list(parts(quick=True)))
    if more.cpu_time and options.threads != 1:
        raise SystemExit("--cpu-time counts one thread's: --threads 1")
    options.clock = time.process_time if more.cpu_time else time.perf_counter
    size = 256 if options.quick else 2048
    limits = {t: product_speed(t, options.repeats, size, options.clock) for t in BOTH}
    made = parts(options.quick, options)
    rows: list[dict[str, Any]] = []
    for part in options.parts or made:
        torch.manual_seed(0)
        for dtype in BOTH:
            rows += made[part](dtype, limits[dtype])
    file = options.out or RESULTS / f"attention-{vendor()}.json"
    if options.parts and file.exists():
        new = {(row["work"], row["dtype"]): row for row in rows}
        old = json.loads(file.read_text())["rows"]
        rows = [new.pop((row["work"], row["dtype"]), row) for row in old] + [*new.values()]
    products = {str(t).removeprefix("torch."): round(limit) for t, limit in limits.items()}
    timed = {"clock": "CPU time of the thread" if more.cpu_time else "wall time"}
    save("attention", rows, timed | {"torch_product_gflop_s": products}, options)


if __name__ == "__main__":
    main()
