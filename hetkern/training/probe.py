"""``--batch-size auto``: try batches of rising size, keep the one with the most tokens a second.

The sizes are powers of two. It ends where one does not fit into memory, where a doubling gains less
than a twentieth, or where a step takes longer than some seconds. What it found is printed and
stands in the run's config.toml, so that a resume and a repetition use the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from hetkern.models import Kernels
from hetkern.training.config import RunConfig, UserError
from hetkern.training.session import is_out_of_memory
from hetkern.training.task import Task
from hetkern.training.trainer import Trainer
from hetkern.training.workers import Workers

LARGEST = 1024
GAIN = 1.05
LONGEST = 5.0  # seconds a step
REPEATS = 3


def probed(
    config: RunConfig, task: Task, kernels: Kernels, workers: Workers, say: Callable[[str], None]
) -> RunConfig:
    """``config`` with the batch size that was fastest here, if it asks for one.

    Raises:
        UserError: not even one sequence fits into memory.
    """
    if config.batch_size != "auto":
        return config
    best, speed, tried = 0, 0.0, []
    size = 1
    while size <= LARGEST:
        found = _speed(replace(config, batch_size=size, compile=False), task, kernels, workers)
        if found is None:
            tried.append(f"{size}: out of memory")
            break
        tokens, seconds = found
        tried.append(f"{size}: {tokens / seconds:,.0f}")
        if tokens / seconds < speed * GAIN:
            break
        best, speed = size, tokens / seconds
        if seconds > LONGEST:
            break
        size *= 2
    if not best:
        raise UserError("not even a batch of one fits into memory; a smaller model may")
    say(f"batch   {best} {task.steps_are}s, probed ({task.unit}s/s at {'; '.join(tried)})")
    return replace(config, batch_size=best)


def _speed(
    config: RunConfig, task: Task, kernels: Kernels, workers: Workers
) -> tuple[float, float] | None:
    """Tokens and seconds of the fastest of some steps; None where memory does not suffice.

    Every process measures, and all use the first one's time.
    """
    try:
        trainer = Trainer(task, config, kernels, workers)
        trainer.make_step()
        seconds, count = float("inf"), 0
        for _ in range(REPEATS):
            began = time.perf_counter()
            _, count, _ = trainer.make_step()
            if workers.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = min(seconds, time.perf_counter() - began)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        seconds, count = float("inf"), 0
    # The same number everywhere, so that every process comes to the same end.
    seconds = float(workers.told(str(seconds)))
    [failed] = workers.total(float(count == 0))
    return None if failed else (float(count), seconds)
