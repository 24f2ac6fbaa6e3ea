"""What a trained classifier says of new texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetkern.training.config import UserError
from hetkern.training.duplicates import normalised
from hetkern.training.task import LoadedRun

_AT_ONCE = 64  # texts


@dataclass(frozen=True)
class Prediction:
    """The class of one text.

    Attributes:
        label: the likeliest.
        probability: its.
        probabilities: of every class by name.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


def predict(
    run: LoadedRun, texts: Iterable[str], batch_size: int = _AT_ONCE
) -> Iterator[Prediction]:
    """A prediction for each text, in order; texts are read ``batch_size`` at a time.

    Args:
        run: what :func:`hetkern.load` returns of a classifier's run.
        texts: any; one without a token the model knows is judged all the same.
        batch_size: texts at a time.

    Raises:
        UserError: the run is no classifier's.
    """
    labels = run.labels
    if labels is None:
        raise UserError("this run is a language model's: it has no labels to predict")
    remaining = iter(texts)
    while some := list(itertools.islice(remaining, batch_size)):
        for row in probabilities(run, some):
            best = max(range(len(row)), key=row.__getitem__)
            yield Prediction(labels[best], row[best], dict(zip(labels, row, strict=True)))


def probabilities(run: LoadedRun, texts: Sequence[str]) -> list[list[float]]:
    """Of each text, the probability of each of the run's labels."""
    if not texts:
        return []
    model = run.model
    device = next(model.parameters()).device
    text, lengths = encode(run, texts)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(text.to(device), lengths.to(device))
    finally:
        model.train(was_training)
    return logits.double().softmax(-1).tolist()


def encode(run: LoadedRun, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts as a classifier reads them: (B, T) int64 padded with 0, and their lengths (B,)."""
    longest = run.model.longest
    rows = [run.tokenizer.encode(normalised(text))[:longest] for text in texts]
    rows = [row if len(row) else torch.ones(1, dtype=torch.int64) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded, lengths
