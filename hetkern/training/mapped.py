"""Token numbers in files on disk, mapped and indexed as one long tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetkern.training.config import UserError


class Tokens:
    """Token numbers in mapped files, indexed as one long tensor."""

    def __init__(self, folder: Path, part: str, shards: list[dict[str, Any]], dtype: str) -> None:
        """Map the shards of ``part``, "train" or "val"."""
        self._maps = []
        begins, offset = [], 0
        for number, shard in enumerate(shards):
            path = folder / f"{part}-{number:05}.bin"
            self._maps.append(_mapped(path, dtype, shard["tokens"]))
            inside = np.fromfile(path.with_suffix(".idx"), "<i8")
            begins.append(inside + offset)
            offset += shard["tokens"]
        self._ends = np.cumsum([0] + [len(m) for m in self._maps])
        joined = np.concatenate(begins) if begins else np.zeros(0, np.int64)
        self.begins = torch.from_numpy(joined.astype(np.int64))

    def __len__(self) -> int:
        """Tokens in all shards."""
        return int(self._ends[-1])

    def __getitem__(self, at: Any) -> Tensor:
        """A slice with step 1, or an int64 tensor of places of any shape."""
        if isinstance(at, slice):
            begin, end, step = at.indices(len(self))
            if step != 1:
                raise IndexError("Tokens: a slice must have step 1")
            return torch.from_numpy(self._between(begin, max(begin, end)))
        places = at.numpy()
        shard = np.searchsorted(self._ends, places, side="right") - 1
        taken = np.zeros(places.shape, np.int64)
        for number in np.unique(shard):
            there = shard == number
            taken[there] = self._maps[number][places[there] - self._ends[number]]
        return torch.from_numpy(taken)

    def _between(self, begin: int, end: int) -> np.ndarray:
        parts = [
            m[max(0, begin - first) : max(0, end - first)]
            for m, first in zip(self._maps, self._ends[:-1], strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _mapped(path: Path, dtype: str, tokens: int) -> np.ndarray:
    size = tokens * np.dtype(dtype).itemsize
    if not path.exists() or path.stat().st_size != size:
        raise UserError(f"{path} is not the shard that its manifest names; delete the folder")
    return np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)
