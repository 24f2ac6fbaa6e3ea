"""NVIDIA's libdevice in the repaired Triton interpreter: each function by its symbol.

Triton's own table chooses the symbol by the arguments' types, and refuses the types that have none.
The values are the mathematical function's, computed in float64 and rounded to the type once. Where
libdevice has a polynomial, its last digits differ from these by the error that NVIDIA's manual
gives (CUDA C++ Programming Guide, "Mathematical Functions": 1 or 2 units for most). Triton builds
libdevice so that float32 subnormals are zeros, and so they are here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hetkern.testing.ptx.rounding import (
    Array,
    float32_in_direction,
    flushed,
    fma,
    fma_to_odd,
    sum_to_odd,
)

_FLOATING = "fd"  # how symbols name float32 and float64


def _by_torch(name: str) -> Callable[..., Array]:
    function = getattr(torch.special, name, None) or getattr(torch, name)
    return lambda *values: function(*(torch.from_numpy(np.array(v)) for v in values)).numpy()


def _half_away(x: Array) -> Array:
    return np.copysign(np.floor(np.abs(x)) + (np.abs(x) - np.floor(np.abs(x)) >= 0.5), x)


def _of_pi(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """sin(pi x) or cos(pi x): the period taken off exactly first."""

    def apply(x: Array) -> Array:
        turned = np.remainder(x, 2.0)
        quarter = np.rint(turned * 2)
        exact = turned * 2 == quarter
        value = function(np.pi * turned)
        return np.where(exact, np.rint(value), value)

    return apply


def _remainder(x: Array, y: Array) -> Array:
    rest = np.fmod(x, y)
    twice, size = 2 * np.abs(rest), np.abs(y)
    odd = np.fmod(np.trunc(np.divide(x, y)), 2) != 0
    over = (twice > size) | ((twice == size) & odd)
    nearest = np.where(over, rest - np.copysign(y, rest), rest)
    return np.where(np.isinf(y) & np.isfinite(x), x, nearest)


def _root(*values: Array) -> Array:
    largest = np.maximum.reduce([np.abs(v) for v in values])
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    size = scale * np.sqrt(np.add.reduce([np.square(v / scale) for v in values]))
    return np.where(np.isinf(largest), np.inf, size)


def _bessel(n: Array, x: Array, of: str) -> Array:
    zero, one = _by_torch(f"bessel_{of}0")(x), _by_torch(f"bessel_{of}1")(x)
    if np.any((n < 0) | ((n > np.abs(x)) & (of == "j") & (n > 1))):
        raise NotImplementedError(
            "triton_interpreter: libdevice.jn and yn of an order below 0 or (jn) above |x| are not "
            "interpreted"
        )
    result = np.where(n == 0, zero, one)
    before, at = zero, one
    for k in range(1, int(n.max(initial=1))):
        before, at = at, 2 * k / x * at - before
        result = np.where(n == k + 1, at, result)
    return result


_SQRT_HALF = np.sqrt(0.5)
_OF_NUMPY = {
    "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan",
    "atan2": "arctan2", "atanh": "arctanh", "fabs": "abs", "nearbyint": "rint", "pow": "power",
    **{
        name: name
        for name in (
            "cbrt ceil cos cosh exp exp2 expm1 floor fmod hypot log log10 log1p log2 rint sin sinh "
            "sqrt tan tanh trunc"
        ).split()
    },
}  # fmt: skip
_OF_TORCH = {
    "cyl_bessel_i0": "i0", "cyl_bessel_i1": "i1", "erf": "erf", "erfc": "erfc", "erfcx": "erfcx",
    "erfinv": "erfinv", "j0": "bessel_j0", "j1": "bessel_j1", "lgamma": "gammaln",
    "normcdf": "ndtr", "normcdfinv": "ndtri", "y0": "bessel_y0", "y1": "bessel_y1",
}  # fmt: skip
#: Functions of floating numbers, by name without the type's letter, computed in float64.
_REAL: dict[str, Callable[..., Array]] = {
    **{name: getattr(np, of_numpy) for name, of_numpy in _OF_NUMPY.items()},
    **{name: _by_torch(of_torch) for name, of_torch in _OF_TORCH.items()},
    "cospi": _of_pi(np.cos),
    "sinpi": _of_pi(np.sin),
    "erfcinv": lambda x: -_by_torch("ndtri")(x / 2) * _SQRT_HALF,
    "exp10": lambda x: np.power(10.0, x),
    "fdim": lambda x, y: np.where(x <= y, 0.0, x - y),
    "logb": lambda x: np.where(
        x == 0, -np.inf, np.where(np.isinf(x), np.inf, np.frexp(x)[1] - 1.0)
    ),
    "norm3d": _root,
    "norm4d": _root,
    "rcbrt": lambda x: 1 / np.cbrt(x),
    "remainder": _remainder,
    "rhypot": lambda *v: 1 / _root(*v),
    "rnorm3d": lambda *v: 1 / _root(*v),
    "rnorm4d": lambda *v: 1 / _root(*v),
    "round": _half_away,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "saturate": lambda x: np.where(np.isnan(x), 0.0, np.clip(x, 0, 1)),
    "tgamma": lambda x: _gamma(x),
}
#: Approximations by one instruction or two; here the value that these approach.
_FAST: dict[str, Callable[..., Array]] = {
    "fdivide": np.divide,
    **{name: _REAL[name] for name in ("cos", "exp10", "exp", "log10", "log2", "log", "sin", "tan")},
    "pow": lambda x, y: np.exp2(y * np.log2(x)),
}


def _gamma(x: Array) -> Array:
    """Products lift the argument to where the logarithm's error does not grow."""
    import math

    def one(v: float) -> float:
        if v == float("-inf") or (v < 0 and v == math.floor(v)):
            return float("nan")
        if v == 0:
            return math.copysign(float("inf"), v)
        try:
            return math.gamma(v)
        except OverflowError:
            return float("inf")

    return np.array([one(float(v)) for v in x.reshape(-1)]).reshape(x.shape)


