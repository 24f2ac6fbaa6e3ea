"""Everyday shapes beside torch, on one thread.

Prints every one where torch is faster by more than 3 µs, and how much of that the call itself
takes, which a tensor of two elements shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from harness import arguments, best_of, save

import hetkern

SMALLEST = (1, 2)
# Where a shape is met, and the dimension that is reduced.
SHAPES = {
    "attention": (
        -1,
        [(8, 8, 64, 64), (4, 12, 128, 128), (2, 12, 197, 197), (1, 8, 512, 512), (1, 8, 1, 512)],
    ),
    "large attention": (-1, [(64, 12, 128, 128)]),
    "classifier": (
        1,
        [SMALLEST, (8, 64), (32, 10), (1024, 2), (4096, 5), (4096, 10), (4096, 16), (4096, 32)],
    ),
    "larger classifier": (1, [(128, 100), (8192, 50), (256, 1000)]),
    "segmentation": (
        1,
        [(4, 2, 512, 512), (16, 5, 256, 256), (4, 21, 128, 128), (2, 19, 256, 256)],
    ),
    "first dimension": (0, [(32, 100), (1000, 64)]),
    "sampling": (1, [(1, 32000), (1, 50257), (8, 50257), (1, 128256)]),
    "language model": (1, [(256, 50257)]),
}
SLACK_US = 3.0
CALL = "of it the call's"


def with_gradient(call: Callable[[torch.Tensor], torch.Tensor], dy: torch.Tensor | None) -> Any:
    """``call`` and its backward pass; dy None: of a scalar."""

    def run(x: torch.Tensor) -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(call(leaf), leaf, dy)[0]

    return run


def works(
    x: torch.Tensor, dim: int, losses: bool
) -> Iterator[tuple[str, dict[str, Callable[[torch.Tensor], torch.Tensor]]]]:
    """(work, {implementation: call of x})."""
    pairs: dict[str, dict[str, Any]] = {
        "softmax": {"hetkern": hetkern.softmax, "torch": torch.softmax},
        "log_softmax": {"hetkern": hetkern.log_softmax, "torch": torch.log_softmax},
    }
    dy = torch.randn(x.shape)
    for work, pair in pairs.items():
        calls = {name: (lambda x, f=f: f(x, dim)) for name, f in pair.items()}
        yield work, calls
        yield (
            f"{work} with backward",
            {n: (lambda x, f=f: with_gradient(f, dy.to(x.dtype))(x)) for n, f in calls.items()},
        )
    if losses:
        target = torch.randint(x.shape[1], x.select(1, 0).shape)
        calls = {
            name: (lambda x, f=f: f(x, target))
            for name, f in {"hetkern": hetkern.cross_entropy, "torch": F.cross_entropy}.items()
        }
        yield "loss", calls
        yield "loss with backward", {n: with_gradient(f, None) for n, f in calls.items()}


def measured(
    x: torch.Tensor, calls: dict[str, Callable[[torch.Tensor], torch.Tensor]], seconds: float
) -> dict[str, float]:
    """Best time of each in µs, for about so many seconds in turn.

    One thread's own time, which leaves out what other processes take.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for call in calls.values():  # the first call finds nothing in its place
        call(x)
    start = clock()
    for call in calls.values():
        call(x)
    once = clock() - start
    repeats = max(5, min(2000, int(seconds / once)))
    times = best_of({name: lambda f=f: f(x) for name, f in calls.items()}, repeats, clock)  # type: ignore[misc]
    return {name: ms * 1e3 for name, ms in times.items()}


def error(actual: torch.Tensor, exact: torch.Tensor | None) -> str:
    """The largest, relative to the largest magnitude; of large tensors none."""
    if exact is None:
        return ""
    largest = exact.abs().max().clamp_min(1e-300)
    return f"{float((actual.double() - exact).abs().max() / largest):.1e}"


def main() -> None:
    """Measure, print, save."""
    options = arguments(__doc__ or "", threads=1)
    rows: list[dict[str, Any]] = []
    for where, (dim, shapes) in SHAPES.items():
        for shape in shapes:
            if options.quick and torch.Size(shape).numel() > 1 << 16:
                continue
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(shape).to(dtype)
                losses = dim == 1
                for work, calls in works(x, dim, losses):
                    times = measured(x, calls, 0.01 if options.quick else 0.3)
                    few = x.numel() <= 1 << 22
                    exact = calls["torch"](x.double()) if few else None
                    rows.append(
                        {
                            "where": where,
                            "work": work,
                            "shape": "×".join(map(str, shape)),
                            "dim": dim,
                            "dtype": str(dtype).removeprefix("torch."),
                            "µs": round(times["hetkern"], 1),
                            "torch's µs": round(times["torch"], 1),
                            "torch ÷ this": round(times["torch"] / times["hetkern"], 2),
                            "error": error(calls["hetkern"](x), exact),
                            "torch's error": error(calls["torch"](x), exact),
                        }
                    )
    smallest = "×".join(map(str, SMALLEST))
    for row in rows:
        row["behind, µs"] = round(row["µs"] - row["torch's µs"], 1)
    for row in rows:
        small = [r for r in rows if (r["shape"], r["work"]) == (smallest, row["work"])]
        row[CALL] = min(r["behind, µs"] for r in small)  # of the dtypes, which cost the same
    save("shapes", rows, {}, options)
    slower = [row for row in rows if row["behind, µs"] > SLACK_US]
    beyond = [row for row in slower if row["behind, µs"] - row[CALL] > SLACK_US]
    print(f"\ntorch is faster by more than {SLACK_US:g} µs in {len(slower)} of {len(rows)}:")
    for row in sorted(slower, key=lambda row: row["torch ÷ this"]):
        mark = "*" if row in beyond else " "
        ours, theirs, behind = row["µs"], row["torch's µs"], row["behind, µs"]
        print(
            f"{mark} {row['work']} {row['shape']}, dim {row['dim']}, {row['dtype']}: {ours} µs, "
            f"torch {theirs}; {behind} behind, {row[CALL]} of it the call's"
        )
    print(f"* {len(beyond)} of them by more than {SLACK_US:g} µs beyond the call's own")


if __name__ == "__main__":
    main()
