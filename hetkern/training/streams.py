"""A text as parallel streams, for models that carry a state from one stretch to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Streams:
    """The order of a recurrent language model: each row of the batch reads on where it was.

    The text is cut into as many streams as a step has rows, and every step takes the next
    ``context`` tokens of each. After the last one a new epoch begins, its first token drawn from
    the few that the cut leaves over. A row is the place where its stretch begins; that of an
    epoch's first is given as ``-1 - place``, since the state starts anew there.
    """

    def __init__(self, tokens: int, context: int, rows: int, seed: int) -> None:
        """``tokens``: of the text, more than ``context``; of too short a text streams overlap."""
        self.rows, self.context = rows, context
        targets = tokens - 1
        self.steps_per_epoch = max(1, targets // (rows * context))
        self._length = self.steps_per_epoch * context  # of a stream
        self._left_over = max(0, targets - rows * self._length)
        # Of less than one stretch a row: spread over what there is.
        last = targets - self._left_over - self._length
        self._begins = torch.arange(rows) * last // max(1, rows - 1)
        self._seed = seed
        self._drawn = 0  # steps

    def draw(self) -> Tensor:
        """The places of the next step, (rows,) int64."""
        epoch, step = divmod(self._drawn, self.steps_per_epoch)
        self._drawn += 1
        generator = torch.Generator().manual_seed(self._seed + epoch)
        shift = int(torch.randint(self._left_over + 1, (), generator=generator))
        places = self._begins + shift + step * self.context
        return -1 - places if step == 0 else places

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        self._drawn = state["drawn"]


def stretch(
    tokens: Any, begins: Tensor, rows: Tensor, context: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and, one token on, targets, both (len(rows), context) int64, and where to start anew.

    Args:
        tokens: (N,) of any integer dtype, or what can be indexed like it.
        begins: sorted, where each document begins.
        rows: as :meth:`Streams.draw` gives them.
        context: tokens of each row.

    Returns:
        Inputs, targets, and (len(rows), context) boolean: true at the first token of a document,
        and of an epoch.
    """
    fresh = rows < 0
    places = torch.where(fresh, -1 - rows, rows)[:, None] + torch.arange(context + 1)
    windows = tokens[places].long()
    reset = is_among(begins, places[:, :-1])
    reset[:, 0] |= fresh
    return windows[:, :-1], windows[:, 1:], reset


def is_among(numbers: Tensor, wanted: Tensor) -> Tensor:
    """Whether each of ``wanted`` is among the sorted ``numbers``."""
    if not len(numbers):
        return torch.zeros(wanted.shape, dtype=torch.bool)
    at = torch.searchsorted(numbers, wanted.contiguous()).clamp_max(len(numbers) - 1)
    return numbers[at] == wanted


def evaluation_streams(targets: int, context: int, limit: int = 0) -> tuple[Tensor, int]:
    """Where the streams of an evaluation begin, and how many targets each has at most.

    They depend on the text alone, so that a carried state meets the same tokens for any batch size
    and number of processes: up to 64 of them, none shorter than 16 stretches. With a limit each
    ends early.

    Returns:
        (S,) int64, and the targets of a stream, the last one's fewer.
    """
    streams = max(1, min(64, targets // (16 * context)))
    length = -(-targets // streams)
    begins = torch.arange(streams) * length
    begins = begins[begins < targets]
    if 0 < limit < targets:
        length = max(1, min(length, limit // len(begins)))
    return begins, length
