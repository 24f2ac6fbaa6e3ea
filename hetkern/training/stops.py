"""What ends a run before its last step, and what it then says that is left."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hetkern.training.checkpoint import saved_steps
from hetkern.training.config import UserError
from hetkern.training.run import DATA


class RunStopped(UserError):
    """A run ended early: its loss became no number, or the disk is full."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: a checkpoint is saved; the message says where, and how to go on."""


@contextlib.contextmanager
def written(run: Path, what: str) -> Iterator[None]:
    """A disk that fills up stops the run, and says what is left."""
    try:
        yield
    except OSError as error:
        raise RunStopped(
            f"could not {what} in {run}: {error.strerror}; {what_is_saved(run)}"
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def check_data(facts: Mapping[str, Any], run: Path) -> None:
    """Refuse data of another hash than the run began with."""
    try:
        began = json.loads((run / DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the run was stopped before it was written
    if began.get("data_sha256") != facts.get("data_sha256"):
        raise UserError(
            f"{run}: {facts.get('data')} has changed since this run began (its SHA-256 is another "
            "one); put it back, or start a new run"
        )


def saved_step(run: Path) -> int | None:
    """The step of the last checkpoint; None if there is none."""
    steps = saved_steps(run)
    return steps[-1] if steps else None


def what_is_saved(run: Path) -> str:
    """The last checkpoint, in words."""
    step = saved_step(run)
    return "nothing was saved yet" if step is None else f"the weights of step {step} are in {run}"
