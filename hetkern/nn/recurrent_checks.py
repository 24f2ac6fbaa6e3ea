"""What the modules of the RNN family check before the ops do: with torch's classes of errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def named(module: nn.Module) -> str:
    """How errors name a module."""
    return f"hetkern.nn.{type(module).__name__}"


def check_tensor(where: str, value: Any) -> None:
    """Raise TypeError for what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: wanted a tensor, got {type(value).__name__}")


def check_state(where: str, state: Any, shape: tuple[int, ...], x: Tensor) -> None:
    """Raise RuntimeError unless a state has this shape, and the input's dtype and device."""
    check_tensor(where, state)
    if state.shape != shape:
        raise RuntimeError(f"{where}: wanted shape {shape}, got {tuple(state.shape)}")
    if state.device != x.device:
        raise RuntimeError(f"{where}: wanted a tensor on {x.device}, got one on {state.device}")
    check_dtype(RuntimeError, where, state, x.dtype)


def check_dtype(error: type[Exception], where: str, t: Tensor, dtype: torch.dtype) -> None:
    """Raise ``error`` for another dtype than this one; autocast takes any."""
    if t.dtype != dtype and (t.is_meta or not torch.is_autocast_enabled(t.device.type)):
        raise error(f"{where}: wanted {dtype}, got {t.dtype}")


def two(where: str, states: Any) -> tuple[Any, Any]:
    """The two states of an LSTM.

    Raises:
        TypeError: they are no pair.
    """
    if not isinstance(states, (tuple, list)) or len(states) != 2:
        got = f"{len(states)}" if isinstance(states, (tuple, list)) else type(states).__name__
        raise TypeError(f"{where}: wanted (h, c), two tensors, got {got}")
    return states[0], states[1]
