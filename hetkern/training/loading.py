"""A trained model out of its run."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hetkern.models import Kernels, choose_kernels
from hetkern.training.checkpoint import find_checkpoint, read_checkpoint
from hetkern.training.config import RunConfig, UserError
from hetkern.training.run import config_of
from hetkern.training.task import LoadedRun, kind_of


def choose_kernels_or_explain(name: str, device: torch.device | str = "cpu") -> Kernels:
    """:func:`choose_kernels`, its refusal turned into a UserError."""
    try:
        return choose_kernels(name, device)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--kernels {name} cannot run here: {error}") from error


def load(
    run: str | os.PathLike[str], kernels: str | None = None, checkpoint: str = "last"
) -> LoadedRun:
    """The trained model of a run, its tokenizer, and a classifier's labels.

    Args:
        run: the run's folder.
        kernels: which kernels it shall run on; None for those it was trained with.
        checkpoint: ``"last"``, ``"best"`` (of the lowest validation loss), or a step.

    Raises:
        UserError: the folder holds no run, or a broken one.
    """
    run = Path(run)
    config = config_of(run)
    step = find_checkpoint(run, str(checkpoint))
    weights = read_checkpoint(run, step, weights_only=True).model
    chosen = choose_kernels_or_explain(kernels or config.kernels)
    loaded = restored(run, config, chosen)
    try:
        loaded.model.load_state_dict(weights)
    except RuntimeError as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{run}: the checkpoint of step {step} is of another model: {what}") from (
            error
        )
    return loaded._replace(model=loaded.model.eval())


def restored(run: Path, config: RunConfig, kernels: Kernels) -> LoadedRun:
    """The model of a run as its settings describe it, without its weights."""
    kind = kind_of(config)
    try:
        files = {name: (run / name).read_bytes() for name in kind.files}
        return kind.restore(config, files, kernels)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{run} holds a broken run: {error}") from error
