"""``x * y + z`` as one rounding where the compiler fuses it, in the repaired Triton interpreter.

Triton lets LLVM fuse (``enable_fp_fusion``), which it does for a product and the sum that takes it
within one block of straight code, however often the product is used. A product from before a loop
or a branch is rounded, and so is one that was converted or is added to a dot. (That LLVM takes a
product of two numbers of before a loop out of it is not known here.)

Of a sum of two products the first is fused, the second rounded. LLVM has put them in order before:
a sum's operand of lower rank comes first, where a loaded number's rank is its load's place in the
program, and an operation's is one more than its operands'. A product that is used more often than
the other is rounded. (What uses it later is not known here.)
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

_BLOCK = 32  #: bits of a rank within its block of code

#: What LLVM sees as one operation.
_ONE_INSTRUCTION = (
    "create_fdiv", "create_si_to_fp", "create_ui_to_fp", "create_fp_ext", "create_fp_trunc",
    "create_exp2", "create_sqrt", "create_rsqrt", "create_fabs", "create_maxnumf",
    "create_minnumf",
)  # fmt: skip


def uses(h: Any) -> int:
    """How many products and sums have taken a number so far."""
    return getattr(h, "uses", 0)


def rank(h: Any) -> int | None:
    """As LLVM's Reassociate has it; None: not known."""
    now = memory.code_block
    made, known = getattr(h, "origin", None) or (
        now,
        0 if h.data.size == 1 else None,
    )  # an argument
    if known is not None and memory.loop_begins <= made < now:  # it comes from the turn before
        return max(known, (now - 1 << _BLOCK) + (1 << 16))
    return known


def above(*operands: Any) -> int | None:
    """The rank of an operation of these."""
    ranks = [rank(h) for h in operands]
    known = [r for r in ranks if r is not None]
    return 1 + max(known) if len(known) == len(ranks) else None


def loaded(result: Any) -> Any:
    """What memory, or other lanes, gave: its rank is its place in the program."""
    memory.loads += 1
    result.origin = memory.code_block, (memory.code_block << _BLOCK) + memory.loads
    return result


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

    def computed(result: Any, left: Any, right: Any) -> Any:
        for operand in (left, right):
            operand.uses = uses(operand) + 1
        result.origin = memory.code_block, above(left, right)
        return result

    def create_fmul(self: Any, left: Any, right: Any) -> Any:
        result = computed(multiply(self, left, right), left, right)
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

    def second_first(left: Any, right: Any, commutes: bool) -> bool:
        """Whether it is the second of two products that the sum fuses."""
        one, two = getattr(left, "product", None), getattr(right, "product", None)
        if one is None or two is None:
            return False
        if uses(left) != uses(right):
            return uses(left) > uses(right)
        one_rank, two_rank = rank(left), rank(right)
        if one_rank is None or two_rank is None:
            return False
        return commutes and two_rank < one_rank

    def create_fadd(self: Any, left: Any, right: Any) -> Any:
        return computed(sum_of(self, left, right), left, right)

    def create_fsub(self: Any, left: Any, right: Any) -> Any:
        return computed(difference_of(self, left, right), left, right)

    def sum_of(self: Any, left: Any, right: Any) -> Any:
        if memory.fuses:
            if second_first(left, right, commutes=True):
                left, right = right, left
            if factors := product_of(left, right):
                return fused(factors[0], factors[1], values(right), left.dtype.scalar)
            if factors := product_of(right, left):
                return fused(factors[0], factors[1], values(left), left.dtype.scalar)
        return self.binary_op(left, right, np.add)

    def difference_of(self: Any, left: Any, right: Any) -> Any:
        if memory.fuses:
            second = second_first(left, right, commutes=False)
            if not second and (factors := product_of(left, right)):
                return fused(factors[0], factors[1], -values(right), left.dtype.scalar)
            if factors := product_of(right, left):
                return fused(-factors[0], factors[1], values(left), left.dtype.scalar)
            if factors := product_of(left, right):
                return fused(factors[0], factors[1], -values(right), left.dtype.scalar)
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
            given = operand if hasattr(operand, "data") else shape[0]  # a splat's
            result.origin = getattr(given, "origin", None) or (memory.code_block, rank(given))
            if factors := getattr(operand, "product", None):
                parts = [stock(self, f, *shape) if f.data.ndim else f for f in factors[:2]]
                result.product = *parts, factors[2]
            return result

        return apply

    def following_one(name: str) -> Any:
        """Arithmetic of which nothing more is to be known."""
        stock = getattr(builder, name)

        def apply(self: Any, operand: Any, *rest: Any) -> Any:
            result = stock(self, operand, *rest)
            operands = [operand, *(r for r in rest if hasattr(r, "data"))]
            result.origin = memory.code_block, above(*operands)
            return result

        return apply

    def noting(name: str, numbered: bool) -> None:
        """Of a loaded number its place in the program, of a constant that it has none."""
        stock = getattr(builder, name)

        def apply(self: Any, *arguments: Any, **more: Any) -> Any:
            result = stock(self, *arguments, **more)
            if numbered:
                return loaded(result)
            result.origin = -1, 0
            return result

        setattr(builder, name, apply)

    noting("create_masked_load", True)
    for name in ("get_fp16", "get_bf16", "get_fp32", "get_fp64"):
        noting(name, False)
    for name in _ONE_INSTRUCTION:
        setattr(builder, name, following_one(name))
    for name in ("create_broadcast", "create_expand_dims", "create_splat"):
        setattr(builder, name, following(name))
    builder.create_fmul, builder.create_fadd = create_fmul, create_fadd
    builder.create_fsub, builder.create_fma = create_fsub, create_fma
    builder.create_dot, builder.create_select = create_dot, create_select
