"""The processes that train together, or the only one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workers:
    """This process and how many there are.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """This process's consecutive part of the rows, some processes one more than others."""
        return rows.tensor_split(self.size)[self.rank]

    def share(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
        """Of each batch of rows this process's part, and whether it counts.

        Where there are fewer rows than processes, some get a row that another one has, and must not
        count it: a sharded model needs every process in every forward pass.
        """
        for rows in batches:
            mine = self.part(rows)
            yield (mine, True) if len(mine) else (rows[:1], False)

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, in float64."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def total_tensor(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()

    def told(self, text: str) -> str:
        """The first process's ``text``, in every process."""
        texts = [text]
        if self.size > 1:
            dist.broadcast_object_list(texts, 0)
        return texts[0]

    def each(self, what: Callable[[], T]) -> list[T]:
        """What it returns in each process, in every one; if it fails in one, it fails in all."""
        result, error = None, None
        try:
            result = what()
        except Exception as caught:
            if self.size == 1:
                raise
            error = caught
        if self.size == 1:
            return [cast(T, result)]
        results: list[Any] = [None] * self.size
        dist.all_gather_object(results, (error is None, result))
        if error is not None:
            raise error
        if not all(fine for fine, _ in results):
            raise OtherProcessFailed("another process failed")
        return [result for _, result in results]

    def first_does(self, what: Callable[[], None]) -> None:
        """Let the first process do something; if it fails, it fails everywhere."""
        error: BaseException | None = None
        if self.first:
            try:
                what()
            except Exception as caught:
                error = caught
        if self.size > 1:
            failed = torch.tensor([float(error is not None)], device=self.device)
            dist.broadcast(failed, 0)
            if failed.item() and error is None:
                raise OtherProcessFailed("the first process failed")
        if error is not None:
            raise error


class OtherProcessFailed(RuntimeError):
    """Another process has raised, and says why itself."""
