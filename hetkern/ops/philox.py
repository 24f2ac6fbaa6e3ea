"""Dropout masks of a counter-based generator: the same numbers on every device, whoever draws them.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): a
function of a key and a counter, with no state. Masks here have one row a sequence, so that a few
plain operations cost nothing beside the steps that they serve; kernels take them as tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


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


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The generator itself, on words of 32 bits held as int64."""
    c, k = counter, key
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(_MULTIPLIERS[0], c[0])
        high_1, low_1 = _product(_MULTIPLIERS[1], c[2])
        c = high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0
        k = (k[0] + _WEYL[0]) & _LOW, (k[1] + _WEYL[1]) & _LOW
    return c


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and lower word of a product of two words; int64 is signed, so by halves of a."""
    by_low, by_high = b * (a & 0xFFFF), b * (a >> 16)
    return (by_high + (by_low >> 16)) >> 16, ((by_high << 16) + by_low) & _LOW
