"""Arithmetic of the repaired Triton interpreter: what stock Triton computes on bit patterns.

Stock Triton keeps bfloat16 as uint16 and adds, multiplies and compares those; it truncates float32
to bfloat16; a "tf32" dot is exact where a tensor core cuts its operands towards zero; max and min
keep NaN, which a GPU drops; fma rounds twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hetkern.testing.ptx.convert import to_eight_bits
from hetkern.testing.ptx.rounding import float32_to_odd, flushed, fma, sum_to_odd
from hetkern.testing.triton_interpreter.checked_memory import KernelError, memory, source_line

_COMPARISONS = (
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    np.equal,
    np.not_equal,
)
_8_BIT_FLOATS = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """The values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns, rounded to nearest, ties to even; NaN stays NaN."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def float64_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns, rounded once."""
    return float32_to_bfloat16(float32_to_odd(values))


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 as a tensor core reads it for "tf32": the last 13 bits are not looked at."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 with ten bits of mantissa, to nearest, ties away from zero (cvt.rna.tf32.f32)."""
    values = np.ascontiguousarray(values, np.float32)
    rounded = (values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def product_of_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x @ y``, rounded once from float64.

    In float32 a row's bits would depend on the rows beside it, by the kernels that NumPy's BLAS has
    for this processor; on a GPU they do not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.matmul(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)


def _product_in_tf32x3(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Three products of what ten bits hold and of what they leave; the small ones come first."""
    x_big, y_big = rounded_to_tf32(x), rounded_to_tf32(y)
    x_small, y_small = rounded_to_tf32(x - x_big), rounded_to_tf32(y - y_big)
    small = product_of_rows(x_small, y_big) + product_of_rows(x_big, y_small)
    return np.where(np.isnan(small), np.float32(0), small) + product_of_rows(x_big, y_big)


def repair(interpreter: Any, tl: Any) -> None:
    """Replace what computes wrongly in ``triton.runtime.interpreter``."""
    _elementwise(interpreter, tl)
    _conversions(interpreter, tl)
    _dot(interpreter, tl)


def _is_8_bit_float(dtype: Any) -> bool:
    return bool(dtype.is_floating()) and dtype.primitive_bitwidth == 8


def _not_interpreted(what: str) -> NotImplementedError:
    return NotImplementedError(f"triton_interpreter: {what} is not interpreted")


def _elementwise(interpreter: Any, tl: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    binary, unary, ternary = builder.binary_op, builder.unary_op, builder.ternary_op

    def values(h: Any) -> np.ndarray:
        return bfloat16_to_float32(h.data) if h.dtype.scalar == tl.bfloat16 else h.data

    def packed(result: np.ndarray, dtype: Any) -> Any:
        if dtype.scalar == tl.bfloat16:
            return handle(float32_to_bfloat16(result), tl.bfloat16)
        return handle(result, dtype.scalar)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        dtype = left.dtype.scalar
        if _is_8_bit_float(dtype):
            raise _not_interpreted(f"arithmetic on {dtype}: cast first; it")
        if op in _COMPARISONS:
            return handle(op(values(left), values(right)), tl.int1)
        if dtype != tl.bfloat16 or op in _BITWISE:
            return binary(self, left, right, op)
        return packed(op(values(left), values(right)), dtype)

    def unary_op(self: Any, argument: Any, op: Any) -> Any:
        if argument.dtype.scalar != tl.bfloat16:
            return unary(self, argument, op)
        return packed(op(values(argument)), argument.dtype)

    def ternary_op(self: Any, a: Any, b: Any, c: Any, op: Any) -> Any:
        if c.dtype.scalar != tl.bfloat16 or op is np.where:  # a selection moves bits
            return ternary(self, a, b, c, op)
        return packed(op(values(a), values(b), values(c)), c.dtype)

    def one_argument(op: Any) -> Any:
        return lambda self, argument: self.unary_op(argument, op)

    def two_arguments(op: Any) -> Any:
        return lambda self, left, right: self.binary_op(left, right, op)

    builder.binary_op, builder.unary_op, builder.ternary_op = binary_op, unary_op, ternary_op
    builder.create_rsqrt = one_argument(_in_float64(lambda x: 1 / np.sqrt(x)))
    builder.create_exp2 = one_argument(_in_float64(np.exp2))
    builder.create_exp = one_argument(_exponential)
    builder.create_log = one_argument(_in_float64(np.log))
    builder.create_log2 = one_argument(_in_float64(np.log2))
    builder.create_sin = one_argument(_in_float64(np.sin))
    builder.create_cos = one_argument(_in_float64(np.cos))
    builder.create_frem = two_arguments(_remainder)
    _of_truth_values(builder, handle, tl)
    builder.create_erf = one_argument(
        lambda x: interpreter.np_erf_fp64(x).astype(x.dtype),
    )
    for name in ("create_sqrt", "create_rsqrt", "create_exp2", "create_floor", "create_ceil"):
        setattr(builder, name, _flushing(getattr(builder, name), handle))

    def create_clampf(self: Any, x: Any, low: Any, high: Any, propagate: Any) -> Any:
        if str(propagate).endswith("ALL"):
            return self.ternary_op(x, low, high, np.clip)
        return self.ternary_op(x, low, high, _clamped)

    def get_all_ones_value(self: Any, dtype: Any) -> Any:
        zero = np.zeros(1, interpreter._get_np_dtype(dtype))
        return handle(np.invert(zero), dtype.scalar)

    builder.create_clampf, builder.get_all_ones_value = create_clampf, get_all_ones_value
    builder.get_bf16 = lambda self, value: handle(
        float32_to_bfloat16(np.array([value], np.float32)), tl.bfloat16
    )
    # A GPU's max and min give the other operand for NaN.
    builder.create_maxnumf, builder.create_minnumf = two_arguments(largest), two_arguments(smallest)


def largest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Max as an instruction has it: of a NaN the other operand, and +0 above -0."""
    result = np.fmax(x, y)
    if (result == 0).any():
        return np.where((x == 0) & (y == 0), x + y, result)
    return result


def smallest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Min as an instruction has it: of a NaN the other operand, and -0 below +0."""
    result = np.fmin(x, y)
    if (result == 0).any():
        return np.where((x == 0) & (y == 0), -(-x - y), result)
    return result


def _clamped(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Max and min, which drop NaN; between -limit and limit one instruction keeps its sign."""
    result = smallest(largest(x, low), high)
    if np.isnan(x).any() and (low == -high).all():
        return np.where(np.isnan(x), np.copysign(high, x), result)
    return result


def _flushing(op: Any, handle: Any) -> Any:
    """As the instructions marked .ftz: a subnormal float32 is zero, as operand and as result."""

    def apply(self: Any, argument: Any) -> Any:
        if argument.data.dtype != np.float32:
            return op(self, argument)
        result = op(self, handle(flushed(argument.data), argument.dtype.scalar))
        return handle(flushed(result.data), result.dtype)

    return apply


def _in_float64(function: Any) -> Any:
    """An approximation's value: of the mathematical function, rounded once."""
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


_LOG2_E = np.float32(1.4426950408889634)


def _exponential(x: np.ndarray) -> np.ndarray:
    """``tl.exp`` of float32: a rounded product and ex2, whose error grows with |x|."""
    if x.dtype != np.float32:
        return np.exp(x)
    return np.exp2((x * _LOG2_E).astype(np.float64)).astype(np.float32)


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``x % y`` of floats: x - y * trunc(x / y), of a rounded quotient."""
    dtype = x.dtype
    if dtype == np.float16:
        x, y = x.astype(np.float32), y.astype(np.float32)
    rest = fma(-np.trunc(x / y), y, x)
    return np.where(np.isinf(y), x, rest).astype(dtype)


def _of_truth_values(builder: Any, handle: Any, tl: Any) -> None:
    """Sums, differences and products of int1 have one bit; umulhi is of unsigned numbers."""
    stock = {name: getattr(builder, f"create_{name}") for name in ("add", "sub", "mul")}

    def of_one_bit(name: str, op: Any) -> Any:
        def apply(self: Any, left: Any, right: Any) -> Any:
            if left.dtype.scalar == tl.int1:
                return handle(op(left.data, right.data), tl.int1)
            return stock[name](self, left, right)

        return apply

    builder.create_add = of_one_bit("add", np.logical_xor)
    builder.create_sub = of_one_bit("sub", np.logical_xor)
    builder.create_mul = of_one_bit("mul", np.logical_and)
    high = builder.create_umulhi

    def create_umulhi(self: Any, left: Any, right: Any) -> Any:
        unsigned = [h.data.view(f"u{h.data.itemsize}") for h in (left, right)]
        result = high(self, *(handle(part, left.dtype.scalar) for part in unsigned))
        return handle(result.data.view(left.data.dtype), left.dtype.scalar)

    builder.create_umulhi = create_umulhi


def _to_integer(values: np.ndarray, target: np.dtype) -> np.ndarray:
    """Towards zero; what is out of range becomes the nearest integer of 16 bits or more.

    NaN is 0, or the sign bit alone where either side has 64 bits (PTX ISA, cvt).
    """
    via = np.dtype(f"{target.kind}{max(2, target.itemsize)}")
    info = np.iinfo(via)
    wide = values.astype(np.float64)
    inside = (wide > float(info.min) - 1) & (wide < float(info.max) + 1)
    result = np.where(inside, wide, 0).astype(via)
    result = np.where(wide >= float(info.max) + 1, info.max, result)
    result = np.where(wide <= float(info.min) - 1, info.min, result)
    long = values.dtype == np.float64 or via.itemsize == 8
    if target == np.uint8 and wide.size > 1 and (wide >= 256).any():
        raise KernelError(
            f"{source_line()}: a cast to uint8 of {wide[wide >= 256][0]}, out of its range: a GPU "
            f"packs four results into a register, and its neighbours change too ({memory.where()})"
        )
    nan = np.array(1 << (8 * via.itemsize - 1), f"u{via.itemsize}").view(via) if long else 0
    return np.where(np.isnan(wide), nan, result).astype(via).astype(target)


def _to_float64_odd(values: np.ndarray) -> np.ndarray:
    """Integers of up to 64 bits, rounded to odd: for one more rounding."""
    if values.itemsize < 8:
        return values.astype(np.float64)
    low = values & np.array(0xFFFFFFFF, values.dtype)
    high = (values - low).astype(np.float64)
    return sum_to_odd(high, low.astype(np.float64))


def _conversions(interpreter: Any, tl: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast = builder.cast_impl
    toward_zero = interpreter._ir.ROUNDING_MODE.RTZ

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        have, want = source.dtype.scalar, to.scalar
        if have == want:
            return source
        if _is_8_bit_float(want) or _is_8_bit_float(have):
            return between_8_bits(self, source, to)
        if have == tl.bfloat16:
            source = handle(bfloat16_to_float32(source.data), tl.float32)
        if want.is_int() and not want.is_int1() and source.data.dtype.kind == "f":
            return handle(_to_integer(source.data, interpreter._get_np_dtype(want)), want)
        if have == tl.bfloat16:
            return source if want == tl.float32 else cast(self, source, to)
        if want == tl.bfloat16:
            if source.data.dtype.kind in "iu":
                return handle(float64_to_bfloat16(_to_float64_odd(source.data)), tl.bfloat16)
            if source.data.dtype == np.float64:
                return handle(float64_to_bfloat16(source.data), tl.bfloat16)
            return handle(float32_to_bfloat16(source.data), tl.bfloat16)
        if want == tl.float16 and source.data.dtype.kind in "iu":
            return handle(_to_float64_odd(source.data).astype(np.float16), tl.float16)
        return cast(self, source, to)

    def between_8_bits(self: Any, source: Any, to: Any) -> Any:
        """Reading is exact; rounding is to nearest even and saturates (cvt.rn.satfinite)."""
        have, want = source.dtype.scalar, to.scalar
        for dtype in (have, want):
            if _is_8_bit_float(dtype) and str(dtype) not in _8_BIT_FLOATS:
                raise _not_interpreted(f"a cast of {dtype}, which an H100 has not: it")
        if _is_8_bit_float(have):
            source = handle(_decoded(source.data, have), tl.float32)
        if not _is_8_bit_float(want):
            return cast_impl(self, source, to)
        if have == tl.float64 or _is_8_bit_float(have):
            what = (
                f"{source_line()} does not compile: a cast of {have} to {want}: by way of float32"
            )
            raise KernelError(f"{what} ({memory.where()})")
        rounded = cast_impl(self, source, tl.float32).data
        codes = to_eight_bits(rounded, _8_BIT_FLOATS[str(want)])
        return handle(codes.astype(interpreter._get_np_dtype(want)), want)

    def create_fp_to_fp(self: Any, source: Any, to: Any, rounding: Any) -> Any:
        have, want = source.dtype.scalar, to.scalar
        if _is_8_bit_float(have) or _is_8_bit_float(want):
            if rounding == toward_zero and _is_8_bit_float(want):
                raise _not_interpreted(f"rounding to {want} toward zero")
            return between_8_bits(self, source, to)
        if rounding == toward_zero and want.primitive_bitwidth < have.primitive_bitwidth:
            if (have, want) != (tl.float32, tl.bfloat16):
                raise _not_interpreted(f"rounding {have} to {want} toward zero")
            bits = np.ascontiguousarray(source.data).view(np.uint32) >> 16
            return handle(bits.astype(np.uint16), tl.bfloat16)
        return cast_impl(self, source, to)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp


def _decoded(codes: np.ndarray, dtype: Any) -> np.ndarray:
    """The values of 8-bit floats."""
    raw = torch.from_numpy(np.ascontiguousarray(codes).view(np.uint8))
    values: np.ndarray = raw.view(_8_BIT_FLOATS[str(dtype)]).float().numpy()
    return values


def _dot(interpreter: Any, tl: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    stock = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        dtype = a.dtype.scalar
        eight = str(dtype) in _8_BIT_FLOATS and str(b.dtype.scalar) in _8_BIT_FLOATS
        if (dtype.primitive_bitwidth == 8 and not eight) or dtype == tl.float64:
            return stock(self, a, b, d, precision, imprecise)
        x, y, in_parts = a.data, b.data, False
        if eight:
            x, y = (_decoded(part.data, part.dtype.scalar) for part in (a, b))
        if dtype == tl.bfloat16:
            x, y = bfloat16_to_float32(x), bfloat16_to_float32(y)
        elif dtype == tl.float32 and str(precision).lower().endswith("tf32"):
            x, y = to_tf32(x), to_tf32(y)
        elif dtype == tl.float32 and str(precision).lower().endswith("tf32x3"):
            in_parts = True
        x, y = x.astype(np.float32), y.astype(np.float32)
        product = _product_in_tf32x3(x, y) if in_parts else product_of_rows(x, y)
        if d.dtype.scalar == tl.bfloat16:
            total = product + bfloat16_to_float32(d.data)
            return handle(float32_to_bfloat16(total), tl.bfloat16)
        return handle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    def min_dot_size(left: Any, right: Any) -> tuple[int, int, int]:
        """The least M, N and K that NVIDIA's backend takes."""
        widths = left.scalar.primitive_bitwidth, right.scalar.primitive_bitwidth
        assert widths[0] == widths[1], f"a dot of operands of {widths[0]} and {widths[1]} bits"
        return 1, 1, 32 if widths[0] == 8 else 16

    builder.create_dot = create_dot
    interpreter.interpreter_builder.codegen_fns["min_dot_size"] = min_dot_size