def _bits(value: Array) -> Array:
    return np.ascontiguousarray(value).view(f"u{value.itemsize}")


def _high_product(x: Array, y: Array) -> Array:
    exact = x.astype(object) * y.astype(object)
    return (exact >> (8 * x.itemsize)).astype(x.dtype)


def _reversed(x: Array) -> Array:
    width = 8 * x.itemsize
    bits = np.unpackbits(
        np.ascontiguousarray(x).reshape(-1, 1).view(np.uint8), axis=1, bitorder="little"
    )
    back = np.packbits(bits[:, ::-1], axis=1, bitorder="little")
    return np.ascontiguousarray(back).view(x.dtype).reshape(x.shape) if width else x


def _length(x: Array) -> Array:
    """How many bits a number needs, as of an unsigned one."""
    values = _bits(x).reshape(-1).tolist()
    return np.array([v.bit_length() for v in values], np.int32).reshape(x.shape)


def _permuted(x: Array, y: Array, selector: Array) -> Array:
    pool = _bits(y).astype(np.uint64) << np.uint64(32) | _bits(x)
    result = np.zeros(pool.shape, np.uint64)
    for i in range(4):
        which = _bits(selector).astype(np.uint64) >> np.uint64(4 * i)
        byte = pool >> (np.uint64(8) * (which & np.uint64(7))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= np.where(which & np.uint64(8), sign, byte) << np.uint64(8 * i)
    return result.astype(np.uint32).view(np.int32)


def _wide(function: Callable[..., Array]) -> Callable[..., Array]:
    """An integer function whose steps need one bit more."""
    return lambda *v: function(*(part.astype(np.int64) for part in v)).astype(v[0].dtype)


def _24_bits(x: Array, y: Array) -> Array:
    shift = np.array(8, x.dtype)
    return ((x << shift) >> shift) * ((y << shift) >> shift)


#: Functions of integers and of bits, by symbol.
_EXACT: dict[str, Callable[..., Array]] = {
    "abs": np.abs, "llabs": np.abs, "brev": _reversed, "brevll": _reversed,
    "byte_perm": _permuted,
    "clz": lambda x: 32 - _length(x), "clzll": lambda x: 64 - _length(x),
    "ffs": lambda x: _length(x & -x), "ffsll": lambda x: _length(x & -x),
    "hadd": _wide(lambda x, y: (x + y) >> 1), "uhadd": _wide(lambda x, y: (x + y) >> 1),
    "rhadd": _wide(lambda x, y: (x + y + 1) >> 1), "urhadd": _wide(lambda x, y: (x + y + 1) >> 1),
    **dict.fromkeys(("sad", "usad"), _wide(lambda x, y, z: np.abs(x - y) + z)),
    "mul24": _24_bits, "umul24": _24_bits,
    **dict.fromkeys(("mulhi", "umulhi", "mul64hi", "umul64hi"), _high_product),
    **dict.fromkeys(("popc", "popcll"), lambda x: np.bitwise_count(_bits(x)).astype(np.int32)),
    "float_as_int": lambda x: _bits(x).view(np.int32), "float_as_uint": _bits,
    "int_as_float": lambda x: _bits(x).view(np.float32),
    "uint_as_float": lambda x: _bits(x).view(np.float32),
    "double_as_longlong": lambda x: _bits(x).view(np.int64),
    "longlong_as_double": lambda x: _bits(x).view(np.float64),
    "double2hiint": lambda x: (_bits(x) >> np.uint64(32)).astype(np.uint32).view(np.int32),
    "double2loint": lambda x: _bits(x).astype(np.uint32).view(np.int32),
    "hiloint2double": lambda high, low: (
        _bits(high).astype(np.uint64) << np.uint64(32) | _bits(low)
    ).view(np.float64),
    **dict.fromkeys(("copysign", "copysignf"), np.copysign),
    **dict.fromkeys(("signbitf", "signbitd"), np.signbit),
    **dict.fromkeys(("isinff", "isinfd"), np.isinf),
    **dict.fromkeys(("isnanf", "isnand"), np.isnan),
    **dict.fromkeys(("finitef", "isfinited"), np.isfinite),
    **dict.fromkeys(("nextafter", "nextafterf"), np.nextafter),
    **dict.fromkeys(("ldexp", "ldexpf", "scalbn", "scalbnf"), np.ldexp),
}  # fmt: skip
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "n": np.rint, "z": np.trunc, "u": np.ceil, "d": np.floor,
}  # fmt: skip


