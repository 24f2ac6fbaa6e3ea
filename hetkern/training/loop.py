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
from hetkern.training.interrupt import StopOnInterrupt
from hetkern.training.metrics import MetricsFile, Row
from hetkern.training.progress import TrainingProgress, duration

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
    progress.say(_describe(config, data, model, run))
    with MetricsFile(run) as metrics, StopOnInterrupt() as interrupt, progress:
        losses: list[float] = []
        since = time.perf_counter()
        for step in range(1, config.steps + 1):
            inputs, targets = batches.draw()
            rate = learning_rate(step, config)
            loss = _step(model, optimizer, inputs.to(device), targets.to(device), rate, config.clip)
            if not math.isfinite(loss):
                raise RunStopped(_not_a_number(loss, step, run))
            losses.append(loss)
            progress.step(step, loss)

            finished = step == config.steps
            due = finished or (config.eval_every > 0 and step % config.eval_every == 0)
            if not (due or interrupt.requested or step % config.log_every == 0):
                continue
            speed = len(losses) * tokens_per_step / (time.perf_counter() - since)
            # Saved before the evaluation: whatever happens there, the weights are on disk.
            if due or interrupt.requested:
                _save(run, model, step)
            if interrupt.requested and not finished:
                raise Interrupted(_interrupted(step, run))
            evaluation = _evaluate(model, data, config) if due else None
            if evaluation is not None:
                progress.say(_validated(step, evaluation))
            train_loss = sum(losses) / len(losses)
            metrics.write(_row(step, train_loss, evaluation, rate, speed))
            losses = []
            since = time.perf_counter()
            progress.resume()

    assert evaluation is not None  # the last step is always due
    text = ""
    if config.sample_length:
        text = sample(model, data.tokenizer, config.prompt, config.sample_length, seed=config.seed)
    result = TrainResult(
        run=run,
        steps=config.steps,
        train_loss=train_loss,
        val_loss=evaluation.loss,
        val_bits_per_byte=evaluation.bits_per_byte,
        sample=text,
        seconds=time.perf_counter() - started,
    )
    _write_summary(result, data, model)
    progress.say(_finished(result))
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
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))


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


def _save(run: Path, model: nn.Module, step: int) -> None:
    try:
        save_weights(run, model, step)
    except OSError as error:
        raise RunStopped(
            f"could not save step {step} in {run}: {error.strerror}; {_what_is_saved(run)}"
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
        "parameters": _parameters(model),
        "data": documents.name,
        "data_sha256": documents.sha256,
        "files": len(documents.texts),
        "train_tokens": len(data.train),
        "val_tokens": len(data.val),
        "torch": torch.__version__,
    }
    contents = json.dumps(summary, indent=2) + "\n"
    write_atomically(result.run / SUMMARY, contents.encode())


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _describe(config: TrainConfig, data: Data, model: GPT, run: Path) -> str:
    documents = data.documents
    files = f"{len(documents.texts):,} file" + ("s" if len(documents.texts) != 1 else "")
    if documents.skipped:
        files += f" ({documents.skipped:,} binary, empty or copies left out)"
    return (
        f"data    {documents.name}: {files}, {len(data.train):,} {config.tokens} to train on, "
        f"{len(data.val):,} to validate on\n"
        f"model   {config.model}, {config.layers} layers of {config.width}, {config.heads} heads, "
        f"context {config.context}: {_parameters(model):,} parameters\n"
        f"kernels {config.kernels} on {config.device}, {torch.get_num_threads()} threads\n"
        f"run     {run}"
    )


def _validated(step: int, evaluation: Evaluation) -> str:
    return (
        f"step {step}  validation {evaluation.loss:.4f} nats a token, "
        f"{evaluation.bits_per_byte:.4f} bits per byte ({evaluation.targets:,} targets)"
    )


def _finished(result: TrainResult) -> str:
    shown = f"\n--- the model writes ---\n{result.sample}\n---\n" if result.sample else ""
    return (
        f"{shown}{result.steps} steps in {duration(result.seconds)}: validation "
        f"{result.val_loss:.4f} nats a token, {result.val_bits_per_byte:.4f} bits per byte\n"
        f"The run is in {result.run}; hetkern sample {result.run} lets it write more."
    )


def _interrupted(step: int, run: Path) -> str:
    return (
        f"stopped after step {step}; the weights are saved in {run}. "
        f"hetkern sample {run} lets them write; "
        f"hetkern train --config {run}/config.toml starts over"
    )


def _not_a_number(loss: float, step: int, run: Path) -> str:
    return (
        f"the loss is {loss} at step {step}; {_what_is_saved(run)}. "
        "A lower --learning-rate or a longer --warmup may help"
    )
