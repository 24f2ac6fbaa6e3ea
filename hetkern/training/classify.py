"""The task of a text classifier: the class of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hetkern.models import Kernels, RNNClassifier, TransformerClassifier
from hetkern.training.classification import (
    confusion_of,
    majority_floor,
    naive_bayes_floor,
    scores_of,
)
from hetkern.training.config import ClassifyConfig, RunConfig, UserError
from hetkern.training.predict import predict, probabilities
from hetkern.training.task import Batch, Carried, Evaluation, Kind, LoadedRun, Watch
from hetkern.training.texts import LabelledData, LengthBuckets, Texts, by_length, load_labelled
from hetkern.training.tokenizer import tokenizer_from_json
from hetkern.training.workers import Workers

VOCABULARY, LABELS = "vocabulary.json", "labels.json"


class Classification:
    """Labelled texts in batches of one length; a :class:`~hetkern.training.task.Task`."""

    unit = "example"
    steps_are = "example"

    def __init__(self, config: ClassifyConfig, data: LabelledData) -> None:
        self.config = config
        self.data = data
        classes = len(data.labels)
        self.majority = majority_floor(data.train, data.val, classes)
        self.naive_bayes = naive_bayes_floor(
            data.train, data.val, classes, data.tokenizer.vocabulary
        )

    def describe(self) -> list[str]:
        """What is read, what of it is left out, and what counting alone reaches."""
        data = self.data
        counts = dict(data.counts)
        train, val = counts.pop("training texts"), counts.pop("validation texts")
        told = "; ".join(f"{number:,} {reason}" for reason, number in counts.items())
        kinds = f"{data.tokenizer.vocabulary:,} different {self.config.tokens}"
        return [
            (
                f"data    {data.name}: {len(data.labels)} classes, {train:,} texts to train on, "
                f"{val:,} to validate on, {kinds}"
            ),
            f"        {told}",
            (
                f"floors  the most frequent class is right {self.majority.accuracy:.1%} of the "
                f"time, naive Bayes {self.naive_bayes.accuracy:.1%}"
            ),
        ]

    def facts(self) -> dict[str, Any]:
        """The counts of the data."""
        data = self.data
        return {
            "data": data.name,
            "data_sha256": data.sha256,
            "classes": len(data.labels),
            "counts": data.counts,
            "majority_accuracy": self.majority.accuracy,
            "naive_bayes_accuracy": self.naive_bayes.accuracy,
            "naive_bayes_macro_f1": self.naive_bayes.macro_f1,
        }

    def files(self) -> dict[str, bytes]:
        """The vocabulary and the classes' names."""
        return {
            VOCABULARY: self.data.tokenizer.to_json().encode(),
            LABELS: json.dumps(self.data.labels).encode(),
        }

    def build_model(self, kernels: Kernels) -> nn.Module:
        """A fresh classifier."""
        return build_classifier(
            self.config, self.data.tokenizer.vocabulary, len(self.data.labels), kernels
        )

    def order(self, rows: int, seed: int) -> LengthBuckets:
        """Each text once an epoch, in batches of nearly one length."""
        return LengthBuckets(self.data.train.lengths, rows, seed)

    def size(self) -> tuple[int, int]:
        """Texts, and their mean length."""
        train = self.data.train
        return len(train.labels), len(train.tokens) // len(train.labels)

    def fetch(self, rows: Tensor) -> Batch:
        """Texts, lengths and labels."""
        return self.data.train.batch(rows)

    def count(self, rows: Tensor) -> int:
        """One for each text."""
        return len(rows)

    def loss(self, model: nn.Module, batch: Batch, carried: Carried) -> tuple[Tensor, Carried]:
        """The sum over all texts; nothing is carried."""
        return model.loss(*batch, reduction="sum"), None  # type: ignore[operator]

    def evaluation_targets(self) -> int:
        """Every validation reads every text."""
        return len(self.data.val.labels)

    def evaluate(
        self, model: nn.Module, workers: Workers, batch_size: int, watch: Watch | None = None,
        split: str = "val", limit: int | None = None,
    ) -> Evaluation:  # fmt: skip
        """Loss, accuracy, macro-F1 and confusion over a split."""
        texts = self.data.val if split == "val" else self.data.train
        loss, confusion = evaluate(model, texts, len(self.data.labels), batch_size, workers, watch)
        scores = scores_of(confusion)
        return Evaluation(
            loss=loss,
            bits_per_byte=None,
            targets=len(texts.labels),
            available=len(texts.labels),
            accuracy=scores.accuracy,
            metrics={"macro_f1": scores.macro_f1},
            tables={"labels": self.data.labels, "confusion": confusion.tolist()},
        )

    def floors(self) -> dict[str, float]:
        """The accuracy of the most frequent class and of naive Bayes, and the latter's macro-F1."""
        return {
            "majority, accuracy": self.majority.accuracy,
            "naive Bayes, accuracy": self.naive_bayes.accuracy,
            "naive Bayes, macro F1": self.naive_bayes.macro_f1,
        }

    def finish(self, model: nn.Module) -> str:
        """What the model says of three validation texts."""
        val, labels = self.data.val, self.data.labels
        run = LoadedRun(model, self.data.tokenizer, labels)
        rows = torch.linspace(0, len(val.labels) - 1, 3).long().unique()
        texts = [self.data.tokenizer.decode(_tokens(val, row)) for row in rows.tolist()]
        lines = []
        for row, text, said in zip(rows.tolist(), texts, predict(run, texts), strict=True):
            shown = text if len(text) < 60 else text[:57] + "..."
            true = labels[val.labels[row]]
            judged = "right" if said.label == true else f"it is {true}"
            lines.append(f"{said.label} ({said.probability:.0%}, {judged}): {shown!r}")
        return "\n".join(lines)


