"""How well a classifier does, and what two classifiers without a network do on the same texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hetkern.training.texts import Texts

_CHUNK = 1 << 20  # tokens whose scores are in memory at a time, times the classes


@dataclass(frozen=True)
class Scores:
    """What a table of confusions says.

    Attributes:
        accuracy: the part of the texts whose class was found.
        macro_f1: the mean over the classes of 2 TP / (2 TP + FP + FN); a class that neither stands
            in the texts nor was predicted does not count.
        confusion: (C, C) int64: texts of the row's class that were given the column's.
    """

    accuracy: float
    macro_f1: float
    confusion: Tensor


def confusion_of(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(C, C) int64: how many texts of the row's class were given the column's."""
    pairs = labels * classes + predicted
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def scores_of(confusion: Tensor) -> Scores:
    """Accuracy and macro-F1 of a table of confusions."""
    right = confusion.diagonal().double()
    both = (confusion.sum(0) + confusion.sum(1)).double()  # 2 TP + FP + FN
    there = both > 0
    f1 = 2 * right[there] / both[there]
    accuracy = right.sum() / confusion.sum()
    return Scores(accuracy.item(), f1.mean().item(), confusion)


def majority_floor(train: Texts, val: Texts, classes: int) -> Scores:
    """What the most frequent class of the training texts scores, given to every text."""
    most = torch.bincount(train.labels, minlength=classes).argmax()
    return scores_of(confusion_of(val.labels, most.expand_as(val.labels), classes))


def naive_bayes_floor(train: Texts, val: Texts, classes: int, vocabulary: int) -> Scores:
    """What multinomial naive Bayes scores: log p(c) + sum over a text's tokens of log p(token | c).

    ``p(c) = N_c / N``; ``p(token | c) = (n(token, c) + 1) / (n(c) + V)``, on counts.

    Source: Manning, Raghavan & Schütze (2008), "Introduction to Information Retrieval", ch. 13.
    """
    label_of_token = train.labels.repeat_interleave(train.lengths)
    counts = torch.bincount(
        label_of_token * vocabulary + train.tokens.long(), minlength=classes * vocabulary
    )
    counts = counts.view(classes, vocabulary).double() + 1
    log_likelihood = (counts / counts.sum(1, keepdim=True)).log().T.contiguous()  # (V, C)
    prior = torch.bincount(train.labels, minlength=classes).double()
    log_prior = (prior / prior.sum()).log()  # -inf for a class without a text
    predicted = []
    for rows in _chunks(val.lengths, max(1, _CHUNK // classes)):
        begin, end = int(val.begins[rows[0]]), int(val.begins[rows[-1] + 1])
        text_of_token = torch.arange(len(rows)).repeat_interleave(val.lengths[rows])
        scores = log_prior.expand(len(rows), classes).clone()
        scores.index_add_(0, text_of_token, log_likelihood[val.tokens[begin:end].long()])
        predicted.append(scores.argmax(1))
    return scores_of(confusion_of(val.labels, torch.cat(predicted), classes))


def _chunks(lengths: Tensor, tokens: int) -> list[Tensor]:
    """Neighbouring rows with about so many tokens together."""
    number = (lengths.cumsum(0) - 1) // tokens
    sizes = torch.unique_consecutive(number, return_counts=True)[1].tolist()
    return list(torch.arange(len(lengths)).split(sizes))
