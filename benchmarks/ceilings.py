"""What this machine can do at best, in GB/s: read, copy, copy into a fresh output."""

from __future__ import annotations

import mmap

import torch
from harness import arguments, best_of


def fresh_copy(source: torch.Tensor) -> torch.Tensor:
    """A copy into new memory with huge pages."""
    # Private: shared memory, Python's default, gets no huge pages and would make a ceiling too low.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, source.numel() * source.element_size(), flags=private)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=source.dtype).view_as(source).copy_(source)


def ceilings(megabytes: int = 256, repeats: int = 25) -> dict[str, float]:
    """``read``, ``copy`` (into memory in use) and ``fresh copy`` (into memory new to the process).

    An op returns a new tensor, and the kernel must zero its pages before the first write: the last
    one is the ceiling of softmax on large tensors, with the huge pages that hetkern asks for.
    """
    source = torch.randn(megabytes * 2**18)
    target = torch.empty_like(source)
    moved = source.numel() * 4 / 1e6  # MB; over milliseconds: GB/s
    times = best_of(
        {
            "read": source.sum,
            "copy": lambda: target.copy_(source),
            "fresh copy": lambda: fresh_copy(source),
        },
        repeats,
    )
    return {name: (1 if name == "read" else 2) * moved / ms for name, ms in times.items()}


if __name__ == "__main__":
    arguments(__doc__ or "")
    for name, speed in ceilings().items():
        print(f"{name:12} {speed:6.1f} GB/s")
