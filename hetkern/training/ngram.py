"""How well counting predicts: an interpolated n-gram model, as a floor for language models.

p_k(w | h) = (c(h w) + t(h) p_{k-1}(w | h')) / (c(h) + t(h)),    p_{-1} = 1 / V

c counts in the training text, t(h) is the number of different tokens that followed the last k
tokens h, and h' is h without its first token. Where h was never seen, p_k = p_{k-1}.

Source: Witten & Bell (1991), "The zero-frequency problem", method C.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def ngram_losses(train: Tensor, val: Tensor, vocabulary: int, orders: int = 6) -> list[float]:
    """Nats a token of ``val[1:]`` under n-grams of ``train``, for n = 1 to ``orders``.

    Each target is predicted from all the tokens of ``val`` before it that the order allows.
    """
    seen, asked = (np.asarray(x.long().numpy()) for x in (train, val))
    targets = np.full(len(asked) - 1, 1.0 / vocabulary)  # p of each target, order by order
    # A context's number: contexts of k tokens get dense numbers from those of k - 1 and one token.
    of_train = np.zeros(len(seen), np.int64)
    of_val = np.zeros(len(asked), np.int64)
    losses = []
    for order in range(orders):
        # Position i's context is the `order` tokens before it; earlier positions have none.
        followed = of_train[order:] * vocabulary + seen[order:]
        pairs, counts = np.unique(followed, return_counts=True)
        contexts, first, kinds = np.unique(
            pairs // vocabulary, return_index=True, return_counts=True
        )
        totals = np.add.reduceat(counts, first)

        at = np.searchsorted(contexts, of_val[1:])
        known = (at < len(contexts)) & (contexts[np.minimum(at, len(contexts) - 1)] == of_val[1:])
        known[: max(0, order - 1)] = False  # there are fewer tokens before
        at = at[known]
        wanted = of_val[1:][known] * vocabulary + asked[1:][known]
        where = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        found = np.where(pairs[where] == wanted, counts[where], 0)
        targets[known] = (found + kinds[at] * targets[known]) / (totals[at] + kinds[at])
        losses.append(float(-np.log(targets).mean()))

        # The next order's contexts: the token before, and the context that it had.
        of_train, of_val = _longer(of_train, of_val, seen, asked, vocabulary, order)
    return losses


def _longer(
    of_train: np.ndarray,
    of_val: np.ndarray,
    seen: np.ndarray,
    asked: np.ndarray,
    vocabulary: int,
    order: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Contexts one token longer, in dense numbers; -1 for what the training text does not have."""
    codes = of_train[order:-1] * vocabulary + seen[order:-1]
    numbers, dense = np.unique(codes, return_inverse=True)
    longer_train = np.full(len(of_train), -1, np.int64)
    longer_train[order + 1 :] = dense

    wanted = of_val[:-1] * vocabulary + asked[:-1]
    at = np.minimum(np.searchsorted(numbers, wanted), max(0, len(numbers) - 1))
    there = (of_val[:-1] >= 0) & (len(numbers) > 0)
    if len(numbers):
        there &= numbers[at] == wanted
    longer_val = np.full(len(of_val), -1, np.int64)
    longer_val[1:][there] = at[there]
    return longer_train, longer_val
