"""What the repaired Triton interpreter knows of memory: bounds, alignment, races, bytes moved.

A launch names its tensors; every access is checked against their own elements: not the storage
around a view, nor the gaps between its rows. Programs run one after another here, so a race shows
itself as two programs that touch one element, one of them writing it, not both by atomics.
"""

from __future__ import annotations

import bisect
import contextlib
import gc
import importlib.util
import os
import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

import numpy as np
import torch

from hetkern.testing.traffic.table import Row
from hetkern.testing.triton_interpreter.order import Order

# Triton's own functions, such as tl.load, and what calls this.
_NOT_KERNELS = tuple(
    os.path.dirname(spec.origin) + os.sep
    for name in ("triton", "hetkern.testing")
    if (spec := importlib.util.find_spec(name)) and spec.origin
)
_ATOMIC, _SEVERAL = -2, -1  # who wrote or read an element, beside a program's number from 1


class KernelError(RuntimeError):
    """A kernel did what it must not do on a GPU."""


class Counter:
    """What requests moved, by kernel, line of source, tensor and direction."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, str, str], list[int]] = {}

    def add(self, kernel: str, tensor: str, kind: str, elements: int, width: int) -> None:
        """Enter a request; an atomic both loads and stores."""
        for op in ("load", "store") if kind == "atomic" else (kind,):
            sums = self._sums.setdefault((kernel, source_line(), tensor, op), [0, 0, 0])
            for i, count in enumerate((1, elements, elements * width)):
                sums[i] += count

    def rows(self) -> tuple[Row, ...]:
        """The table."""
        return tuple(Row(*key, None, *sums) for key, sums in sorted(self._sums.items()))


def source_line() -> str:
    """The kernel's line that is at work: the innermost one outside Triton and this kit."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_KERNELS):
            return f"{os.path.basename(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return "-"


def source_line_of(error: BaseException) -> str:
    """The kernel's line that raised an error: the innermost one outside Triton and this kit."""
    found, traceback = "", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(_NOT_KERNELS):
            found = f"{os.path.basename(file)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


