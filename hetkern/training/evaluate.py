"""The validation loss: a number that depends on the model and the text alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hetkern.models import GPT


@dataclass(frozen=True)
class Evaluation:
    """What a model loses on a text.

    Attributes:
        loss: nats a token.
        bits_per_byte: the same, per byte of text, in bits: comparable between tokenizers.
        targets: how many tokens were predicted.
    """

    loss: float
    bits_per_byte: float
    targets: int


def evaluate(model: GPT, tokens: Tensor, text_bytes: int, batch: int) -> Evaluation:
    """Mean loss over a whole text: every token but the first is a target exactly once.

    The text is cut into windows of the model's context, the last one shorter; a token is predicted
    from the tokens before it in its window. Losses are added in float64, so the batch size changes
    nothing but rounding.

    Args:
        model: is put back in training mode if it was in it.
        tokens: (N,) int64, N at least 2.
        text_bytes: bytes of text that ``tokens[1:]`` stand for.
        batch: windows at a time.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for inputs, targets in windows(tokens, model.shape.context, batch):
            losses = model.loss(inputs.to(device), targets.to(device), reduction="none")
            total += losses.double().sum().item()
    model.train(was_training)
    count = len(tokens) - 1
    bits = total / torch.log(torch.tensor(2.0, dtype=torch.float64)).item()
    return Evaluation(total / count, bits / text_bytes, count)


def windows(tokens: Tensor, context: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, (up to ``batch``, up to ``context``), that cover ``tokens`` once."""
    inputs, targets = tokens[:-1], tokens[1:]
    whole = len(targets) // context * context
    rows_of_inputs = inputs[:whole].view(-1, context).split(batch)
    rows_of_targets = targets[:whole].view(-1, context).split(batch)
    if whole:
        yield from zip(rows_of_inputs, rows_of_targets, strict=True)
    if whole < len(targets):
        yield inputs[None, whole:], targets[None, whole:]
