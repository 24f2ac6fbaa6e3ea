"""Recurrent layers beside torch: forward, and forward + backward, by ratio and arithmetic.

The input product counts on both sides: two products forward, six with backward. Beside each figure
stands the share of what torch's own product of large square matrices reaches in the same run.
"""

from __future__ import annotations

import torch
from harness import arguments, best_of, save, table
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import hetkern

GATES = {"tanh": 1, "lstm": 4, "gru": 3}
# Cell, T, B, I, H.
LARGE = [(cell, 128, 32, 512, 512) for cell in ("tanh", "lstm", "gru")]
SMALL = [
    (cell, T, B, H, H)
    for cell in ("gru", "tanh")
    for T, B, H in ((1000, 1, 64), (300, 4, 128), (100, 8, 256))
]


def product_speed(dtype: torch.dtype, repeats: int, size: int = 2048) -> float:
    """GFLOP/s of torch's matmul."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2e-6 * size**3 / best_of({"product": lambda: a @ b}, repeats)["product"]


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


def main() -> None:
    """Measure, print, save."""
    options = arguments(__doc__ or "")
    large, size = ([], 256) if options.quick else (LARGE, 2048)
    limits = {t: product_speed(t, options.repeats, size) for t in (torch.float32, torch.bfloat16)}
    lines = []
    torch.manual_seed(0)
    for dtype, shapes in ((torch.float32, SMALL + large), (torch.bfloat16, large)):
        for cell, T, B, columns, H in shapes:
            if options.quick:
                T = 10
            x, made = torch.randn(T, B, columns).to(dtype), module(cell, columns, H, dtype)
            name = f"{cell} T {T} B {B} H {H}"
            pair = calls(cell, x, made)
            lines += measured(name, cell, T * B, columns, H, pair, dtype, limits, options.repeats)
            print(table(lines[-2:]), flush=True)
    lengths = torch.randint(1, 21 if options.quick else 201, (32,)).sort(descending=True).values
    packed = pack_padded_sequence(torch.randn(int(lengths[0]), 32, 128), lengths)
    made = module("lstm", 128, 256, torch.float32)
    pair = calls("lstm", packed.data, made, packed.batch_sizes)
    rows = packed.data.shape[0]
    lines += measured(
        f"packed lstm, {rows} rows, I 128 H 256", "lstm", rows, 128, 256, pair, torch.float32,
        limits, options.repeats,
    )  # fmt: skip
    products = {str(t).removeprefix("torch."): round(limit) for t, limit in limits.items()}
    save("rnn", lines, {"torch_product_gflop_s": products}, options)


if __name__ == "__main__":
    main()
