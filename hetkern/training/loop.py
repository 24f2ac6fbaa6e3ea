"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from hetkern.training.evaluate import Evaluation, evaluate
from hetkern.training.generate import sample
from hetkern.training.interrupt import stop_on_interrupt
from hetkern.training.metrics import Row, write_row
from hetkern.training.progress import TrainingProgress

SUMMARY = "summary.json"


class RunStopped(UserError):
    """A run ended early: its loss became no number, or the disk is full."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the weights are saved; the message says where, and what to do."""


@dataclass(frozen=True)
class TrainResult:
    """How a run went.

    Attributes:
        run: its folder.
        steps: optimizer steps made.
        train_loss: nats a token, over the last row of metrics.jsonl.
        val_loss: nats a token over the whole validation text.
        val_bits_per_byte: the same in bits per byte of text.
        sample: text that the model wrote.
        seconds: how long training, validation and the sample took.
    """

    run: Path
    steps: int
    train_loss: float
    val_loss: float
    val_bits_per_byte: float
    sample: str
    seconds: float


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
    optimizer = _optimizer(model, config)
    batches = RandomWindows(data.train, config.context, config.batch, config.seed)
    run = create_run(config, data.tokenizer)

    tokens_per_step = config.batch * config.context
    progress = TrainingProgress(config.steps, tokens_per_step)
    progress.say(report.started(config, data, model, run))
    with stop_on_interrupt() as interrupt, progress:
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

            finished = step == config.steps
            due = finished or (config.eval_every > 0 and step % config.eval_every == 0)
            stopping = interrupt.is_set() and not finished
            if not (due or stopping or step % config.log_every == 0):
                continue
            speed = len(losses) * tokens_per_step / (time.perf_counter() - since)
            # Saved before the evaluation: whatever happens there, the weights are on disk.
            if due or stopping:
                with _written(run, f"save step {step}"):
                    save_weights(run, model, step)
            evaluation = _evaluate(model, data, config) if due and not stopping else None
            if evaluation is not None:
                progress.say(report.validated(step, evaluation))
            train_loss = sum(losses) / len(losses)
            with _written(run, f"write the metrics of step {step}"):
                write_row(run, _row(step, train_loss, evaluation, rate, speed))
            if stopping:
                raise Interrupted(report.interrupted(step, run))
            losses = []
            since = time.perf_counter()
            progress.resume()

    assert evaluation is not None  # the last step is always due
    text = ""
    if config.sample_length:
        prompt = config.prompt or ("\n" if config.data else "\ndef ")  # a function of the library
        # Near enough to the likeliest to be read, after a minute of training.
        text = sample(model, data.tokenizer, prompt, config.sample_length, 0.6, seed=config.seed)
    result = TrainResult(
        run=run,
        steps=config.steps,
        train_loss=train_loss,
        val_loss=evaluation.loss,
        val_bits_per_byte=evaluation.bits_per_byte,
        sample=text,
        seconds=time.perf_counter() - started,
    )
    with _written(run, "write the summary"):
        _write_summary(result, data, model)
    progress.say(report.finished(result))
    return result


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


def _evaluate(model: GPT, data: Data, config: TrainConfig) -> Evaluation:
    return evaluate(model, data.val, data.val_bytes, config.batch)


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


def _what_is_saved(run: Path) -> str:
    try:
        return f"the weights of step {saved_step(run)} are in {run}"
    except FileNotFoundError:
        return "nothing was saved yet"


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
        "files": len(documents.texts),
        "train_tokens": len(data.train),
        "val_tokens": len(data.val),
        "torch": torch.__version__,
    }
    contents = json.dumps(summary, indent=2) + "\n"
    write_atomically(result.run / SUMMARY, contents.encode())
