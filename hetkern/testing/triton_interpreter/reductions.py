"""Reductions and scans of the repaired Triton interpreter, in the dtype that the compiler uses."""

from __future__ import annotations

from typing import Any

import numpy as np

from hetkern.testing.ptx import rounding
from hetkern.testing.triton_interpreter.checked_memory import KernelError, memory, source_line
from hetkern.testing.triton_interpreter.contraction import loaded
from hetkern.testing.triton_interpreter.numbers import (
    bfloat16_to_float32,
    float32_to_bfloat16,
    float64_to_bfloat16,
)


def _not_interpreted(what: str) -> NotImplementedError:
    return NotImplementedError(f"triton_interpreter: {what} is not interpreted")


def repair(interpreter: Any, tl: Any) -> None:
    """Put these in place."""
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

    def refuse_bfloat16(inputs: Any, what: str) -> None:
        if any(part.handle.dtype.scalar == tl.bfloat16 for part in inputs):
            raise _not_interpreted(f"a {what} of bfloat16: cast to float32 first; it")

    def placed(result: Any) -> Any:
        loaded(result.handle)
        return result

    def sum_of_floats(self: Any, part: Any) -> Any:
        factors = getattr(part.handle, "product", None)
        if factors is not None and (factors[2] != memory.code_block or not memory.fuses):
            factors = None
        total = _sum(part.handle, self.axis, None if factors is None else factors[:2], tl)
        if not self.keep_dims:
            total = total.reshape(()) if self.axis is None else total.squeeze(self.axis)
        return placed(self.to_tensor(total if total.shape else total[()], part.dtype))

    def apply_reduction(self: Any, inputs: Any) -> Any:
        if self.combine_fn == tl.standard._sum_combine and inputs[0].handle.dtype.is_floating():
            return sum_of_floats(self, inputs[0])
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
        how: Any = {"axis": self.axis, "keepdims": self.keep_dims}
        result = op.reduce(data, **how)
        if (result == 0).any():  # -0 is below +0
            zeros = (data == 0) & (np.signbit(data) == (op is np.fmin))
            sign = (-0.0, 0.0) if op is np.fmin else (0.0, -0.0)
            signed = np.where(zeros.any(**how), *sign).astype(data.dtype)
            result = np.where(result == 0, signed, result)
        return placed(self.to_tensor(result if np.ndim(result) else result[()], inputs[0].dtype))

    def apply_scan(self: Any, inputs: Any) -> Any:
        refuse_bfloat16(inputs, "scan")
        data = inputs[0].handle.data
        if self.combine_fn != tl.standard._sum_combine or data.dtype.kind != "f":
            return scan(self, inputs)
        turned = np.flip(data, self.axis) if self.reverse else data
        sums = _running_sums(turned, self.axis % data.ndim)
        sums = np.flip(sums, self.axis) if self.reverse else sums
        return [self.to_tensor(np.ascontiguousarray(sums), inputs[0].dtype)]

    reductions.apply_impl, scans.apply_impl = apply_reduction, apply_scan


