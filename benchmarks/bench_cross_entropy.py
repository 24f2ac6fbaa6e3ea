"""Cross-entropy beside torch: time, share of the ceiling, peak memory, error against float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ceilings import ceilings
from harness import arguments, best_of, overhead_us, peak_mb, row_error, save

import hetkern

SHAPE = (2048, 50257)


def both_ways(loss, logits, target):
    """Forward and backward; the gradient."""
    return torch.autograd.grad(loss(logits, target), logits)[0]


def cases(shape, dtype, compiled):
    """(work, MB moved, ms at given ceilings, {implementation: call}, exact result)."""
    logits = torch.randn(shape).to(dtype).requires_grad_()
    target = torch.randint(shape[1], shape[:1])
    size = logits.numel() * logits.element_size() / 1e6
    losses = {"hetkern": hetkern.cross_entropy, "torch": F.cross_entropy}
    if compiled:
        losses["torch.compile"] = torch.compile(F.cross_entropy)
    plain = logits.detach()
    exact = F.cross_entropy(plain.double(), target)
    forward = {n: lambda f=f: f(plain, target) for n, f in losses.items()}
    yield "forward", size, lambda c: size / c["read"], forward, exact
    leaf = plain[:64].double().requires_grad_()
    exact_dx = both_ways(
        lambda a, b: F.cross_entropy(a, b, reduction="sum") / shape[0], leaf, target[:64]
    )
    both = {n: lambda f=f: both_ways(f, logits, target) for n, f in losses.items()}
    # read the logits, then read them again and write the gradient into new memory
    yield (
        "forward + backward",
        3 * size,
        lambda c: size / c["read"] + 2 * size / c["copy"],
        both,
        exact_dx,
    )


def main() -> None:
    """Measure, print, save."""
    options = arguments(__doc__ or "")
    limits = ceilings(16 if options.quick else 256)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        shape = (32, 5025) if options.quick else SHAPE
        for work, moved, at_best, calls, exact in cases(shape, dtype, options.compile):
            for call in calls.values():
                call()
            times = best_of(calls, options.repeats)
            for name, call in calls.items():
                result = call()
                rows.append(
                    {
                        "implementation": name,
                        "work": f"cross-entropy {work}",
                        "shape": "×".join(map(str, shape)),
                        "dtype": str(dtype).removeprefix("torch."),
                        "ms": round(times[name], 2),
                        "torch ÷ this": round(times["torch"] / times[name], 2),
                        "GB/s": round(moved / times[name], 1),
                        "% of ceiling": round(100 * at_best(limits) / times[name]),
                        "peak MB": round(peak_mb(call)),
                        "error": f"{row_error(result[:64] if result.dim() else result, exact):.1e}",
                    }
                )
    small, target = torch.randn(8, 64), torch.randint(64, (8,))
    leaf = small.clone().requires_grad_()
    overheads = {
        "8×64 forward, µs": overhead_us(
            {
                "hetkern": lambda: hetkern.cross_entropy(small, target),
                "torch": lambda: F.cross_entropy(small, target),
            }
        ),
        "8×64 forward + backward, µs": overhead_us(
            {
                "hetkern": lambda: hetkern.cross_entropy(leaf, target).backward(),
                "torch": lambda: F.cross_entropy(leaf, target).backward(),
            }
        ),
    }
    print(overheads)
    save("cross_entropy", rows, {"ceilings_gb_s": limits, "overhead": overheads}, options)


if __name__ == "__main__":
    main()