def _to_integer(x: Array, name: str, dtype: np.dtype[Any]) -> Array:
    """``float2int_rz`` and kin: saturating, and NaN as an instruction of conversion has it."""
    from hetkern.testing.triton_interpreter.numbers import _to_integer as convert

    rounding = _ROUNDINGS[name[-1]] if name[-3:-1] == "_r" else np.rint
    return convert(rounding(flushed(x)), dtype)


def _from_integer(x: Array, direction: str, dtype: np.dtype[Any]) -> Array:
    if dtype == np.float64 and x.itemsize == 8 and direction != "n":
        raise KeyError(direction)
    if dtype == np.float64 or direction == "n":
        return x.astype(dtype)
    high = (x >> np.array(32, x.dtype)).astype(np.float64) * 2.0**32 if x.itemsize == 8 else 0.0
    low = x & np.array(2**32 - 1, x.dtype) if x.itemsize == 8 else x
    return float32_in_direction(sum_to_odd(np.asarray(high), low.astype(np.float64)), direction)


def _in_direction(name: str, direction: str, parts: list[Array]) -> Array:
    """``fadd_rz`` and kin."""
    single = name[0] == "f"
    if not single and direction != "n":
        raise KeyError(name)
    x, *rest = [flushed(part) for part in parts]
    if name[1:] == "ma":
        return (
            flushed(float32_in_direction(fma_to_odd(x, *rest), direction))
            if single
            else fma(x, *rest)
        )
    if not single:
        y = rest[0] if rest else None
        plain = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
        if y is not None:
            return plain[name[1:]](x, y)
        return np.sqrt(x) if name[1:] == "sqrt" else 1 / x
    a = x.astype(np.float64)
    b = rest[0].astype(np.float64) if rest else np.ones_like(a)
    if name[1:] in ("add", "sub"):
        exact = sum_to_odd(a, b if name[1:] == "add" else -b)
    elif name[1:] == "mul":
        exact = a * b
    else:
        # No quotient or root of float32 is a middle of two: float64 tells the side.
        exact = {"div": a / b, "rcp": b / a, "sqrt": np.sqrt(a), "rsqrt": 1 / np.sqrt(a)}[name[1:]]
    return flushed(float32_in_direction(exact, direction))