def _layout(shape: tuple[int, ...], axis: int, size: int, warps: int) -> tuple[int, int, int]:
    """How a block lies in registers along one axis: neighbours in a lane, lanes and warps.

    As Triton lays out a block that was loaded along its rows, 16 bytes a lane, or one element where
    its addresses are not known to be multiples of them (its BlockedEncoding: lanes and warps go
    along the last dimension as far as there are elements, then the others). A block of another
    layout is added in another order.
    """
    lanes, threads = 32, 32 * warps
    for at in range(len(shape) - 1, -1, -1):
        last = at == len(shape) - 1
        total = max(1, int(np.prod(shape)) // (32 * warps))
        each = min(16 // size, total, shape[at]) if last and memory.aligned else 1
        along = min(threads, max(1, shape[at] // each))
        in_warp = min(along, lanes)
        in_block = min(max(1, along // in_warp), warps)
        if at == axis:
            return each, in_warp, in_block
        lanes, warps = lanes // in_warp, warps // in_block
        threads = threads // (in_warp * in_block)
    raise AssertionError(axis)


def _sum(part: Any, axis: int | None, factors: Any, tl: Any) -> np.ndarray:
    """A sum that rounds at every step, in the compiled order.

    A lane adds its own elements in turn, where ``factors`` makes of each addition one fma; then
    halves of the lanes, and halves of the warps.
    """
    is_bfloat16 = part.dtype.scalar == tl.bfloat16
    dimensions, size = part.data.ndim, part.data.itemsize
    flat = axis is None
    shape = (part.data.size,) if flat else part.data.shape
    at = 0 if flat else axis % dimensions
    each, lanes, across = _layout(shape, at, size, memory.warps)

    def arranged(h: Any) -> np.ndarray:
        """(a lane's elements in turn, the other dimensions …, warps, lanes)."""
        values = bfloat16_to_float32(h.data) if is_bfloat16 else h.data
        values = np.broadcast_to(values, part.data.shape)
        values = np.moveaxis(values.reshape(shape), at, -1)
        parts = values.reshape(*values.shape[:-1], -1, across, lanes, each)
        parts = np.moveaxis(parts, (-4, -1), (0, 1))
        return np.ascontiguousarray(parts.reshape(-1, *parts.shape[2:]))

    values = arranged(part)
    fuses = factors is not None and size < 8
    if len(values) > 1 and fuses:
        paired = size == 2 and each > 1
        x, y = map(arranged, factors)
        total = _sum_of_products(values, x, y, is_bfloat16, paired)
    elif is_bfloat16:
        total = values[0]
        for value in values[1:]:
            total = _to_bfloat16(total + value)
    else:
        total = np.add.reduce(values, axis=0) if len(values) > 1 else values[0]
    if len(values) == 1 and fuses and lanes > 1:  # the first shuffle's sum is fused
        (x, _), (y, _), (_, other) = (
            np.split(part, 2, -1) for part in (*(arranged(f)[0] for f in factors), total)
        )
        total = _rounded(rounding.fma_to_odd(x, y, other), total.dtype, is_bfloat16)
    for along in (-1, -2):
        while total.shape[along] > 1:
            first, second = np.split(total, 2, along)
            total = _to_bfloat16(first + second) if is_bfloat16 else first + second
    total = np.moveaxis(total[..., 0], -1, at)
    total = total.reshape([1] * dimensions) if flat else total
    return float32_to_bfloat16(total) if is_bfloat16 else total


def _running_sums(values: np.ndarray, axis: int) -> np.ndarray:
    """``tl.cumsum`` in the compiled order.

    A lane adds its own elements in turn, lanes add what stands 1, 2, 4, 8, 16 lanes before them,
    and warps, and blocks of warps, what all before them have.
    """
    each, lanes, _ = _layout(values.shape, axis, values.itemsize, memory.warps)
    rows = np.moveaxis(values, axis, -1)
    parts = rows.reshape(*rows.shape[:-1], -1, lanes, each)  # warps and turns, lanes, own
    own = np.add.accumulate(parts, axis=-1)
    last = own[..., -1].copy()
    step = 1
    while step < lanes:
        last[..., step:] = last[..., :-step] + last[..., step:]
        step *= 2
    before = np.zeros_like(last[..., :1])
    for warp in range(1, parts.shape[-3]):
        total = last[..., warp - 1, -1]
        before[..., warp, 0] = total if warp == 1 else before[..., warp - 1, 0] + total
    some = np.arange(parts.shape[-3])[:, None] > 0
    last = np.where(some, before + last, last)
    left = np.concatenate([before, last[..., :-1]], -1)
    known = some | (np.arange(lanes) > 0)
    result = np.where(known[..., None], left[..., None] + own, own)
    result[..., -1] = last
    return np.moveaxis(result.reshape(rows.shape), -1, axis)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    return bfloat16_to_float32(float32_to_bfloat16(values))


def _rounded(exact: np.ndarray, dtype: Any, bf16: bool) -> np.ndarray:
    return bfloat16_to_float32(float64_to_bfloat16(exact)) if bf16 else exact.astype(dtype)


def _sum_of_products(
    values: np.ndarray, x: np.ndarray, y: np.ndarray, bf16: bool, paired: bool
) -> np.ndarray:
    """The first product is fused with the second, rounded, and every later one with the sum.

    Of pairs of 16-bit products in one register the second is always rounded.
    """
    if values.dtype == np.float32 and not bf16:
        products = x.astype(np.float64) * y
        total, steps = values[1], np.empty((len(values) - 1, *values.shape[1:]))
        for i, step in enumerate(steps):
            np.add(products[0 if i == 0 else i + 1], total, out=step)
            total = step.astype(np.float32)
        if not rounding.is_middle(steps):
            return total
    total = values[1]
    for i in (0, *range(2, len(values))):
        if paired and i % 2:
            total = _to_bfloat16(total + values[i]) if bf16 else total + values[i]
        else:
            total = _rounded(rounding.fma_to_odd(x[i], y[i], total), values.dtype, bf16)
    return total
