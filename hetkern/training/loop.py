"""From a config to a trained run, and on from where a run stopped."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hetkern.training import report, stops
from hetkern.training.checkpoint import find_checkpoint, read_checkpoint, remove_parts, saved_steps
from hetkern.training.config import RunConfig, TrainConfig, UserError
from hetkern.training.denormals import flushed_denormals
from hetkern.training.interrupt import stop_on_interrupt
from hetkern.training.launch import (
    join,
    launched,
    processes_now,
    processes_wanted,
    run_processes,
)
from hetkern.training.loading import choose_kernels_or_explain
from hetkern.training.parallel import is_sharded
from hetkern.training.probe import probed
from hetkern.training.progress import OutputLost, TrainingProgress
from hetkern.training.randomness import own_random_states
from hetkern.training.result import SUMMARY, TrainResult, read_result
from hetkern.training.run import (
    Lock,
    config_of,
    create_run,
    fresh_folder,
    rewrite_config,
)
from hetkern.training.session import Session
from hetkern.training.task import Task, kind_of
from hetkern.training.trainer import Trainer
from hetkern.training.workers import Workers


def train(config: RunConfig | None = None) -> TrainResult:
    """Train a model and leave it in its run's folder, as ``hetkern train`` does.

    The same config on the same data and machine gives the same bits. The global random states and
    torch's thread count are put back afterwards.

    Args:
        config: what to train on what; the defaults if None.

    Raises:
        UserError: the config or the data is no good, the loss stopped being a number, or the disk
            filled up.
        KeyboardInterrupt: Ctrl-C, once a checkpoint is saved.
    """
    config = config if config is not None else TrainConfig()
    if not launched() and processes_wanted(config) > 1:
        return _in_processes(config)
    return _in_this_process(config, None, "last")


def resume(run: str | Path, checkpoint: str = "last", **changes: Any) -> TrainResult:
    """Go on with a run that was stopped: the end is the one it would have had.

    Args:
        run: the run's folder.
        checkpoint: ``"last"``, ``"best"`` or a step; later ones are forgotten.
        changes: settings to change: more ``steps``, another ``device``.

    Raises:
        UserError: there is no run, or none that can go on; the message says why.
        KeyboardInterrupt: as :func:`train`.
    """
    run = Path(run)
    config = resumed_config(run, changes)
    if not launched() and processes_wanted(config) > 1:
        words = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
        command = ["resume", str(run), f"--checkpoint={checkpoint}", *words]
        run_processes(processes_wanted(config), ["-m", "hetkern_cli", *command])
        return read_result(run)
    return _in_this_process(config, run, checkpoint)


def _in_processes(config: RunConfig) -> TrainResult:
    """What the command does with --nproc, and how it went."""
    run = fresh_folder(config) if config.out is None else Path(config.out)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "config.toml")
        file.write_bytes(config.to_toml().encode("utf-8", "replace"))
        command = ["train", f"--config={file}", f"--out={run}"]
        run_processes(processes_wanted(config), ["-m", "hetkern_cli", *command])
    return read_result(run)


def resumed_config(run: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The settings with which a run goes on: its own, with ``changes``.

    In other numbers of processes each accumulates more or less, so that a step stays what it was.

    Raises:
        UserError: there is no run, or its batches cannot be shared among so many processes.
    """
    if "steps" in changes and "epochs" not in changes:
        changes = {**changes, "epochs": 0}  # which would count in place of the steps
    saved, config = config_of(run), config_of(run, **changes)
    before, now = processes_wanted(saved), processes_now(config)
    if before == now:
        return config
    if saved.accumulate * before % now:
        raise UserError(
            f"a step of this run is {saved.accumulate * before} batches of {saved.batch_size}, "
            f"which {now} processes cannot share evenly; resume it with --nproc {before}"
        )
    return replace(config, accumulate=saved.accumulate * before // now, nproc=now)


def _in_this_process(config: RunConfig, run: Path | None, checkpoint: str) -> TrainResult:
    with (
        flushed_denormals(),  # first: the threads that torch starts take over what holds here
        join(config) as workers,
        _threads(config.threads),
        own_random_states(config.seed),
    ):
        return _train(config, workers, run, checkpoint)


def _train(config: RunConfig, workers: Workers, run: Path | None, checkpoint: str) -> TrainResult:
    started = time.perf_counter()
    kernels = choose_kernels_or_explain(config.kernels, workers.device)
    task = prepared(config, workers)
    if config.batch_size == "auto":
        with own_random_states(config.seed):
            say = TrainingProgress(1, 1, quiet=not workers.first).say
            config = probed(config, task, kernels, workers, say)
    trainer = Trainer(task, config, kernels, workers)
    fresh = run is None
    run, lock = _folder(config, task, workers, run)
    try:
        said: dict[str, Any] = {}
        if not fresh:
            _check_data(task, run, workers)
            said = _restored(trainer, run, checkpoint)
            _refuse_if_finished(trainer, run)
        progress = TrainingProgress(
            trainer.steps, trainer.task.count(torch.zeros(trainer.rows, dtype=torch.long)),
            unit=task.unit, quiet=not workers.first, done=trainer.step,
        )  # fmt: skip
        with (
            stop_on_interrupt(echoes=workers.size > 1) as interrupt,
            _stopped_in_order(run, workers, progress) as rescue,
        ):
            progress.say(report.started(config, trainer, run, workers))
            current = Session(trainer, run, progress, interrupt, said)
            rescue.append(current.save)
            return current.finish(started)
    finally:
        if lock is not None:
            lock.release()


def prepared(config: RunConfig, workers: Workers) -> Task:
    """The task with its data, read by the first process before the others.

    What it leaves on disk, the others then find.
    """
    tasks: list[Task] = []
    workers.first_does(lambda: tasks.append(kind_of(config).prepare(config)))
    return tasks[0] if tasks else kind_of(config).prepare(config)


def _folder(
    config: RunConfig, task: Task, workers: Workers, run: Path | None
) -> tuple[Path, Lock | None]:
    """The run's folder, known to every process and held by the first."""
    made: list[tuple[Path, Lock]] = []

    def make() -> None:
        if run is None:
            kept = replace(config, nproc=workers.size)
            made.append(create_run(kept, task.files()))
        else:
            made.append((run, Lock(run)))
            remove_parts(run)
            with stops.written(run, "write the settings"):
                rewrite_config(run, config)

    workers.first_does(make)
    path = workers.told(str(made[0][0]) if made else "")
    return Path(path), made[0][1] if made else None


def _restored(trainer: Trainer, run: Path, which: str) -> dict[str, Any]:
    """The trainer goes on from a checkpoint; returns what the session had saved.

    A run that was stopped before its first checkpoint begins anew.
    """
    if not saved_steps(run) and which == "last":
        return {}
    workers = trainer.workers if is_sharded(trainer.config) else None
    checkpoint = read_checkpoint(run, find_checkpoint(run, which), workers=workers)
    return trainer.restore(checkpoint)


def _refuse_if_finished(trainer: Trainer, run: Path) -> None:
    step, steps = trainer.step, trainer.steps
    try:
        ended = json.loads((run / SUMMARY).read_text(encoding="utf-8"))["steps"] == step
    except (OSError, ValueError, KeyError, TypeError):
        ended = False
    if step > steps or (step == steps and ended):
        raise UserError(
            f"{run} is finished: it has made {step} steps of {steps}; "
            "hetkern resume RUN --steps N (or --epochs N) trains it further"
        )


def _check_data(task: Task, run: Path, workers: Workers) -> None:
    """Refuse to go on with other data."""
    for name, contents in task.files().items():
        if not (run / name).is_file() or (run / name).read_bytes() != contents:
            raise UserError(f"{run}: the data has changed since this run began ({name} differs)")
    stops.check_data(task.facts(), run)


@contextlib.contextmanager
def _threads(wanted: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _stopped_in_order(
    run: Path, workers: Workers, progress: TrainingProgress
) -> Iterator[list[Callable[[], None]]]:
    """A second Ctrl-C and an output that is lost say what is left, too.

    The list takes what saves a checkpoint.
    """
    rescue: list[Callable[[], None]] = []
    try:
        yield rescue
    except stops.Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise stops.Interrupted(report.stopped_at_once(stops.saved_step(run), run)) from error
    except OutputLost as error:
        if rescue and workers.size == 1 and progress.done > (stops.saved_step(run) or 0):
            rescue[0]()
        why = error.strerror or str(error)
        raise stops.RunStopped(report.output_lost(why, stops.saved_step(run), run)) from error
