"""Arithmetic of the repaired Triton interpreter: what stock Triton computes on bit patterns.

Stock Triton keeps bfloat16 as uint16 and adds, multiplies and compares those; it truncates float32
to bfloat16; a "tf32" dot is exact; max and min keep NaN, which a GPU drops; fma rounds twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_COMPARISONS = (
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    np.equal,
    np.not_equal,
)
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


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 with ten bits of mantissa, rounded to nearest, ties to even."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + (0xFFF + ((bits >> 13) & 1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def repair(interpreter: Any, tl: Any) -> None:
    """Replace what computes wrongly in ``triton.runtime.interpreter``."""
    _elementwise(interpreter, tl)
    _conversions(interpreter, tl)
    _dot(interpreter, tl)
    _reductions(interpreter, tl)


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
        if dtype != tl.bfloat16 or op in _BITWISE:
            return binary(self, left, right, op)
        result = op(values(left), values(right))
        return handle(result, tl.int1) if op in _COMPARISONS else packed(result, dtype)

    def unary_op(self: Any, argument: Any, op: Any) -> Any:
        if argument.dtype.scalar != tl.bfloat16:
            return unary(self, argument, op)
        return packed(op(values(argument)), argument.dtype)

    def ternary_op(self: Any, a: Any, b: Any, c: Any, op: Any) -> Any:
        if c.dtype.scalar != tl.bfloat16 or op is np.where:  # a selection moves bits
            return ternary(self, a, b, c, op)
        return packed(op(values(a), values(b), values(c)), c.dtype)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.data.dtype == np.float64:
            raise _not_interpreted("fma on float64")
        wide = [values(h).astype(np.float64) for h in (x, y, z)]
        dtype = np.float32 if z.dtype.scalar == tl.bfloat16 else z.data.dtype
        return packed((wide[0] * wide[1] + wide[2]).astype(dtype), z.dtype)

    def one_argument(op: Any) -> Any:
        return lambda self, argument: self.unary_op(argument, op)

    def two_arguments(op: Any) -> Any:
        return lambda self, left, right: self.binary_op(left, right, op)

    builder.binary_op, builder.unary_op, builder.ternary_op = binary_op, unary_op, ternary_op
    builder.create_fma = create_fma
    builder.create_rsqrt = one_argument(lambda x: (1 / np.sqrt(x)).astype(x.dtype))
    builder.create_erf = one_argument(
        lambda x: interpreter.np_erf_fp64(x).astype(x.dtype),
    )
    # A GPU's max and min give the other operand for NaN.
    builder.create_maxnumf, builder.create_minnumf = two_arguments(np.fmax), two_arguments(np.fmin)


def _conversions(interpreter: Any, tl: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, between_floats = builder.cast_impl, builder.create_fp_to_fp
    toward_zero = interpreter._ir.ROUNDING_MODE.RTZ

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        have, want = source.dtype.scalar, to.scalar
        if have == want:
            return source
        if _is_8_bit_float(want) and not _is_8_bit_float(have):
            raise _not_interpreted(f"rounding to {want}")
        if have == tl.bfloat16:
            source = handle(bfloat16_to_float32(source.data), tl.float32)
            return source if want == tl.float32 else cast(self, source, to)
        if want == tl.bfloat16:
            return handle(float32_to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, to)

    def create_fp_to_fp(self: Any, source: Any, to: Any, rounding: Any) -> Any:
        have, want = source.dtype.scalar, to.scalar
        if _is_8_bit_float(have) or _is_8_bit_float(want):
            if _is_8_bit_float(want):
                raise _not_interpreted(f"rounding to {want}")
            return between_floats(self, source, to, rounding)
        if rounding == toward_zero and want.primitive_bitwidth < have.primitive_bitwidth:
            if (have, want) != (tl.float32, tl.bfloat16):
                raise _not_interpreted(f"rounding {have} to {want} toward zero")
            bits = np.ascontiguousarray(source.data).view(np.uint32) >> 16
            return handle(bits.astype(np.uint16), tl.bfloat16)
        return cast_impl(self, source, to)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp


def _dot(interpreter: Any, tl: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    stock = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        dtype = a.dtype.scalar
        if dtype.primitive_bitwidth == 8 or dtype == tl.float64:
            return stock(self, a, b, d, precision, imprecise)
        x, y = a.data, b.data
        if dtype == tl.bfloat16:
            x, y = bfloat16_to_float32(x), bfloat16_to_float32(y)
        elif dtype == tl.float32 and str(precision).lower().endswith("tf32"):
            x, y = to_tf32(x), to_tf32(y)
        product = np.matmul(x.astype(np.float32), y.astype(np.float32))
        if d.dtype.scalar == tl.bfloat16:
            total = product + bfloat16_to_float32(d.data)
            return handle(float32_to_bfloat16(total), tl.bfloat16)
        return handle((product + d.data).astype(d.data.dtype), d.dtype.scalar)

    builder.create_dot = create_dot


def _reductions(interpreter: Any, tl: Any) -> None:
    reductions, scans = interpreter.ReduceOps, interpreter.ScanOps
    reduce, scan = reductions.apply_impl, scans.apply_impl
    # What stock Triton does, without a warning where a row is NaN throughout.
    dropping_nan = {
        tl.standard._elementwise_max: np.fmax,
        tl.standard._elementwise_min: np.fmin,
    }

    def refuse_bfloat16(inputs: Any, what: str) -> None:
        if any(part.handle.dtype.scalar == tl.bfloat16 for part in inputs):
            raise _not_interpreted(f"a {what} of bfloat16: cast to float32 first; it")

    def apply_reduction(self: Any, inputs: Any) -> Any:
        refuse_bfloat16(inputs, "reduction")
        op = dropping_nan.get(self.combine_fn)
        if op is None or inputs[0].handle.data.dtype.kind != "f":
            return reduce(self, inputs)
        data = op.reduce(inputs[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, inputs[0].dtype)

    def apply_scan(self: Any, inputs: Any) -> Any:
        refuse_bfloat16(inputs, "scan")
        return scan(self, inputs)

    reductions.apply_impl, scans.apply_impl = apply_reduction, apply_scan
