"""The validation loss: a number that depends on the model and the text alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hetkern.models import GPT
from hetkern.training.task import Evaluation
from hetkern.training.workers import Workers


def evaluate(
    model: GPT,
    tokens: Tensor,
    text_bytes: int,
    batch: int,
    limit: int = 0,
    watch: Callable[[int], object] | None = None,
    workers: Workers | None = None,
) -> Evaluation:
    """Mean loss over a text: without a limit every token but the first is a target exactly once.

    The text is cut into windows of the model's context, the last one shorter; a token is predicted
    from the tokens before it in its window. Losses are added in float64, so the batch size changes
    nothing but rounding. With a limit, only as many of the whole windows are read as it allows, at
    least one, at even distances from the first on: the same ones each time.

    Args:
        model: is put back in training mode if it was in it.
        tokens: (N,) of any integer dtype, N at least 2.
        text_bytes: bytes of text that ``tokens[1:]`` stand for. Nats become bits per byte by the
            bytes a token of this whole text, under a limit too.
        batch: windows at a time.
        limit: most targets; 0 for all.
        watch: is told after each batch how many targets are done. What it raises ends the
            evaluation.
        workers: the processes that share the windows; None for this one alone.
    """
    workers = workers if workers is not None else Workers()
    device = next(model.parameters()).device
    context = model.shape.context
    was_training = model.training
    model.eval()
    total, done = 0.0, 0
    try:
        with torch.no_grad():
            for inputs, targets in windows(tokens, context, batch, limit):
                [(part, counts)] = workers.share([torch.arange(len(inputs))])
                mine, after = (x[part].long().to(device) for x in (inputs, targets))
                losses = model.loss(mine, after, reduction="none")
                total += losses.double().sum().item() if counts else 0.0
                done += targets.numel()
                if watch is not None:
                    watch(done)
    finally:
        model.train(was_training)
    available = len(tokens) - 1
    loss = workers.total(total)[0] / done
    bits = loss * available / math.log(2.0)
    return Evaluation(loss, bits / text_bytes, done, available)


def targets_within(available: int, context: int, limit: int) -> int:
    """How many targets :func:`evaluate` predicts of so many under a limit."""
    chosen = _chosen_windows(available, context, limit)
    return available if chosen is None else chosen * context


def _chosen_windows(available: int, context: int, limit: int) -> int | None:
    """How many windows a limit allows; None where it lets the whole text pass."""
    chosen = max(1, limit // context)
    return chosen if 0 < limit < available and chosen < available // context else None


def windows(
    tokens: Tensor, context: int, batch: int, limit: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, (up to ``batch``, up to ``context``), that cover ``tokens`` once.

    With a limit they cover some windows of it, at even distances.
    """
    inputs, targets = tokens[:-1], tokens[1:]
    number = len(targets) // context
    whole = number * context
    rows_of_inputs = inputs[:whole].view(-1, context)
    rows_of_targets = targets[:whole].view(-1, context)
    chosen = _chosen_windows(len(targets), context, limit)
    if chosen is not None:
        for rows in (torch.arange(chosen) * number // chosen).split(batch):
            yield rows_of_inputs[rows], rows_of_targets[rows]
        return
    if whole:
        yield from zip(rows_of_inputs.split(batch), rows_of_targets.split(batch), strict=True)
    if whole < len(targets):
        yield inputs[None, whole:], targets[None, whole:]
