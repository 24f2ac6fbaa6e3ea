"""The words of inline PTX: types, literals, special registers, an instruction's parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

#: csrc/cuda/emulation/inline_ptx.h
NAMESPACE = "::hetkern::emulation::inline_ptx::"
#: Of the types of registers.
BYTES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bsu" for bits in (8, 16, 32, 64)},
    "f16": 2, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32": 4, "f64": 8, "pred": 1,
}  # fmt: skip
_FLOATS = {
    "f32": "float", "f64": "double", "f16": f"{NAMESPACE}F16", "bf16": f"{NAMESPACE}BF16",
}  # fmt: skip


class Unknown(Exception):
    """What of inline PTX the emulation does not know."""


class Operands(Protocol):
    """What an instruction's translation asks of the statement that it stands in."""

    def register(self, operand: str) -> str:
        """A register that may be written."""

    def size(self, operand: str) -> int:
        """Its bytes; 0 of a constant and of a predicate."""

    def predicate(self, operand: str) -> str:
        """A bool."""

    def value(self, operand: str, kind: str) -> str:
        """What is read, as C++'s ``kind``."""

    def set(self, operand: str, value: str) -> str:
        """The assignment; of "_" nothing is kept."""

    def address(self, operand: str, space: str) -> str:
        """A pointer."""


@dataclass
class Instruction:
    """``name.modifier….type operands``."""

    name: str
    modifiers: list[str]  #: all words after the name, the type included
    operands: list[str]
    text: str
    assembler: Operands

    @property
    def type(self) -> str:
        """The last word: the type, for almost all."""
        return self.modifiers[-1] if self.modifiers else ""

    @property
    def flushes(self) -> bool:
        """Whether subnormal float32 numbers are zeros to it."""
        return "ftz" in self.modifiers and self.type == "f32"

    def unknown(self) -> Unknown:
        """To be raised."""
        return Unknown(re.sub("\x01", "%", self.text))


def of_type(word: str, bits: bool = False) -> str:
    """C++'s type; of ``bits``, the unsigned integer that holds it."""
    if word not in BYTES or word == "pred":
        raise Unknown(f".{word}")
    if word in _FLOATS and not bits:
        return _FLOATS[word]
    signed = word[0] == "s" and not bits
    return f"{'' if signed else 'u'}int{8 * BYTES[word]}_t"


def literal(text: str, kind: str) -> str:
    """A number in the text as C++'s ``kind``."""
    if text == "WARP_SZ":
        text = "32"
    if match := re.fullmatch(r"(-?)0([fFdD])([0-9a-fA-F]{8,16})", text):
        number = ("float", "0x{}u") if match[2] in "fF" else ("double", "0x{}ull")
        bits = number[1].format(match[3])
        if not match[1] and ("int" in kind):
            return f"static_cast<{kind}>({bits})"
        return f"static_cast<{kind}>({match[1]}{NAMESPACE}as<{number[0]}>({bits}))"
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)[uU]?", text):
        digits = text.rstrip("uU")
        suffix = "ll" if digits.startswith("-") else "ull"
        return f"static_cast<{kind}>({digits}{suffix})"
    if re.fullmatch(r"-?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?", text) and "int" not in kind:
        return f"static_cast<{kind}>({text})"
    raise Unknown(text)


_CURRENT = "::hetkern::emulation::current->"
_SPECIAL = {
    "laneid": f"{_CURRENT}lane",
    "warpid": f"{_CURRENT}warp",
    "cluster_ctarank": f"{_CURRENT}block->rank",
    "cluster_nctarank": "::hetkern::emulation::grid->cluster",
    "dynamic_smem_size": "::hetkern::emulation::grid->shared_bytes",
    "lanemask_eq": f"1u << {_CURRENT}lane",
    "lanemask_lt": f"(1u << {_CURRENT}lane) - 1",
    "lanemask_le": f"(2u << {_CURRENT}lane) - 1",
    "lanemask_gt": f"~((2u << {_CURRENT}lane) - 1)",
    "lanemask_ge": f"~((1u << {_CURRENT}lane) - 1)",
    "clock": "::clock64()", "clock64": "::clock64()", "globaltimer": "::clock64()",
    **{
        f"{word}.{axis}": f"::{name}.{axis}"
        for word, name in (
            ("tid", "threadIdx"), ("ntid", "blockDim"), ("ctaid", "blockIdx"), ("nctaid", "gridDim")
        )
        for axis in "xyz"
    },
}  # fmt: skip


def special(operand: str) -> str | None:
    """What a special register reads as; None: it is none that is known."""
    return _SPECIAL.get(operand[1:]) if operand.startswith("%") else None
