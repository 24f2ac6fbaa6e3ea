"""TensorBoard events of a run, for whoever has TensorBoard."""

from __future__ import annotations

from pathlib import Path

from hetkern.training.config import UserError
from hetkern.training.metrics import Row

EVENTS = "tensorboard"


class Board:
    """The curves of metrics.jsonl as events."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was written of later steps, before a run was killed, is not shown.
        self._writer = SummaryWriter(str(run / EVENTS), purge_step=step + 1 if step else None)

    def add(self, row: Row) -> None:
        """One row."""
        values = {
            "loss/train": row.train_loss,
            "loss/validation": row.val_loss,
            "bits per byte/validation": row.val_bits_per_byte,
            "accuracy/validation": row.accuracy,
            "learning rate": row.learning_rate,
            "speed": row.tokens_per_second,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()


def open_board(run: Path, step: int) -> Board:
    """The events of a run that goes on after ``step``.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        return Board(run, step)
    except ImportError as error:
        raise UserError(
            "--tensorboard needs TensorBoard: pip install 'hetkern[tensorboard]'"
        ) from error
