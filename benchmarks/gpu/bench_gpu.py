"""Speed on a GPU beside whoever is installed, of all families.

Softmax and cross-entropy as shares of copy speed, attention and sequences in TFLOP/s.
Times are medians of CUDA events, the L2 cache flushed before each call and the inputs rotated;
beside each stands the error against float64. ``--dry`` runs the same code on tiny CPU tensors,
CUDA kernels emulated, and leaves the figures empty.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import bench_products
from harness import row_error, table

import hetkern
from hetkern import impl as choice

LENGTHS = (256, 1024, 4096, 16384, 65536, 131072, 262144)
ELEMENTS = 2**27  # of each softmax: 256 MB in bf16, more than any cache
LOGITS = (8192, 128256)
#: What was measured elsewhere, to be reached.
TARGETS = {"softmax % of copy": 85, "cross-entropy ms": 1.9}
CHECKED_ROWS = 64
LATE = "no time was left"
Call = Callable[[torch.Tensor], Any]


class Clock:
    """Median time of a call; on a CPU the calls run and no time is told."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 2**10
        self.flush = torch.empty(4 * cache, dtype=torch.int8, device=device)

    def ms(self, call: Call, inputs: list[torch.Tensor]) -> float | None:
        """Milliseconds of ``call`` on the inputs in turn."""
        for x in inputs[:1] * 3:
            call(x)
        if self.device != "cuda":
            return None
        times = []
        for i in range(self.repeats):
            self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call(inputs[i % len(inputs)])
            end.record()
            times.append((begin, end))
        torch.cuda.synchronize()
        return sorted(begin.elapsed_time(end) for begin, end in times)[len(times) // 2]


class Bench:
    """Collects rows, and what had to be left out."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.dry = options.dry
        self.device = "cpu" if options.dry else "cuda"
        self.clock = Clock(self.device, 2 if options.dry else 30)
        self.out: Path = options.out
        self.until = time.monotonic() + options.seconds
        self.rows: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}
        self.failed: dict[str, str] = {}  # of our own

    def measure(
        self,
        work: str,
        calls: dict[str, Call],
        inputs: list[torch.Tensor],
        moved: int,
        speed: float | None,
        exact: Callable[[torch.Tensor], torch.Tensor],
        flops: float = 0,
        first: Call = lambda out: out[:CHECKED_ROWS],
    ) -> None:
        """A row for each call.

        ``moved``: bytes; ``speed``: a copy's; ``exact``: what ``first`` takes of the right result.
        """
        try:
            right = exact(inputs[0])
        except Exception as failure:  # a small GPU's memory
            self.left_out |= {f"{work} {n}": f"no exact result: {failure}"[:400] for n in calls}
            return
        for name, call in calls.items():
            if time.monotonic() > self.until:
                self.left_out[f"{work} {name}"] = LATE
                continue
            try:
                # Liger writes over the logits: it comes last, and its error is not told.
                error = None if name == "Liger" else row_error(first(call(inputs[0])), right)
                ms = self.clock.ms(call, inputs)
            except Exception as failure:  # a line, not the end
                where = self.failed if name.startswith("hetkern") else self.left_out
                where[f"{work} {name}"] = f"{type(failure).__name__}: {failure}"[:400]
                continue
            row = {
                "work": work,
                "implementation": name,
                "ms": ms and round(ms, 4),
                "GB/s": round(moved / ms / 1e6) if ms and moved else None,
                "% of copy": round(100 * moved / ms / speed, 1) if ms and speed else None,
                "TFLOP/s": round(flops / ms / 1e9, 1) if ms and flops else None,
                "error": None if error is None else f"{error:.1e}",
            }
            self.rows.append(row)
        self.save()

    def copy_speed(self, x: torch.Tensor) -> float | None:
        """Bytes a millisecond that a copy of x moves, read and written."""
        y = torch.empty_like(x)
        ms = self.clock.ms(y.copy_, [x])
        return None if ms is None else 2 * x.numel() * x.element_size() / ms

    def softmax(self) -> None:
        """Softmax bf16, forward, over rows of every length."""
        for length in LENGTHS[:3] if self.dry else LENGTHS:
            rows = 3 if self.dry else ELEMENTS // length
            inputs = [
                torch.randn(rows, length, device=self.device).bfloat16()
                for _ in range(1 if self.dry else 2)
            ]
            torch._dynamo.reset()
            compiled = torch.compile(lambda x: torch.softmax(x, -1), dynamic=False)
            calls: dict[str, Call] = self.ours(lambda x, impl: hetkern.softmax(x, -1, impl=impl))
            calls["torch"] = lambda x: torch.softmax(x, -1)
            if not self.dry:
                calls["torch.compile"] = compiled
            if quack := self.peer("quack"):
                calls["quack"] = lambda x: quack.softmax(x)
            moved = 2 * inputs[0].numel() * 2
            speed = self.copy_speed(inputs[0])
            if speed:
                self.rows.append(
                    {
                        "work": f"softmax {rows}×{length}",
                        "implementation": "copy",
                        "ms": round(moved / speed, 4),
                        "GB/s": round(speed / 1e6),
                        "% of copy": 100.0,
                        "TFLOP/s": None,
                        "error": None,
                    }
                )
            self.measure(
                f"softmax {rows}×{length}",
                calls,
                inputs,
                moved,
                speed,
                lambda x: torch.softmax(x[:CHECKED_ROWS].double(), -1),
            )

    def cross_entropy(self) -> None:
        """Cross-entropy bf16, forward and backward: read twice, written once."""
        rows, classes = (4, 1000) if self.dry else LOGITS
        logits = torch.randn(rows, classes, device=self.device).bfloat16().requires_grad_()
        target = torch.randint(classes, (rows,), device=self.device)
        target[-1] = -100

        def both(loss: Callable[..., torch.Tensor]) -> Call:
            return lambda x: torch.autograd.grad(loss(x, target), x)[0]

        calls = self.ours(
            lambda x, impl: both(lambda a, b: hetkern.cross_entropy(a, b, impl=impl))(x)
        )
        calls["torch"] = both(F.cross_entropy)
        if not self.dry:
            calls["torch.compile"] = both(torch.compile(F.cross_entropy, dynamic=False))
        if quack := self.peer("quack"):
            calls["quack"] = both(lambda a, b: quack.cross_entropy(a, b, reduction="mean"))
        if liger := self.peer("liger_kernel.transformers"):
            calls["Liger"] = both(lambda a, b: liger.LigerCrossEntropyLoss()(a, b))

        def exact(x: torch.Tensor) -> torch.Tensor:
            few = x.detach()[:CHECKED_ROWS].double().requires_grad_()
            counted = int((target != -100).sum())
            loss = F.cross_entropy(few, target[:CHECKED_ROWS], reduction="sum") / counted
            return torch.autograd.grad(loss, few)[0]

        size = logits.numel() * 2
        some = logits.detach()[: max(1, rows // 8)]
        self.measure(
            f"cross-entropy {rows}×{classes}",
            calls,
            [logits],
            3 * size,
            self.copy_speed(some),
            exact,
        )

    def ours(self, call: Callable[[torch.Tensor, str], torch.Tensor]) -> dict[str, Call]:
        """Our implementations that can run here, and a reason for each other one."""
        found: dict[str, Call] = {}
        for name in ("cuda", "triton"):
            if reason := choice.why_not(name, self.device, torch.bfloat16):
                self.left_out[f"hetkern {name}"] = reason
            else:
                found[f"hetkern {name}"] = lambda x, name=name: call(x, name)
        return found

    def peer(self, module: str) -> Any:
        """Another library, if it is installed."""
        try:
            return importlib.import_module(module)
        except Exception as missing:  # some fail on import for lack of a GPU
            self.left_out[module.split(".")[0]] = f"{type(missing).__name__}: {missing}"[:200]
            return None

    def reached(self) -> dict[str, bool | None]:
        """Which of the targets the CUDA kernels reach; None without figures."""
        if self.dry:
            return dict.fromkeys(("softmax", "ahead of torch.compile", "cross-entropy"))
        time_of = {(row["work"], row["implementation"]): row["ms"] for row in self.rows}
        softmax = [r for r in self.rows if r["implementation"] == "hetkern cuda"]
        long = [
            r
            for r in softmax
            if r["work"].startswith("softmax") and int(r["work"].split("×")[1]) >= 1024
        ]
        losses = [r for r in softmax if r["work"].startswith("cross")]
        ahead = [
            ms < time_of[work, "torch.compile"]
            for (work, name), ms in time_of.items()
            if name == "hetkern cuda" and (work, "torch.compile") in time_of
        ]
        return {
            "softmax": bool(long)
            and all(r["% of copy"] >= TARGETS["softmax % of copy"] for r in long),
            "ahead of torch.compile": bool(ahead) and all(ahead),
            "cross-entropy": bool(losses)
            and all(r["ms"] <= TARGETS["cross-entropy ms"] for r in losses),
        }

    def save(self) -> None:
        """Write what there is: a run that is stopped leaves its rows."""
        report = {
            "figures": "none: a dry run" if self.dry else "medians of CUDA events",
            "device": None if self.dry else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "targets": TARGETS,
            "reached": self.reached(),
            "left out": self.left_out,
            "failed": self.failed,
            "rows": self.rows,
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(report, indent=1) + "\n")


@contextlib.contextmanager
def emulated(dry: bool) -> Iterator[None]:
    """In a dry run, CUDA kernels on CPU tensors."""
    if not dry:
        yield
        return
    from hetkern.testing.emulation import emulated_cuda

    with emulated_cuda():
        yield


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, no figures")
    parser.add_argument("--out", type=Path, default=Path("build/bench_gpu.json"))
    parser.add_argument("--seconds", type=float, default=160, help="begin no row after so many")
    options = parser.parse_args()
    torch.manual_seed(0)
    with emulated(options.dry):
        bench = Bench(options)
        bench.cross_entropy()  # the largest first: its memory is then free again
        bench.softmax()
        bench_products.attention(bench)
        bench_products.decode(bench)
        bench_products.sequences(bench)
        bench.save()
    print(table(bench.rows))
    print("left out:", bench.left_out)
    print("failed:", bench.failed)
    print("reached:", bench.reached())


if __name__ == "__main__":
    main()
