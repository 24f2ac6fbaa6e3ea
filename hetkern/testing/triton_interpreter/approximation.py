"""Approximations as far off as NVIDIA's manuals allow: what a kernel must stand on any GPU.

The interpreter gives an approximation (``div.full``, ``ex2.approx``, libdevice's ``tanhf`` …) its
mathematical value, rounded once. A GPU's differs, within a stated error, in a way that only a GPU
knows. Under :func:`approximate` each float32 result is moved by a part of that error, drawn from
its bits and a seed, and the error budget grows by as much as a result itself may be off.

Errors in units of the last place: PTX ISA, ``div`` and "Floating Point Instructions"; CUDA C++
Programming Guide, "Mathematical Functions".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from hetkern.testing.values import budget

_UNITS = {
    "fdiv": 2, "exp": 2, "exp2": 2, "log": 1, "log2": 1, "sqrt": 1, "rsqrt": 1, "sin": 2, "cos": 2,
    "erf": 2, "extern_elementwise": 2,
}  # fmt: skip
#: libdevice's functions that are exact, by the beginning of their names.
_EXACT = (
    "abs", "ceil", "copysign", "double2", "f2", "fabs", "fadd", "fdim", "fdiv_", "float2", "floor",
    "fma", "fmod", "fmul", "frcp", "fsqrt", "fsub", "int", "ldexp", "ll2", "llr", "logb", "nearby",
    "nextafter", "remainder", "rint", "round", "saturate", "scalbn", "trunc", "uint", "ull2",
)  # fmt: skip


class _State:
    """The seed, or None where results are the mathematical values."""

    seed: int | None = None


_state = _State()


@contextlib.contextmanager
def approximate(seed: int = 0) -> Iterator[None]:
    """Move the results of approximations, and widen the error budget by two units.

    Example:
        >>> with approximate(seed=1):
        ...     check_op(my_softmax, torch.softmax, cases)
    """
    before = _state.seed, budget.widening.units
    _state.seed, budget.widening.units = seed, max(_UNITS.values())
    try:
        yield
    finally:
        _state.seed, budget.widening.units = before


def begin(seed: int | None) -> None:
    """For the whole process, as the plugin's option does."""
    _state.seed, budget.widening.units = seed, 0 if seed is None else max(_UNITS.values())


def repair(interpreter: Any) -> None:
    """Let approximations pass through here."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

    def through(name: str, units: int) -> None:
        stock = getattr(builder, f"create_{name}")

        def apply(self: Any, *arguments: Any) -> Any:
            result = stock(self, *arguments)
            if _state.seed is None or result.data.dtype != np.float32:
                return result
            if name == "extern_elementwise":
                if arguments[2].removeprefix("__nv_").startswith(_EXACT):
                    return result
            return handle(_moved(result.data, units, _state.seed), result.dtype.scalar)

        setattr(builder, f"create_{name}", apply)

    for name, units in _UNITS.items():
        through(name, units)


def _moved(values: np.ndarray, units: int, seed: int) -> np.ndarray:
    """``units`` steps up or down at most; zeros, infinities and NaN stay."""
    bits = np.ascontiguousarray(values).view(np.int32)
    mixed = (bits.astype(np.int64) + 1013904223 * (seed + 1)) * 2654435761 % 2**32
    by = (mixed >> 12) % (2 * units + 1) - units
    moved = (bits + by.astype(np.int32)).view(np.float32)
    normal = np.isfinite(values) & (np.abs(values) > 2 * np.finfo(np.float32).tiny)
    return np.where(normal & np.isfinite(moved), moved, values)
