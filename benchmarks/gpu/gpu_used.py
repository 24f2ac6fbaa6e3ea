"""Pytest plugin: how many tests took memory on the GPU, a line each in the file GPU_USED names.

A suite that quietly ran on the CPU, or on an emulation, has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


def _allocations() -> int:
    if not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the allocations of the test's body."""
    before = _allocations()
    try:
        return (yield)
    finally:
        if _allocations() > before:
            with open(os.environ["GPU_USED"], "a") as file:
                file.write(item.nodeid + "\n")
