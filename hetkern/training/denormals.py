"""Numbers below the least normal one, which training takes as zeros.

What a recurrent layer learns from a step far back shrinks at each step between, so that gradients
of long texts are denormal sooner or later: in float32 below 1.2e-38. On a CPU an instruction that
meets such a number takes some hundred cycles, and the products over them took most of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Denormal numbers are zeros inside, on this thread and on those that it starts."""
    before = denormals_are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def denormals_are_flushed() -> bool:
    """Whether this thread takes them as zeros; torch can be told, and not asked."""
    return not torch.full((1,), 1e-40, device="cpu").mul(1.0).item()
