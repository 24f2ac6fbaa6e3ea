"""metrics.jsonl: one JSON object a line, written as training goes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hetkern.training.storage import write_atomically

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        step: optimizer steps made.
        epoch: passes over the training data.
        train_loss: nats a token (an example), the mean over the steps since the row before.
        val_loss: nats a token over the validation text, or the setting ``eval_tokens`` of it;
            null where none was made.
        val_bits_per_byte: the same in bits per byte of text; null likewise, and of a classifier.
        accuracy: of a classifier on its validation split; null likewise, and of a language model.
        learning_rate: of this step.
        tokens_per_second: of training, since the row before; examples of a classifier.
    """

    step: int
    epoch: float
    train_loss: float
    val_loss: float | None
    val_bits_per_byte: float | None
    accuracy: float | None
    learning_rate: float
    tokens_per_second: float


def write_row(run: Path, row: Row) -> None:
    """Append one row to a run's metrics; it has left this process when this returns."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def sync_rows(run: Path) -> None:
    """Wait until the disk has the rows."""
    with open(run / METRICS, "a", encoding="utf-8") as file:
        os.fsync(file.fileno())


def read_metrics(run: str | Path) -> list[Row]:
    """The rows of a run, in order; a last line that a killed process left half is no row."""
    rows = []
    names = [f.name for f in fields(Row)]
    for line in (Path(run) / METRICS).read_text(encoding="utf-8").split("\n")[:-1]:
        values = json.loads(line)
        rows.append(Row(**{name: values.get(name) for name in names}))
    return rows


def keep_rows(run: Path, rows: list[Row]) -> None:
    """Make ``rows`` the run's metrics."""
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    write_atomically(run / METRICS, text.encode())
