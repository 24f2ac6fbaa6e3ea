"""How a run went."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class TrainResult:
    """How a run went.

    Attributes:
        run: its folder.
        steps: optimizer steps made.
        train_loss: nats a token, over the last row of metrics.jsonl.
        val_loss: nats a token, over the validation text or ``val_targets`` of it.
        val_bits_per_byte: the same in bits per byte of text; None of a classifier.
        val_targets: how many tokens (examples) the last validation predicted.
        accuracy: of a classifier; None of a language model.
        best_step: of the checkpoint with the lowest validation loss, ``best_val_loss``.
        sample: text that the model wrote.
        seconds: how long training, validation and the sample took.
    """

    run: Path
    steps: int
    train_loss: float
    val_loss: float
    val_bits_per_byte: float | None
    val_targets: int
    accuracy: float | None
    best_step: int
    best_val_loss: float
    sample: str
    seconds: float


SUMMARY = "summary.json"


def read_result(run: Path) -> TrainResult:
    """How a run went, as it stands in its folder."""
    summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    values = {f.name: summary[f.name] for f in fields(TrainResult)}
    return TrainResult(**{**values, "run": run})
