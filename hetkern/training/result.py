"""How a run went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainResult:
    """How a run went.

    Attributes:
        run: its folder.
        steps: optimizer steps made.
        train_loss: nats a token, over the last row of metrics.jsonl.
        val_loss: nats a token, over the validation text or ``val_targets`` of it.
        val_bits_per_byte: the same in bits per byte of text.
        val_targets: how many tokens the last validation predicted.
        sample: text that the model wrote.
        seconds: how long training, validation and the sample took.
    """

    run: Path
    steps: int
    train_loss: float
    val_loss: float
    val_bits_per_byte: float
    val_targets: int
    sample: str
    seconds: float
