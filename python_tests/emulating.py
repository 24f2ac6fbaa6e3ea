"""Kernels of this folder in the emulation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hetkern.testing.emulation import EmulatedKernel, emulate_cuda
from hetkern.testing.emulation.build import compiler, cuda_headers


def why_impossible() -> str | None:
    """What the emulation lacks here, a C++ compiler or CUDA's headers; None if it has both."""
    try:
        compiler(), cuda_headers()
    except NotImplementedError as missing:
        return str(missing)
    return None


def skip_unless_possible() -> None:
    """Skip the test where nothing can be emulated."""
    if reason := why_impossible():
        pytest.skip(reason)


def in_every_way(source: Path) -> dict[str | None, EmulatedKernel]:
    """The kernel plain, under ASan + UBSan and under TSan."""
    skip_unless_possible()
    return {how: emulate_cuda(source, sanitize=how) for how in (None, "address", "thread")}


def launchers(source: Path) -> Callable[..., EmulatedKernel]:
    """A file's launchers by name, without its ``go_``: under TSan, or as told."""
    skip_unless_possible()
    return lambda name, how="thread": emulate_cuda(source, f"go_{name}", sanitize=how)


def ints(*shape: int) -> torch.Tensor:
    """Zeros of int32."""
    return torch.zeros(*shape, dtype=torch.int32)
