"""Turns what the preprocessor made of a CUDA file into what g++ compiles.

A kernel's ``__launch_bounds__`` become a check at its begin: CUDA refuses a launch of more threads.
"""

from __future__ import annotations

import re

#: What cuda_words.h makes of __launch_bounds__ under HETKERN_MARKS.
_BOUNDS = re.compile(r"\bhetkern_launch_bounds\s*\(")
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
    return "".join([*parts, text[done:]])


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
