"""Where the rows of a packed tensor belong: row (t, b) is ``offset_t + b``, b below step t's size.

Two ways to the same results. A call that runs takes slices, a run of steps of one size at a time:
nothing is copied from the host, so that a CUDA graph can hold it. A call that is traced must not
read the sizes, and takes indices that it computes from them on the host.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def packed_rows(batch_sizes: Tensor, rows: int, B: int, device: torch.device) -> PackedRows:
    """The rows of a packed tensor.

    Args:
        batch_sizes: ``(T,)``, falling integers on the CPU: the rows that step t has.
        rows: their sum.
        B: sequences, of which those behind the first size have no step.
        device: of the packed tensors.
    """
    if _traced(batch_sizes):
        return _Indices(batch_sizes, rows, B, device)
    return _Slices(batch_sizes, rows, B, device)


def _traced(batch_sizes: Tensor) -> bool:
    """Whether the numbers may be others when what is computed here runs again."""
    if torch.compiler.is_compiling() or type(batch_sizes) is not Tensor:
        return True
    proxy = torch._C._TorchDispatchModeKey.PROXY  # type: ignore[attr-defined]
    return torch._C._get_dispatch_mode(proxy) is not None


class PackedRows:
    """What is asked of packed rows."""

    lengths: Tensor  #: (B,) on the device: the steps of each sequence

    def padded(self, packed: Tensor) -> Tensor:
        """(T, B, …), zeros where no row is."""
        raise NotImplementedError

    def packed(self, padded: Tensor) -> Tensor:
        """The rows of a (T, B, …) tensor."""
        raise NotImplementedError

    def of_sequences(self, t: Tensor) -> Tensor:
        """For each row what its sequence has in a (B, …) tensor."""
        raise NotImplementedError

    def before(self, packed: Tensor, first: Tensor, reverse: bool) -> Tensor:
        """For each row the one of the step before, of (B, …) ``first`` where there is none."""
        raise NotImplementedError


class _Run(NamedTuple):
    """Neighbouring steps of one size."""

    start: int
    steps: int
    size: int
    offset: int  # rows before them

    @property
    def end(self) -> int:
        return self.offset + self.steps * self.size


class _Slices(PackedRows):
    def __init__(self, batch_sizes: Tensor, rows: int, B: int, device: torch.device) -> None:
        self._B, self._device, self._runs = B, device, list[_Run]()
        start = offset = 0
        for size, group in groupby(batch_sizes.tolist()):
            steps = len(list(group))
            self._runs.append(_Run(start, steps, size, offset))
            start, offset = start + steps, offset + steps * size

    @property
    def lengths(self) -> Tensor:  # type: ignore[override]
        b = torch.arange(self._B, device=self._device)
        lengths = torch.zeros_like(b)
        for run in self._runs:
            lengths = lengths + run.steps * (b < run.size)
        return lengths

    def padded(self, packed: Tensor) -> Tensor:
        parts = []
        for run in self._runs:
            part = packed[run.offset : run.end].unflatten(0, (run.steps, run.size))
            missing = self._B - run.size
            parts.append(F.pad(part, (*(0, 0) * (part.dim() - 2), 0, missing)) if missing else part)
        return torch.cat(parts)

    def packed(self, padded: Tensor) -> Tensor:
        steps = [padded[r.start : r.start + r.steps, : r.size].flatten(0, 1) for r in self._runs]
        return torch.cat(steps)

    def of_sequences(self, t: Tensor) -> Tensor:
        return torch.cat([t[: r.size].repeat(r.steps, *[1] * (t.dim() - 1)) for r in self._runs])

    def before(self, packed: Tensor, first: Tensor, reverse: bool) -> Tensor:
        parts = []
        for i, run in enumerate(self._runs):
            if reverse:  # the step behind the last one has as many rows as the next run
                parts.append(packed[run.offset + run.size : run.end])
                after = self._runs[i + 1].size if i + 1 < len(self._runs) else 0
                parts += [packed[run.end : run.end + after], first[after : run.size]]
            else:
                last = self._runs[i - 1] if i else None
                at = 0 if last is None else last.end - last.size
                parts.append((first if last is None else packed)[at : at + run.size])
                parts.append(packed[run.offset : run.end - run.size])
        return torch.cat(parts)


class _Indices(PackedRows):
    def __init__(self, batch_sizes: Tensor, rows: int, B: int, device: torch.device) -> None:
        ends = batch_sizes.cumsum(0)
        b = torch.arange(B)
        self._batch_sizes, self._ends, self._device, self._rows = batch_sizes, ends, device, rows
        self._from = ((ends - batch_sizes)[:, None] + b).to(device)  # (T, B)
        self._there = (b < batch_sizes[:, None]).to(device)
        self.lengths = self._there.sum(0)

    def _steps(self) -> tuple[Tensor, Tensor]:
        """The step and the sequence of each row."""
        row = torch.arange(self._rows)
        t = torch.searchsorted(self._ends, row, right=True)
        b = row - (self._ends - self._batch_sizes)[t]
        return t.to(self._device), b.to(self._device)

    def padded(self, packed: Tensor) -> Tensor:
        if packed.shape[0] == 0:
            return packed.new_zeros(*self._there.shape, *packed.shape[1:])
        there = self._there.reshape(*self._there.shape, *[1] * (packed.dim() - 1))
        zero = torch.zeros((), dtype=packed.dtype, device=packed.device)
        return torch.where(there, packed[self._from.clamp(max=packed.shape[0] - 1)], zero)

    def packed(self, padded: Tensor) -> Tensor:
        return padded[self._steps()]

    def of_sequences(self, t: Tensor) -> Tensor:
        return t[self._steps()[1]]

    def before(self, packed: Tensor, first: Tensor, reverse: bool) -> Tensor:
        y = self.padded(packed)
        if not reverse:
            return self.packed(torch.cat([first.unsqueeze(0), y[:-1]]))
        t = torch.arange(1, y.shape[0] + 1, device=self._device)
        last = (t[:, None] == self.lengths).reshape(*y.shape[:2], *[1] * (y.dim() - 2))
        return self.packed(torch.where(last, first, torch.cat([y[1:], first.unsqueeze(0)])))
