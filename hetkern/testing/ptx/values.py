"""Bits of registers as numbers and back: uint64 arrays, one element a thread."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from hetkern.testing.ptx.parse import PtxError
from hetkern.testing.ptx.rounding import (
    float32_in_direction,
    float32_to_odd,
    flushed,
)

Array = np.ndarray[Any, np.dtype[Any]]
_WIDTHS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32, "pred": 1}
_WIDTHS |= {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)} | {"tf32": 32}
#: NaN as instructions write it (PTX ISA, "Floating-Point Instructions").
_NAN = {"f16": 0x7FFF, "bf16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8000000000000}
FLOATS = frozenset(_NAN)
PAIRS = {"f16x2": "f16", "bf16x2": "bf16"}


def width(kind: str) -> int:
    """Bits of a type."""
    if kind not in _WIDTHS:
        raise PtxError(f"ptx: the type .{kind} is not known")
    return _WIDTHS[kind]


def mask(bits: int) -> np.uint64:
    """As many ones."""
    return np.uint64((1 << bits) - 1)


def to_float(bits: Array, kind: str) -> Array:
    """Numbers of float64 for f64, float16 for f16, float32 for the others."""
    if kind == "f64":
        return bits.view(np.float64)
    if kind == "f32":
        return bits.astype(np.uint32).view(np.float32)
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float(values: Array, kind: str, direction: str = "n") -> Array:
    """Bits, rounded once: ``values`` are exact, of that type, or float64 rounded to odd."""
    nan = np.isnan(values)
    if kind == "f64":
        bits = np.ascontiguousarray(values, np.float64).view(np.uint64).copy()
    elif kind == "f32":
        wide = np.asarray(values)
        single = float32_in_direction(wide, direction) if wide.dtype == np.float64 else wide
        bits = np.ascontiguousarray(single, np.float32).view(np.uint32).astype(np.uint64)
    elif kind == "f16":
        half = np.ascontiguousarray(values.astype(np.float16))
        half = _toward(half, np.asarray(values), direction)
        bits = half.view(np.uint16).astype(np.uint64)
    else:
        wide = np.asarray(values)
        single = float32_to_odd(wide) if wide.dtype == np.float64 else wide.astype(np.float32)
        raw = np.ascontiguousarray(single).view(np.uint32).astype(np.uint64)
        if direction == "n":
            raw = raw + np.uint64(0x7FFF) + ((raw >> np.uint64(16)) & np.uint64(1))
        elif direction != "z":
            raise PtxError(f"ptx: rounding to bf16 .r{direction} is not known")
        bits = raw >> np.uint64(16)
    bits[nan] = _NAN[kind]
    return bits


def _toward(near: Array, exact: Array, direction: str) -> Array:
    if direction == "n":
        return near
    if direction != "z":
        raise PtxError(f"ptx: rounding to f16 .r{direction} is not known")
    over = np.abs(near.astype(np.float64)) > np.abs(exact.astype(np.float64))
    return np.where(over, np.nextafter(near, np.float16(0)), near)


def flush(values: Array) -> Array:
    """Subnormal float32 as zeros."""
    return flushed(np.ascontiguousarray(values))


def signed(bits: Array, size: int) -> Array:
    """As int64."""
    shift = np.uint64(64 - size)
    return (bits << shift).view(np.int64) >> np.int64(64 - size)


def integers(bits: Array, kind: str) -> Array:
    """int64 for .s types, uint64 for the others."""
    return signed(bits, width(kind)) if kind[0] == "s" else bits


def literal(text: str) -> int | None:
    """A number in the text of an operand, or None."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return int(text[2:], 16)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return int(text.rstrip("U"), 0)
    if re.fullmatch(r"-?\d+\.\d+", text):
        return int(np.float32(text).view(np.uint32))
    return {"true": 1, "false": 0, "WARP_SZ": 32}.get(text)
