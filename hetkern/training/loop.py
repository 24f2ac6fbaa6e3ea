"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from hetkern.models import GPT
from hetkern.training import report
from hetkern.training.checkpoint import (
    build_model,
    choose_kernels_or_explain,
    create_run,
    save_weights,
    saved_step,
    write_atomically,
)
from hetkern.training.config import TrainConfig, UserError
from hetkern.training.data import Data, RandomWindows, load_data
from hetkern.training.evaluate import Evaluation, evaluate, targets_within
from hetkern.training.generate import sample
from hetkern.training.interrupt import Interrupt, stop_on_interrupt
from hetkern.training.metrics import Row, write_row
from hetkern.training.progress import OutputLost, TrainingProgress
from hetkern.training.result import TrainResult

SUMMARY = "summary.json"


class RunStopped(UserError):
    """A run ended early: its loss became no number, or the disk is full."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the weights are saved; the message says where, and what to do."""


def train(config: TrainConfig | None = None) -> TrainResult:
    """Train a language model and leave it in its run's folder, as ``hetkern train`` does.

    The same config on the same data and machine gives the same bits. torch's global random state
    and thread count are put back afterwards.

    Args:
        config: what to train on what; the defaults if None.

    Raises:
        UserError: the config or the data is no good, the loss stopped being a number, or the disk
            filled up.
        KeyboardInterrupt: Ctrl-C, once the weights are saved.
    """
    config = config if config is not None else TrainConfig()
    with _own_random_state_and_threads(config):
        return _train(config)


def _train(config: TrainConfig) -> TrainResult:
    started = time.perf_counter()
    device = _device(config.device)
    kernels = choose_kernels_or_explain(config.kernels)
    data = load_data(config.data, config.tokens, config.context)
    model = build_model(config, data.tokenizer.vocabulary, kernels).to(device)
    run = create_run(config, data.tokenizer)
    progress = TrainingProgress(config.steps, config.batch * config.context)
    with stop_on_interrupt() as interrupt, _stopped_in_order(run, model, progress):
        progress.say(report.started(config, data, model, run))
        with progress:
            last, evaluation = _make_steps(config, data, model, run, progress, interrupt)
        try:
            with interrupt.at_once():
                text = _sample(config, data, model)
        except KeyboardInterrupt as error:
            raise Interrupted(report.interrupted(config.steps, run)) from error
        result = TrainResult(
            run=run,
            steps=config.steps,
            train_loss=last.train_loss,
            val_loss=evaluation.loss,
            val_bits_per_byte=evaluation.bits_per_byte,
            val_targets=evaluation.targets,
            sample=text,
            seconds=time.perf_counter() - started,
        )
        with _written(run, "write the summary"):
            _write_summary(result, data, model)
        progress.say(report.finished(result))
    return result


def _make_steps(
    config: TrainConfig,
    data: Data,
    model: GPT,
    run: Path,
    progress: TrainingProgress,
    interrupt: Interrupt,
) -> tuple[Row, Evaluation]:
    """All steps with their rows, saves and validations; the last row, the last validation."""
    device = next(model.parameters()).device
    optimizer = _optimizer(model, config)
    batches = RandomWindows(data.train, config.context, config.batch, config.seed)
    losses: list[float] = []
    since = time.perf_counter()
    for step in range(1, config.steps + 1):
        inputs, targets = batches.draw()
        rate = learning_rate(step, config)
        loss = _step(model, optimizer, inputs.to(device), targets.to(device), rate, config.clip)
        if not math.isfinite(loss):
            raise RunStopped(report.not_a_number(loss, step, _what_is_saved(run)))
        losses.append(loss)
        progress.step(step, loss)

        due = step == config.steps or (config.eval_every > 0 and step % config.eval_every == 0)
        stopping = interrupt.requested
        if not (due or stopping or step % config.log_every == 0):
            continue
        speed = len(losses) * progress.tokens_per_step / (time.perf_counter() - since)
        evaluation = None
        if due or stopping:
            # Saved before the evaluation: whatever happens there, the weights are on disk.
            with _written(run, f"save step {step}"):
                save_weights(run, model, step)
            try:
                with interrupt.at_once():
                    evaluation = _evaluate(model, data, config, progress)
            except KeyboardInterrupt:
                stopping = True
        row = _row(step, sum(losses) / len(losses), evaluation, rate, speed)
        with _written(run, f"write the metrics of step {step}"):
            write_row(run, row)
        if stopping:
            raise Interrupted(report.interrupted(step, run))
        losses = []
        since = time.perf_counter()
        progress.resume()
    assert evaluation is not None  # the last step is always due
    return row, evaluation


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step 1, 2, …: a straight rise, then half a cosine down to the least."""
    if step <= config.warmup:
        return config.learning_rate * step / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.min_learning_rate + cosine * (config.learning_rate - config.min_learning_rate)


def _step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    rate: float,
    clip: float,
) -> float:
    """One optimizer step; returns its loss. A loss that is no number changes no weight."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss = model.loss(inputs, targets)
    value = loss.item()
    if math.isfinite(value):
        loss.backward()
        if clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return value


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW that decays matrices, and not biases and gains."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


