"""The rows of ``bench_gpu.py`` that are bound by products: attention and recurrent sequences.

Beside the time stands TFLOP/s: attention counts 4 B H D for each pair of query and key that its
mask keeps, backward 2.5 times as much; a recurrence counts its two products, backward twice as
much. Attention's error is its first head's, forward + backward that of dq; a sequence's is y's, or
dx's, against the reference in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hetkern

if TYPE_CHECKING:
    from bench_gpu import Bench, Call

#: (B, query heads, heads of keys, L, D, window) of causal calls in bfloat16.
ATTENTION = [
    (4, 16, 16, 4096, 128, None),
    (4, 32, 8, 4096, 128, None),
    (16, 16, 16, 512, 64, None),
    (1, 16, 16, 16384, 64, 1024),
]
DRY_ATTENTION = [(1, 2, 1, 40, 32, 8)]
DECODE = (16, 32, 8, 4096, 128)  # sequences, query heads, heads of keys, keys, D
DRY_DECODE = (2, 4, 2, 40, 32)
#: (cell, dtype) of sequences of T steps, B rows, H units and as many features.
SEQUENCES = [
    (cell, dtype) for cell in ("tanh", "lstm", "gru") for dtype in (torch.float32, torch.bfloat16)
]
SIZES = [(128, 32, 512), (512, 4, 128)]
DRY_SIZES = [(3, 2, 16)]
OURS = {"tanh": hetkern.rnn, "lstm": hetkern.lstm, "gru": hetkern.gru}
TORCHS = {"tanh": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


def passes(f: Callable[..., Tensor], *leaves: Tensor) -> list[Callable[..., Tensor]]:
    """Forward without gradients; and forward and backward for x and the leaves, x's returned."""

    def forward(x: Tensor, *more: Any) -> Tensor:
        with torch.no_grad():
            return f(x, *more)

    def both(x: Tensor, *more: Any) -> Tensor:
        x = x.detach().requires_grad_()
        out = f(x, *more)
        return torch.autograd.grad(out, [x, *leaves], torch.ones_like(out))[0]

    return [forward, both]


def pairs(L: int, window: int | None) -> int:
    """Pairs of query and key that a causal call keeps."""
    return sum(min(i + 1, window or L) for i in range(L))


def attention(bench: Bench) -> None:
    """Causal attention, with shared heads and with a window; beside SDPA and flash-attention."""
    for B, H, Hkv, L, D, window in DRY_ATTENTION if bench.dry else ATTENTION:
        sizes = (B, H, L, D), (B, Hkv, L, D), (B, Hkv, L, D)
        q, k, v = (torch.randn(size, device=bench.device).bfloat16() for size in sizes)
        leaves = k.requires_grad_(), v.requires_grad_()
        options: dict[str, Any] = {"causal": True}
        mask = None
        if window:
            options["window"] = (window - 1, 0)
            ones = torch.ones(L, L, dtype=torch.bool, device=bench.device)
            mask = ones.tril_().triu_(1 - window)

        def ours(x: Tensor, impl: str, k: Tensor = k, v: Tensor = v, o: Any = options) -> Tensor:
            return hetkern.attention(x, k, v, impl=impl, **o)

        def torchs(
            x: Tensor, k: Tensor = k, v: Tensor = v, mask: Any = mask, gqa: bool = H != Hkv
        ) -> Tensor:
            causal = mask is None
            return F.scaled_dot_product_attention(x, k, v, mask, is_causal=causal, enable_gqa=gqa)

        flash = bench.peer("flash_attn")

        def by_flash(
            x: Tensor, k: Tensor = k, v: Tensor = v, window: Any = window, of: Any = flash
        ) -> Tensor:
            inside = (t.transpose(1, 2) for t in (x, k, v))
            sides = (window - 1, 0) if window else (-1, -1)
            out: Tensor = of.flash_attn_func(*inside, causal=True, window_size=sides)
            return out.transpose(1, 2)

        def exact(x: Tensor, k: Tensor = k, v: Tensor = v, o: Any = options) -> Tensor:
            few = (t[:1, :1].detach().double() for t in (k, v))
            return hetkern.attention(x, *few, impl="reference", **o)

        name = f"attention {B}×{H}/{Hkv}×{L}×{D}" + (f" window {window}" if window else "")
        flops = 4 * B * H * D * pairs(L, window)
        for which, (word, times) in enumerate((("forward", 1.0), ("forward + backward", 3.5))):
            calls = bench.ours(passes(ours, *leaves)[which])
            calls["torch"] = passes(torchs, *leaves)[which]
            if flash:
                calls["flash-attention"] = passes(by_flash, *leaves)[which]
            right = passes(exact)[which]  # the first head's queries need that head alone
            bench.measure(
                f"{name}, {word}",
                calls,
                [q],
                0,
                None,
                lambda x, right=right: right(x[:1, :1].double()),
                flops * times,
                lambda out: out[:1, :1],
            )


def decode(bench: Bench) -> None:
    """One query a sequence over a cache: bound by reading it."""
    B, H, Hkv, L, D = DRY_DECODE if bench.dry else DECODE
    sizes = (B, H, 1, D), (B, Hkv, L, D), (B, Hkv, L, D)
    q, k, v = (torch.randn(size, device=bench.device).bfloat16() for size in sizes)
    lengths = torch.full((B,), L, device=bench.device)

    def exact(x: Tensor) -> Tensor:
        few = (t[:1].double() for t in (k, v))
        return hetkern.attention(x[:1].double(), *few, impl="reference")

    calls = bench.ours(lambda x, impl: hetkern.attention_decode(x, k, v, lengths, impl=impl))
    calls["torch"] = lambda x: F.scaled_dot_product_attention(x, k, v, enable_gqa=True)
    moved = 2 * k.numel() * k.element_size()
    bench.measure(
        f"decode {B}×{H}/{Hkv}×{L}×{D}",
        calls,
        [q],
        moved,
        bench.copy_speed(k),
        exact,
        4.0 * B * H * L * D,
        lambda out: out[:1],
    )


def sequences(bench: Bench) -> None:
    """Whole sequences of a layer, beside torch's, which are cuDNN's on a GPU."""
    for T, B, H in DRY_SIZES if bench.dry else SIZES:
        for cell, dtype in SEQUENCES[1:6:2] if bench.dry else SEQUENCES:
            module = TORCHS[cell](H, H).to(bench.device, dtype)
            doubled = TORCHS[cell](H, H).to(bench.device, torch.float64)
            doubled.load_state_dict(module.state_dict())
            leaves = tuple(module.parameters())
            x = torch.randn(T, B, H, device=bench.device).to(dtype)

            def ours(x: Tensor, impl: str, cell: str = cell, leaves: Any = leaves) -> Tensor:
                out: Tensor = OURS[cell](x, None, [leaves], impl=impl)[0]
                return out

            flops = 2.0 * 2 * T * B * H * H * {"tanh": 1, "lstm": 4, "gru": 3}[cell]
            for which, (word, times) in enumerate((("forward", 1), ("forward + backward", 3))):
                calls: dict[str, Call] = bench.ours(passes(ours, *leaves)[which])
                calls["torch"] = passes(lambda x, module=module: module(x)[0], *leaves)[which]
                right = passes(lambda x, module=doubled: module(x)[0])[which]
                bench.measure(
                    f"{cell} T {T} B {B} H {H} {str(dtype)[6:]}, {word}",
                    calls,
                    [x],
                    0,
                    None,
                    lambda x, right=right: right(x.double()),
                    flops * times,
                    lambda out: out,
                )
