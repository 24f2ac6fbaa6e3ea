"""Arithmetic and comparisons of floating numbers, one rounding an instruction.

Each function is called with the instruction and ``source(n, type)``, the bits of its n-th source
in every thread, and gives the bits of the result. Approximations (``ex2.approx`` and kin) are the
correctly rounded value: what a GPU gives differs by no more than the error that the PTX ISA states.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hetkern.testing.ptx import rounding
from hetkern.testing.ptx.parse import Instruction, PtxError
from hetkern.testing.ptx.values import (
    FLOATS,
    PAIRS,
    Array,
    flush,
    from_float,
    mask,
    to_float,
    width,
)

Source = Callable[[int, str], Array]
_APPROXIMATE: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}
NAMES = frozenset(
    {"add", "sub", "mul", "fma", "mad", "div", "neg", "abs", "min", "max", *_APPROXIMATE}
)
_KNOWN = {"rn", "rz", "ftz", "approx", "full", "NaN", "sat"}
_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def arithmetic(i: Instruction, source: Source) -> Array:
    """``add``, ``fma``, ``ex2`` …, of one number or of the two halves of a register."""
    known = _KNOWN | ({"xorsign", "abs"} if i.name in ("min", "max") else {"noftz"})
    if unknown := set(i.modifiers[:-1]) - known:
        raise PtxError(f"ptx: {i.name} with .{'.'.join(sorted(unknown))} is not known")
    if i.type not in PAIRS:
        return _one(i, i.type, [source(n, i.type) for n in range(len(i.operands) - 1)])
    kind = PAIRS[i.type]
    whole = [source(n, i.type) for n in range(len(i.operands) - 1)]
    low = _one(i, kind, [part & mask(16) for part in whole])
    return _one(i, kind, [part >> np.uint64(16) for part in whole]) << np.uint64(16) | low


def _one(i: Instruction, kind: str, bits: list[Array]) -> Array:
    sign = np.uint64(1 << (width(kind) - 1))
    ftz = "ftz" in i.modifiers and kind == "f32"
    values = [to_float(part, kind) for part in bits]
    if ftz:
        values = [flush(value) for value in values]
        bits = [
            from_float(v, kind) if np.isfinite(v).all() else b
            for v, b in zip(values, bits, strict=True)
        ]
    if i.name == "neg":
        return bits[0] ^ sign
    if i.name == "abs":
        return bits[0] & ~sign
    if i.name in ("min", "max"):
        return _extreme(i, kind, values, bits)
    direction = "z" if "rz" in i.modifiers else "n"
    result = _exact(i.name, kind, values)
    if "sat" in i.modifiers:
        result = np.where(np.isnan(result), 0, np.clip(result, 0, 1))
    out = from_float(result, kind, direction)
    return from_float(flush(to_float(out, kind)), kind) if ftz else out


def _exact(name: str, kind: str, values: list[Array]) -> Array:
    """The result before its rounding; in float64 for all but f64 itself."""
    if name in ("fma", "mad"):
        return rounding.fma(*values) if kind == "f64" else rounding.fma_to_odd(*values)
    wide = [value.astype(np.float64) for value in values]
    if name in ("add", "sub"):
        other = wide[1] if name == "add" else -wide[1]
        return wide[0] + other if kind == "f64" else rounding.sum_to_odd(wide[0], other)
    if name == "mul":
        return wide[0] * wide[1]
    if name == "div":
        return wide[0] / wide[1]
    return _APPROXIMATE[name](wide[0])


def _extreme(i: Instruction, kind: str, values: list[Array], bits: list[Array]) -> Array:
    """NaN is dropped unless .NaN asks for it; -0 is less than +0."""
    if len(values) != 2:
        raise PtxError(f"ptx: {i.name} of three operands is not known")
    sign = np.uint64(1 << (width(kind) - 1))
    if "xorsign" in i.modifiers:  # of the sizes, with the product's sign
        negative = (bits[0] ^ bits[1]) & sign
        bits, values = [b & ~sign for b in bits], [np.abs(v) for v in values]
    else:
        negative = np.zeros_like(bits[0])
    a, b = values
    largest = i.name == "max"
    first = (a > b) if largest else (a < b)
    result = np.where(first | np.isnan(b), bits[0], bits[1])
    zeros = (a == 0) & (b == 0)
    result = np.where(zeros, bits[0] & bits[1] if largest else bits[0] | bits[1], result)
    nan = np.isnan(a) | np.isnan(b) if "NaN" in i.modifiers else np.isnan(a) & np.isnan(b)
    missing = from_float(np.full(a.shape, np.nan, np.float32), kind)
    return np.where(nan, missing, result | negative)


def comparison(i: Instruction, kind: str, first: Array, second: Array) -> Array:
    """``setp.lt.f32`` and kin, as booleans: a NaN is false, or true for the names with ``u``."""
    if kind not in FLOATS:
        raise PtxError(f"ptx: a comparison of .{kind} is not known")
    a, b = to_float(first, kind), to_float(second, kind)
    if "ftz" in i.modifiers:
        a, b = flush(a), flush(b)
    word = i.modifiers[0]
    unordered = np.isnan(a) | np.isnan(b)
    if word in ("num", "nan"):
        return unordered if word == "nan" else ~unordered
    loose = len(word) == 3 and word.endswith("u")
    if (plain := word[:2] if loose else word) not in _COMPARE:
        raise PtxError(f"ptx: the comparison .{word} is not known")
    return np.where(unordered, loose, _COMPARE[plain](a, b))


def compare_integers(word: str, first: Array, second: Array) -> Array:
    """``setp.lt.s32`` and kin, of int64 or uint64."""
    names = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    if (plain := names.get(word, word)) not in _COMPARE:
        raise PtxError(f"ptx: the comparison .{word} is not known")
    return _COMPARE[plain](first, second)


def test_property(i: Instruction, source: Source) -> Array:
    """``testp``."""
    value = to_float(source(0, i.type), i.type)
    known: dict[str, Callable[[Array], Array]] = {
        "finite": np.isfinite, "infinite": np.isinf, "notanumber": np.isnan,
        "number": lambda v: ~np.isnan(v),
    }  # fmt: skip
    if i.modifiers[0] not in known:
        raise PtxError(f"ptx: testp.{i.modifiers[0]} is not known")
    return known[i.modifiers[0]](value).astype(np.uint64)
