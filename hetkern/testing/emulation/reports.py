"""What a kernel was caught in, in one sentence: tensor, index, kernel, block, thread, line.

The raw report of a sanitizer is kept in a file that the sentence names.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from hetkern.testing.emulation.whole_reports import keep_report
from hetkern.testing.traffic.table import _stacks

_OURS = re.compile(r"(?:^|/)cuda/(device/\.\./)?(emulation|device)/|/include/(cuda_|c\+\+/)|^\?")


def line_of(binary: Path, offset: str) -> str | None:
    """The file:line of an instruction, outside the emulation and CUDA's headers."""
    for _, place in _stacks(binary, [offset]).get(f"{int(offset, 16):x}", []):
        if not _OURS.search(place) and not place.endswith(":?"):
            return place
    return None


def with_places(text: str, binary: Path, where: list[tuple[str, Tensor, int]]) -> str:
    """A message of the emulation, its instruction as a line, its address as a tensor's element."""

    def line(match: re.Match[str]) -> str:
        place = line_of(binary, match[1])
        return f", at {place}" if place else ""

    def element(match: re.Match[str]) -> str:
        if match[2] in ("(nil)", "(null)") or int(match[2], 16) < 65536:
            return f"{match[1]} through a null pointer"
        return f"{match[1]} {describe(int(match[2], 16), where)}"

    text = re.sub(r"(the first of them) at address (\S+)", element, text)
    text = re.sub(r"(a (?:load|store)) at address (\S+), where there is no memory", element, text)
    return re.sub(r", at instruction \+(0x[0-9a-f]+)", line, text)


def describe(address: int, where: list[tuple[str, Tensor, int]]) -> str:
    """An address as an element of the tensor that lies nearest: name, index, extent.

    Args:
        address: in the process that ran.
        where: each tensor's name, itself, and its address there.
    """
    if not where:
        return f"at address {address:#x}"
    name, tensor, start = min(where, key=lambda w: _distance(address, w[2], w[1]))
    width = tensor.element_size()
    index = (address - start) // width
    shape = "×".join(map(str, tensor.shape)) or "1"
    return f"at {name}[{index}], and {name} has {tensor.numel()} elements ({shape})"


def _distance(address: int, start: int, tensor: Tensor) -> int:
    steps = sum((s - 1) * t for s, t in zip(tensor.shape, tensor.stride(), strict=True))
    end = start + (steps + 1) * tensor.element_size()
    return max(start - address, address - end + 1, 0)


def _kept(raw: str) -> str:
    return f"; {keep_report(raw)}"


def of_address(folder: Path, raw: str, binary: Path, where: list[tuple[str, Tensor, int]]) -> str:
    """AddressSanitizer's or UBSan's report."""
    fault = folder / "fault"
    if not fault.exists():
        found = re.search(r"^(\S+?):(\d+):\d+: runtime error: (.*)$", raw, re.M)
        said = f"{found[3]} at {found[1]}:{found[2]}" if found else _first_line(raw)
        return said + _kept(raw)
    numbers, kernel, thread, *_ = fault.read_text().splitlines()
    address, size, store, at = numbers.split()
    kind = re.search(r"AddressSanitizer: (\S+)", raw)
    what = kind[1].replace("use-after-poison", "heap-buffer-overflow") if kind else "error"
    x, y, z, number = thread.split()
    place = f" in {kernel}, block ({x}, {y}, {z}) thread {number}" if kernel else ""
    line = line_of(binary, at)
    verb = "a store" if store == "1" else "a load"
    shared = "" if _near(int(address, 16), where) else " of shared memory or of the stack"
    element = "" if shared else f" {describe(int(address, 16), where)}"
    return (
        f"out of bounds ({what}): {verb} of {size} bytes{shared}{element}{place}"
        + (f", at {line}" if line else "")
        + _kept(raw)
    )


def _near(address: int, where: list[tuple[str, Tensor, int]]) -> bool:
    return any(_distance(address, start, t) < 1 << 36 for _, t, start in where)


def _first_line(raw: str) -> str:
    lines = [s for s in raw.splitlines() if s.strip(" =-")]
    return lines[0].strip() if lines else "the process ended without a word"


_ACCESS = re.compile(
    r"(?:Previous )?((?:atomic )?(?:read|write)|[Rr]ead|[Ww]rite|Atomic \w+) of size (\d+) "
    r"at (0x[0-9a-f]+) "
    r"by (?:thread T(\d+)|main thread)[^\n]*:\n((?:\s+#\d+ [^\n]*\n)*)"
)


def of_thread(raw: str, where: list[tuple[str, Tensor, int]]) -> str:
    """ThreadSanitizer's report of a data race."""
    names = dict(re.findall(r"Thread T(\d+) '([^']*)'", raw))
    accesses = _ACCESS.findall(raw)
    if "data race" not in raw or not accesses:
        return _first_line(raw) + _kept(raw)
    parts = []
    for verb, size, _, number, stack in accesses[:2]:
        thread = names.get(number, "the launcher" if not number else f"thread T{number}")
        frames = re.findall(r"#\d+ .*? (/[^\s]+?:\d+)(?::\d+)? \(", stack)
        line = next((f for f in frames if not _OURS.search(f)), None)
        parts.append(
            f"{verb.lower()} of {size} bytes by {thread}" + (f" at {line}" if line else "")
        )
    address = int(accesses[0][2], 16)
    place = describe(address, where) if _inside(address, where) else "in shared memory"
    return f"data race {place}: {', and '.join(parts)}, in no order" + _kept(raw)


def _inside(address: int, where: list[tuple[str, Tensor, int]]) -> bool:
    return any(_distance(address, start, t) == 0 for _, t, start in where)
