"""Philox4x32-10, a generator that is a function of a key and a counter, with no state.

Source: Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".
"""

from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


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
