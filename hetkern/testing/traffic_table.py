"""What the emulation counted of a kernel's memory traffic, as a table and as numbers to assert."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

#: Bytes a second of an H100 (SXM, HBM3): NVIDIA's data sheet.
H100_BYTES_PER_SECOND = 3.35e12


@dataclass(frozen=True)
class Row:
    """All requests of one line of source to one tensor, or to shared memory."""

    kernel: str
    line: str  #: file:line
    memory: str  #: a tensor's name, "shared", "shared of a peer" or "unnamed"
    op: str  #: "load" or "store"
    width: int  #: bytes a lane
    requests: int  #: of a warp
    lanes: int  #: in all of them
    bytes: int
    cost: int  #: sectors of 32 bytes; in shared memory passes
    ideal: int

    @property
    def shared(self) -> bool:
        """Whether the cost counts passes over the banks of shared memory."""
        return self.memory.startswith("shared")

    @property
    def remark(self) -> str:
        """What is wrong with it, if anything."""
        if self.shared:
            return "bank conflicts" if self.cost > self.ideal else ""
        # A request of unaligned neighbours touches one sector more than it fills.
        return "uncoalesced" if self.cost > self.ideal + self.requests else ""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: str
    blocks: int
    threads: int  #: a block
    shared_bytes: int  #: a block
    cluster: int  #: blocks in each

    @property
    def name(self) -> str:
        """The kernel's name without namespaces and template arguments."""
        return self.kernel.strip("()").split("<")[0].split("::")[-1].strip()


@dataclass(frozen=True)
class Traffic:
    """Every load and store of some launches, by line of source."""

    rows: tuple[Row, ...]
    launches: tuple[Launch, ...]

    @staticmethod
    def read_from(file: Path, binary: Path) -> Traffic:
        """What traffic.cpp wrote, its instructions turned into lines of the binary's source."""
        fields = [line.split("\t") for line in file.read_text().splitlines()]
        launches = tuple(
            Launch(f[1], int(f[2]), int(f[3]), int(f[4]), int(f[5]))
            for f in fields
            if f[0] == "launch"
        )
        fields = [f for f in fields if f[0] != "launch"]
        lines = _source_lines(binary, sorted({f[1] for f in fields}))
        merged: dict[tuple[str, str, str, str, int], list[int]] = defaultdict(lambda: [0] * 5)
        for kernel, offset, memory, op, width, *counts in fields:
            sums = merged[(kernel, lines[offset], memory, op, int(width))]
            for i, count in enumerate(counts):
                sums[i] += int(count)
        return Traffic(tuple(Row(*key, *sums) for key, sums in sorted(merged.items())), launches)

    def read(self, memory: str) -> int:
        """Bytes read of a tensor."""
        return sum(r.bytes for r in self.rows if (r.memory, r.op) == (memory, "load"))

    def written(self, memory: str) -> int:
        """Bytes written of a tensor."""
        return sum(r.bytes for r in self.rows if (r.memory, r.op) == (memory, "store"))

    @property
    def global_bytes(self) -> int:
        """Bytes to and from global memory, as the lanes asked for them."""
        return sum(r.bytes for r in self.rows if not r.shared)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Each line whose requests cost more than they must."""
        return tuple(f"{r.line}: {r.memory}: {r.op}: {r.remark}" for r in self.rows if r.remark)

    def assert_within(
        self, *, read: dict[str, int], written: dict[str, int], width: int | None = None
    ) -> None:
        """Raise unless exactly these bytes of these tensors move, coalesced and without conflicts.

        Args:
            read: bytes by tensor; what is not named must not be read.
            written: likewise.
            width: bytes a lane that every access to a named tensor must have.
        """
        wrong = list(self.remarks)
        names = {r.memory for r in self.rows if not r.shared} | set(read) | set(written)
        for name in sorted(names):
            for verb, got, budget in (
                ("read", self.read(name), read), ("written", self.written(name), written)
            ):  # fmt: skip
                if got != (allowed := budget.get(name, 0)):
                    wrong.append(f"{name}: {got} bytes {verb}, the budget is {allowed}")
        if width:
            wrong += [
                f"{r.line}: {r.memory}: {r.op}: {r.width} bytes a lane, wanted {width}"
                for r in self.rows
                if not r.shared and r.width != width
            ]
        if wrong:
            raise AssertionError("\n".join([*wrong, "", str(self)]))

    def __str__(self) -> str:
        """The table, the bytes of each tensor, and the time that they take an H100 at its best."""
        head = ("line", "memory", "op", "requests", "width", "lanes", "cost", "ideal", "")
        table = [head] + [
            (
                r.line, r.memory, r.op, str(r.requests), str(r.width),
                f"{r.lanes / r.requests:.1f}",
                f"{r.cost / r.requests:.2f}", f"{r.ideal / r.requests:.2f}",
                f"<- {r.remark}" if r.remark else "",
            )
            for r in self.rows
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        text = [
            "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in
                      enumerate(zip(row, widths, strict=True))).rstrip()
            for row in table
        ]  # fmt: skip
        text.append("cost: 32-byte sectors a request; for shared memory, passes over its banks")
        for name in sorted({r.memory for r in self.rows if not r.shared}):
            text.append(f"{name}: {self.read(name)} bytes read, {self.written(name)} written")
        seconds = self.global_bytes / H100_BYTES_PER_SECOND
        text.append(f"{self.global_bytes} bytes in all: {seconds * 1e6:.3f} µs of an H100's memory")
        return "\n".join(text)


def _source_lines(binary: Path, offsets: list[str]) -> dict[str, str]:
    """The innermost line outside the emulation for each instruction; its offset if unknown."""
    addr2line = shutil.which("addr2line")
    if addr2line is None or not offsets:
        return {offset: f"+{offset}" for offset in offsets}
    calls = [f"{int(offset, 16) - 1:x}" for offset in offsets]  # these are return addresses
    out = subprocess.run(
        [addr2line, "-a", "-i", "-e", binary, *calls], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    address = ""
    for line in out.splitlines():
        if line.startswith("0x"):
            address = f"{int(line, 16) + 1:x}"
        elif address not in found and not re.search(r"cuda/(device/\.\./)?emulation/|^\?", line):
            place = line.split(" ")[0]
            found[address] = "/".join(place.split("/")[-1:])
    return {offset: found.get(offset, f"+{offset}") for offset in offsets}
