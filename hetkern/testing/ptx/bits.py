"""Arithmetic of integers and operations on bits, each in every thread."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hetkern.testing.ptx.floats import Source
from hetkern.testing.ptx.parse import Instruction, PtxError
from hetkern.testing.ptx.values import Array, integers, mask, signed, width

_BITWISE: dict[str, Callable[..., Array]] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
}  # fmt: skip


def high_product(a: Array, b: Array, bits: int) -> Array:
    """The upper half of a product of ``bits`` bits."""
    if bits <= 32:
        product = a * b
        return (product >> product.dtype.type(bits)).view(np.uint64)
    exact = (a.astype(object) * b.astype(object)) >> 64
    return np.array([int(v) % (1 << 64) for v in exact], np.uint64)


def arithmetic(i: Instruction, source: Source) -> Array:
    """``add``, ``mad.wide``, ``rem`` … of integers."""
    half = next((w for w in i.modifiers if w in ("lo", "hi", "wide")), "")
    if unknown := set(i.modifiers[:-1]) - {"lo", "hi", "wide"}:
        raise PtxError(f"ptx: {i.name} with .{'.'.join(sorted(unknown))} is not known")
    bits = width(i.type)
    a = integers(source(0, i.type), i.type)
    out = mask(2 * bits if half == "wide" and bits < 64 else bits)
    if i.name in ("abs", "neg"):
        return (np.abs(a) if i.name == "abs" else -a).view(np.uint64) & out
    b = integers(source(1, i.type), i.type)
    if i.name in ("mul", "mad"):
        result = high_product(a, b, bits) if half == "hi" else (a * b).view(np.uint64)
        if i.name == "mad":
            wide = f"{i.type[0]}{2 * bits}" if half == "wide" else i.type
            result = result + integers(source(2, wide), wide).view(np.uint64)
        return result & out
    if i.name in ("min", "max"):
        return (np.minimum if i.name == "min" else np.maximum)(a, b).view(np.uint64) & out
    if i.name in ("div", "rem"):
        return _divided(i.name, a, b).view(np.uint64) & out
    return ((a + b) if i.name == "add" else (a - b)).view(np.uint64) & out


def _divided(name: str, a: Array, b: Array) -> Array:
    """Toward zero; by zero all bits, and the dividend as the rest: what machines give."""
    by = np.where(b == 0, np.ones_like(b), b)
    if a.dtype == np.uint64:
        quotient = a // by
    else:
        lowest = (a == np.iinfo(np.int64).min) & (by == -1)
        quotient = np.where(lowest, a, a // np.where(lowest, 1, by))
        short = (quotient * by != a) & ((a < 0) != (by < 0))
        quotient = quotient + short
    if name == "rem":
        return np.where(b == 0, a, a - quotient * by)
    return np.where(b == 0, np.invert(np.zeros_like(a)), quotient)


def logic(i: Instruction, source: Source) -> Array:
    """``and``, ``or``, ``xor``, ``not``."""
    parts = [source(n, i.type) for n in range(len(i.operands) - 1)]
    result: Array = _BITWISE[i.name](*parts)
    return result & mask(width(i.type))


def shift(i: Instruction, source: Source) -> Array:
    """``shl``, ``shr``: a shift by the width or more leaves zeros, or the sign."""
    bits = width(i.type)
    value, by = source(0, i.type), np.minimum(source(1, "b32"), np.uint64(bits))
    if i.name == "shr" and i.type[0] == "s":
        return (signed(value, bits) >> np.minimum(by, np.uint64(63)).view(np.int64)).view(
            np.uint64
        ) & mask(bits)
    out = np.where(by >= bits, np.uint64(0), by)
    moved = value << out if i.name == "shl" else value >> out
    return np.where(by >= bits, np.uint64(0), moved & mask(bits))


def funnel(i: Instruction, source: Source) -> Array:
    """``shf``."""
    low, high, by = (source(n, "b32") for n in range(3))
    by = by & np.uint64(31) if "wrap" in i.modifiers else np.minimum(by, np.uint64(32))
    both = high << np.uint64(32) | low
    if i.modifiers[0] == "l":
        return (both << by) >> np.uint64(32)
    return (both >> by) & mask(32)


def three_inputs(i: Instruction, source: Source) -> Array:
    """``lop3``."""
    a, b, c = (source(n, "b32") for n in range(3))
    table, result = int(i.operands[4], 0), np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result & mask(32)


def permute(i: Instruction, source: Source) -> Array:
    """``prmt``: four bytes chosen from eight, or their signs."""
    if len(i.modifiers) != 1:
        raise PtxError(f"ptx: prmt with .{i.modifiers[0]} is not known")
    low, high, selector = (source(n, "b32") for n in range(3))
    both, result = high << np.uint64(32) | low, np.zeros_like(low)
    for byte in range(4):
        which = selector >> np.uint64(4 * byte)
        value = both >> (np.uint64(8) * (which & np.uint64(7))) & np.uint64(255)
        sign = np.where(value & np.uint64(128), np.uint64(255), np.uint64(0))
        chosen = np.where(which & np.uint64(8), sign, value)
        result |= chosen << np.uint64(8 * byte)
    return result


def field(i: Instruction, source: Source) -> Array:
    """``bfe`` and ``bfi``."""
    bits = width(i.type)
    if i.name == "bfi":
        new, old, start, length = (
            source(n, i.type if n < 2 else "b32") & (mask(64) if n < 2 else np.uint64(255))
            for n in range(4)
        )
        ones = _ones(length)
        at = np.minimum(start, np.uint64(63))
        placed = np.where(start < bits, ones << at, np.uint64(0))
        moved = np.where(start < bits, (new & ones) << at, np.uint64(0))
        return ((old & ~placed) | moved) & mask(bits)
    value = source(0, i.type)
    start, length = (source(n, "b32") & np.uint64(255) for n in (1, 2))
    out = np.where(start < bits, value >> np.minimum(start, np.uint64(63)), np.uint64(0))
    out = out & _ones(length)
    if i.type[0] == "s":
        top = np.minimum(start + length - np.uint64(1), np.uint64(bits - 1))
        negative = (value >> top & np.uint64(1) == 1) & (length > 0)
        out = np.where(negative, out | ~_ones(length), out)
    return out & mask(bits)


def _ones(length: Array) -> Array:
    short = np.minimum(length, np.uint64(63))
    return np.where(length >= 64, mask(64), (np.uint64(1) << short) - np.uint64(1))


def count(i: Instruction, source: Source) -> Array:
    """``popc``, ``clz``, ``brev``, ``bfind``."""
    bits = width(i.type)
    value = source(0, i.type)
    if i.name == "popc":
        return np.bitwise_count(value).astype(np.uint64)
    if i.name == "brev":
        return np.array([int(f"{int(v):0{bits}b}"[::-1], 2) for v in value], np.uint64)
    if i.name == "bfind" and (i.type[0] == "s" or len(i.modifiers) > 1):
        raise PtxError(f"ptx: {i.text} is not known")
    length = np.array([int(v).bit_length() for v in value], np.int64)
    return (bits - length if i.name == "clz" else length - 1).view(np.uint64) & mask(32)


def select_sign(i: Instruction, source: Source) -> Array:
    """``copysign``: the sign of the first, the size of the second."""
    sign = np.uint64(1 << (width(i.type) - 1))
    return (source(1, i.type) & ~sign) | (source(0, i.type) & sign)
