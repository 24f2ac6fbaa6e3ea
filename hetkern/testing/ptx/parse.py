"""PTX text, taken apart: one kernel's instructions, labels, parameters and constant data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_COMMENT = re.compile(r"//[^\n]*")
_LABEL = re.compile(r"^(\$\w+):\s*(.*)$")
_GUARD = re.compile(r"^@(!?)(%?[\w@]+)\s+(.*)$", re.DOTALL)
_WORD = re.compile(r"^([\w.:]+)\s*(.*)$", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,)]*?(\w+_param_\d+)")
_DATA = re.compile(
    r"\.global\s+(?:\.align\s+\d+\s+)?\.b(\d+)\s+(\w+)\[(\d+)\](?:\s*=\s*\{([^}]*)\})?"
)


class PtxError(NotImplementedError):
    """An instruction, a space or a value that the evaluator does not know."""


@dataclass(frozen=True)
class Instruction:
    """``@guard name.modifier….type operands``."""

    name: str
    modifiers: tuple[str, ...]  #: all words after the name, types included
    operands: tuple[str, ...]
    guard: str  #: the predicate's register, or nothing
    negated: bool  #: whether the guard is ``@!``
    text: str

    @property
    def type(self) -> str:
        """The last word: the type, for almost all."""
        return self.modifiers[-1] if self.modifiers else ""


@dataclass(frozen=True)
class Program:
    """A kernel."""

    name: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  #: to the index of the next instruction
    parameters: tuple[str, ...]  #: the type of each
    data: dict[str, bytes] = field(repr=False)  #: arrays of the module in global memory


def parse(text: str) -> Program:
    """The one kernel of a module.

    Raises:
        PtxError: the module calls functions, or its text is not understood.
    """
    text = _COMMENT.sub("", text)
    entry = re.search(r"\.entry\s+(\w+)\s*\(", text)
    if entry is None:
        raise PtxError("ptx: the module has no kernel")
    head, body = text[entry.end() :].split("{", 1)
    parameters = tuple(kind for kind, _ in _PARAMETER.findall(head))
    data = {}
    for bits, name, size, values in _DATA.findall(text):
        width = int(bits) // 8
        numbers = [int(v, 0) % (1 << int(bits)) for v in values.split(",")] if values else []
        raw = b"".join(n.to_bytes(width, "little") for n in numbers)
        data[name] = raw.ljust(width * int(size), b"\0")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in _statements(_to_closing_brace(body)):
        if statement.endswith(":"):
            labels[statement[:-1]] = len(instructions)
        else:
            instructions.append(_instruction(statement))
    return Program(entry[1], tuple(instructions), labels, parameters, data)


def _to_closing_brace(body: str) -> str:
    depth = 1
    for at, letter in enumerate(body):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return body[:at]
    raise PtxError("ptx: a brace is not closed")


def _statements(body: str) -> list[str]:
    """Instructions and ``label:``, the registers of inner scopes renamed."""
    pieces: list[str] = []
    waiting = ""
    for line in body.split("\n"):
        line = line.strip()
        if line.startswith((".loc", ".pragma", ".file")):
            continue
        while not waiting and (label := _LABEL.match(line)):
            pieces.append(f"{label[1]}:")
            line = label[2].strip()
        for part in re.findall(r"[^;]*;|[^;]+$", line):
            waiting = f"{waiting} {part}".strip()
            if waiting.endswith(";"):
                pieces.append(waiting[:-1].strip())
                waiting = ""
    if waiting.strip("{} \t"):
        raise PtxError(f"ptx: {waiting!r} is not understood")
    return _flattened(pieces)


def _flattened(pieces: list[str]) -> list[str]:
    out: list[str] = []
    scopes: list[dict[str, str]] = []
    count = 0
    for piece in pieces:
        while True:
            if piece.startswith("}"):
                scopes.pop()
                piece = piece[1:].strip()
            elif piece.startswith("{"):
                count += 1
                scopes.append({})
                piece = piece[1:].strip()
            else:
                break
        if piece.startswith(".reg"):
            if scopes:
                for name in re.sub(r"^\.reg\s+\.\w+\s+", "", piece).split(","):
                    scopes[-1][name.strip()] = f"{name.strip()}@{count}"
            continue
        if not piece or piece.startswith("."):
            continue
        for scope in scopes:
            for name, unique in scope.items():
                piece = re.sub(rf"(?<![\w%@.]){re.escape(name)}(?![\w@])", unique, piece)
        out.append(piece)
    return out


def _instruction(text: str) -> Instruction:
    rest, guard, negated = text, "", False
    if found := _GUARD.match(text):
        negated, guard, rest = found[1] == "!", found[2], found[3]
    word = _WORD.match(rest.strip())
    if word is None:
        raise PtxError(f"ptx: {text!r} is not understood")
    name, *modifiers = word[1].replace("::", "_").split(".")
    return Instruction(
        name, tuple(modifiers), tuple(split(word[2])), guard, negated, " ".join(text.split())
    )


def split(operands: str) -> list[str]:
    """Operands between commas outside brackets."""
    parts, depth, current = [], 0, ""
    for letter in operands:
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return [*parts, current.strip()] if current.strip() else parts
