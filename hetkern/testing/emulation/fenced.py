"""A plain call's tensors as copies that end where nobody may go on.

The memory: csrc/cuda/emulation/fenced.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from torch import Tensor

from hetkern.testing.emulation.arguments import span

_MOST = 1 << 29  #: bytes of tensors that are copied; more stay where they are
_ALIGNMENT = 64  # torch's own on the CPU


@dataclass
class _Region:
    start: int
    size: int
    written: bool
    copy: int


class Fenced:
    """Copies of a call's tensors, those that overlap in one; without a fence they are themselves.

    Args:
        library: the emulation, with the file's kernels.
        tensors: each with whether the launcher may write to it.
    """

    def __init__(self, library: ctypes.CDLL, tensors: list[tuple[Tensor, bool]]) -> None:
        self._library = library
        library.hetkern_take.restype = library.hetkern_touched.restype = ctypes.c_void_p
        self.regions: list[_Region] = []
        for start, size, written in sorted((*span(t), written) for t, written in tensors):
            last = self.regions[-1] if self.regions else None
            if not size:
                continue
            if last and start < last.start + last.size:
                last.size = max(last.size, start + size - last.start)
                last.written |= written
            else:
                self.regions.append(_Region(start, size, written, start))
        self.fenced = sum(r.size for r in self.regions) <= _MOST
        for r in self.regions if self.fenced else ():
            wanted = (ctypes.c_size_t(n) for n in (r.size, _ALIGNMENT, r.start % _ALIGNMENT))
            r.copy = library.hetkern_take(*wanted) or r.start
            self.fenced &= r.copy != r.start
        self.fill()

    def __enter__(self) -> Fenced:
        return self

    def __exit__(self, *_: object) -> None:
        for r in self.regions:
            if r.copy != r.start:
                self._library.hetkern_give_back(ctypes.c_void_p(r.copy))

    def address(self, tensor: Tensor) -> int:
        """Where the kernel finds it."""
        at = tensor.data_ptr()
        inside = (r for r in self.regions if r.start <= at < r.start + r.size)
        return next((r.copy + at - r.start for r in inside if tensor.numel()), at)

    def fill(self) -> None:
        """The copies as the tensors are."""
        for r in self.regions:
            if r.copy != r.start:
                ctypes.memmove(r.copy, r.start, r.size)

    def results(self) -> list[bytes]:
        """What the kernel may have written to."""
        return [ctypes.string_at(r.copy, r.size) for r in self.regions if r.written]

    def touched(self) -> int | None:
        """The address of a byte beside a copy that somebody has stored to."""
        for r in self.regions:
            if r.copy == r.start:
                continue
            if at := self._library.hetkern_touched(ctypes.c_void_p(r.copy)):
                return int(at)
        return None

    def bring_back(self) -> None:
        """What the kernel has written to, into the tensors."""
        for r in self.regions:
            if r.written and r.copy != r.start:
                ctypes.memmove(r.start, r.copy, r.size)
