"""What addresses mean to the evaluator: copies of tensors, a block's shared memory, the stack."""

from __future__ import annotations

import numpy as np

from hetkern.testing.ptx.parse import PtxError
from hetkern.testing.ptx.values import Array

_SHARED_BYTES = 232448
_STACK_BYTES = 4096


class Memory:
    """Global memory by regions; shared memory of one block; a stack for each thread."""

    def __init__(self, threads: int) -> None:
        self._regions: list[tuple[int, Array]] = []
        self._threads = threads
        self._next = 1 << 40
        self.begin_block()

    def add(self, content: Array, at: int | None = None) -> int:
        """Let ``content``, bytes, lie at an address."""
        if at is None:
            at = self._next
            self._next += (content.size + 4096) // 256 * 256
        self._regions.append((at, content))
        return at

    def begin_block(self) -> None:
        """Poison what a block does not keep."""
        self.shared = np.full(_SHARED_BYTES, 0xCD, np.uint8)
        self._stack = np.full((self._threads, _STACK_BYTES), 0xCD, np.uint8)

    def load(self, space: str, addresses: Array, size: int, active: Array) -> Array:
        """``size`` bytes a thread; 0 where a thread is not active."""
        result = np.zeros(addresses.shape, np.uint64)
        for buffer, threads, offsets in self._places(space, addresses, size, active):
            raw = np.zeros((threads.size, 8), np.uint8)
            raw[:, :size] = buffer[offsets[:, None] + np.arange(size)]
            result[threads] = raw.view(np.uint64)[:, 0]
        return result

    def store(self, space: str, addresses: Array, size: int, values: Array, active: Array) -> None:
        """As load; of threads that store to one address the last one wins."""
        for buffer, threads, offsets in self._places(space, addresses, size, active):
            raw = np.ascontiguousarray(values[threads]).view(np.uint8).reshape(-1, 8)[:, :size]
            buffer[offsets[:, None] + np.arange(size)] = raw

    def _places(
        self, space: str, addresses: Array, size: int, active: Array
    ) -> list[tuple[Array, Array, Array]]:
        """The buffers that the active threads reach: the threads and their offsets in each."""
        threads = np.nonzero(active)[0]
        at = addresses[threads].astype(np.int64)
        if not threads.size:
            return []
        if (at % size).any():
            raise PtxError(f"ptx: an access of {size} bytes is not aligned to them")
        if space == "shared":
            if at.min() < 0 or at.max() + size > _SHARED_BYTES:
                raise PtxError("ptx: an access outside shared memory")
            return [(self.shared, threads, at)]
        if space == "local":
            if at.min() < 0 or at.max() + size > _STACK_BYTES:
                raise PtxError("ptx: an access outside the stack")
            return [(self._stack.reshape(-1), threads, at + threads * _STACK_BYTES)]
        places, found = [], np.zeros(at.shape, bool)
        for begin, buffer in self._regions:
            inside = (at >= begin) & (at + size <= begin + buffer.size)
            if inside.any():
                places.append((buffer, threads[inside], at[inside] - begin))
                found |= inside
        if not found.all():
            address = int(at[~found][0])
            raise PtxError(f"ptx: an access at {address:#x} is in no tensor of the launch")
        return places
