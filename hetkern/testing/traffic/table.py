"""What was counted of a kernel's memory traffic, as a table and as numbers to assert.

The CUDA emulation counts the requests of warps, the Triton interpreter those of programs, which
the compiler shares out among warps: what only that decides is None here, and "-" in the table.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Bytes a second of an H100 (SXM, HBM3): NVIDIA's data sheet.
H100_BYTES_PER_SECOND = 3.35e12


@dataclass(frozen=True)
class Row:
    """All requests of one line of source to one tensor, or to shared memory."""

    kernel: str  #: with its template arguments, where they are known
    line: str  #: file:line
    memory: str  #: a tensor's name, "shared", "shared of a peer" or "unnamed"
    op: str  #: "load" or "store"
    width: int | None  #: bytes a lane
    requests: int  #: of a warp; in Triton of a program
    lanes: int  #: in all of them; in Triton elements
    bytes: int
    cost: int | None = None  #: sectors of 32 bytes; in shared memory passes
    ideal: int | None = None

    @property
    def shared(self) -> bool:
        """Whether the cost counts passes over the banks of shared memory."""
        return self.memory.startswith("shared")

    @property
    def remark(self) -> str:
        """What is wrong with it, if anything."""
        if self.cost is None or self.ideal is None:
            return ""
        if self.shared:
            return "bank conflicts" if self.cost > self.ideal else ""
        # A request of unaligned neighbours touches one sector more than it fills.
        return "uncoalesced" if self.cost > self.ideal + self.requests else ""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: str  #: as in its rows
    blocks: int
    threads: int  #: a block
    shared_bytes: int  #: a block
    cluster: int  #: blocks in each

    @property
    def name(self) -> str:
        """The kernel's name without namespaces and template arguments."""
        return bare_name(self.kernel)


