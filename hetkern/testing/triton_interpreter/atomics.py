"""Atomics of the repaired Triton interpreter: lanes in turn, each checked, with a GPU's rounding.

An addition of float32 in global memory takes subnormal numbers for zeros (PTX ISA, "atom"), one of
bfloat16 rounds once; a lane that is masked off gets 0. An exchange of floats moves bits.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from hetkern.testing.ptx.rounding import flushed
from hetkern.testing.triton_interpreter.checked_memory import KernelError, memory, source_line
from hetkern.testing.triton_interpreter.numbers import bfloat16_to_float32, float32_to_bfloat16

_TINY = np.finfo(np.float32).tiny


def repair(interpreter: Any, tl: Any) -> None:
    """Put these in place."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def width(pointer: Any) -> int:
        return max(1, pointer.get_element_ty().primitive_bitwidth // 8)

    def update(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        data, word = value.data, str(op).rpartition(".")[2]
        if word == "FADD" and value.dtype.scalar == tl.bfloat16:
            return handle(_add_bfloat16(pointers.data, data, mask.data), tl.bfloat16)
        if word == "FADD" and data.dtype == np.float32 and _has_subnormal(data):
            return handle(_add_flushing(pointers.data, data, mask.data), tl.float32)
        if word == "XCHG" and data.dtype.kind == "f":
            bits = np.ascontiguousarray(data).view(f"i{data.itemsize}")
            integer = {4: tl.int32, 8: tl.int64}[bits.itemsize]
            old = rmw(self, op, pointers, handle(bits, integer), mask, *rest)
            return handle(old.data.view(data.dtype), value.dtype.scalar)
        return rmw(self, op, pointers, value, mask, *rest)

    def checked_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if pointers.data.size == 1 and max(value.data.size, mask.data.size) > 1:
            what = "an atomic of a block at one pointer: reduce it, or broadcast the pointer"
            raise KernelError(f"{source_line()} does not compile: {what} ({memory.where()})")
        memory.access("atomic", pointers.data, mask.data, width(pointers), self)
        memory.order.barrier()
        result = update(self, op, pointers, value, mask, *rest)
        if mask.data.all():
            return result
        kept = np.where(mask.data, result.data, np.zeros((), result.data.dtype))
        return handle(kept, result.dtype.scalar)

    def checked_cas(self: Any, pointers: Any, *rest: Any) -> Any:
        memory.access("atomic", pointers.data, pointers.data != 0, width(pointers), self)
        memory.order.barrier()
        return cas(self, pointers, *rest)

    builder.create_atomic_rmw, builder.create_atomic_cas = checked_rmw, checked_cas


def _cell(address: int, dtype: Any) -> np.ndarray[Any, Any]:
    """The element at an address, to read and to write."""
    size = np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), dtype)


def _lanes(pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> Any:
    pointers, values, mask = np.broadcast_arrays(pointers, values, mask)
    return ((at, pointers[at], values[at]) for at in np.ndindex(mask.shape) if mask[at])


def _add_bfloat16(pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    old = np.zeros(np.broadcast_shapes(pointers.shape, mask.shape), np.uint16)
    for at, address, value in _lanes(pointers, values, mask):
        cell = _cell(address, np.uint16)
        old[at] = cell[0]
        total = bfloat16_to_float32(cell) + bfloat16_to_float32(np.array([value], np.uint16))
        cell[0] = float32_to_bfloat16(total)[0]
    return old


def _has_subnormal(values: np.ndarray) -> bool:
    size = np.abs(values)
    return bool(((size < 2 * _TINY) & (size != 0)).any())


def _add_flushing(pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    old = np.zeros(np.broadcast_shapes(pointers.shape, mask.shape), np.float32)
    for at, address, value in _lanes(pointers, values, mask):
        cell = _cell(address, np.float32)
        old[at] = cell[0]
        cell[0] = flushed(flushed(cell) + flushed(np.array([value], np.float32)))[0]
    return old
