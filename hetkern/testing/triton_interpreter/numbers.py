"""Arithmetic of the repaired Triton interpreter: what stock Triton computes on bit patterns.

Stock Triton keeps bfloat16 as uint16 and adds, multiplies and compares those; it truncates float32
to bfloat16; a "tf32" dot is exact where a tensor core cuts its operands towards zero; max and min
keep NaN, which a GPU drops; fma rounds twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

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


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 as a tensor core reads it for "tf32": the last 13 bits are not looked at."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 with ten bits of mantissa, to nearest, ties away from zero (cvt.rna.tf32.f32)."""
    values = np.ascontiguousarray(values, np.float32)
    rounded = (values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def _product_in_tf32x3(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Three products of what ten bits hold and of what they leave; the small ones come first."""
    x_big, y_big = rounded_to_tf32(x), rounded_to_tf32(y)
    x_small, y_small = rounded_to_tf32(x - x_big), rounded_to_tf32(y - y_big)
    small = np.matmul(x_small, y_big) + np.matmul(x_big, y_small)
    return np.where(np.isnan(small), np.float32(0), small) + np.matmul(x_big, y_big)


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
    for name in ("create_sqrt", "create_rsqrt", "create_exp2", "create_floor", "create_ceil"):
        setattr(builder, name, _flushing(getattr(builder, name), handle))

    def create_clampf(self: Any, x: Any, low: Any, high: Any, propagate: Any) -> Any:
        if str(propagate).endswith("ALL"):
            return self.ternary_op(x, low, high, np.clip)
        return self.ternary_op(x, low, high, lambda v, a, b: np.fmin(np.fmax(v, a), b))

    def get_all_ones_value(self: Any, dtype: Any) -> Any:
        zero = np.zeros(1, interpreter._get_np_dtype(dtype))
        return handle(np.invert(zero), dtype.scalar)

    builder.create_clampf, builder.get_all_ones_value = create_clampf, get_all_ones_value
    builder.get_bf16 = lambda self, value: handle(
        float32_to_bfloat16(np.array([value], np.float32)), tl.bfloat16
    )
    # A GPU's max and min give the other operand for NaN.
    builder.create_maxnumf, builder.create_minnumf = two_arguments(np.fmax), two_arguments(np.fmin)


def _flushing(op: Any, handle: Any) -> Any:
    """As the instructions marked .ftz: a subnormal float32 is zero, as operand and as result."""

    def flushed(data: np.ndarray) -> np.ndarray:
        small = np.abs(data) < np.finfo(np.float32).tiny
        return np.where(small, np.copysign(np.float32(0), data), data)

    def apply(self: Any, argument: Any) -> Any:
        if argument.data.dtype != np.float32:
            return op(self, argument)
        result = op(self, handle(flushed(argument.data), argument.dtype.scalar))
        return handle(flushed(result.data), result.dtype)

    return apply


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
    nan = np.array(1 << (8 * via.itemsize - 1), f"u{via.itemsize}").view(via) if long else 0
    return np.where(np.isnan(wide), nan, result).astype(via).astype(target)


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
        if want.is_int() and not want.is_int1() and source.data.dtype.kind == "f":
            return handle(_to_integer(source.data, interpreter._get_np_dtype(want)), want)
        if have == tl.bfloat16:
            return source if want == tl.float32 else cast(self, source, to)
        if want == tl.bfloat16:
            return handle(float32_to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
        return cast(self, source, to)

    def create_fp_to_fp(self: Any, source: Any, to: Any, rounding: Any) -> Any:
        have, want = source.dtype.scalar, to.scalar
        if _is_8_bit_float(have) or _is_8_bit_float(want):
            if _is_8_bit_float(want):
                raise _not_interpreted(f"rounding to {want}")
            if str(have) not in _8_BIT_FLOATS:
                return between_floats(self, source, to, rounding)
            codes = torch.from_numpy(np.ascontiguousarray(source.data))
            exact = codes.view(_8_BIT_FLOATS[str(have)]).float().numpy()
            return cast_impl(self, handle(exact, tl.float32), to)
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
        x, y, in_parts = a.data, b.data, False
        if dtype == tl.bfloat16:
            x, y = bfloat16_to_float32(x), bfloat16_to_float32(y)
        elif dtype == tl.float32 and str(precision).lower().endswith("tf32"):
            x, y = to_tf32(x), to_tf32(y)
        elif dtype == tl.float32 and str(precision).lower().endswith("tf32x3"):
            in_parts = True
        x, y = x.astype(np.float32), y.astype(np.float32)
        product = _product_in_tf32x3(x, y) if in_parts else np.matmul(x, y)
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


def _reductions(interpreter: Any, tl: Any) -> None:
    reductions, scans = interpreter.ReduceOps, interpreter.ScanOps
    reduce, scan = reductions.apply_impl, scans.apply_impl
    # What stock Triton does, without a warning where a row is NaN throughout.
    dropping_nan = {
        tl.standard._elementwise_max: np.fmax,
        tl.standard._elementwise_min: np.fmin,
    }
    of_indices = {
        getattr(tl.standard, f"_arg{which}_combine_tie_break_{how}")
        for which in ("min", "max")
        for how in ("left", "fast")
    }

    def is_16_bit_float(part: Any) -> bool:
        return part.handle.dtype.scalar in (tl.bfloat16, tl.float16)

    def refuse_bfloat16(inputs: Any, what: str) -> None:
        if any(part.handle.dtype.scalar == tl.bfloat16 for part in inputs):
            raise _not_interpreted(f"a {what} of bfloat16: cast to float32 first; it")

    def sum_of_16_bits(self: Any, part: Any) -> Any:
        values = part.handle.data
        if part.handle.dtype.scalar == tl.bfloat16:
            rounded = lambda x: bfloat16_to_float32(float32_to_bfloat16(x))  # noqa: E731
            total = _sum_in_steps(bfloat16_to_float32(values), self.axis, memory.warps, rounded)
            total = float32_to_bfloat16(total)
        else:
            total = _sum_in_steps(values, self.axis, memory.warps, lambda x: x)
        if not self.keep_dims:
            total = total.reshape(()) if self.axis is None else total.squeeze(self.axis)
        return self.to_tensor(total if total.shape else total[()], part.dtype)

    def apply_reduction(self: Any, inputs: Any) -> Any:
        if self.combine_fn == tl.standard._sum_combine and is_16_bit_float(inputs[0]):
            return sum_of_16_bits(self, inputs[0])
        refuse_bfloat16(inputs, "reduction")
        data = inputs[0].handle.data
        if self.combine_fn in of_indices and data.dtype.kind == "f" and np.isnan(data).any():
            raise KernelError(
                f"{source_line()}: argmax or argmin of NaN: which index a GPU gives is chance, and "
                f"its lanes may disagree ({memory.where()})"
            )
        op = dropping_nan.get(self.combine_fn)
        if op is None or data.dtype.kind != "f":
            return reduce(self, inputs)
        return self.to_tensor(
            op.reduce(data, axis=self.axis, keepdims=self.keep_dims), inputs[0].dtype
        )

    def apply_scan(self: Any, inputs: Any) -> Any:
        refuse_bfloat16(inputs, "scan")
        return scan(self, inputs)

    reductions.apply_impl, scans.apply_impl = apply_reduction, apply_scan


def _sum_in_steps(values: np.ndarray, axis: int | None, warps: int, rounded: Any) -> np.ndarray:
    """A sum that rounds at every step, in the order of a block that was loaded along its rows.

    A lane adds its own elements in turn, eight neighbours at a time or fewer; then halves of the
    lanes, and halves of the warps. A block of another layout is added in another order.
    """
    dimensions = values.ndim
    if axis is None:
        values, axis = values.reshape(-1), 0
    last = axis % values.ndim == values.ndim - 1
    each = max(1, min(8, values.size // (32 * warps), values.shape[axis])) if last else 1
    values = np.moveaxis(values, axis, -1)
    rest = values.shape[-1] // each
    lanes = min(32, rest)
    across = min(warps, rest // lanes)
    parts = values.reshape(*values.shape[:-1], -1, across, lanes, each)
    total = None
    for turn in range(parts.shape[-4]):
        for i in range(each):
            part = parts[..., turn, :, :, i]
            total = part if total is None else rounded(total + part)
    assert total is not None
    for along in (-1, -2):
        while total.shape[along] > 1:
            first, second = np.split(total, 2, along)
            total = rounded(first + second)
    total = total[..., 0]
    total = np.moveaxis(total, -1, axis)
    return total.reshape([1] * dimensions) if total.size == 1 else total
