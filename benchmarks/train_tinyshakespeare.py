"""Validation loss of nanoGPT's CPU budget on tiny-shakespeare, on our kernels or torch's.

    python benchmarks/train_tinyshakespeare.py PATH/TO/tinyshakespeare.txt --json result.json

The model and budget are nanoGPT's for a laptop: 4 layers, 4 heads, 128 wide, context 64, batch 12,
2000 steps, no dropout, one token a character. The learning rate is ours. The loss is over the whole
last tenth of the text; nanoGPT's README gives 1.88 for its own run, a mean over 20 random batches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

from hetkern.training import TrainConfig, train

LIMIT = 1.82  # nats a character
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # of the text itself


def main() -> int:
    """Train, print and write the result; exit status 1 if the loss is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="tinyshakespeare.txt, 1,115,394 bytes")
    parser.add_argument("--kernels", default="hetkern", help="as for `hetkern train`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", help="folder for the run; a temporary one if not given")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            data=arguments.data,
            out=arguments.out or f"{scratch}/run",
            kernels=arguments.kernels,
            seed=arguments.seed,
            tokens="characters",
            layers=4,
            heads=4,
            width=128,
            positions="learned",
            context=64,
            batch_size=12,
            steps=2000,
            dropout=0.0,
            learning_rate=4e-3,
            min_learning_rate=0.0,
            warmup=100,
            weight_decay=0.1,
            eval_every=500,
        )
        result = train(config)

    row = {
        "kernels": config.kernels,
        "seed": config.seed,
        "steps": result.steps,
        "val_loss": result.val_loss,
        "val_bits_per_byte": result.val_bits_per_byte,
        "limit": LIMIT,
        "seconds": round(result.seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "is_tinyshakespeare": hashlib.sha256(arguments.data.read_bytes()).hexdigest() == SHA256,
    }
    print(json.dumps(row, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    if result.val_loss > LIMIT:
        print(f"validation loss {result.val_loss:.4f} is above {LIMIT}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
