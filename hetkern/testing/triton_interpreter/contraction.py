"""``x * y + z`` as one rounding where the compiler fuses it, in the repaired Triton interpreter.

Triton lets LLVM fuse (``enable_fp_fusion``), which it does for a product and the sum that takes it
within one block of straight code, however often the product is used; of a sum of two products the
first is fused, the second rounded (the other way round where the first is used more often, which is
not known here). A product from before a loop or a branch is rounded, and so is
one that was converted or is added to a dot.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hetkern.testing.ptx import rounding
from hetkern.testing.triton_interpreter.checked_memory import memory
from hetkern.testing.triton_interpreter.numbers import (
    bfloat16_to_float32,
    float64_to_bfloat16,
)


def repair(interpreter: Any, tl: Any) -> None:
    """Put these in place."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    multiply, dot = builder.create_fmul, builder.create_dot
    select = builder.create_select

    def values(h: Any) -> np.ndarray:
        return bfloat16_to_float32(h.data) if h.dtype.scalar == tl.bfloat16 else h.data

    def fused(x: np.ndarray, y: np.ndarray, z: np.ndarray, dtype: Any) -> Any:
        if dtype == tl.bfloat16:
            return handle(float64_to_bfloat16(rounding.fma_to_odd(x, y, z)), dtype)
        return handle(rounding.fma(x, y, z), dtype)

    def create_fmul(self: Any, left: Any, right: Any) -> Any:
        result = multiply(self, left, right)
        result.product = left, right, memory.code_block
        return result

    def create_select(self: Any, condition: Any, yes: Any, no: Any) -> Any:
        """Of two products by one factor LLVM makes one, by what is selected of the others."""
        result = select(self, condition, yes, no)
        one, two = getattr(yes, "product", None), getattr(no, "product", None)
        if one is not None and two is not None and one[0] is two[0] and one[2] == two[2]:
            result.product = one[0], select(self, condition, one[1], two[1]), one[2]
        return result

    def product_of(operand: Any, other: Any) -> Any:
        """The factors of an operand that the sum with ``other`` fuses."""
        factors = getattr(operand, "product", None)
        if factors is None or factors[2] != memory.code_block or hasattr(other, "of_dot"):
            return None
        return [values(factor) for factor in factors[:2]]

    def create_fadd(self: Any, left: Any, right: Any) -> Any:
        if memory.fuses:
            if factors := product_of(left, right):
                return fused(factors[0], factors[1], values(right), left.dtype.scalar)
            if factors := product_of(right, left):
                return fused(factors[0], factors[1], values(left), left.dtype.scalar)
        return self.binary_op(left, right, np.add)

    def create_fsub(self: Any, left: Any, right: Any) -> Any:
        if memory.fuses:
            if factors := product_of(left, right):
                return fused(factors[0], factors[1], -values(right), left.dtype.scalar)
            if factors := product_of(right, left):
                return fused(-factors[0], factors[1], values(left), left.dtype.scalar)
        return self.binary_op(left, right, np.subtract)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        return fused(values(x), values(y), values(z), z.dtype.scalar)

    def create_dot(self: Any, *arguments: Any) -> Any:
        result = dot(self, *arguments)
        result.of_dot = True  # a sum with it goes into the dot's accumulator
        return result

    def following(name: str) -> Any:
        """A product keeps its factors where it only takes another shape."""
        stock = getattr(builder, name)

        def apply(self: Any, operand: Any, *shape: Any) -> Any:
            result = stock(self, operand, *shape)
            if factors := getattr(operand, "product", None):
                parts = [stock(self, f, *shape) if f.data.ndim else f for f in factors[:2]]
                result.product = *parts, factors[2]
            return result

        return apply

    for name in ("create_broadcast", "create_expand_dims"):
        setattr(builder, name, following(name))
    builder.create_fmul, builder.create_fadd = create_fmul, create_fadd
    builder.create_fsub, builder.create_fma = create_fsub, create_fma
    builder.create_dot, builder.create_select = create_dot, create_select
