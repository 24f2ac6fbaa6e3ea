"""What sampling asks of a language model: the next token's logits, without starting over."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Stepping(Protocol):
    """A language model that goes on from a state: keys and values of a Transformer, an RNN's own.

    Rows are independent of each other. What ``extend`` gives is what the whole sequence would, up
    to rounding.
    """

    longest: int | None  # the longest sequence that a state can hold; None for any

    def start(self, rows: int) -> Any:
        """The state before the first token of ``rows`` sequences."""

    def extend(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The logits (rows, V) after the last of ``tokens`` (rows, T ≥ 1), and the state there."""


def stepping(model: nn.Module) -> Stepping:
    """``model`` as sampling asks for it.

    Raises:
        TypeError: it is no language model.
    """
    if not (hasattr(model, "start") and hasattr(model, "extend")):
        raise TypeError(f"{type(model).__name__} writes no text")
    return model  # type: ignore[return-value]
