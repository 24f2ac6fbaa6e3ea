"""asm statements of other people's CUDA files: found in preprocessed text and made C++.

``asm volatile("ldmatrix… {%0}, [%1];" : "=r"(x) : "r"(p))`` becomes a block that reads the operands
into registers, runs the instructions (inline_ptx.py) and writes the outputs. Files of the system
and of the emulation itself keep theirs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from hetkern.testing.emulation.inline_ptx import Assembler
from hetkern.testing.emulation.inline_words import NAMESPACE, Unknown

_MARKER = re.compile(r'^# (\d+) "((?:[^"\\\n]|\\.)*)"([ \d]*)$', re.M)
_ASM = re.compile(
    r"(?<![\w$])(?:asm|__asm__|__asm)\b\s*"
    r"(?:(?:volatile|__volatile__|__volatile|inline|(?P<jumps>goto))\b\s*)*\("
)
_LITERAL = re.compile(r'\s*(?:R"([^\s()\\]{0,16})\((.*?)\)\1"|"((?:[^"\\\n]|\\.)*)")', re.S)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "0": "\0"}
_SIZES = {"b": 1, "h": 2, "r": 4, "l": 8, "f": 4, "d": 8, "n": 0, "C": 0}


def without_asm(
    text: str, is_users: Callable[[str], bool], closing: Callable[[str, int], int]
) -> tuple[str, list[tuple[str, int, str]]]:
    """The text with each asm statement of a user's file as C++, and those that are not known.

    Args:
        text: what the preprocessor made, with its markers of lines.
        is_users: whether a file of that name is the user's.
        closing: the position past the bracket that closes the one at a position.
    """
    unknown: list[tuple[str, int, str]] = []
    parts: list[str] = []
    done = 0
    markers = list(_MARKER.finditer(text))
    ends = [m.start() for m in markers[1:]] + [len(text)]
    users: dict[str, bool] = {}
    for marker, end in zip(markers, ends, strict=True):
        name = re.sub(r"\\(.)", r"\1", marker[2])
        if " 3" in marker[3] or marker.end() < done:
            continue
        if name not in users:
            users[name] = is_users(name)
        if not users[name]:
            continue
        at = marker.end() + 1
        while match := _ASM.search(text, max(at, done), end):
            line = int(marker[1]) + text.count("\n", marker.end() + 1, match.start())
            try:
                past = closing(text, match.end() - 1)
            except ValueError:
                break
            inside = re.sub(r"^# \d+ .*$", "", text[match.end() : past - 1], flags=re.M)
            parts.append(text[done : match.start()])
            try:
                if match["jumps"]:
                    raise Unknown("asm goto")
                parts.append(translated(inside))
            except Unknown as what:
                unknown.append((name, line, f"asm: it does not know {what}"))
                parts.append("((void)0)")
            last = _place(text, past, marker)
            parts.append(f'\n# {last} "{marker[2]}"\n')
            done = at = past
    return "".join([*parts, text[done:]]), unknown


def _place(text: str, at: int, marker: re.Match[str]) -> int:
    """The line of a position, by the last marker before it."""
    inner = [m for m in _MARKER.finditer(text, marker.start(), at)][-1]
    return int(inner[1]) + text.count("\n", inner.end() + 1, at)


def translated(inside: str) -> str:
    """What stands between the brackets of an asm statement, as a C++ expression."""
    text, at = "", 0
    while match := _LITERAL.match(inside, at):
        at = match.end()
        text += match[2] if match[3] is None else _unescaped(match[3])
    if at == 0:
        raise Unknown(inside.strip()[:60])
    sections = _sections(inside[at:])
    operands = [(c, e, k == 0) for k, part in enumerate(sections[:2]) for c, e in _operands(part)]
    text = re.sub(r"%(%|=|\d+)", _placeholder, text)
    read, registers, written = [], [], []
    sizes = [_size(constraint) for constraint, _, _ in operands]
    for n, (constraint, expression, is_output) in enumerate(operands):
        size = sizes[n]
        if size == 0:
            read.append(f"[[maybe_unused]] constexpr auto hetkern_r{n} = ({expression});")
            continue
        read.append(f"[[maybe_unused]] auto&& hetkern_o{n} = ({expression});")
        begin = "0" if "=" in constraint else f"{NAMESPACE}in<{size}>(hetkern_o{n})"
        registers.append(f"[[maybe_unused]] uint{8 * size}_t hetkern_r{n} = {begin};")
        if is_output:
            written.append(f"{NAMESPACE}out(hetkern_o{n}, hetkern_r{n});")
    assembler = Assembler(sizes)
    body = assembler.translate(text)
    labels = "".join(f"__label__ {name}; " for name in dict.fromkeys(assembler.labels))
    return f"({{ {labels}{' '.join([*read, *registers])} {{ {body} }} {' '.join(written)} }})"


def _placeholder(match: re.Match[str]) -> str:
    return {"%": "%", "=": "0"}.get(match[1], f"\x01{match[1]}")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), text.replace("\\\n", ""))


def _size(constraint: str) -> int:
    letters = constraint.strip("=+&")
    if letters not in _SIZES:
        raise Unknown(f'the constraint "{constraint}"')
    return _SIZES[letters]


def _sections(text: str) -> list[str]:
    """Outputs, inputs, clobbers: what stands between colons outside brackets and strings."""
    parts, depth, i = [], 0, 0
    while i < len(text):
        if text[i] == '"':
            i = _LITERAL.match(text, i).end()  # type: ignore[union-attr]
            continue
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if text[i] == ":" and depth == 0:
            parts.append(i)
        i += 1
    bounds = [*parts, len(text)]
    return [text[a + 1 : b] for a, b in itertools.pairwise(bounds)]


def _operands(section: str) -> list[tuple[str, str]]:
    """Constraint and expression of each."""
    found, i = [], 0
    while match := re.compile(r'[\s,]*"([^"]*)"\s*\(').match(section, i):
        depth, at = 1, match.end()
        while depth and at < len(section):
            if section[at] in "\"'":
                quote, at = section[at], at + 1
                while section[at] != quote:
                    at += 2 if section[at] == "\\" else 1
            depth += (section[at] == "(") - (section[at] == ")")
            at += 1
        found.append((match[1], section[match.end() : at - 1]))
        i = at
    if section[i:].strip(" \n\t\r,"):
        raise Unknown(section[i:].strip()[:60])
    return found
