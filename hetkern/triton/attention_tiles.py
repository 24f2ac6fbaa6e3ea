"""Tiles of attention's Triton kernels: a pure function of the widths and the dtype."""

from __future__ import annotations

from typing import Any

import torch

from .views import next_power_of_2


def width(columns: int) -> int:
    """Columns of a tile: a power of two that a product takes."""
    return max(16, next_power_of_2(columns))


def _tiles(rows: int, columns: int, warps: int, stages: int) -> dict[str, int]:
    return {"rows": rows, "columns": columns, "warps": warps, "stages": stages}


# By the wider head: rows and columns of a tile of scores, warps, and stages of its pipeline. Small
# enough that kernels spill next to no registers, whatever features they have.
_HALF = {
    "forward": {64: (64, 32, 4, 2), 128: (64, 32, 4, 2), 256: (64, 16, 8, 1)},
    "dq": {64: (64, 32, 4, 1), 128: (64, 16, 4, 1), 256: (32, 16, 8, 1)},
    "dk_dv": {64: (64, 16, 4, 1), 128: (64, 16, 4, 1), 256: (32, 16, 8, 1)},
}
_FLOAT = {
    "forward": {64: (32, 16, 4, 1), 128: (32, 16, 4, 1), 256: (16, 16, 4, 1)},
    "dq": {64: (16, 16, 4, 1), 128: (16, 16, 4, 1), 256: (16, 16, 8, 1)},
    "dk_dv": {64: (16, 16, 4, 1), 128: (16, 16, 4, 1), 256: (16, 16, 8, 1)},
}


def plan(D: int, Dv: int, dtype: torch.dtype) -> dict[str, dict[str, int]]:
    """The tiles of each kernel: a row's bits depend on them, and so on widths and dtype alone."""
    wide = max(64, width(D), width(Dv))
    table = _FLOAT if dtype == torch.float32 else _HALF
    plans = {name: _tiles(*tiles[wide]) for name, tiles in table.items()}
    return plans | {"delta": _tiles(4096 // wide, 16, 4, 1)}


# At most so many queries have the heads of a group in one tile, and programs take so many keys
# each: a rule of the queries' number alone, so that a batch changes no bits.
FEW_QUERIES, PART = 16, 1024


def share(Hq: int, Hkv: int, Lq: int, Lk: int) -> dict[str, Any]:
    """Who takes what: whether a tile has a group's heads, and how many parts the keys have."""
    few, parts = Lq <= FEW_QUERIES, max(1, -(-Lk // PART))
    path = "split_keys" if few and parts > 1 else "split_queries"
    return {"path": path, "parts": parts, "part": PART, "fold": few and Hq > Hkv > 0}


def together(D: int, Dv: int, dtype: torch.dtype) -> bool:
    """Whether one pass over keys has room for the sums of dk and of dv."""
    return dtype == torch.float32 or max(D, Dv) <= 64
