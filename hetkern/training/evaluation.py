"""A trained model on a whole split."""

from __future__ import annotations

from pathlib import Path

import torch

from hetkern.training.checkpoint import find_checkpoint, of_another_model, read_checkpoint
from hetkern.training.config import RunConfig, UserError
from hetkern.training.loading import choose_kernels_or_explain
from hetkern.training.loop import prepared
from hetkern.training.memory import check_evaluation
from hetkern.training.stops import check_data
from hetkern.training.task import Evaluation
from hetkern.training.trainer import autocast
from hetkern.training.workers import Workers


def evaluate_run(
    run: Path, config: RunConfig, workers: Workers, split: str, checkpoint: str, floors: bool
) -> tuple[int, Evaluation, dict[str, float]]:
    """The checkpoint's step, its evaluation on the whole split, and what simple methods reach.

    Raises:
        UserError: the run has no such checkpoint, or its data has changed.
    """
    step = find_checkpoint(run, checkpoint)
    weights = read_checkpoint(run, step, weights_only=True).model
    task = prepared(config, workers)
    check_data(task.facts(), run)
    size = config.batch_size if isinstance(config.batch_size, int) else 8
    check_evaluation(task, config, size, workers)
    with torch.random.fork_rng(devices=[]):
        model = task.build_model(choose_kernels_or_explain(config.kernels, workers.device))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{run}: {of_another_model(step, error)}") from error
    with autocast(config, workers.device):
        evaluation = task.evaluate(model.to(workers.device), workers, size, split=split, limit=0)
    return step, evaluation, task.floors() if floors and workers.first else {}