def _tokens(texts: Texts, row: int) -> Tensor:
    return texts.tokens[texts.begins[row] : texts.begins[row + 1]]


def evaluate(
    model: nn.Module,
    texts: Texts,
    classes: int,
    batch_size: int,
    workers: Workers | None = None,
    watch: Watch | None = None,
) -> tuple[float, Tensor]:
    """Mean nats a text, and the table of confusions, over all texts once.

    Args:
        model: comes back in the mode in which it was.
        texts: in any order.
        classes: how many there are.
        batch_size: texts at a time.
        workers: the processes that share the texts; None for this one alone.
        watch: is told after each batch how many texts are done.
    """
    workers = workers if workers is not None else Workers()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, done = 0.0, 0
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    try:
        with torch.no_grad():
            for rows in by_length(texts, batch_size):
                [(mine, counts)] = workers.share([rows])
                text, lengths, labels = texts.batch(mine)
                logits = model(text.to(device), lengths.to(device)).double().cpu()
                if counts:
                    nats = -logits.log_softmax(-1).gather(1, labels[:, None])
                    total += nats.sum().item()
                    confusion += confusion_of(labels, logits.argmax(1), classes)
                done += len(rows)
                if watch is not None:
                    watch(done)
    finally:
        model.train(was_training)
    [total] = workers.total(total)
    return total / done, workers.total_tensor(confusion)


def build_classifier(
    config: ClassifyConfig, vocabulary: int, classes: int, kernels: Kernels
) -> nn.Module:
    """The model that ``config`` describes, its weights drawn from torch's generator."""
    sizes = vocabulary, config.width, classes, config.layers
    dropout = config.chosen_dropout()
    if config.model == "transformer":
        return TransformerClassifier(
            *sizes, config.heads, dropout, longest=config.longest, kernels=kernels
        )
    return RNNClassifier(
        *sizes,
        config.bidirectional,
        dropout,
        cell=config.model,
        longest=config.longest,
        kernels=kernels,
    )


def _prepare(config: RunConfig) -> Classification:
    assert isinstance(config, ClassifyConfig)
    data = load_labelled(
        config.data,
        config.tokens,
        text_column=config.text_column,
        label_column=config.label_column,
        min_freq=config.min_freq,
        vocabulary=config.vocabulary,
        longest=config.longest,
        duplicates=config.duplicates,
    )
    return Classification(config, data)


def _restore(config: RunConfig, files: Mapping[str, bytes], kernels: Kernels) -> LoadedRun:
    assert isinstance(config, ClassifyConfig)
    tokenizer = tokenizer_from_json(files[VOCABULARY].decode())
    labels = json.loads(files[LABELS])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{LABELS} is no list of names")
    model = build_classifier(config, tokenizer.vocabulary, len(labels), kernels)
    return LoadedRun(model, tokenizer, labels)


KIND = Kind(_prepare, _restore, (VOCABULARY, LABELS), probabilities)
