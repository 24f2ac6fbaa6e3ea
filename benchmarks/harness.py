"""What the benchmarks share: timing side by side, peak memory, the table, the results file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def arguments(description: str, threads: int = 2, parts: Sequence[str] = ()) -> argparse.Namespace:
    """The flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--repeats", type=int, default=9, help="best of so many, taken in turn")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside torch eager")
    parser.add_argument(
        "--quick", action="store_true", help="small shapes: tries the code, not the speed"
    )
    parser.add_argument(
        "--kept",
        action="store_true",
        help="keep a large result's memory from one call to the next: HETKERN_KEEP_MB=4096",
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; default: results/<benchmark>-<cpu>.json"
    )
    if parts:
        parser.add_argument("--parts", nargs="+", choices=parts, help="default: all of them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.kept:
        os.environ["HETKERN_KEEP_MB"] = "4096"  # read at the first large result
    return options


def best_of(
    calls: dict[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Best time of each call in ms; the calls take turns, so that noise hits all alike."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            result = call()
            best[name] = min(best[name], (clock() - start) * 1e3)
            del result
    return best


def overhead_us(
    calls: dict[str, Callable[[], Any]], loops: int = 100, repeats: int = 120
) -> dict[str, float]:
    """Time of small calls in microseconds: best mean over many short loops, which take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(loops):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / loops)
    return {name: round(seconds * 1e6, 1) for name, seconds in best.items()}


def peak_mb(call: Callable[[], Any]) -> float:
    """Growth of the process's resident memory while ``call`` runs, sampled, in MB."""
    page = 4096
    statm = Path("/proc/self/statm")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page

    before, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = call()
    most = max(most, resident())
    done.set()
    watcher.join()
    del result
    return max(0, most - before) / 2**20


def row_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error of a row, relative to the row's largest magnitude."""
    exact = exact.double()
    error = (actual.double() - exact).abs()
    if exact.dim() == 0:
        return float(error / exact.abs())
    return float((error.amax(-1) / exact.abs().amax(-1).clamp_min(1e-300)).max())


def machine() -> dict[str, str]:
    """The conditions of a figure."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(": ")[1] for line in info if line.startswith("model name")),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return {
        "cpu": model,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def vendor() -> str:
    """Of the processor: a part of a results file's name."""
    cpu = machine()["cpu"]
    return "intel" if "Intel" in cpu else "amd" if "AMD" in cpu else "cpu"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; what a row lacks is left empty."""
    columns = list(max(rows, key=len))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def save(
    name: str, rows: list[dict[str, Any]], more: dict[str, Any], options: argparse.Namespace
) -> None:
    """Print the table and write it with its conditions."""
    conditions, out = machine(), options.out
    print(table(rows))
    # A last-level cache holds part of what the smaller works move, and beats memory there.
    large = [row for row in rows if "GB/s" in row and row["ms"] * row["GB/s"] > 400]  # MB
    shares = [row.get("% of it in warm memory", row["% of ceiling"]) for row in large]
    beaten = max(shares, default=0)
    if out is None and beaten > 110:
        raise SystemExit(f"{beaten} % of a ceiling: it is measured too low; nothing was saved")
    print(", ".join(f"{k} {v}" for k, v in conditions.items()))
    if out is None:
        out = RESULTS / f"{name}-{vendor()}{'-kept' if options.kept else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"conditions": conditions, **more, "rows": rows}, indent=1) + "\n")
