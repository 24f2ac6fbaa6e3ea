"""metrics.jsonl: one JSON object a line, written as training goes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        step: optimizer steps made.
        train_loss: nats a token, the mean over the steps since the row before.
        val_loss: nats a token over the validation text, or the setting ``eval_tokens`` of it;
            null where none was made.
        val_bits_per_byte: the same in bits per byte of text; null likewise.
        learning_rate: of this step.
        tokens_per_second: of training, since the row before.
    """

    step: int
    train_loss: float
    val_loss: float | None
    val_bits_per_byte: float | None
    learning_rate: float
    tokens_per_second: float


def write_row(run: Path, row: Row) -> None:
    """Append one row to a run's metrics; it has left this process when this returns."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_metrics(run: str | Path) -> list[Row]:
    """The rows of a run, in order."""
    lines = (Path(run) / METRICS).read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]
