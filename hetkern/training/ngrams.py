"""An n-gram model: what counting alone predicts of a text, the floor under a language model.

Interpolated Kneser-Ney. With n(hw) the number of times that token w follows the n - 1 tokens h,

  p(w | h) = max(n(hw) - D, 0) / n(h)  +  D n1+(h) / n(h) · p(w | h'),   h' = h without its first

n1+(h) the number of different tokens that follow h. In the lower orders n(hw) is the number of
different tokens that precede hw; below all of them every token has 1 / V. D = n1 / (n1 + 2 n2) of
each order, n1 and n2 the numbers of n-grams that occur once and twice. A history that never
occurred leaves it all to the shorter one.

An n-gram is one integer, its tokens as digits to the base V; counts are sorted arrays, and a text
is looked up by binary search, all its tokens at once.

Source: Kneser & Ney (1995), "Improved backing-off for M-gram language modeling"; Chen & Goodman
(1999), "An empirical study of smoothing techniques for language modeling".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

_MOST = 4_000_000  # training tokens that are counted: some seconds, some 200 MB
_PIECE = 1 << 20  # tokens looked up at a time


class _Order(NamedTuple):
    """The counts of one order; arrays are sorted by code."""

    grams: np.ndarray  # codes of hw
    counts: np.ndarray  # n(hw)
    histories: np.ndarray  # codes of h
    totals: np.ndarray  # n(h)
    followers: np.ndarray  # n1+(h)
    discount: float


class KneserNey:
    """The model; see the head of this file."""

    def __init__(self, tokens: Any, vocabulary: int, order: int = 5) -> None:
        """Count ``tokens``, (N,), N at least 1.

        Args:
            tokens: a tensor, or what is sliced like one; the last four million are counted.
            vocabulary: V.
            order: the longest n-gram; a shorter one where V^order does not fit into 63 bits.
        """
        self.vocabulary = max(2, vocabulary)
        self.order = max(1, order)
        while self.order > 1 and self.vocabulary**self.order > 1 << 62:
            self.order -= 1
        text = _wide(tokens[-_MOST:])
        self.order = min(self.order, len(text))
        self._orders: list[_Order] = []
        grams, counts = np.unique(self._codes(text, self.order), return_counts=True)
        for n in range(self.order, 0, -1):
            self._orders.insert(0, self._counted(grams, counts))
            # Each different n-gram counts once for the (n - 1)-gram at its end.
            if n > 1:
                grams, counts = np.unique(grams % self.vocabulary ** (n - 1), return_counts=True)

    def _codes(self, text: np.ndarray, n: int) -> np.ndarray:
        """The codes of all n-grams, in the order of the text."""
        length = max(0, len(text) - n + 1)
        codes = np.zeros(length, np.int64)
        for place in range(n):
            codes = codes * self.vocabulary + text[place : place + length]
        return codes

    def _counted(self, grams: np.ndarray, counts: np.ndarray) -> _Order:
        histories, begins = np.unique(grams // self.vocabulary, return_index=True)
        if len(grams):
            totals = np.add.reduceat(counts, begins)
            followers = np.diff(begins, append=len(grams))
        else:
            totals = followers = np.zeros(0, np.int64)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        return _Order(grams, counts, histories, totals, followers, min(discount, 0.99))

    def loss(self, tokens: Tensor) -> float:
        """Nats a token of ``tokens``, (N,): the mean over all but the first.

        The first few are predicted from as many as there are.
        """
        text = _wide(tokens)
        total, done = 0.0, 0
        for begin in range(1, len(text), _PIECE):
            end = min(len(text), begin + _PIECE)
            seen = text[max(0, begin - self.order + 1) : end]
            total += -float(np.log(self._probabilities(seen, end - begin)).sum())
            done += end - begin
        return total / done

    def _probabilities(self, text: np.ndarray, targets: int) -> np.ndarray:
        """Of each of the last ``targets`` tokens of ``text``."""
        p = np.full(targets, 1.0 / self.vocabulary)
        for n, order in enumerate(self._orders, 1):
            codes = self._codes(text, n)[-targets:]
            if not len(codes) or not len(order.grams):
                break
            at = targets - len(codes)  # those without so long a history keep the shorter one's
            histories = codes // self.vocabulary
            place, there = _found(order.histories, histories)
            total = np.where(there, order.totals[place], 1)
            share = np.where(there, order.discount * order.followers[place] / total, 1.0)
            place, known = _found(order.grams, codes)
            count = np.where(known, order.counts[place] - order.discount, 0.0)
            p[at:] = np.maximum(count, 0.0) / total + share * p[at:]
        return p


def _wide(tokens: Tensor) -> np.ndarray:
    return tokens.cpu().numpy().astype(np.int64)


def _found(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted number stands in the sorted ``keys``, and whether it does."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted
