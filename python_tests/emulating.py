"""Kernels of this folder in the emulation."""

from pathlib import Path

import pytest

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
