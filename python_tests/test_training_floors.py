"""Scores and floors, against their definitions written out."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from hetkern.training.classification import (
    confusion_of,
    majority_floor,
    naive_bayes_floor,
    scores_of,
)
from hetkern.training.ngrams import KneserNey
from hetkern.training.texts import Texts


def texts(rows, labels):
    begins = torch.tensor([0, *itertools.accumulate(map(len, rows))])
    return Texts(
        torch.tensor([t for row in rows for t in row], dtype=torch.int32),
        begins,
        torch.tensor(labels),
    )


def test_scores_are_those_of_their_definitions():
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 1])
    scores = scores_of(confusion_of(labels, predicted, 5))
    assert scores.confusion[:3, :3].tolist() == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert scores.accuracy == 3 / 6
    # F1 of class 0: 4/6, of 1: 2/5, of 2: 0; 3 and 4 stand nowhere and do not count.
    assert scores.macro_f1 == pytest.approx((4 / 6 + 2 / 5 + 0) / 3)


def test_the_majority_floor_gives_each_text_the_training_texts_first_class():
    train = texts([[2]] * 5, [1, 1, 1, 0, 2])
    val = texts([[2]] * 4, [0, 1, 2, 1])
    assert majority_floor(train, val, 3).accuracy == 0.5


@pytest.mark.parametrize("chunk", [4, 1 << 20])
def test_naive_bayes_is_that_of_counts(monkeypatch, chunk):
    monkeypatch.setattr("hetkern.training.classification._CHUNK", chunk)
    draw = np.random.default_rng(0)
    V, C = 7, 3

    def some(count):
        labels = draw.integers(0, C, count)
        rows = [draw.integers(1 + c, V, draw.integers(1, 6)).tolist() for c in labels]
        return texts(rows, labels.tolist()), rows

    (train, train_rows), (val, val_rows) = some(60), some(40)
    counts = [Counter() for _ in range(C)]
    for row, label in zip(train_rows, train.labels.tolist(), strict=True):
        counts[label].update(row)

    def score(row, c):
        prior = math.log(train.labels.tolist().count(c) / 60)
        size = sum(counts[c].values()) + V
        return prior + sum(math.log((counts[c][token] + 1) / size) for token in row)

    best = [max(range(C), key=lambda c: score(row, c)) for row in val_rows]
    expected = scores_of(confusion_of(val.labels, torch.tensor(best), C))
    scores = naive_bayes_floor(train, val, C, V)
    assert torch.equal(scores.confusion, expected.confusion)
    assert 0.4 < scores.accuracy < 1


def written_out(tokens, V, order):
    """Kneser-Ney with dictionaries, from its equations."""
    grams = Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
    levels = {order: grams}
    for n in range(order - 1, 0, -1):
        levels[n] = Counter(gram[1:] for gram in levels[n + 1])  # of different (n + 1)-grams

    def discount(n):
        once, twice = (sum(c == k for c in levels[n].values()) for k in (1, 2))
        return min(once / (once + 2 * twice), 0.99) if once else 0.5

    followers = {n: defaultdict(list) for n in levels}
    for n, of_level in levels.items():
        for gram, count in of_level.items():
            followers[n][gram[:-1]].append(count)

    def p(history, token):
        n = len(history) + 1
        lower = p(history[1:], token) if history else 1 / V
        counts = followers[n].get(history)
        if not counts:
            return lower
        D = discount(n)
        kept = max(levels[n][(*history, token)] - D, 0)
        return (kept + D * len(counts) * lower) / sum(counts)

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_n_gram_floor_is_interpolated_kneser_ney(order):
    V = 6
    draw = np.random.default_rng(order)
    tokens = (draw.integers(0, V, 400) * draw.integers(0, 2, 400)).tolist()  # many zeros
    unseen = [*draw.integers(0, V, 60).tolist(), 5, 5, 5, 5, 5, 5]
    p = written_out(tokens, V, order)
    model = KneserNey(torch.tensor(tokens, dtype=torch.uint8), V, order)
    losses = []
    for i in range(1, len(unseen)):
        history = tuple(unseen[max(0, i - order + 1) : i])
        assert sum(p(history, t) for t in range(V)) == pytest.approx(1)
        losses.append(-math.log(p(history, unseen[i])))
    assert model.loss(torch.tensor(unseen)) == pytest.approx(np.mean(losses), rel=1e-12)


def test_an_n_gram_model_takes_any_vocabulary_and_little_text():
    wide = KneserNey(torch.arange(300).repeat(3), 100_000)
    assert wide.order == 3  # 100,000 to the fourth does not fit
    assert wide.loss(torch.arange(300)) < 1 < wide.loss(torch.arange(300).flip(0))
    assert KneserNey(torch.tensor([3]), 256).loss(torch.tensor([1, 3])) < math.log(256)
    one = KneserNey(torch.zeros(50), 1)
    assert one.loss(torch.zeros(9)) < math.log(2)


def test_an_n_gram_model_looks_a_text_up_in_pieces(monkeypatch):
    tokens = torch.randint(0, 4, (2000,), generator=torch.Generator().manual_seed(0))
    model = KneserNey(tokens, 4, 3)
    whole = model.loss(tokens)
    monkeypatch.setattr("hetkern.training.ngrams._PIECE", 7)
    assert model.loss(tokens) == pytest.approx(whole, rel=1e-12)
