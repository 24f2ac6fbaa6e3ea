"""metrics.jsonl: one JSON object a line, written as training goes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        step: optimizer steps made.
        train_loss: nats a token, the mean over the steps since the row before.
        val_loss: nats a token over the whole validation text; null where none was made.
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


class MetricsFile:
    """Appends rows; each is on disk, whole, before the next step begins."""

    def __init__(self, run: Path) -> None:
        """Open the run's file for appending."""
        self._file = open(run / FILE, "a", encoding="utf-8")

    def __enter__(self) -> MetricsFile:
        """Use as a context."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def write(self, row: Row) -> None:
        """Append one row."""
        self._file.write(json.dumps(asdict(row)) + "\n")
        self._file.flush()


def read_metrics(run: str | Path) -> list[Row]:
    """The rows of a run, in order."""
    lines = (Path(run) / FILE).read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]