@dataclass
class Traffic:
    """Every load and store of some launches, by line of source."""

    rows: tuple[Row, ...] = ()
    launches: tuple[Launch, ...] = ()  #: the emulation's

    @staticmethod
    def read_from(file: Path, binary: Path) -> Traffic:
        """What traffic.cpp wrote, its instructions turned into lines of the binary's source."""
        fields = [line.split("\t") for line in file.read_text().splitlines()]
        launched = [f[1:] for f in fields if f[0] == "launch"]
        fields = [f for f in fields if f[0] != "launch"]
        kernels = {offset: name for name, offset, *_ in launched}
        stacks = _stacks(binary, [*kernels, *{f[1] for f in fields}])
        for offset in kernels:
            if stacks.get(offset):
                kernels[offset] = short_name(stacks[offset][-1][0])
        merged: dict[tuple[str, str, str, str, int], list[int]] = defaultdict(lambda: [0] * 5)
        for kernel, offset, memory, op, width, *counts in fields:
            line = _line(stacks.get(offset, [])) or f"+{offset}"
            sums = merged[(kernels[kernel], line, memory, op, int(width))]
            for i, count in enumerate(counts):
                sums[i] += int(count)
        launches = tuple(
            Launch(kernels[offset], *(int(number) for number in numbers))
            for _, offset, *numbers in launched
        )
        return Traffic(tuple(Row(*key, *sums) for key, sums in sorted(merged.items())), launches)

    @staticmethod
    def packs_in(file: Path, binary: Path) -> list[str]:
        """The instructions of some counts that touch fields of packs: nvcc may take them at once.

        In global memory the source must name a field: of a plain pointer nvcc knows no alignment.
        """
        fields = [line.split("\t") for line in file.read_text().splitlines()]
        narrow = {f[1]: f[2] for f in fields if f[0] != "launch" and int(f[4]) < 16}
        stacks = _stacks(binary, list(narrow))
        return [
            offset
            for offset, memory in narrow.items()
            if memory.startswith("shared") or _names_a_field(stacks.get(offset, []))
        ]

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
        """Raise if more bytes than these of these tensors move, uncoalesced or with conflicts.

        Args:
            read: the most bytes by tensor; what is not named must not be read.
            written: likewise.
            width: bytes a lane that every access to a named tensor must have.
        """
        self._assert(read, written, width, lambda got, allowed: got <= allowed)

    def assert_exact(
        self, *, read: dict[str, int], written: dict[str, int], width: int | None = None
    ) -> None:
        """Raise unless exactly these bytes of these tensors move, else as :meth:`assert_within`."""
        self._assert(read, written, width, lambda got, allowed: got == allowed)

    def _assert(
        self,
        read: dict[str, int],
        written: dict[str, int],
        width: int | None,
        fits: Callable[[int, int], bool],
    ) -> None:
        wrong = list(self.remarks)
        names = {r.memory for r in self.rows if not r.shared} | set(read) | set(written)
        for name in sorted(names):
            for verb, got, budget in (
                ("read", self.read(name), read), ("written", self.written(name), written)
            ):  # fmt: skip
                if not fits(got, allowed := budget.get(name, 0)):
                    wrong.append(f"{name}: {got} bytes {verb}, the budget is {allowed}")
        if width:
            wrong += [
                f"{r.line}: {r.memory}: {r.op}: {r.width or 'unknown'} bytes a lane, wanted {width}"
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
                r.line, r.memory, r.op, str(r.requests), "-" if r.width is None else str(r.width),
                f"{r.lanes / r.requests:.1f}", _each(r.cost, r), _each(r.ideal, r),
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
        if any(r.cost is None for r in self.rows):
            text.append("requests: of programs, which a compiler shares out; -: what it decides")
        else:
            text.append("cost: 32-byte sectors a request; for shared memory, passes over its banks")
        for name in sorted({r.memory for r in self.rows if not r.shared}):
            text.append(f"{name}: {self.read(name)} bytes read, {self.written(name)} written")
        seconds = self.global_bytes / H100_BYTES_PER_SECOND
        text.append(f"{self.global_bytes} bytes in all: {seconds * 1e6:.3f} µs of an H100's memory")
        return "\n".join(text)


def bare_name(kernel: str) -> str:
    """A kernel's name without namespaces and template arguments."""
    return kernel.strip("()").split("<")[0].split("::")[-1].strip()


def short_name(function: str) -> str:
    """A function's name as csrc/cuda/budget.json writes it: no namespaces, no parameters."""
    name = re.sub(r"\(anonymous namespace\)::|hetkern::(cuda::)?|^void ", "", function)
    name = name.replace("__nv_bfloat16", "bf16").replace("__half", "f16")
    name = name[: name.rindex(">(") + 1] if ">(" in name else name.split("(")[0]
    return name.replace("> >", ">>").strip()


def _each(count: int | None, row: Row) -> str:
    return "-" if count is None else f"{count / row.requests:.2f}"


def _stacks(binary: Path, offsets: list[str]) -> dict[str, list[tuple[str, str]]]:
    """For each instruction its function and file:line, then those that it is inlined into."""
    addr2line = shutil.which("addr2line")
    if addr2line is None or not offsets:
        return {}
    out = subprocess.run(
        [addr2line, "-a", "-i", "-f", "-C", "-e", binary, *offsets],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    stacks: dict[str, list[tuple[str, str]]] = {}
    for line in out:
        if line.startswith("0x"):
            stack = stacks[f"{int(line, 16):x}"] = []
            function = ""
        elif function:
            stack.append((function, line.split(" ")[0]))
            function = ""
        else:
            function = line
    return stacks


_NO_FIELDS = re.compile(r"\b(threadIdx|blockIdx|blockDim|gridDim)\s*\.\s*\w+|\d\.\d*f?|//.*")


def _names_a_field(stack: list[tuple[str, str]]) -> bool:
    for _, place in stack:
        if re.search(_OURS, place):
            continue
        file, _, number = place.rpartition(":")
        try:
            text = Path(file).read_text(errors="replace").splitlines()[int(number) - 1]
        except (OSError, ValueError, IndexError):
            return False
        return bool(re.search(r"(->|\.)\s*[A-Za-z_]\w*\s*(?!\w*\()", _NO_FIELDS.sub("", text)))
    return False


_OURS = r"cuda/(device/\.\./)?emulation/|/cuda_(bf16|fp16)\.hp?p?:|^\?"


def _line(stack: list[tuple[str, str]]) -> str | None:
    """The innermost line outside the emulation and CUDA's own headers."""
    for _, place in stack:
        if not re.search(_OURS, place):
            return place.split("/")[-1]
    return None
