"""What an instruction sees of the machine that runs it: its threads' registers, and memory."""

from __future__ import annotations

from typing import Protocol

from hetkern.testing.ptx.memory import Memory
from hetkern.testing.ptx.values import Array


class Threads(Protocol):
    """The threads of a block; ``machine.Machine`` is one."""

    threads: int
    memory: Memory

    def read(self, operand: str, kind: str) -> Array:
        """An operand's bits, one element a thread."""
        ...

    def write(self, operand: str, value: Array, active: Array) -> None:
        """Give a register its bits, in the active threads."""
        ...

    def address(self, operand: str) -> Array:
        """Where an operand in brackets points to."""
        ...
