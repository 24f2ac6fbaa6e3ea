"""Validation losses on tiny-shakespeare, of presets with their budgets, on our kernels or torch's.

    python benchmarks/train_tinyshakespeare.py PATH/TO/tinyshakespeare.txt --preset nanogpt-cpu
    python benchmarks/train_tinyshakespeare.py PATH/TO/tinyshakespeare.txt --time

`nanogpt-cpu` is nanoGPT's model and budget for a laptop: 4 layers, 4 heads, 128 wide, context 64,
batch 12, 2000 steps, no dropout; the learning rate is ours. nanoGPT's README gives 1.88 for its own
run, a mean over 20 random batches. `gpt-characters` and `lstm-characters` have twenty minutes of
two cores and shall do better than counting 5-grams. A loss is over the whole last tenth of the
text. `--time` trains a few steps alone and says how long all would take, for a machine that was
busy while they were made. Results go into results/tinyshakespeare-PRESET-CPU.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import RESULTS, machine, vendor

from hetkern.training import TrainConfig, TrainResult, resume, train
from hetkern.training.result import read_result
from hetkern.training.trainer import Trainer

LIMITS = {"nanogpt-cpu": 1.76, "gpt-characters": 1.669, "lstm-characters": 1.669}  # nats
MINUTES = 20.0  # of two cores
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of the text itself


def main() -> int:
    """Train or time, print and keep the result; exit status 1 if it is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="tinyshakespeare.txt, 1,115,394 bytes")
    parser.add_argument("--preset", choices=LIMITS, default="nanogpt-cpu")
    parser.add_argument("--kernels", default="hetkern", help="as for `hetkern train`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the run's folder, to go on there after a stop")
    parser.add_argument("--time", action="store_true", help="time 40 steps on a quiet machine")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    name = f"tinyshakespeare-{arguments.preset}-{vendor()}.json"
    file = arguments.json or RESULTS / name
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig.from_values(
            {
                "preset": arguments.preset,
                "data": str(arguments.data),
                "out": str(arguments.out or f"{scratch}/run"),
                "kernels": arguments.kernels,
                "seed": arguments.seed,
                "threads": arguments.threads,
                "eval_tokens": 0,
                "save_every": 200,
            }
        )
        if arguments.time:
            row = timed(config)
        else:
            row = learnt(_trained(config), config, arguments.data)
    known = json.loads(file.read_text()) if file.exists() else {}
    known |= row
    print(json.dumps(known, indent=2))
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    found, limit = (
        (known["minutes"], MINUTES)
        if arguments.time
        else (known["val_loss"], LIMITS[arguments.preset])
    )
    if found > limit:
        print(f"{found:.4f} is above {limit}", file=sys.stderr)
    return int(found > limit)


def _trained(config: TrainConfig) -> TrainResult:
    """All the steps, of which an earlier process may have made some."""
    run = Path(config.out or "")
    if (run / "summary.json").exists():
        return read_result(run)
    return resume(run) if (run / "config.toml").exists() else train(config)


def learnt(result: TrainResult, config: TrainConfig, data: Path) -> dict[str, object]:
    """What a whole training reached."""
    facts = json.loads((result.run / "summary.json").read_text())
    return {
        "preset": config.preset,
        "kernels": config.kernels,
        "seed": config.seed,
        "steps": result.steps,
        "parameters": facts["parameters"],
        "val_loss": result.val_loss,
        "val_bits_per_byte": result.val_bits_per_byte,
        "floor": facts["n_gram_loss"],
        "limit": LIMITS[str(config.preset)],
        "torch": torch.__version__,
        "is_tinyshakespeare": hashlib.sha256(data.read_bytes()).hexdigest() == SHA256,
    }


def timed(config: TrainConfig) -> dict[str, object]:
    """Minutes that all steps take, by the median of forty."""
    seconds: list[float] = []
    true = Trainer.make_step

    def make_step(self: Trainer, *rest: object) -> tuple[float, int, bool]:
        began = time.perf_counter()
        done = true(self, *rest)  # type: ignore[arg-type]
        seconds.append(time.perf_counter() - began)
        if len(seconds) == 50:
            raise KeyboardInterrupt
        return done

    Trainer.make_step = make_step  # type: ignore[method-assign]
    try:
        train(config)
    except KeyboardInterrupt:
        pass
    finally:
        Trainer.make_step = true  # type: ignore[method-assign]
    step = statistics.median(seconds[10:])
    minutes = step * config.steps / 60
    return {"ms_a_step": round(step * 1e3, 1), "minutes": round(minutes, 1), "timed": machine()}


if __name__ == "__main__":
    sys.exit(main())
