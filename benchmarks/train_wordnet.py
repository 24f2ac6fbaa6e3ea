"""A classifier of WordNet's noun glosses into 26 classes, beside naive Bayes on the same split.

    python benchmarks/train_wordnet.py --model gru --epochs 3 --out runs/wordnet-gru

It needs Debian's wordnet-base (/usr/share/wordnet). All settings but these are the defaults of
`hetkern train classify`. A run that was stopped goes on from its folder. Results go into
results/wordnet-MODEL-CPU.json; exit status 1 where naive Bayes is right more often.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from harness import RESULTS, vendor

from hetkern.training import read_metrics, resume, train
from hetkern.training.config import ClassifyConfig


def main() -> int:
    """Train, or go on, and keep the accuracy of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="rnn", choices=["rnn", "lstm", "gru", "transformer"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the run's folder")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    run = arguments.out or Path("runs", f"wordnet-{arguments.model}")
    if not (run / "config.toml").exists():
        train(
            ClassifyConfig(
                data="wordnet", model=arguments.model, epochs=arguments.epochs, out=str(run),
                batch_size=arguments.batch_size, threads=arguments.threads, save_every=100,
            )
        )  # fmt: skip
    elif not (run / "summary.json").exists():
        resume(run)
    summary = json.loads((run / "summary.json").read_text())
    rows = [row for row in read_metrics(run) if row.accuracy is not None]
    best = max(rows, key=lambda row: row.accuracy or 0.0)
    result = {
        "model": arguments.model,
        "parameters": summary["parameters"],
        "epochs": round(rows[-1].epoch, 2),
        "training_texts": summary["counts"]["training texts"],
        "validation_texts": summary["counts"]["validation texts"],
        "accuracy_by_epoch": [round(row.accuracy or 0.0, 4) for row in rows],
        "accuracy": summary["accuracy"],
        "best_accuracy": best.accuracy,
        "naive_bayes_accuracy": summary["naive_bayes_accuracy"],
        "majority_accuracy": summary["majority_accuracy"],
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))
    file = arguments.json or RESULTS / f"wordnet-{arguments.model}-{vendor()}.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(result["accuracy"] <= result["naive_bayes_accuracy"])


if __name__ == "__main__":
    sys.exit(main())
