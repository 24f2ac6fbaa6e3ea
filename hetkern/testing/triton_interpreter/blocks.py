"""Descriptors and block pointers in the repaired Triton interpreter, and hints about blocks.

A hint is a promise, by which the compiler makes one wide access of several: a false one reads other
elements on a GPU, silently, so that it is an error here. Stock Triton refuses coordinates of
descriptors that TMA takes, and pads bfloat16 with zeros where NaN is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hetkern.testing.triton_interpreter.checked_memory import KernelError, memory, source_line


def repair(interpreter: Any, language: Any) -> None:
    """Put these in place."""
    _padding(interpreter, language)
    for module in (language, language.core):
        for name, holds in (
            ("multiple_of", _multiple),
            ("max_contiguous", _contiguous),
            ("max_constancy", _constant),
        ):
            setattr(module, name, _checked(name, getattr(module, name), holds))


def _padding(interpreter: Any, language: Any) -> None:
    builder, descriptor = interpreter.InterpreterBuilder, interpreter.TensorDescHandle

    def materialize_pointers(self: Any, offsets: list[Any]) -> tuple[Any, np.ndarray]:
        size = self.base.dtype.element_ty.primitive_bitwidth // 8
        pointers, inside = np.broadcast_to(self.base.data, self.block_shape), np.array(True)
        for axis, extent in enumerate(self.block_shape):
            along = [extent if i == axis else 1 for i in range(self.ndim)]
            at = (offsets[axis].data.astype(np.int64) + np.arange(extent)).reshape(along)
            pointers = pointers + (size * at * self.strides[axis].data).astype(np.uint64)
            inside = inside & (at >= 0) & (at < self.shape[axis].data)
        return interpreter.TensorHandle(pointers, self.base.dtype.scalar), inside

    def outside(pointers: Any, option: Any) -> Any:
        dtype = pointers.get_element_ty()
        data = np.zeros(pointers.data.shape, interpreter._get_np_dtype(dtype))
        if str(option).endswith("NAN"):
            data += 0x7FC0 if dtype == language.bfloat16 else np.array(np.nan, data.dtype)
        return interpreter.TensorHandle(data, dtype)

    def of_descriptor(self: Any, made: Any, indices: Any, *hints: Any) -> Any:
        pointers, mask = made.materialize_pointers(indices)
        return self.create_masked_load(
            pointers, mask, outside(pointers, made.padding), *hints, False
        )

    def of_block_pointer(self: Any, made: Any, checked: Any, option: Any, *hints: Any) -> Any:
        pointers, mask = made.materialize_pointers(checked)
        return self.create_masked_load(pointers, mask, outside(pointers, option), *hints)

    descriptor.materialize_pointers = materialize_pointers
    builder.create_descriptor_load = of_descriptor
    builder.create_tensor_pointer_load = of_block_pointer


def _checked(name: str, claim: Any, holds: Callable[..., bool]) -> Any:
    def hint(value: Any, factors: Any) -> Any:
        listed = factors if isinstance(factors, list | tuple) else [factors]
        numbers = [getattr(factor, "value", factor) for factor in listed]
        data = getattr(getattr(value, "handle", None), "data", None)
        if isinstance(data, np.ndarray):
            kind = getattr(value.handle.dtype, "element_ty", None)
            size = max(1, kind.primitive_bitwidth // 8) if kind is not None else 1
            whole = data.astype(np.int64)
            for axis, factor in enumerate(numbers[: max(1, data.ndim)]):
                if not holds(whole, axis, factor, size):
                    shown = f"{int(whole.reshape(-1)[0])}" if whole.size == 1 else "a block"
                    raise KernelError(
                        f"{source_line()}: tl.{name}({factor}) of {shown} is false, "
                        f"{memory.where()}: a GPU would access other or misaligned addresses"
                    )
        return claim(value, factors)

    return hint


def _multiple(data: np.ndarray, axis: int, factor: int, size: int) -> bool:
    """Where a run of neighbours begins, a multiple stands; a lone pointer's is of elements."""
    if data.size == 1:
        return int(data.reshape(-1)[0]) % (factor * size) == 0
    begins = np.ones(data.shape, bool)
    begins[_from(1, axis, data.ndim)] = np.diff(data, axis=axis) != size
    return not (data[begins] % factor).any()


def _from(start: int, axis: int, dimensions: int) -> tuple[slice, ...]:
    return tuple(slice(start if i == axis else 0, None) for i in range(dimensions))


def _contiguous(data: np.ndarray, axis: int, factor: int, size: int) -> bool:
    return _in_groups(np.diff(data, axis=axis) == size, axis, factor)


def _constant(data: np.ndarray, axis: int, factor: int, size: int) -> bool:
    return _in_groups(np.diff(data, axis=axis) == 0, axis, factor)


def _in_groups(steps: np.ndarray, axis: int, factor: int) -> bool:
    """Whether all steps hold that do not lead into another group of ``factor`` elements."""
    within = (np.arange(1, steps.shape[axis] + 1) % factor) != 0
    return bool(np.compress(within, steps, axis=axis).all())
