"""Recurrent layers beside torch: forward, and forward + backward, by ratio and arithmetic.

The input product counts on both sides: two products forward, six with backward. Beside each figure
stands the share of what torch's own product of large square matrices reaches in the same run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
from harness import RESULTS, arguments, best_of, save, table, vendor
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import hetkern
from hetkern.ops.products import WIDENED

GATES = {"tanh": 1, "lstm": 4, "gru": 3}
# Cell, T, B, I, H.
LARGE = [(cell, 128, 32, 512, 512) for cell in ("tanh", "lstm", "gru")]
SMALL = [
    (cell, T, B, H, H)
    for cell in ("gru", "tanh")
    for T, B, H in ((1000, 1, 64), (300, 4, 128), (100, 8, 256))
]


def product_speed(
    dtype: torch.dtype,
    repeats: int,
    size: int = 2048,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """GFLOP/s of torch's matmul; of float32 where it multiplies the dtype in plain loops."""
    dtype = torch.float32 if dtype in WIDENED else dtype
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2e-6 * size**3 / best_of({"product": lambda: a @ b}, repeats, clock)["product"]


def module(cell: str, columns: int, H: int, dtype: torch.dtype) -> nn.RNNBase:
    """The module of torch."""
    kind = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]
    return kind(columns, H).to(dtype)


def calls(cell, x, made, packed=None):
    """{implementation: (forward, forward and backward)} on the same weights."""
    weights = [(made.weight_ih_l0, made.weight_hh_l0, made.bias_ih_l0, made.bias_hh_l0)]
    function = {"tanh": hetkern.rnn, "lstm": hetkern.lstm, "gru": hetkern.gru}[cell]
    options = {} if packed is None else {"batch_sizes": packed}

    def ours(x):
        return function(x, None, weights, **options)[0]

    def torchs(x):
        if packed is None:
            return made(x)[0]
        return made(PackedSequence(x, packed))[0].data

    leaf = x.clone().requires_grad_()
    dy = torch.randn_like(ours(x))

    def both_ways(f):
        return torch.autograd.grad(f(leaf), [leaf, *made.parameters()], dy)

    def forward(f):
        with torch.no_grad():
            return f(x)

    return {
        name: (lambda f=f: forward(f), lambda f=f: both_ways(f))
        for name, f in (("hetkern", ours), ("torch", torchs))
    }


def measured(name, cell, rows, columns, H, calls, dtype, limits, repeats):
    """Two rows of the table: forward, forward + backward."""
    multiply_adds = rows * GATES[cell] * H * (columns + H)
    for k, (work, products) in enumerate((("forward", 1), ("forward + backward", 3))):
        best = best_of({who: pair[k] for who, pair in calls.items()}, repeats)
        at_best = 2e-6 * multiply_adds * products / limits[dtype]  # ms
        yield {
            "work": f"{name}, {work}",
            "dtype": str(dtype).removeprefix("torch."),
            "torch ms": round(best["torch"], 2),
            "ms": round(best["hetkern"], 2),
            "torch ÷ this": round(best["torch"] / best["hetkern"], 2),
            "GFLOP/s": round(2e-6 * multiply_adds * products / best["hetkern"]),
            "% of torch's product": round(100 * at_best / best["hetkern"]),
        }


def cell_step(B: int, H: int) -> dict[str, tuple]:
    """One step of an LSTM's cell on the same weights."""
    torchs = nn.LSTMCell(H, H)
    ours = hetkern.nn.LSTMCell(H, H)
    ours.load_state_dict(torchs.state_dict())
    x, state = torch.randn(B, H), (torch.randn(B, H), torch.randn(B, H))
    leaf, dh = x.clone().requires_grad_(), torch.randn(B, H)

    def forward(cell):
        with torch.no_grad():
            return cell(x, state)

    def both_ways(cell):
        return torch.autograd.grad(cell(leaf, state)[0], [leaf, *cell.parameters()], dh)

    return {
        name: (lambda c=cell: forward(c), lambda c=cell: both_ways(c))
        for name, cell in (("hetkern", ours), ("torch", torchs))
    }


def in_autocast(T: int, B: int, H: int) -> dict[str, tuple]:
    """nn.LSTM of float32 weights in autocast's bfloat16."""
    torchs = nn.LSTM(H, H)
    ours = hetkern.nn.LSTM(H, H)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(T, B, H)
    leaf, dy = x.clone().requires_grad_(), torch.randn(T, B, H).bfloat16()

    def forward(module):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return module(x)[0]

    def both_ways(module):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(leaf)[0]
        return torch.autograd.grad(y, [leaf, *module.parameters()], dy)

    return {
        name: (lambda m=module: forward(m), lambda m=module: both_ways(m))
        for name, module in (("hetkern", ours), ("torch", torchs))
    }


def parts(quick: bool):
    """{part: its works as (name, cell, rows, columns, H, calls, dtype)}, made one at a time."""

    def sequences(shapes, dtype):
        for cell, T, B, columns, H in shapes:
            T = 10 if quick else T
            x, made = torch.randn(T, B, columns).to(dtype), module(cell, columns, H, dtype)
            name = f"{cell} T {T} B {B} H {H}"
            yield name, cell, T * B, columns, H, calls(cell, x, made), dtype

    def packed():
        lengths = torch.randint(1, 21 if quick else 201, (32,)).sort(descending=True).values
        x = pack_padded_sequence(torch.randn(int(lengths[0]), 32, 128), lengths)
        pair = calls("lstm", x.data, module("lstm", 128, 256, torch.float32), x.batch_sizes)
        rows = x.data.shape[0]
        yield f"packed lstm, {rows} rows, I 128 H 256", "lstm", rows, 128, 256, pair, torch.float32

    def cells():
        for B, H in ((32, 512), (1, 128)):
            yield f"lstm cell, B {B} H {H}", "lstm", B, H, H, cell_step(B, H), torch.float32

    def autocast():
        T, B, H = (3, 4, 64) if quick else (128, 32, 512)
        if torch.bfloat16 in WIDENED:
            print("no LSTM in autocast: torch 2.13 raises on a processor without AVX-512")
            return
        name = f"lstm T {T} B {B} H {H} in autocast"
        yield name, "lstm", T * B, H, H, in_autocast(T, B, H), torch.bfloat16

    large = [] if quick else LARGE
    return {
        "small": lambda: sequences(SMALL, torch.float32),
        "large": lambda: sequences(large, torch.float32),
        "bfloat16": lambda: sequences(large, torch.bfloat16),
        "packed": packed,
        "cells": cells,
        "autocast": autocast,
    }


def main() -> None:
    """Measure, print, save; of a part alone what is saved already stays, but for its works."""
    options = arguments(__doc__ or "", parts=list(parts(quick=True)))
    made = parts(options.quick)
    size = 256 if options.quick else 2048
    limits = {t: product_speed(t, options.repeats, size) for t in (torch.float32, torch.bfloat16)}
    lines = []
    for part in options.parts or made:
        torch.manual_seed(0)
        for work in made[part]():
            lines += measured(*work, limits, options.repeats)
            print(table(lines[-2:]), flush=True)
    file = options.out or RESULTS / f"rnn-{vendor()}.json"
    if options.parts and file.exists():
        new = {(row["work"], row["dtype"]): row for row in lines}
        old = json.loads(file.read_text())["rows"]
        lines = [new.pop((row["work"], row["dtype"]), row) for row in old] + [*new.values()]
    products = {str(t).removeprefix("torch."): round(limit) for t, limit in limits.items()}
    save("rnn", lines, {"torch_product_gflop_s": products}, options)


if __name__ == "__main__":
    main()
