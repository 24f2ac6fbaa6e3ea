"""Turns what the preprocessor made of a CUDA file into what g++ compiles.

A kernel's ``__launch_bounds__`` become a check at its begin: CUDA refuses a launch of more threads.
The plain read that begins a loop of ``atomicCAS`` becomes an atomic one: a value that others have
changed since fails the comparison, so that it is no race.
"""

from __future__ import annotations

import re

#: What cuda_words.h makes of __launch_bounds__ under HETKERN_MARKS.
_BOUNDS = re.compile(r"\bhetkern_launch_bounds\s*\(")
_CAS = re.compile(r"\batomicCAS(?:_block|_system)?\s*\(")
_BRACE = re.compile(r"[{}]")
_CAST = re.compile(
    r"\(\s*(?:const\s+|volatile\s+|unsigned\s+|signed\s+|long\s+|struct\s+)*[\w:]+\s*\*\s*\)\s*(?P<after>.+)$"
    r"|reinterpret_cast\s*<[^>]*>\s*\((?P<within>.+)\)$|\((?P<inner>.+)\)$"
)
_FAR = 20000  # characters of one function
_SKIPPED = re.compile(
    r'\s+|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|__attribute__\s*\(|[^"\'(){};]'
)


def closing(text: str, opening: int) -> int:
    """The position past the bracket that closes the one at ``opening``."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    wanted, depth, i = pairs[text[opening]], 0, opening
    while i < len(text):
        if text[i] in "\"'":
            i = _past_literal(text, i)
            continue
        depth += (text[i] == text[opening]) - (text[i] == wanted)
        i += 1
        if depth == 0:
            return i
    raise ValueError("a bracket that nobody closes")


def _past_literal(text: str, i: int) -> int:
    quote, i = text[i], i + 1
    while i < len(text) and text[i] != quote:
        i += 2 if text[i] == "\\" else 1
    return i + 1


def rewritten(text: str) -> str:
    """The text that is compiled: the same lines, with the checks."""
    parts: list[str] = []
    done = 0
    while match := _BOUNDS.search(text, done):
        end = closing(text, match.end() - 1)
        bounds = text[match.end() : end - 1]
        parts.append(text[done : match.start()])
        done = end
        body = _body_after(text, end)
        if body is not None:
            parts.append(text[end:body] + f" ::hetkern::emulation::within_bounds({bounds}); ")
            done = body
    return _with_atomic_first_reads("".join([*parts, text[done:]]))


def _with_atomic_first_reads(text: str) -> str:
    reads: set[tuple[int, int, str]] = set()
    for call in _CAS.finditer(text):
        address = _pointer(_first_argument(text, call.end()))
        begin = _function_around(text, call.start())
        if not address or begin is None:
            continue
        pointed = re.escape(address[1:].strip()) if address[0] == "&" else ""
        name = re.escape(address)
        what = pointed or rf"\*\s*(?:{name}|\(\s*{name}\s*\))|{name}\s*\[\s*0\s*\]"
        for read in re.compile(rf"(?<![=!<>+\-*/%&|^])=\s*({what})\s*(?=[,;)])").finditer(
            text, begin, call.start()
        ):
            reads.add((*read.span(1), address))
    for start, end, address in sorted(reads, reverse=True):
        text = text[:start] + f"::hetkern::emulation::read_to_compare({address})" + text[end:]
    return text


def _first_argument(text: str, i: int) -> str:
    """What stands from ``i`` to the comma that ends it."""
    depth, start = 0, i
    while i < len(text):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
        if depth < 0 or (depth == 0 and text[i] == ","):
            break
        i += 1
    return text[start:i].strip()


def _pointer(argument: str) -> str:
    """The pointer within its casts."""
    while cast := _CAST.match(argument):
        argument = cast["after"] or cast["within"] or cast["inner"]
    return argument.strip()


def _function_around(text: str, i: int) -> int | None:
    """Where the body of the function that has ``i`` in it begins."""
    found, depth = None, 0
    for brace in reversed([m for m in _BRACE.finditer(text, max(0, i - _FAR), i)]):
        depth += 1 if brace[0] == "}" else -1
        if depth < 0:
            depth = 0
            if not text[max(0, brace.start() - 200) : brace.start()].rstrip().endswith(")"):
                if found is not None:
                    return found
            else:
                found = brace.end()
    return found


def _body_after(text: str, i: int) -> int | None:
    """The position past the "{" of the function that is declared there; None: it has no body."""
    parameters = False
    while i < len(text):
        skipped = _SKIPPED.match(text, i)
        if skipped and skipped[0].startswith("__attribute__"):
            i = closing(text, skipped.end() - 1)
        elif skipped:
            i = skipped.end()
        elif text[i] == "(" and not parameters:
            i, parameters = closing(text, i), True
        elif text[i] == "{" and parameters:
            return i + 1
        else:
            return None
    return None
