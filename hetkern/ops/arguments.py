"""What the public functions ask of arguments before an op sees them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def number(op: str, name: str, value: Any) -> float:
    """``value`` as a float; ask ``type(value) is not float`` first.

    Raises:
        NotImplementedError: a tensor that requires a gradient, which would get none.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise NotImplementedError(
            f"{op}: {name}: wanted a number, which has no gradient, got a tensor that requires "
            "one: multiply by it before the call"
        )
    return float(value)


def tensor(op: str, name: str, value: Any) -> None:
    """Raise TypeError for what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: wanted a tensor, got {type(value).__name__}")
