"""The sentences that a run says, apart from its progress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hetkern.models import GPT
from hetkern.training.config import TrainConfig
from hetkern.training.data import Data
from hetkern.training.evaluate import Evaluation
from hetkern.training.progress import duration

if TYPE_CHECKING:
    from hetkern.training.loop import TrainResult


def started(config: TrainConfig, data: Data, model: GPT, run: Path) -> str:
    """What is trained, on what, with what, and where it goes."""
    documents = data.documents
    files = f"{len(documents.texts):,} file" + ("s" if len(documents.texts) != 1 else "")
    if documents.skipped:
        files += f" ({documents.skipped:,} binary, empty or copies left out)"
    return (
        f"data    {documents.name}: {files}, {len(data.train):,} {config.tokens} to train on, "
        f"{len(data.val):,} to validate on\n"
        f"model   {config.model}, {config.layers} layers of {config.width}, {config.heads} heads, "
        f"context {config.context}: {model.parameter_count():,} parameters\n"
        f"kernels {config.kernels} on {config.device}, {torch.get_num_threads()} threads\n"
        f"run     {run}"
    )


def validated(step: int, evaluation: Evaluation) -> str:
    """The validation loss after a step."""
    return (
        f"step {step}  validation {evaluation.loss:.4f} nats a token, "
        f"{evaluation.bits_per_byte:.4f} bits per byte ({evaluation.targets:,} targets)"
    )


def finished(result: TrainResult) -> str:
    """The sample, the final loss, and where the run lies."""
    shown = f"\n--- the model writes ---\n{result.sample}\n---\n" if result.sample else ""
    return (
        f"{shown}{result.steps} steps in {duration(result.seconds)}: validation "
        f"{result.val_loss:.4f} nats a token, {result.val_bits_per_byte:.4f} bits per byte\n"
        f"The run is in {result.run}; hetkern sample {result.run} lets it write more."
    )


def interrupted(step: int, run: Path) -> str:
    """What Ctrl-C left behind, and what can be done with it."""
    return (
        f"stopped after step {step}; the weights are saved in {run}. "
        f"hetkern sample {run} lets them write; "
        f"hetkern train --config {run}/config.toml starts over"
    )


def not_a_number(loss: float, step: int, saved: str) -> str:
    """A loss of NaN or infinity, and what may help."""
    return (
        f"the loss is {loss} at step {step}; {saved}. "
        "A lower --learning-rate or a longer --warmup may help"
    )
