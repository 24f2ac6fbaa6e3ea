"""Dropout masks of a counter-based generator: the same numbers on every device, whoever draws them.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): a
function of a key and a counter, with no state. Masks here have one row a sequence, so that a few
plain operations cost nothing beside the steps that they serve; kernels take them as tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.philox import philox4x32

_LOW = 0xFFFFFFFF


def seed(device: torch.device) -> Tensor:
    """A seed from torch's generator of the device, left there: nobody waits for it."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)


def keep_mask(seed: Tensor, shape: tuple[int, int], p: float, stream: int, like: Tensor) -> Tensor:
    """``1 / (1 - p)`` with probability ``1 - p``, else 0.

    Args:
        seed: int64, one element; the key of the generator.
        shape: rows and columns.
        p: probability of a zero, in [0, 1).
        stream: which of the masks that share a seed.
        like: gives dtype and device.
    """
    rows, columns = shape
    count = rows * columns
    position = torch.arange((count + 3) // 4, device=like.device)
    words = philox(seed, position, stream)
    uniform = torch.stack(words, 1).flatten()[:count].bitwise_right_shift(8) * 2.0**-24
    return ((uniform >= p).to(like.dtype) / (1.0 - p)).to(like.dtype).reshape(rows, columns)


def philox(seed: Tensor, position: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits, as int64, for each position: the counter is (position, stream, 0)."""
    zero = torch.zeros_like(position)
    counter = position & _LOW, (position >> 32) & _LOW, zero + stream, zero
    return philox4x32(counter, (seed & _LOW, (seed >> 32) & _LOW))
