"""Compiles Triton kernels for a process that interprets them: Triton cannot do both in one.

``python -m hetkern.testing.triton_interpreter.compiler_process`` reads pickled requests from its
standard input and answers each with PTX text, or with the error's text in a :class:`Failure`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Function:
    """A ``@triton.jit`` function, by where it is defined."""

    file: str
    module: str
    name: str


@dataclass(frozen=True)
class Request:
    """One kernel with the types and constants of a launch."""

    function: Function
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    architecture: int


@dataclass(frozen=True)
class Failure:
    """Why there is no PTX."""

    text: str


_modules: dict[str, Any] = {}


def _module(function: Function) -> Any:
    """The module that defines a kernel; of a script as much as runs, without its launches."""
    if function.file not in _modules:
        with contextlib.suppress(ImportError):
            found = importlib.import_module(function.module)
            if os.path.samefile(getattr(found, "__file__", None) or os.devnull, function.file):
                _modules[function.file] = found
    if function.file not in _modules:
        from hetkern.testing.triton_aot import launches

        spec = importlib.util.spec_from_file_location("__kernels__", function.file)
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.path.insert(0, os.path.dirname(function.file))
        room: Any = sys.modules[__package__]
        room.done = True  # a script that calls activate() goes on compiling
        with launches(), contextlib.suppress(Exception, SystemExit):
            spec.loader.exec_module(made)
        _modules[function.file] = made
    return _modules[function.file]


def _resolved(value: Any) -> Any:
    if isinstance(value, Function):
        found = _module(value)
        for part in value.name.split("."):
            found = getattr(found, part)
        return getattr(found, "fn", found) if type(found).__name__ != "JITFunction" else found
    if isinstance(value, tuple):
        return tuple(map(_resolved, value))
    return value


def answer(request: Request) -> str | Failure:
    """The PTX."""
    try:
        kernel = _resolved(request.function)
        while type(kernel).__name__ != "JITFunction":  # Autotuner and Heuristics wrap it
            kernel = kernel.fn
        compiler: Any = importlib.import_module("triton.compiler")
        targets: Any = importlib.import_module("triton.backends.compiler")
        constants = {path: _resolved(value) for path, value in request.constants.items()}
        source = compiler.ASTSource(kernel, request.signature, constants, request.attributes)
        made = importlib.import_module("triton").compile(
            source,
            target=targets.GPUTarget("cuda", request.architecture, 32),
            options=request.options,
        )
        return str(made.asm["ptx"])
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}")


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a module prints must not stand between answers
    sys.path[:] = pickle.load(sys.stdin.buffer)
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(request), answers)
        answers.flush()


if __name__ == "__main__":  # by its own name, which the requests' types have
    importlib.import_module("hetkern.testing.triton_interpreter.compiler_process").main()
