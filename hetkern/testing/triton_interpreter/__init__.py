"""Triton kernels on the CPU, as a GPU would run them: a pytest plugin, a launcher and a context.

``pytest -p hetkern.testing.triton_interpreter …`` and ``python -m
hetkern.testing.triton_interpreter script.py …`` run every ``@triton.jit`` kernel, anybody's, in
Triton's own interpreter, repaired:

* numbers: bfloat16 rounds to nearest even and computes on values, not on bit patterns; a dot of
  float32 in "tf32" loses the digits that tensor cores lose; max and min drop NaN (numbers);
* memory: a load or store outside its tensor's own elements, or not aligned to its size, raises
  :class:`KernelError` with pointer, program and bytes, and so does what only luck decides on a GPU:
  two programs that touch an element of which one writes it without an atomic (checked_memory);
* ``@triton.autotune`` runs the first configuration; a false ``tl.multiple_of`` raises;
* inline assembly, libdevice, 8-bit floats' arithmetic and reductions of bfloat16 raise by name.

What it does not see: a type that changes in a loop, too much shared memory, spills: those are
what ahead-of-time compilation finds (triton_aot), in a process of its own.

Triton decides for its interpreter when ``@triton.jit`` decorates, its own library included. So this
comes before triton is imported, or says that it is too late.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import hetkern.impl
from hetkern.testing.traffic.table import Traffic
from hetkern.testing.triton_interpreter.checked_memory import Counter, KernelError, memory

__all__ = ["KernelError", "Traffic", "activate", "active", "races_allowed", "traffic"]

_done = False


def active() -> bool:
    """Whether Triton kernels run in the repaired interpreter in this process."""
    return _done


def activate() -> None:
    """Make this process interpret Triton kernels, on CPU tensors; it cannot be undone.

    Raises:
        RuntimeError: triton was imported before and compiles.
        ImportError: triton is not installed.
    """
    global _done
    if _done:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    late = "triton.language.standard" in sys.modules
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    language: Any = importlib.import_module("triton.language")
    if late and not isinstance(language.standard.cdiv, interpreter.InterpretedFunction):
        raise RuntimeError(
            "hetkern.testing.triton_interpreter: too late: triton was imported before, and its "
            "kernels compile. Let the plugin come first (pytest -p "
            "hetkern.testing.triton_interpreter), or set TRITON_INTERPRET=1 from outside"
        )
    from hetkern.testing.triton_interpreter import numbers as triton_numbers

    _patch_language_once(interpreter, language)
    triton_numbers.repair(interpreter, language)
    _check_memory(interpreter, language)
    _run_first_configuration()
    _refuse(interpreter)
    hetkern.impl.triton_interprets = True
    _done = True


@contextlib.contextmanager
def traffic() -> Iterator[Traffic]:
    """Count the bytes that kernels read and write, in the table that CUDA kernels have.

    ``with traffic() as counted: …`` fills the table at its end; tensors are called by the kernels'
    parameters. An element that one request names twice (a broadcast) counts once, one that two
    requests name, as in a second sweep over a row, twice. How lanes share a request is the
    compiler's: sectors, and how many bytes a lane takes, are not counted.
    """
    counted, counter = Traffic(), Counter()
    before, memory.counted = memory.counted, counter
    try:
        yield counted
    finally:
        memory.counted = before
        counted.rows = counter.rows()


@contextlib.contextmanager
def races_allowed() -> Iterator[None]:
    """For a kernel whose programs hand data over on purpose, by a semaphore or a last block."""
    before, memory.check_races = memory.check_races, False
    try:
        yield
    finally:
        memory.check_races = before


# ---- The repairs beside numbers. -----------------------------------------------------------------


def _patch_language_once(interpreter: Any, language: Any) -> None:
    """Put the interpreted functions in place for good: stock Triton does so at every call."""
    names: dict[str, Any] = {"language": language, "core": language.core}
    interpreter._patch_lang(types.FunctionType(active.__code__, names))

    class NothingToRestore:
        def restore(self) -> None:
            """Leave the language as it is."""

    interpreter._patch_lang = lambda fn: NothingToRestore()
    for module in (language, language.core):
        module.multiple_of = _checked_multiple(module.multiple_of)


def _checked_multiple(claim: Any) -> Any:
    def multiple_of(value: Any, factors: Any) -> Any:
        factor = getattr(factors, "value", factors)
        data = value.handle.data if hasattr(value, "handle") else None
        if isinstance(factor, int) and data is not None and data.size == 1:
            kind = getattr(value.handle.dtype, "element_ty", None)
            size = kind.primitive_bitwidth // 8 if kind is not None else 1
            if int(data.reshape(-1)[0]) % (factor * max(1, size)):
                raise KernelError(
                    f"tl.multiple_of({factor}) of {int(data.reshape(-1)[0])} is false, "
                    f"{memory.where()}: a GPU would load from a misaligned address"
                )
        return claim(value, factors)

    return multiple_of


def _check_memory(interpreter: Any, language: Any) -> None:
    """Every launch announces its tensors, every access asks for leave."""
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    to_host, call = executor._init_args_hst, executor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def width(pointer: Any) -> int:
        return max(1, pointer.get_element_ty().primitive_bitwidth // 8)

    one_at_a_time = threading.RLock()  # there is one grid, and one memory

    def announce(self: Any, args: Any, kwargs: Any) -> Any:
        host_args, host_kwargs = to_host(self, args, kwargs)
        named = [*zip(self.arg_names, host_args, strict=False), *host_kwargs.items()]
        memory.launch(self.fn.__name__, named)
        return host_args, host_kwargs

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        import numpy

        warps = kwargs.get("num_warps", 4)
        if warps not in (1, 2, 4, 8, 16, 32):
            raise KernelError(f"{self.fn.__name__}: num_warps: wanted a power of two, got {warps}")
        try:
            with one_at_a_time, numpy.errstate(all="ignore"):
                try:
                    return call(self, *args, **kwargs)
                finally:
                    memory.finish()
        except interpreter.InterpreterError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, KernelError | NotImplementedError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        memory.access("load", pointers.data, mask.data, width(pointers), self)
        return load(self, pointers, mask, *rest, **more)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.access("store", pointers.data, mask.data, width(pointers), self, value.data)
        return store(self, pointers, value, mask, *rest)

    def checked_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if value.dtype.scalar == language.bfloat16:
            raise NotImplementedError("triton_interpreter: atomics on bfloat16 are not interpreted")
        memory.access("atomic", pointers.data, mask.data, width(pointers), self)
        return rmw(self, op, pointers, value, mask, *rest)

    def checked_cas(self: Any, pointers: Any, *rest: Any) -> Any:
        memory.access("atomic", pointers.data, pointers.data != 0, width(pointers), self)
        return cas(self, pointers, *rest)

    executor._init_args_hst, executor.__call__ = announce, launch
    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    builder.create_atomic_rmw, builder.create_atomic_cas = checked_rmw, checked_cas


def _run_first_configuration() -> None:
    """Benchmarking needs a GPU."""
    autotuner: Any = importlib.import_module("triton.runtime.autotuner")

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.configs[0]
        kwargs = {**kwargs, **config.all_kwargs()}
        if config.pre_hook is not None:
            config.pre_hook({**dict(zip(self.arg_names, args, strict=False)), **kwargs})
        return self.fn.run(*args, **kwargs)

    autotuner.Autotuner.run = run


def _refuse(interpreter: Any) -> None:
    """Name what would run wrongly, or fail in an obscure place."""
    builder = interpreter.InterpreterBuilder

    def refusal(what: str) -> Any:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"triton_interpreter: {what} is not interpreted")

        return refuse

    builder.create_inline_asm = refusal("inline assembly")
    builder.create_extern_elementwise = refusal("an external function")
    builder.create_map_elementwise = refusal("map_elementwise")
    for name in ("triton.language.extra.libdevice", "triton.language.extra.cuda.libdevice"):
        with contextlib.suppress(ImportError):
            library = importlib.import_module(name)
            for function, value in list(vars(library).items()):
                if callable(value) and getattr(value, "__module__", None) == name:
                    setattr(library, function, refusal(f"libdevice.{function}"))


# ---- Plugin and launcher. ------------------------------------------------------------------------


def pytest_load_initial_conftests() -> None:
    """Before any conftest, which may import kernels."""
    activate()


def pytest_configure() -> None:
    """In a worker of pytest-xdist, which hears of its plugins later."""
    activate()


def main(arguments: list[str]) -> None:
    """Run a script with Triton interpreted."""
    if not arguments:
        raise SystemExit(
            "usage: python -m hetkern.testing.triton_interpreter script.py [argument…]"
        )
    activate()
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")
