"""Softmax beside torch: time, share of the ceiling, peak memory, error against float64."""

from __future__ import annotations

import torch
from ceilings import ceilings
from harness import arguments, best_of, overhead_us, peak_mb, row_error, save

import hetkern

SHAPES = [(16384, 1024), (2048, 50257)]


def cases(shape, dtype):
    """(work, MB moved, ms at given ceilings, {implementation: call}, exact first rows)."""
    x = torch.randn(shape).to(dtype)
    y, dy = torch.softmax(x, -1), torch.randn(shape).to(dtype)
    size = x.numel() * x.element_size() / 1e6
    backward = torch.ops.hetkern.softmax_backward.default
    few = slice(0, 64)
    exact = torch.softmax(x[few].double(), -1)
    exact_dx = torch._softmax_backward_data(dy[few].double(), y[few].double(), -1, torch.float64)
    yield (
        "forward",
        2 * size,
        lambda copy, read: 2 * size / copy,
        {"hetkern": lambda: hetkern.softmax(x, -1), "torch": lambda: torch.softmax(x, -1)},
        exact,
    )
    yield (
        "backward",
        3 * size,
        lambda copy, read: size / read + 2 * size / copy,
        {
            "hetkern": lambda: backward(dy, y, None, -1, dtype, 1, 0, None, False, False, None),
            "torch": lambda: torch._softmax_backward_data(dy, y, -1, dtype),
        },
        exact_dx,
    )


def main() -> None:
    """Measure, print, save."""
    options = arguments(__doc__ or "")
    limits = ceilings(16 if options.quick else 256)
    rows = []
    for shape in [(64, 1024), (8, 50257)] if options.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for work, moved, at_best, calls, exact in cases(shape, dtype):
                if options.compile:
                    calls["torch.compile"] = torch.compile(calls["torch"])
                for call in calls.values():
                    call()
                times = best_of(calls, options.repeats)
                for name, call in calls.items():
                    fresh, warm = (
                        round(100 * at_best(limits[copy], limits["read"]) / times[name])
                        for copy in ("fresh copy", "copy")
                    )
                    rows.append(
                        {
                            "implementation": name,
                            "work": f"softmax {work}",
                            "shape": "×".join(map(str, shape)),
                            "dtype": str(dtype).removeprefix("torch."),
                            "ms": round(times[name], 2),
                            "torch ÷ this": round(times["torch"] / times[name], 2),
                            "GB/s": round(moved / times[name], 1),
                            "% of ceiling": fresh,
                            "% of it in warm memory": warm,
                            "peak MB": round(peak_mb(call)),
                            "error": f"{row_error(call()[:64], exact):.1e}",
                        }
                    )
    small = torch.randn(8, 64)
    leaf = small.clone().requires_grad_()
    overheads = {
        "8×64 forward, µs": overhead_us(
            {
                "hetkern": lambda: hetkern.softmax(small, -1),
                "torch": lambda: torch.softmax(small, -1),
            }
        ),
        "8×64 forward + sum + backward, µs": overhead_us(
            {
                "hetkern": lambda: hetkern.softmax(leaf, -1).sum().backward(),
                "torch": lambda: torch.softmax(leaf, -1).sum().backward(),
            }
        ),
    }
    print(overheads)
    save("softmax", rows, {"ceilings_gb_s": limits, "overhead": overheads}, options)


if __name__ == "__main__":
    main()
