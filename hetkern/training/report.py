"""The sentences that a run says, apart from its progress."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import torch

from hetkern.ops import products
from hetkern.training.config import RunConfig
from hetkern.training.progress import duration
from hetkern.training.result import TrainResult
from hetkern.training.task import Evaluation
from hetkern.training.trainer import AUTOCAST, Trainer
from hetkern.training.workers import Workers


def started(config: RunConfig, trainer: Trainer, run: Path, workers: Workers) -> str:
    """What is trained, on what, with what, and where it goes."""
    model, task = trainer.model, trainer.task
    describe = getattr(model, "describe", lambda: type(model).__name__)
    batch = f"{config.batch_size} {task.steps_are}s"
    if config.accumulate > 1:
        batch += f" × {config.accumulate} accumulated"
    if workers.size > 1:
        batch += f" × {workers.size} processes ({config.parallel})"
    lines = [
        *task.describe(),
        *_validations(trainer),
        f"model   {config.model}, {describe()}: {trainer.parameters:,} parameters",
        f"steps   {trainer.steps:,} of {batch}, {config.optimizer}, {config.precision}",
        f"kernels {config.kernels} on {workers.device}, {torch.get_num_threads()} threads",
        f"run     {run}",
    ]
    if workers.device.type == "cpu" and AUTOCAST.get(config.precision) in products.WIDENED:
        lines.append(
            f"        torch multiplies {config.precision} in plain loops on this processor, on one "
            "thread: --precision float32 is many times as fast"
        )
    texts, _ = task.size()
    if task.unit != "token" and trainer.rows > texts:
        lines.append(
            f"        a step takes {trainer.rows:,} {task.unit}s from {texts:,}, some more than "
            "once; a smaller --batch-size takes more steps over them"
        )
    if trainer.step:
        lines.append(f"resumed after step {trainer.step}")
    return "\n".join(lines)


def _validations(trainer: Trainer) -> list[str]:
    """What the validations cost, where that is the larger part."""
    config, task = trainer.config, trainer.task
    every = trainer.order.steps_per_epoch if config.epochs else config.eval_every
    often = -(-trainer.steps // every) if every else 1
    targets = task.evaluation_targets()
    trained = trainer.steps * task.count(torch.zeros(trainer.rows, dtype=torch.long))
    if task.unit != "token" or often * targets <= 2 * trained:
        return []
    times = f"{often} time{'s' if often != 1 else ''} {targets:,} tokens"
    less = "a smaller --eval-tokens takes less time"
    return [f"validation: {times}, where training reads {trained:,}; {less}"]


def validated(trainer: Trainer, evaluation: Evaluation, losses: list[float], epochs: int) -> str:
    """The validation loss after a step, or after an epoch."""
    unit = trainer.task.unit
    numbers = f"validation {evaluation.loss:.4f} nats a{'n' if unit[0] in 'aeiou' else ''} {unit}"
    if evaluation.bits_per_byte is not None:
        numbers += f", {evaluation.bits_per_byte:.4f} bits per byte"
    if evaluation.accuracy is not None:
        numbers += f", accuracy {evaluation.accuracy:.4f}"
    covers = f"({covered(evaluation)} targets)"
    if not epochs:
        return f"step {trainer.step}  {numbers} {covers}"
    loss = f"loss {sum(losses) / len(losses):.4f}  " if losses else ""
    if evaluation.accuracy is None and evaluation.loss < 700:
        numbers += f", perplexity {math.exp(evaluation.loss):.3f}"
    return f"epoch {round(trainer.epoch)}/{epochs}  {loss}{numbers} {covers}"


def out_of_patience(patience: int, step: int, loss: float) -> str:
    """A run that stops early."""
    return (
        f"no validation was better than step {step}'s {loss:.4f} for {patience}: stopped early; "
        "--checkpoint best reads that one"
    )


def covered(evaluation: Evaluation) -> str:
    """How many tokens a validation predicted, and of how many if not of all."""
    if evaluation.targets == evaluation.available:
        return f"{evaluation.targets:,}"
    return f"{evaluation.targets:,} of {evaluation.available:,}"


def finished(result: TrainResult, trainer: Trainer) -> str:
    """The sample, the final loss, and where the run lies."""
    does = "writes" if result.accuracy is None else "says"
    shown = f"\n--- the model {does} ---\n{result.sample}\n---\n" if result.sample else ""
    run = typed(result.run)
    if result.accuracy is not None:
        loss = f"{result.val_loss:.4f} nats an example, accuracy {result.accuracy:.4f}"
        then = f"hetkern predict {run} labels more."
    else:
        loss = f"{result.val_loss:.4f} nats a token"
        if result.val_bits_per_byte is not None:
            loss += f", {result.val_bits_per_byte:.4f} bits per byte"
        then = f"hetkern sample {run} lets it write more."
    return (
        f"{shown}{result.steps} steps in {duration(result.seconds)}: validation {loss}\n"
        f"The run is in {result.run}; {then}"
    )


def interrupted(step: int, run: Path) -> str:
    """What Ctrl-C left behind, and what can be done with it."""
    return f"stopped after step {step}; the weights are saved in {run}. {_what_now(run)}"


def stopped_at_once(saved: int | None, run: Path) -> str:
    """What a second Ctrl-C left behind."""
    if saved is None:
        return f"stopped; nothing was saved yet in {run}"
    return f"stopped at once; the weights of step {saved} are saved in {run}. {_what_now(run)}"


def output_lost(why: str, saved: int | None, run: Path) -> str:
    """The run stopped because what it says can no longer be written."""
    if saved is None:
        return f"the output cannot be written ({why}): stopped; nothing was saved yet in {run}"
    return (
        f"the output cannot be written ({why}): stopped; "
        f"the weights of step {saved} are saved in {run}"
    )


def _what_now(run: Path) -> str:
    config = typed(run / "config.toml")
    return f"hetkern resume {typed(run)} goes on; hetkern train --config {config} starts over"


def typed(path: Path) -> str:
    """A path as a shell wants it typed."""
    return shlex.quote(str(path))


def out_of_memory(config: RunConfig, run: Path) -> str:
    """A batch that does not fit, and one that may."""
    size = config.batch_size
    assert isinstance(size, int)
    if size == 1:
        return "out of memory with a batch of one; a smaller model or --recompute may fit"
    smaller, parts = -(-size // 2), 2 * config.accumulate
    return (
        f"out of memory with --batch-size {size}; "
        f"try --batch-size {smaller} --accumulate {parts}, which makes the same steps"
    )


def not_a_number(loss: float, step: int, batch: Path, saved: str) -> str:
    """A loss of NaN or infinity, and what may help."""
    return (
        f"the loss is {loss} at step {step}; {saved}, the batch is in {batch}. "
        "A lower --learning-rate or a longer --warmup may help"
    )


def validation_not_a_number(loss: float, step: int, saved: list[int]) -> str:
    """A validation loss of NaN or infinity: the weights of this step are of no use."""
    earlier = [s for s in saved if s < step]
    before = f"the checkpoint before is step {earlier[-1]}" if earlier else "nothing else was saved"
    return (
        f"the validation loss is {loss} after step {step}; {before}. "
        "A lower --learning-rate or a longer --warmup may help"
    )
