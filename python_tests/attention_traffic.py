"""What attention's CUDA kernels move, counted and as equations; test_cuda_traffic.py runs it."""

import os
from collections.abc import Callable
from typing import Any

SIZES = ((64, 64), (128, 64), (64, 128))  # Lq, Lk: one head of 64 columns
D = 64
BYTES = {"float32": 4, "bfloat16": 2}
WAYS = ("forward", "causal forward", "backward")
HEADS, CACHE = (8, 2), ((1, 1024), (1, 2304), (4, 1000))  # decode: queries, keys
CASES = {
    f"attention, {Lq}x{Lk}, {dtype}, {way}": (Lq, Lk, dtype, way)
    for sizes, ways in ((SIZES, WAYS), (CACHE, ("decode",)))
    for Lq, Lk in sizes
    for dtype in BYTES
    for way in ways
}
ROWS = 64  # of a block
PART = 1024  # keys of a block, where there are few queries


def count(watch: Any, summary: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Every case's traffic, of an H100."""
    os.environ["HETKERN_EMULATED_CAPABILITY"], os.environ["HETKERN_EMULATED_SHARED_BYTES"] = (
        "90",
        "232448",
    )
    return {case: summary(_counted(watch, *CASES[case])) for case in CASES}


def _counted(watch: Any, Lq: int, Lk: int, dtype: str, way: str) -> Any:
    import torch

    kind = getattr(torch, dtype)
    Hq, Hkv = HEADS if way == "decode" else (1, 1)
    q, dout = (torch.randn(1, Hq, Lq, D).to(kind) for _ in range(2))
    k, v = (torch.randn(1, Hkv, Lk, D).to(kind) for _ in range(2))
    scores = (0.1, 0.0, way.startswith("causal"), -1, -1, *[None] * 4, 0.0, *[None] * 3, 0, 0, None)
    ops = torch.ops.hetkern_emulated
    watch.clear()
    saved = dict(zip(("out", "row_max", "log_sum"), ops.attention(q, k, v, *scores), strict=True))
    watch.name(q=q, k=k, v=v, **saved)
    if way != "backward":
        return watch.traffic()
    watch.clear()
    results = ops.attention_backward(dout, None, q, k, v, *saved.values(), *scores, 7)
    gradients = dict(zip(("dq", "dk", "dv"), results[:3], strict=True))
    watch.name(dout=dout, q=q, k=k, v=v, **saved, **gradients)
    return watch.traffic()


def check_claims(case: str, told: dict[str, Any]) -> None:
    """The equations of the kernels' headers, in bytes, 16 at a time, in whole sectors."""
    Lq, Lk, dtype, way = CASES[case]
    row = D * BYTES[dtype]
    down, across = Lq // ROWS, Lk // ROWS  # blocks of queries and of keys
    if way == "decode":  # the cache once for all heads of a group
        parts = -(-Lk // PART)
        read = {"q": HEADS[0] * Lq * parts, "k": HEADS[1] * Lk, "v": HEADS[1] * Lk}
        written = {"out": HEADS[0] * Lq}
        sums = HEADS[0] * Lq * parts * (D + 8) * 4 if parts > 1 else 0
        for verb in ("read", "written"):
            assert told[verb].get("unnamed", [0])[0] == sums, verb
    elif way == "backward":
        read = {"q": Lq * (1 + across), "dout": Lq * (2 + across), "out": Lq}
        read |= {"k": Lk * (1 + down), "v": Lk * (1 + down)}
        written = {"dq": Lq, "dk": Lk, "dv": Lk}
    else:
        tile = 32 if dtype == "float32" else 64
        seen = Lk * down
        if way == "causal forward":  # tiles up to the block's last query
            last = [min(Lk, max(0, (n + 1) * ROWS + Lk - Lq)) for n in range(down)]
            seen = sum(-(-keys // tile) * tile for keys in last)
        read, written = {"q": Lq, "k": seen, "v": seen}, {"out": Lq}
    for verb, rows in (("read", read), ("written", written)):
        for name, count in rows.items():
            assert told[verb][name] == [count * row, count * row, 16], (verb, name)
            assert told["sectors"][f"{name} {verb}"] == count * row / 32, (verb, name)
    assert not [r for r in told["remarks"] if "load" in r and r.startswith("shared")]
