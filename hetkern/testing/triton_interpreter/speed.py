"""What Triton's language computes anew for every operation, kept: types, shapes, the way to a word.

The interpreter goes through the compiler's own type checks, whose cost a compiler does not mind:
half of an operation's time was spent on shapes that were known. Nothing here changes a result.
"""

from __future__ import annotations

import builtins
import math
from typing import Any


def repair(interpreter: Any, language: Any) -> None:
    """Put these in place, before the language is patched."""
    core = language.core
    _shapes(core)
    _agreements(interpreter.TritonSemantic)
    _handles(interpreter)
    _words(interpreter)


def _shapes(core: Any) -> None:
    """A block's shape is one object, however many blocks have it."""
    block, tensor, constexpr = core.block_type, core.tensor, core.constexpr
    checked = block.__init__
    known: dict[builtins.tuple[int, ...], Any] = {}
    scalar = core.tuple([]), constexpr(1)

    def of_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = builtins.tuple([s.value if type(s) is constexpr else s for s in shape])
        same = known.get(key)
        if same is None:
            checked(self, element_ty, shape)
            if all(type(extent) is int for extent in self.shape.values):
                extents = core.tuple([constexpr(s) for s in self.shape.values])
                self.shape.of_tensors = extents, constexpr(math.prod(self.shape.values))
                known[builtins.tuple(self.shape.values)] = self.shape, self.numel
        else:
            self.element_ty = element_ty
            self.shape, self.numel = same

    block.__init__ = of_block
    block.name = property(
        lambda self: f"<{self.shape}, {self.element_ty}>", lambda self, text: None
    )

    def of_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        if not type.is_block():
            self.shape, self.numel = scalar
        elif parts := type.shape.__dict__.get("of_tensors"):
            self.shape, self.numel = parts
        else:
            self.shape = core.tuple([constexpr(s) for s in type.shape])
            self.numel = constexpr(math.prod(type.shape))

    tensor.__init__ = of_tensor
    dtype = core.dtype

    def equal(self: Any, other: Any) -> bool:
        if other is self:
            return True
        other = other.value if type(other) is constexpr else other
        return isinstance(other, dtype) and bool(self.name == other.name)

    dtype.__eq__ = equal


def _agreements(semantic: Any) -> None:
    """Blocks of one shape need none, and blocks of one type no cast."""
    value = semantic.broadcast_impl_value

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = lhs.type, rhs.type
        if left.is_block():
            if right.is_block() and left.shape is right.shape:
                return lhs, rhs
        elif not right.is_block():
            return lhs, rhs
        return value(self, lhs, rhs)

    cast = semantic.cast

    def cast_impl(self: Any, input: Any, dst_ty: Any, *rounding: Any, **named: Any) -> Any:
        same = input.type.scalar is dst_ty.scalar
        return input if same else cast(self, input, dst_ty, *rounding, **named)

    semantic.broadcast_impl_value, semantic.cast = broadcast_impl_value, cast_impl
    # A check of debug mode, which computed every sum of integers again in 64 bits for nobody.
    semantic.binary_op_sanitize_overflow_impl = lambda *operation: None


def _handles(interpreter: Any) -> None:
    """A dataclass's own ``__init__`` takes two more calls."""
    handle = interpreter.TensorHandle
    pointer, fits = interpreter.tl.pointer_type, handle.__post_init__

    def made(self: Any, data: Any, dtype: Any, attr: Any = None) -> None:
        self.data, self.dtype = data, dtype
        self.attr = {} if attr is None else attr
        if not isinstance(dtype, pointer) and data.itemsize > 1:
            if data.itemsize * 8 > dtype.primitive_bitwidth:
                fits(self)

    handle.__init__ = made


def _words(interpreter: Any) -> None:
    """A word of the language goes to its function by one call, not by three."""

    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        function = getattr(member, "__wrapped__", member)
        semantic = interpreter.interpreter_semantic

        def word(*arguments: Any, **named: Any) -> Any:
            named["_semantic"] = semantic
            return function(*arguments, **named)

        scope.set_attr(owner, name, word)

    interpreter._patch_attr = patch
