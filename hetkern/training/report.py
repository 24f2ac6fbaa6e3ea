"""The sentences that a run says, apart from its progress."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from hetkern.models import GPT
from hetkern.training.config import TrainConfig
from hetkern.training.data import Data
from hetkern.training.evaluate import Evaluation, targets_within
from hetkern.training.progress import duration
from hetkern.training.result import TrainResult


def started(config: TrainConfig, data: Data, model: GPT, run: Path) -> str:
    """What is trained, on what, with what, and where it goes."""
    documents = data.documents
    files = f"{documents.files:,} file" + ("s" if documents.files != 1 else "")
    if documents.skipped:
        files += f" ({documents.skipped:,} binary, empty or copies left out)"
    return (
        f"data    {documents.name}: {files}, {len(data.train):,} {config.tokens} to train on, "
        f"{len(data.val):,} to validate on\n"
        f"{_validation(config, data)}"
        f"model   {config.model}, {config.layers} layers of {config.width}, {config.heads} heads, "
        f"context {config.context}: {model.parameter_count():,} parameters\n"
        f"kernels {config.kernels} on {config.device}, {torch.get_num_threads()} threads\n"
        f"run     {run}"
    )


def _validation(config: TrainConfig, data: Data) -> str:
    """What a validation covers and costs, where it is a part of the text, or the larger part."""
    available = len(data.val) - 1
    targets = targets_within(available, config.context, config.eval_tokens)
    often = -(-config.steps // config.eval_every) if config.eval_every else 1
    trained = config.steps * config.batch * config.context
    sentences = []
    if targets < available:
        sentences.append(
            f"each predicts {targets:,} tokens, spread over the validation text "
            "(--eval-tokens 0 for all)"
        )
    if often * targets > 2 * trained:
        sentences.append(
            f"{often} time{'s' if often != 1 else ''} {targets:,} tokens, where training reads "
            f"{trained:,}; a smaller --eval-tokens takes less time"
        )
    return f"validation: {'; '.join(sentences)}\n" if sentences else ""


def validated(step: int, evaluation: Evaluation) -> str:
    """The validation loss after a step."""
    return (
        f"step {step}  validation {evaluation.loss:.4f} nats a token, "
        f"{evaluation.bits_per_byte:.4f} bits per byte ({covered(evaluation)} targets)"
    )


def covered(evaluation: Evaluation) -> str:
    """How many tokens a validation predicted, and of how many if not of all."""
    if evaluation.targets == evaluation.available:
        return f"{evaluation.targets:,}"
    return f"{evaluation.targets:,} of {evaluation.available:,}"


def finished(result: TrainResult) -> str:
    """The sample, the final loss, and where the run lies."""
    shown = f"\n--- the model writes ---\n{result.sample}\n---\n" if result.sample else ""
    return (
        f"{shown}{result.steps} steps in {duration(result.seconds)}: validation "
        f"{result.val_loss:.4f} nats a token, {result.val_bits_per_byte:.4f} bits per byte\n"
        f"The run is in {result.run}; hetkern sample {typed(result.run)} lets it write more."
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
    return (
        f"hetkern sample {typed(run)} lets them write; "
        f"hetkern train --config {typed(run / 'config.toml')} starts over"
    )


def typed(path: Path) -> str:
    """A path as a shell wants it typed."""
    return shlex.quote(str(path))


def not_a_number(loss: float, step: int, saved: str) -> str:
    """A loss of NaN or infinity, and what may help."""
    return (
        f"the loss is {loss} at step {step}; {saved}. "
        "A lower --learning-rate or a longer --warmup may help"
    )
