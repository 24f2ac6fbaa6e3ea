"""The twin table: each function of ``ptx::`` on the device against its twin in the emulation."""

from __future__ import annotations

import re
import struct
from typing import Any, NamedTuple

from running import ROOT, Failed

#: No twin, and no kernel's to call: the address arithmetic of copy_async.
HELPERS = {"shared_address"}


class Line(NamedTuple):
    """What one program printed for one function."""

    limit: int
    words: list[int]


def wrappers() -> set[str]:
    """The functions of ptx.cuh that a kernel may call."""
    text = (ROOT / "csrc/cuda/device/ptx.cuh").read_text()
    return set(re.findall(r"__device__ __forceinline__ [\w*]+ \**(\w+)\(", text)) - HELPERS


def parse(output: str) -> dict[str, Line]:
    """A program's lines by function; a function that failed has none."""
    lines = {}
    for line in output.splitlines():
        name, *rest = line.split()
        if len(rest) > 1 and rest[0].isdigit():
            lines[name] = Line(int(rest[0]), [int(word, 16) for word in rest[1:]])
    return lines


def compare(device: str, emulated: str) -> list[dict[str, Any]]:
    """A row for each wrapper.

    Raises:
        Failed: a function is missing from a program's output, or differs; the rows come along.
    """
    ours, theirs = parse(device), parse(emulated)
    rows = []
    for name in sorted(wrappers() | ours.keys() | theirs.keys()):
        row: dict[str, Any] = {"function": name, "words": 0, "same": False, "says": ""}
        if name not in wrappers():
            row["says"] = "not in ptx.cuh"
        elif name not in ours or name not in theirs:
            where = "on the device" if name not in ours else "in the emulation"
            row["says"] = f"no result {where}"
        else:
            row["words"] = len(ours[name].words)
            row["says"] = difference(ours[name], theirs[name])
            row["same"] = not row["says"]
        rows.append(row)
    wrong = [f"{row['function']}: {row['says']}" for row in rows if not row["same"]]
    if wrong or not rows:
        failed = Failed("twins differ: " + "; ".join(wrong))
        failed.facts = {"table": rows}  # type: ignore[attr-defined]
        raise failed
    return rows


def difference(a: Line, b: Line) -> str:
    """The first word that differs by more than the limit, or nothing."""
    if len(a.words) != len(b.words) or a.limit != b.limit:
        return f"{len(a.words)} words against {len(b.words)}"
    for i, (x, y) in enumerate(zip(a.words, b.words, strict=True)):
        if x != y and (a.limit == 0 or distance(x, y) > a.limit):
            return f"word {i}: {x:08x} on the device, {y:08x} in the emulation"
    return ""


def distance(x: int, y: int) -> float:
    """Representable floats between two; any NaN is as good as another."""
    values = [struct.unpack("<f", struct.pack("<I", word))[0] for word in (x, y)]
    if any(v != v for v in values):
        return 0 if all(v != v for v in values) else float("inf")
    if any(abs(v) == float("inf") for v in values):
        return 0 if values[0] == values[1] else float("inf")
    return abs(_place(x) - _place(y))


def _place(word: int) -> int:
    """A float's place in the order of all floats."""
    return word if word < 0x80000000 else 0x80000000 - word
