"""How fast a small model trains with each way of OpenMP's threads to wait for one another.

    python benchmarks/train_waiting.py --busy 2 --rounds 3

The ways take turns, each in a process of its own, beside ``--busy`` processes that only compute.
Printed are tokens a second, the median and the best over the rows of metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
# Straight from the package: the command would set a spin of its own.
RUN = """
import sys
from hetkern.training import TrainConfig, train
train(TrainConfig(steps=int(sys.argv[2]), eval_tokens=128, sample_length=0, log_every=5,
                  out=sys.argv[1]))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, help="processes that compute meanwhile")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--limit", type=float, default=120, help="most seconds a run")
    arguments = parser.parse_args()
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)
    ]
    seen: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for _ in range(arguments.rounds):
            for way, variables in WAYS.items():
                seen[way] += speeds(variables, arguments.steps, arguments.limit)
    finally:
        for process in busy:
            process.kill()
    for way, rows in seen.items():
        print(f"{way:24} median {statistics.median(rows):8,.0f}  best {max(rows):8,.0f} tokens/s")


def speeds(variables: dict[str, str], steps: int, limit: float) -> list[float]:
    """Tokens a second of each row but the first, which warms up; 0 if the limit came before."""
    ours = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-c", RUN, str(run), str(steps)]
        try:
            subprocess.run(
                command, env=environment | variables, stdout=subprocess.DEVNULL, timeout=limit
            )
        except subprocess.TimeoutExpired:
            pass
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().splitlines()[1:] if metrics.exists() else []
    return [json.loads(line)["tokens_per_second"] for line in lines] or [0.0]


if __name__ == "__main__":
    main()
