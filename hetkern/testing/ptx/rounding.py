"""Sums, products and conversions that round once, as one instruction does, on arrays.

A sum of three numbers that is rounded twice, first to float64 and then to float32, is wrong where
the first rounding lands in the middle of two float32. Rounded *to odd* the first time (Boldo and
Melquiond, "Emulation of a FMA and correctly rounded sums", 2008) it never does: what was left out
shows in the last bit, and any later rounding, to nearest or in one direction, is right.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_TINY = float(np.finfo(np.float32).tiny)
_HALF_WAY = np.uint64(1 << 28)  # of the 29 bits that float32 has less than float64
_BELOW = np.uint64((1 << 29) - 1)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """A sum and what its rounding left out."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _odd(value: Array, left: Array) -> Array:
    """``value`` rounded to odd, where ``left`` is what it lacks."""
    kind = f"u{value.itemsize}"
    bits = np.ascontiguousarray(value).view(kind)
    even = (left != 0) & (bits & 1 == 0) & np.isfinite(value)
    away = (left > 0) == (value > 0)
    moved = np.where(away, bits + np.array(1, kind), bits - np.array(1, kind))
    return np.where(even, moved, bits).astype(kind).view(value.dtype)


def sum_to_odd(a: Array, b: Array) -> Array:
    """The float64 sum, rounded to odd."""
    return _odd(*_two_sum(np.asarray(a, np.float64), np.asarray(b, np.float64)))


def float32_to_odd(value: Array) -> Array:
    """float64 to float32, rounded to odd: for a second rounding, to bfloat16."""
    near = value.astype(np.float32)
    return _odd(near, np.where(np.isfinite(near), value - near.astype(np.float64), 0.0))


def float32_in_direction(value: Array, direction: str) -> Array:
    """float64 (rounded to odd) to float32, "n"earest, toward "z"ero, "u"p or "d"own."""
    near = value.astype(np.float32)
    if direction == "n":
        return near
    wide = near.astype(np.float64)
    if direction == "z":
        wrong = np.abs(wide) > np.abs(value)
        to = np.zeros_like(near)
    else:
        wrong = wide < value if direction == "u" else wide > value
        to = np.full_like(near, np.inf if direction == "u" else -np.inf)
    return np.where(wrong & ~np.isnan(value), np.nextafter(near, to), near)


def fma(x: Array, y: Array, z: Array) -> Array:
    """``x y + z``, rounded once, of arrays of one floating dtype."""
    if z.dtype == np.float64:
        return _fma_of_float64(x, y, z)
    total = fma_to_odd(x, y, z) if z.dtype != np.float32 else _fma_before_rounding(x, y, z)
    return total.astype(z.dtype)


def fma_to_odd(x: Array, y: Array, z: Array) -> Array:
    """``x y + z`` of float32 or less, as a float64 rounded to odd."""
    return sum_to_odd(x.astype(np.float64) * y.astype(np.float64), z)


def is_middle(total: Array) -> bool:
    """Whether float64 sums may round to the wrong float32: one is a middle, or subnormal there."""
    middle = total.view(np.uint64) & _BELOW == _HALF_WAY
    return bool(middle.any() or ((np.abs(total) < _TINY) & (total != 0)).any())


def _fma_before_rounding(x: Array, y: Array, z: Array) -> Array:
    """A float64 that rounds to the right float32: to odd only where that could matter."""
    product = x.astype(np.float64) * y
    total = product + z
    return sum_to_odd(product, z) if is_middle(total) else total


def _fma_of_float64(x: Array, y: Array, z: Array) -> Array:
    """The algorithm of the paper above; numbers near the ends of the range by fractions."""
    x, y, z = np.broadcast_arrays(x, y, z)
    high = x * y
    low = _product_error(x, y, high)
    first, first_left = _two_sum(z, low)
    second, second_left = _two_sum(high, first)
    total = np.array(second + sum_to_odd(first_left, second_left))
    size = np.abs(np.array([x, y, high, z]))
    extreme = ((size > 2.0**900) | ((size < 2.0**-400) & (size != 0))).any(0) | (
        (high == 0) & (x != 0) & (y != 0)
    )
    for at in zip(*np.nonzero(np.atleast_1d(extreme)), strict=True):
        a, b, c = (np.atleast_1d(part)[at] for part in (x, y, z))
        np.atleast_1d(total)[at] = _fma_of_fractions(float(a), float(b), float(c))
    simple = (low == 0) | ~np.isfinite(high) | ~np.isfinite(z)
    return np.where(simple & ~extreme, high + z, total)


def _product_error(x: Array, y: Array, product: Array) -> Array:
    """What the rounding of ``x y`` left out (Veltkamp's and Dekker's splitting)."""

    def split(value: Array) -> tuple[Array, Array]:
        wide = value * 134217729.0
        high = wide - (wide - value)
        return high, value - high

    (a, b), (c, d) = split(x), split(y)
    return b * d - (((product - a * c) - b * c) - a * d)


def _fma_of_fractions(x: float, y: float, z: float) -> float:
    if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(z)):
        return x * y + z
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if exact == 0:
        return x * y + z
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def flushed(data: Array) -> Array:
    """float32 with subnormal numbers as zeros of their sign, as instructions marked .ftz do."""
    if data.dtype != np.float32:
        return data
    small = np.abs(data) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(np.float32(0), data), data)