def _evaluate(
    model: GPT, data: Data, config: TrainConfig, progress: TrainingProgress
) -> Evaluation:
    targets = targets_within(len(data.val) - 1, config.context, config.eval_tokens)
    with progress.validation(targets) as watch:
        evaluation = evaluate(
            model, data.val, data.val_bytes, config.batch, config.eval_tokens, watch
        )
    progress.say(report.validated(progress.done, evaluation))
    return evaluation


def _sample(config: TrainConfig, data: Data, model: GPT) -> str:
    if not config.sample_length:
        return ""
    prompt = config.prompt or ("\n" if config.data else "\ndef ")  # a function of the library
    # Near enough to the likeliest to be read, after a minute of training.
    return sample(model, data.tokenizer, prompt, config.sample_length, 0.6, seed=config.seed)


@contextlib.contextmanager
def _own_random_state_and_threads(config: TrainConfig) -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        if config.threads:
            torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise UserError(f"--device {name} cannot run here: {error}") from error
    return device


@contextlib.contextmanager
def _written(run: Path, what: str) -> Iterator[None]:
    """A disk that fills up stops the run, and says what is left."""
    try:
        yield
    except OSError as error:
        raise RunStopped(
            f"could not {what} in {run}: {error.strerror}; {_what_is_saved(run)}"
        ) from error


@contextlib.contextmanager
def _stopped_in_order(run: Path, model: nn.Module, progress: TrainingProgress) -> Iterator[None]:
    """A second Ctrl-C and an output that is lost say what is left, too."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(report.stopped_at_once(_saved_step(run), run)) from error
    except OutputLost as error:
        if progress.done > (_saved_step(run) or 0):
            with _written(run, f"save step {progress.done}"):
                save_weights(run, model, progress.done)
        why = error.strerror or str(error)
        raise RunStopped(report.output_lost(why, _saved_step(run), run)) from error


def _saved_step(run: Path) -> int | None:
    try:
        return saved_step(run)
    except FileNotFoundError:
        return None


def _what_is_saved(run: Path) -> str:
    step = _saved_step(run)
    return "nothing was saved yet" if step is None else f"the weights of step {step} are in {run}"


def _row(
    step: int, train_loss: float, evaluation: Evaluation | None, rate: float, speed: float
) -> Row:
    return Row(
        step=step,
        train_loss=train_loss,
        val_loss=evaluation.loss if evaluation else None,
        val_bits_per_byte=evaluation.bits_per_byte if evaluation else None,
        learning_rate=rate,
        tokens_per_second=round(speed, 1),
    )


def _write_summary(result: TrainResult, data: Data, model: GPT) -> None:
    documents = data.documents
    summary = asdict(result) | {
        "run": str(result.run),
        "parameters": model.parameter_count(),
        "data": documents.name,
        "data_sha256": documents.sha256,
        "files": documents.files,
        "train_tokens": len(data.train),
        "val_tokens": len(data.val),
        "torch": torch.__version__,
    }
    contents = json.dumps(summary, indent=2) + "\n"
    write_atomically(result.run / SUMMARY, contents.encode())
