"""A run while it goes: steps, checkpoints, validations, rows, and what stops them."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch

import hetkern
from hetkern.training import report
from hetkern.training.board import open_board
from hetkern.training.checkpoint import (
    Checkpoint,
    best_of,
    forget_later,
    mark_best,
    prune,
    saved_steps,
    write_checkpoint,
)
from hetkern.training.interrupt import Interrupt
from hetkern.training.metrics import Row, keep_rows, read_metrics, sync_rows, write_row
from hetkern.training.progress import TrainingProgress
from hetkern.training.result import SUMMARY, TrainResult
from hetkern.training.run import (
    DATA,
    ENVIRONMENT,
    EVALUATION,
    SAMPLE,
    environment,
    plan_of,
    write_json,
)
from hetkern.training.stops import (
    Interrupted,
    RunStopped,
    is_out_of_memory,
    what_is_saved,
    written,
)
from hetkern.training.storage import write_atomically
from hetkern.training.task import Evaluation
from hetkern.training.trainer import Trainer


class Session:
    """The loop around a trainer. Each process has one; the first alone writes."""

    def __init__(
        self,
        trainer: Trainer,
        run: Path,
        progress: TrainingProgress,
        interrupt: Interrupt,
        saved: Mapping[str, Any],
    ) -> None:
        """``saved`` is what the checkpoint holds of a session, empty for a fresh run."""
        self.trainer = trainer
        self.config = trainer.config
        self.workers = trainer.workers
        self.run = run
        self.progress = progress
        self.interrupt = interrupt
        self.losses: list[float] = list(saved.get("losses", []))  # since the last row
        self.counted = 0  # tokens since the last row, or since the process began
        self.since = time.perf_counter()
        self.speed = 0.0  # tokens a second between two rows
        self.last: Evaluation | None = None
        self.planned = False
        self.eval_every = self.config.eval_every
        if self.config.epochs:
            self.eval_every = trainer.order.steps_per_epoch
        self._history()
        self.board = open_board(run, trainer.step) if self.config.tensorboard else None

    def _history(self) -> None:
        """Take the rows of later steps and half ones away; know the validations that there were."""
        kept: list[Row] = []
        if self.workers.first:
            rows = read_metrics(self.run)
            kept = [row for row in rows if row.step <= self.trainer.step]
            if kept and not self._is_complete(kept[-1]):
                kept.pop()
            if len(kept) < len(rows):
                self._written("write the metrics", lambda: keep_rows(self.run, kept))
            validated = {row.step: row.val_loss for row in kept if row.val_loss is not None}
            self._written("forget", lambda: forget_later(self.run, self.trainer.step, validated))
        told = self.workers.told(json.dumps([asdict(row) for row in kept]))
        kept = [Row(**row) for row in json.loads(told)]
        self.evaluated = [(row.step, row.val_loss) for row in kept if row.val_loss is not None]
        last = kept[-1] if kept else None
        self.complete = last if last is not None and last.step == self.trainer.step else None

    def _is_complete(self, row: Row) -> bool:
        """Whether a run that was never stopped would have this row."""
        if self._is_due(row.step):
            return row.val_loss is not None
        return row.step % self.config.log_every == 0

    def finish(self, started: float) -> TrainResult:
        """Make all the steps that are left, show what the model can do, and sum up."""
        if self.workers.first:
            self._written("write what was read", self._write_facts)
        with self.progress:
            row, evaluation = self._steps()
        trainer = self.trainer
        try:
            with self._at_once():
                text = trainer.task.finish(trainer.model)
        except KeyboardInterrupt as error:
            raise Interrupted(report.interrupted(trainer.step, self.run)) from error
        best = best_of(self.run)
        result = TrainResult(
            run=self.run,
            steps=trainer.step,
            train_loss=row.train_loss,
            val_loss=evaluation.loss,
            val_bits_per_byte=evaluation.bits_per_byte,
            val_targets=evaluation.targets,
            accuracy=evaluation.accuracy,
            best_step=best[0] if best else trainer.step,
            best_val_loss=best[1] if best else evaluation.loss,
            sample=text,
            seconds=time.perf_counter() - started,
        )
        if self.workers.first:
            self._written("write the summary", lambda: self._write_summary(result))
        self.progress.say(report.finished(result, trainer))
        return result

    def _steps(self) -> tuple[Row, Evaluation]:
        """All steps with their saves, validations and rows; the last row, the last validation."""
        trainer = self.trainer
        row = self._pending() if trainer.step else None
        while trainer.step < trainer.steps and not self._out_of_patience():
            row = self._one_step() or row
        if self.last is None:  # nothing was left to do but this
            self.last = self._evaluate()
        assert row is not None  # the last step always has one
        return row, self.last

    def _one_step(self) -> Row | None:
        trainer = self.trainer
        try:
            with self._planned():
                loss, count, stopping = trainer.make_step(lambda: self.interrupt.requested)
        except Exception as error:
            if is_out_of_memory(error):
                raise RunStopped(report.out_of_memory(self.config, self.run)) from error
            raise
        if not math.isfinite(loss):
            raise RunStopped(self._not_a_number(loss))
        self.losses.append(loss)
        self.counted += count
        self.progress.step(trainer.step, loss)
        return self._after_step(stopping)

    def _after_step(self, stopping: bool) -> Row | None:
        """What a step has to be followed by: the checkpoint first, whatever then happens."""
        step = self.trainer.step
        self.speed = self.counted / max(time.perf_counter() - self.since, 1e-9)
        due = self._is_due(step)
        every = self.config.save_every
        if due or stopping or (every and step % every == 0):
            self.save()
        evaluation = None
        if due and not stopping:
            try:
                with self._at_once():
                    evaluation = self._evaluate()
            except KeyboardInterrupt:
                stopping = True
        row = None
        if due or stopping or step % self.config.log_every == 0:
            row = self._write_row(evaluation)
        if stopping:
            raise Interrupted(report.interrupted(step, self.run))
        self.progress.resume()
        return row

    def _is_due(self, step: int) -> bool:
        """Whether a validation follows a step."""
        return step == self.trainer.steps or (self.eval_every > 0 and step % self.eval_every == 0)

    def _pending(self) -> Row | None:
        """After a resume: what the checkpoint's step still lacks, or the row that it has."""
        if self.complete is not None:
            self.losses = []
            return self.complete
        if self._is_due(self.trainer.step) or self.trainer.step % self.config.log_every == 0:
            evaluation = self._evaluate() if self._is_due(self.trainer.step) else None
            return self._write_row(evaluation)
        return None

    def save(self) -> None:
        """Write a checkpoint of this step; every process calls it."""
        checkpoint = self.trainer.checkpoint({"losses": self.losses})
        self._written(f"save step {checkpoint.step}", lambda: self._write(checkpoint))

    def _write(self, checkpoint: Checkpoint) -> None:
        first_does = self.workers.first_does
        first_does(lambda: sync_rows(self.run))  # those before its step are there if it is
        write_checkpoint(self.run, checkpoint, self.workers)
        first_does(lambda: prune(self.run, self.config.keep))

    def _evaluate(self) -> Evaluation:
        trainer, task = self.trainer, self.trainer.task
        assert isinstance(self.config.batch_size, int)
        with self.progress.validation(task.evaluation_targets()) as watch, trainer.autocast():
            evaluation = task.evaluate(trainer.model, self.workers, self.config.batch_size, watch)
        if not math.isfinite(evaluation.loss):
            saved = saved_steps(self.run)
            raise RunStopped(report.validation_not_a_number(evaluation.loss, trainer.step, saved))
        self.progress.say(report.validated(trainer, evaluation, self.losses, self.config.epochs))
        self.last = evaluation
        best = min((loss for _, loss in self.evaluated), default=math.inf)
        if self.workers.first:
            self._written("write the validation", lambda: self._keep(evaluation, best))
        self.evaluated.append((trainer.step, evaluation.loss))
        return evaluation

    def _keep(self, evaluation: Evaluation, best: float) -> None:
        step = self.trainer.step
        write_json(self.run / EVALUATION, {"step": step, "split": "val"} | as_json(evaluation))
        if evaluation.loss < best and step in saved_steps(self.run):
            mark_best(self.run, step, evaluation.loss)
            prune(self.run, self.config.keep)

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        if not patience or len(self.evaluated) <= patience:
            return False
        best = min(self.evaluated, key=lambda pair: pair[1])
        after = sum(step > best[0] for step, _ in self.evaluated)
        if after >= patience:
            self.progress.say(report.out_of_patience(patience, *best))
        return after >= patience

    def _write_row(self, evaluation: Evaluation | None) -> Row:
        trainer = self.trainer
        row = Row(
            step=trainer.step,
            epoch=round(trainer.epoch, 4),
            train_loss=sum(self.losses) / max(1, len(self.losses)),
            val_loss=evaluation.loss if evaluation else None,
            val_bits_per_byte=evaluation.bits_per_byte if evaluation else None,
            accuracy=evaluation.accuracy if evaluation else None,
            learning_rate=trainer.rate,
            tokens_per_second=round(self.speed, 1),
        )
        if self.workers.first:
            self._written(
                f"write the metrics of step {trainer.step}", lambda: write_row(self.run, row)
            )
            if self.board is not None:
                self.board.add(row)
        self.losses, self.counted = [], 0
        self.since = time.perf_counter()
        return row

    @contextlib.contextmanager
    def _at_once(self) -> Iterator[None]:
        """Ctrl-C stops what is in this context at once, unless other processes wait for it."""
        with self.interrupt.at_once() if self.workers.size == 1 else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _planned(self) -> Iterator[None]:
        """Note which implementation each op takes, in the first step of this process."""
        if self.planned or not self.workers.first:
            yield
            return
        self.planned = True
        with hetkern.record() as calls:
            yield
        facts = environment(self.config, self.workers.device, self.workers.size)
        facts["plan"] = plan_of(calls)
        self._written("write the plan", lambda: write_json(self.run / ENVIRONMENT, facts))

    def _written(self, what: str, write: Callable[[], None]) -> None:
        with written(self.run, what):
            write()

    def _not_a_number(self, loss: float) -> str:
        """Keep the batch, and say what happened."""
        trainer = self.trainer
        step = trainer.step + 1
        assert trainer.last_rows is not None
        rows = trainer.last_rows
        parts = {f"batch.{i}": t.contiguous() for i, t in enumerate(trainer.task.fetch(rows))}
        name = f"batch-of-step-{step}.safetensors"
        if self.workers.first:
            contents = safetensors.torch.save(parts | {"rows": rows})
            self._written("write the batch", lambda: write_atomically(self.run / name, contents))
        return report.not_a_number(loss, step, self.run / name, what_is_saved(self.run))

    def _write_facts(self) -> None:
        if not (self.run / DATA).exists():
            write_json(self.run / DATA, self.trainer.task.facts())

    def _write_summary(self, result: TrainResult) -> None:
        if result.sample:
            write_atomically(self.run / SAMPLE, result.sample.encode("utf-8", "replace"))
        summary = asdict(result) | {"run": str(result.run), "parameters": self.trainer.parameters}
        write_json(self.run / SUMMARY, summary | self.trainer.task.facts())


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON can hold it."""
    values = asdict(evaluation)
    perplexity = math.exp(evaluation.loss) if evaluation.loss < 700 else math.inf
    return values | {"perplexity": perplexity}
