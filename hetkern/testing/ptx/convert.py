"""``cvt``: between integers, floating numbers and pairs of these (PTX ISA, "cvt")."""

from __future__ import annotations

import numpy as np
import torch

from hetkern.testing.ptx.floats import Source
from hetkern.testing.ptx.parse import Instruction, PtxError
from hetkern.testing.ptx.rounding import sum_to_odd
from hetkern.testing.ptx.values import (
    FLOATS,
    PAIRS,
    Array,
    flush,
    from_float,
    integers,
    mask,
    to_float,
    width,
)

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_EIGHT_BITS = {"e4m3x2": torch.float8_e4m3fn, "e5m2x2": torch.float8_e5m2}


def convert(i: Instruction, source: Source) -> Array:
    """The bits of the result."""
    *words, to, have = i.modifiers
    known = {"rn", "rz", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "satfinite", "rna"}
    if unknown := set(words) - known:
        raise PtxError(f"ptx: cvt with .{'.'.join(sorted(unknown))} is not known")
    if to in _EIGHT_BITS or have in _EIGHT_BITS:
        return _eight_bits(i, words, to, have, source)
    if to in PAIRS and have == "f32":
        direction = "z" if "rz" in words else "n"
        high, low = (
            from_float(to_float(source(n, "f32"), "f32").astype(np.float64), PAIRS[to], direction)
            for n in (0, 1)
        )
        return high << np.uint64(16) | low
    if to == "tf32":
        raw = source(0, "f32")
        rounded = (raw + np.uint64(0x1000)) & np.uint64(0xFFFFE000)
        return np.where(np.isfinite(to_float(raw, "f32")), rounded & mask(32), raw)
    if to in FLOATS:
        return _to_float(words, to, have, source(0, have))
    if have in FLOATS:
        return _float_to_integer(words, to, have, source(0, have))
    return _between_integers(words, to, have, source(0, have))


def _to_float(words: list[str], to: str, have: str, raw: Array) -> Array:
    direction = "z" if "rz" in words else "n"
    if have not in FLOATS:
        number = integers(raw, have)
        if number.dtype == np.int64:
            high: Array = number >> np.int64(32)
            low: Array = number & np.int64(0xFFFFFFFF)
        else:
            high, low = number >> np.uint64(32), number & np.uint64(0xFFFFFFFF)
        if to == "f64":
            return from_float(number.astype(np.float64), to)
        exact = sum_to_odd(high.astype(np.float64) * 2.0**32, low.astype(np.float64))
        return from_float(exact, to, direction)
    value = to_float(raw, have)
    if "ftz" in words and have == "f32":
        value = flush(value)
    for word in words:
        if word in _TO_INTEGER:
            value = _TO_INTEGER[word](value)
    if "sat" in words:
        value = np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(value.dtype)
    out = from_float(value.astype(np.float64), to, direction)
    return from_float(flush(to_float(out, to)), to) if "ftz" in words and to == "f32" else out


def _float_to_integer(words: list[str], to: str, have: str, raw: Array) -> Array:
    """Saturating; NaN is 0, or the sign bit alone where either side has 64 bits."""
    value = to_float(raw, have)
    if "ftz" in words and have == "f32":
        value = flush(value)
    wanted = [word for word in words if word in _TO_INTEGER]
    if len(wanted) != 1:
        raise PtxError("ptx: cvt of a float to an integer without one rounding is not known")
    value = _TO_INTEGER[wanted[0]](value.astype(np.float64))
    bits = width(to)
    lowest, highest = (
        (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if to[0] == "s" else (0.0, 2.0**bits)
    )
    below, above, nan = value < lowest, value >= highest, np.isnan(value)
    inside = np.where(below | above | nan, 0, value)
    result = inside.astype(np.int64).view(np.uint64) if to[0] == "s" else inside.astype(np.uint64)
    result = np.where(above, np.uint64(int(highest) - 1), result)
    result = np.where(below, np.array(int(lowest) % (1 << 64), np.uint64), result)
    of_nan = 1 << (bits - 1) if have == "f64" or bits == 64 else 0
    return np.where(nan, np.uint64(of_nan), result) & mask(bits)


def _between_integers(words: list[str], to: str, have: str, raw: Array) -> Array:
    number = integers(raw, have)
    if "sat" in words:
        bits = width(to)
        low, high = (
            (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if to[0] == "s" else (0, (1 << bits) - 1)
        )
        if number.dtype == np.uint64:
            number = np.minimum(number, np.uint64(high))
        else:
            number = np.clip(number, np.int64(low), np.int64(min(high, (1 << 63) - 1)))
    out = number.view(np.uint64) & mask(width(to))
    return integers(out, to).view(np.uint64) if to[0] == "s" else out


def _eight_bits(i: Instruction, words: list[str], to: str, have: str, source: Source) -> Array:
    """Two 8-bit floats of 16 bits to two f16, and back from two f32 or a pair of f16."""
    if have in _EIGHT_BITS and to == "f16x2":
        raw = source(0, "b16").astype(np.uint16)
        codes = torch.from_numpy(np.ascontiguousarray(raw).view(np.uint8).reshape(-1, 2).copy())
        half = codes.view(_EIGHT_BITS[have]).half().numpy().view(np.uint16).astype(np.uint64)
        return half[:, 1] << np.uint64(16) | half[:, 0]
    if "satfinite" not in words or to not in _EIGHT_BITS:
        raise PtxError(f"ptx: {i.text} is not known")
    if have == "f32":
        high, low = (to_float(source(n, "f32"), "f32") for n in (0, 1))
    elif have == "f16x2":
        pair = source(0, "b32")
        high = to_float(pair >> np.uint64(16), "f16").astype(np.float32)
        low = to_float(pair & mask(16), "f16").astype(np.float32)
    else:
        raise PtxError(f"ptx: {i.text} is not known")
    first, second = (to_eight_bits(part, _EIGHT_BITS[to]) for part in (low, high))
    return second << np.uint64(8) | first


def to_eight_bits(values: Array, dtype: torch.dtype) -> Array:
    """The codes of 8-bit floats, to nearest even; what is out of range becomes the largest."""
    largest = torch.finfo(dtype).max
    clipped = np.where(np.isnan(values), values, np.clip(values, -largest, largest))
    codes = torch.from_numpy(np.ascontiguousarray(clipped)).to(dtype).view(torch.uint8).numpy()
    return np.where(np.isnan(values), np.uint64(0x7F), codes.astype(np.uint64))
