"""A launcher's tensors in a child process: which bytes it takes, and how they come back."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


def span(tensor: Tensor) -> tuple[int, int]:
    """The address of a tensor's first byte, and how many there are up to its last one."""
    steps = ((s - 1) * step for s, step in zip(tensor.shape, tensor.stride(), strict=True))
    size = (sum(steps) + 1) * tensor.element_size() if tensor.numel() else 0
    return tensor.data_ptr(), size


def used_bytes(tensor: Tensor, start: int, size: int) -> Tensor:
    """For each byte from ``start`` on, whether it is one of the tensor's elements."""
    used = torch.zeros(size, dtype=torch.uint8)
    width = tensor.element_size()
    shape, strides = [], []
    for s, step in zip(tensor.shape, tensor.stride(), strict=True):
        if s > 1 and step:
            shape.append(s)
            strides.append(step * width)
    places = torch.as_strided(
        torch.arange(size), [*shape, width], [*strides, 1], tensor.data_ptr() - start
    )
    if tensor.numel():
        used[places.reshape(-1)] = 1
    return used


@dataclass
class Given:
    """A tensor's place among what the child process holds."""

    tensor: Tensor
    size: int
    own: bool  #: bytes of its own; else those of another tensor, or a part of them


class Arguments:
    """What the driver reads (csrc/cuda/emulation/driver.cpp).

    Tensors that share elements share memory there too. Views that lie between one another without
    a common element, as q and k of a packed tensor, have memory each: what is no element of a view
    is out of its bounds.
    """

    def __init__(
        self, folder: Path, names: list[str], args: tuple[object, ...], slots: list[bytes]
    ) -> None:
        self.folder = folder
        self.tensors: dict[int, Given] = {}
        self.regions: list[
            tuple[int, int, int]
        ] = []  # first byte, size, the parameter it is given by
        regions = _regions([(i, a) for i, a in enumerate(args) if isinstance(a, Tensor)])
        lines: list[str] = []
        for i, slot in enumerate(slots):
            value = args[i] if i < len(args) else None
            if not isinstance(value, Tensor):
                lines.append(f"value {int.from_bytes(slot, 'little'):x}")
                continue
            start, size, first, holes = regions[i]
            offset = value.data_ptr() - start
            if first != i:
                lines.append(f"part {first} {offset}")
            else:
                (folder / f"{i}.bin").write_bytes(ctypes.string_at(start, size))
                mask = "-"
                if holes is not None:
                    mask = f"{i}.used"
                    (folder / mask).write_bytes(holes.numpy().tobytes())
                # A GPU's allocations begin at multiples of 256, torch's on the CPU of 64.
                align = 0 if start % 64 == 0 else start % 64
                lines.append(f"tensor {names[i]} {i}.bin {size} {align} {mask} {offset}")
            self.tensors[i] = Given(value, size, holes is not None)
            self.regions.append((start, size, first))
        (folder / "arguments").write_text("\n".join(lines) + "\n")

    def bring_back(self, written: set[int]) -> None:
        """Copy what the kernels wrote into the tensors of these positions."""
        done: set[int] = set()
        for i, (start, size, first) in zip(self.tensors, self.regions, strict=True):
            given = self.tensors[i]
            if i not in written or not size or (first in done and not given.own):
                continue
            bytes_back = bytearray((self.folder / f"{first}.bin").read_bytes())
            if given.own:  # only its elements: what lies between them may be another's
                came = torch.frombuffer(bytes_back, dtype=given.tensor.dtype)
                came = came.as_strided(given.tensor.shape, given.tensor.stride())
                given.tensor.detach().copy_(came)
            else:
                ctypes.memmove(start, bytes(bytes_back), size)
                done.add(first)


def _regions(
    tensors: list[tuple[int, Tensor]],
) -> dict[int, tuple[int, int, int, Tensor | None]]:
    """The region of each tensor, by its position.

    First byte, size, the position that it is given by, and which of its bytes are elements if not
    all may be used.
    """
    found: dict[int, tuple[int, int, int, Tensor | None]] = {}
    left = sorted(tensors, key=lambda pair: (span(pair[1])[0], -span(pair[1])[1], pair[0]))
    while left:
        start, size = span(left[0][1])
        end, group = start + size, [left.pop(0)]
        while left and span(left[0][1])[0] < end:
            end = max(end, sum(span(left[0][1])))
            group.append(left.pop(0))
        used = {i: used_bytes(t, start, end - start) for i, t in group} if len(group) > 1 else {}
        if used and int(sum(u.to(torch.int16) for u in used.values()).max()) < 2:  # type: ignore[union-attr]
            for i, t in group:
                at, n = span(t)
                found[i] = at, n, i, used[i][at - start : at - start + n]
            continue
        first = min(i for i, _ in group)
        for i, _ in group:
            found[i] = start, end - start, first, None
    return found