class _Region:
    """The elements of one tensor, or of several whose memory overlaps."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.name = name
        self.begin = tensor.data_ptr()
        self.end = self.begin + span * tensor.element_size()
        self.unit = tensor.element_size()
        self.views = [tensor]
        self._state: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None

    def merge(self, other: _Region) -> None:
        self.name += f"/{other.name}"
        if other.unit != self.unit or (other.begin - self.begin) % self.unit:
            self.unit = 1
        self.end = max(self.end, other.end)
        self.views += other.views
        self._state = None

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Who wrote and who read each element, and which are the tensor's own (None: all)."""
        if self._state is None:
            units = (self.end - self.begin) // self.unit
            own = None if any(_is_dense(v) for v in self.views) else np.zeros(units, bool)
            if own is not None:
                for view in self.views:
                    at = np.array((view.data_ptr() - self.begin) // self.unit)
                    for size, stride in zip(view.shape, view.stride(), strict=True):
                        step = stride * view.element_size() // self.unit
                        at = at[..., None] + step * np.arange(size)
                    for byte in range(view.element_size() // self.unit):
                        own[at + byte] = True
            self._state = np.zeros(units, np.int32), np.zeros(units, np.int32), own
        return self._state


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a view is all of its span."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride not in (0, expected):
            return False
        expected *= size if stride else 1
    return True


def _tensors(name: str, value: Any) -> Iterable[tuple[str, torch.Tensor]]:
    if isinstance(value, tuple):
        alone = sum(hasattr(part, "data_ptr") for part in value) == 1
        for i, part in enumerate(value):
            yield from _tensors(name if alone else f"{name}[{i}]", part)
    elif isinstance(value, torch.Tensor):
        if value.numel():
            yield name, value
    elif hasattr(value, "base"):  # a tensor descriptor, or a reinterpreted tensor
        yield from _tensors(name, value.base)


class Memory:
    """The launch that is running."""

    def __init__(self) -> None:
        self.check_races = True
        self.counted: Counter | None = None
        self.order = Order()
        self.code_block = 0  # straight code; a loop's turn or a branch begins another
        self.loop_begins = 1 << 62  # the code block of the innermost loop's first turn; here: none
        self.loads = 0  # so far
        self.aligned = True  # whether blocks were loaded from multiples of 16 bytes (alignment)
        self.fuses = True  # whether a product that feeds a sum is one fma with it
        self._regions: list[_Region] = []
        self._begins: list[int] = []
        self._pointing: list[tuple[str, torch.Tensor]] = []
        self.finish()

    def launch(self, kernel: str, arguments: Iterable[tuple[str, Any]], warps: int) -> None:
        """Learn the tensors of a launch."""
        found = [(n, t) for name, value in arguments for n, t in _tensors(name, value)]
        self.kernel, self.warps = kernel, warps
        self._pointing = [(n, t) for n, t in found if t.dtype in (torch.int64, torch.uint64)]
        self.order.barrier()
        self._arrange(_Region(n, t) for n, t in found)

    def _arrange(self, regions: Iterable[_Region]) -> None:
        self._regions = []
        for region in sorted(regions, key=lambda r: r.begin):
            if self._regions and region.begin < self._regions[-1].end:
                self._regions[-1].merge(region)
            else:
                self._regions.append(region)
        self._begins = [region.begin for region in self._regions]

    def finish(self) -> None:
        """Forget them."""
        self.kernel = ""
        self.suspect = ""  # why the compiled code may differ from the source
        self.program: tuple[int, ...] = (0, 0, 0)
        self.warps = 4
        self._pointing, self._regions, self._begins = [], [], []

    def where(self) -> str:
        """The program at hand, for messages."""
        return f"kernel {self.kernel}, program {self.program}"

    def _fault(self, what: str) -> KernelError:
        return KernelError(f"{source_line()}: {what}, {self.where()}")

    def access(
        self,
        kind: str,
        pointers: np.ndarray,
        mask: np.ndarray,
        width: int,
        builder: Any,
        values: np.ndarray | None = None,
    ) -> None:
        """Check one request of a program: "load", "store" or "atomic" of ``width`` bytes a lane."""
        x, y, z = self.program = tuple(int(i) for i in builder.grid_idx)
        self._me = 1 + x + builder.grid_dim[0] * (y + builder.grid_dim[1] * z)
        if pointers.shape != mask.shape:
            pointers, mask = np.broadcast_arrays(pointers, mask)
        addresses = (pointers.ravel() if mask.all() else pointers[mask]).astype(np.int64)
        if not addresses.size:
            return
        low, high = int(addresses.min()), int(addresses.max())
        region = self._region_of(low, high + width)
        if region is not None:
            self._inside(kind, region, addresses, width)
            if kind != "atomic" and self.warps > 1 and self.check_races:
                self._ordered(kind, region, pointers, mask, (low, high))
        else:
            for region in self._split(kind, addresses, width):
                inside = (addresses >= region.begin) & (addresses < region.end)
                self._inside(kind, region, addresses[inside], width)
        if kind == "store" and values is not None and self.check_races:
            self._one_value_each(region, addresses, pointers.shape, mask, values)

    def _ordered(
        self,
        kind: str,
        region: _Region,
        pointers: np.ndarray,
        mask: np.ndarray,
        bounds: tuple[int, int],
    ) -> None:
        """Lanes of one program that meet in memory need a barrier between."""
        stores = kind == "store"
        if self.order.conflict(self._me, region.begin, stores, pointers, mask, bounds):
            what = "stores what others accessed" if stores else "loads what others stored"
            raise self._fault(
                f"race on {region.name!r} within a program: a lane {what}, without a barrier "
                "between (tl.debug_barrier)"
            )

    def _region_of(self, low: int, end: int) -> _Region | None:
        at = bisect.bisect_right(self._begins, low) - 1
        if at >= 0 and end <= self._regions[at].end:
            return self._regions[at]
        return None

    def _split(self, kind: str, addresses: np.ndarray, width: int) -> list[_Region]:
        """The tensors of a request that is not within one; a lane outside all of them raises."""
        if not self._regions:
            raise self._fault(f"{kind} of {width} bytes, but the launch has no tensor")
        if self._pointing:
            self._follow_pointers()
        at = np.searchsorted(np.array(self._begins), addresses, side="right") - 1
        ends = np.array([region.end for region in self._regions])
        outside = (at < 0) | (addresses + width > ends[np.maximum(at, 0)])
        if outside.any():
            address = int(addresses[outside][0])
            region = min(self._regions, key=lambda r: max(r.begin - address, address - r.end))
            past, before = address - region.end, region.begin - address
            far = f"{before} bytes before" if before > 0 else f"{past} bytes past the end of"
            raise self._fault(
                f"out-of-bounds {kind}: {int(outside.sum())} of {addresses.size} lanes, the first "
                f"{far} {region.name!r} ({region.end - region.begin} bytes)"
            )
        return [self._regions[i] for i in np.unique(at)]

    def _follow_pointers(self) -> None:
        """Learn the living tensors whose addresses the integers of the launch's tensors are.

        A grouped kernel gets its matrices so. Asked when an access is in no tensor known so far.
        """
        pointing, self._pointing = self._pointing, []
        names = {
            at: f"*{name}[{i}]"
            for name, tensor in pointing
            if tensor.numel() <= 1 << 16
            for i, at in enumerate(tensor.flatten().tolist())
        }
        known = {view.data_ptr() for region in self._regions for view in region.views}
        found: dict[int, _Region] = {}
        for thing in gc.get_objects():
            if type(thing) not in (torch.Tensor, torch.nn.Parameter):
                continue
            with contextlib.suppress(RuntimeError, NotImplementedError):  # one without memory
                at = thing.data_ptr() if thing.numel() and thing.device.type == "cpu" else 0
                if at in names and at not in known:
                    region = _Region(names[at], thing)
                    found[at] = max(found.get(at, region), region, key=lambda r: r.end)
        if found:
            self._arrange([*self._regions, *found.values()])

    def _inside(self, kind: str, region: _Region, addresses: np.ndarray, width: int) -> None:
        if (addresses % width).any():
            address = int(addresses[addresses % width != 0][0])
            raise self._fault(
                f"misaligned {kind}: {width} bytes at byte {address - region.begin} of "
                f"{region.name!r}, whose address is not a multiple of {width}"
            )
        writer, reader, own = region.state
        first = (addresses - region.begin) // region.unit
        for step in range(max(1, width // region.unit)):
            at = first + step
            if own is not None and not own[at].all():
                raise self._fault(
                    f"out-of-bounds {kind}: {int((~own[at]).sum())} of {addresses.size} lanes, "
                    f"between the rows of {region.name!r}"
                )
            if self.check_races:
                self._note(kind, region.name, writer, reader, at)
        if self.counted is not None:
            self.counted.add(self.kernel, region.name, kind, np.unique(addresses).size, width)

    def _note(
        self, kind: str, name: str, writer: np.ndarray, reader: np.ndarray, at: np.ndarray
    ) -> None:
        """Enter this program as writer or reader; another's mark may be a race."""
        me = self._me
        wrote, read = writer[at], reader[at]
        others_wrote = (wrote != 0) & (wrote != me)
        others_read = (read != 0) & (read != me)
        if kind == "load":
            if others_wrote.any():
                self._race(name, "loads what another program stored")
            reader[at] = np.where(others_read, _SEVERAL, me)
        elif kind == "store":
            if others_wrote.any():
                self._race(name, "stores what another program stored")
            if others_read.any():
                self._race(name, "stores what another program loaded")
            writer[at] = me
        else:
            if (others_wrote & (wrote != _ATOMIC)).any() or others_read.any():
                self._race(name, "updates atomically what another program accesses without")
            writer[at] = _ATOMIC

    def _race(self, name: str, what: str) -> None:
        raise self._fault(f"race on {name!r}: a program {what}")

    def _one_value_each(
        self,
        region: _Region | None,
        addresses: np.ndarray,
        shape: tuple[int, ...],
        mask: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Two lanes that store to one address must agree."""
        if addresses.size < 2 or (np.diff(addresses) > 0).all():
            return
        stored = np.broadcast_to(values, shape)[mask]
        order = np.argsort(addresses, kind="stable")
        same = addresses[order][1:] == addresses[order][:-1]
        differ = stored[order][1:] != stored[order][:-1]
        if (same & differ).any():
            name = region.name if region is not None else "several tensors"
            self._race(name, "stores two values to one element")


memory = Memory()