def _rounded(result: Array, dtype: np.dtype[Any]) -> Array:
    return flushed(np.asarray(result).astype(dtype))


def call(symbol: str, parts: list[Array], dtype: np.dtype[Any]) -> Array:
    """The value of ``__nv_…``.

    Raises:
        NotImplementedError: it is not known here.
    """
    name = symbol.removeprefix("__nv_")
    try:
        return _call(name, parts, dtype)
    except KeyError as unknown:
        raise NotImplementedError(
            f"triton_interpreter: libdevice's {symbol} is not interpreted"
        ) from unknown


def _call(name: str, parts: list[Array], dtype: np.dtype[Any]) -> Array:
    first = parts[0].dtype
    single = any(part.dtype == np.float32 for part in parts)
    if name == "abs" and first.kind != "f":
        return np.abs(parts[0])
    if name in _EXACT:
        return np.asarray(_EXACT[name](*parts)).astype(dtype)
    base, _, direction = name.rpartition("_r")
    if base in ("fma", "fmaf") or (
        base and base[1:] in ("add", "sub", "mul", "div", "rcp", "sqrt", "rsqrt", "ma")
    ):
        return _in_direction(
            "fma" if base == "fmaf" else "dma" if base == "fma" else base, direction, parts
        )
    if name in ("fma", "fmaf"):
        return _in_direction("fma" if single else "dma", "n", parts)
    if base == "double2float":
        return flushed(float32_in_direction(parts[0], direction))
    if "2" in base and dtype.kind in "iu":
        return _to_integer(parts[0], name, dtype)
    if "2" in base:
        return _from_integer(parts[0], direction, dtype)
    if name.startswith(("llrint", "llround", "ilogb")):
        return _integer_of_real(name, flushed(parts[0]), dtype)
    letterless = name.removesuffix("f") if single else name
    wide = [flushed(p).astype(np.float64) if p.dtype.kind == "f" else p for p in parts]
    if letterless in ("jn", "yn"):
        return _rounded(_bessel(wide[0], wide[1], letterless[0]), dtype)
    if letterless == "powi":
        return _rounded(np.power(wide[0], wide[1].astype(np.float64)), dtype)
    if letterless.startswith("fast_"):
        return _rounded(_FAST[letterless.removeprefix("fast_")](*wide), dtype)
    return _rounded(_REAL[letterless](*wide), dtype)


def _integer_of_real(name: str, x: Array, dtype: np.dtype[Any]) -> Array:
    from hetkern.testing.triton_interpreter.numbers import _to_integer as convert

    if name.startswith("llrint"):
        return convert(np.rint(x), dtype)
    if name.startswith("llround"):
        return convert(_half_away(x.astype(np.float64)), dtype)
    lowest, exponent = np.iinfo(np.int32).min, np.frexp(x)[1] - 1
    result = np.where(np.isinf(x), np.iinfo(np.int32).max, exponent)
    return np.where((x == 0) | np.isnan(x), lowest, result).astype(dtype)


def repair(interpreter: Any, tl: Any) -> None:
    """Let the functions of ``tl.extra.libdevice`` run."""
    cuda: Any = importlib.import_module("triton.language.extra.cuda.libdevice")
    common: Any = importlib.import_module("triton.language.extra.libdevice")
    semantic = interpreter.interpreter_semantic

    def bound(function: Any) -> Any:
        return lambda *parts, **names: function(*parts, **(names | {"_semantic": semantic}))

    for name, value in list(vars(cuda).items()):
        if callable(value) and getattr(value, "__module__", None) == cuda.__name__:
            made = bound(value)
            setattr(cuda, name, made)
            if hasattr(common, name):
                setattr(common, name, made)

    def create_extern_elementwise(
        self: Any, library: str, path: str, symbol: str, parts: list[Any], to: Any, pure: bool
    ) -> Any:
        if library or path or not symbol.startswith("__nv_"):
            raise NotImplementedError(
                f"triton_interpreter: the external function {symbol} is not interpreted"
            )
        scalar = to.scalar
        result = call(symbol, [p.data for p in parts], np.dtype(interpreter._get_np_dtype(scalar)))
        return interpreter.TensorHandle(np.asarray(result), scalar)

    interpreter.InterpreterBuilder.create_extern_elementwise = create_extern_elementwise
