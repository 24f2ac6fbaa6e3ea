"""Triton kernels on the CPU, as a GPU would run them: a pytest plugin, a launcher and a context.

``pytest -p hetkern.testing.triton_interpreter …`` and ``python -m
hetkern.testing.triton_interpreter script.py …`` run every ``@triton.jit`` kernel, anybody's, in
Triton's own interpreter, repaired:

* language: and, or, not, conditions, loops, names and numbers mean what Triton's compiler makes of
  them, and what it does not take raises with its line (source, control); arguments
  have a launch's types, and 1 is a constant (launch);
* numbers: as an H100's instructions give them, bit by bit where these are exact: bfloat16 rounds
  once, a product that feeds a sum is one fma (contraction), sums have the compiled order and dtype
  (reductions), atomics and libdevice's functions round as there (atomics, libdevice);
* memory: a load or store outside its tensor's own elements, or not aligned to its size, raises
  :class:`KernelError` with pointer, program and bytes, and so does what only luck decides on a GPU:
  two programs that touch an element of which one writes it without an atomic (checked_memory), two
  lanes of one program that do so without a barrier (order);
* ``@triton.autotune`` runs the first configuration; a false hint (``tl.multiple_of``,
  ``tl.max_contiguous``, ``tl.max_constancy``) raises (blocks);
* inline assembly, 8-bit floats' arithmetic and reductions of bfloat16 other than sums, largest and
  smallest raise by name.

Where source and compiled code may differ all the same, ``--compiled`` or :func:`compiled` runs each
launch's PTX too and compares; two habits of the compiler are looked for always (suspicion). Too
much shared memory and spills are what ahead-of-time compilation finds (triton_aot).

Triton decides for its interpreter when ``@triton.jit`` decorates, its own library included. So this
comes before triton is imported, or says that it is too late.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy

import hetkern.impl
from hetkern.testing.traffic.table import Traffic
from hetkern.testing.triton_interpreter.approximation import approximate, begin
from hetkern.testing.triton_interpreter.checked_memory import (
    Counter,
    KernelError,
    memory,
    source_line,
)
from hetkern.testing.triton_interpreter.compiled import MODES, check, compiled

__all__ = [
    "KernelError",
    "Traffic",
    "activate",
    "active",
    "approximate",
    "compiled",
    "races_allowed",
    "traffic",
]

done = False  # whether this process interprets, or has no need to be told so


def active() -> bool:
    """Whether Triton kernels run in the repaired interpreter in this process."""
    return done


def activate() -> None:
    """Make this process interpret Triton kernels, on CPU tensors; it cannot be undone.

    Raises:
        RuntimeError: triton was imported before and compiles.
        ImportError: triton is not installed.
    """
    global done
    if done:
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
    from hetkern.testing.triton_interpreter import (
        alignment,
        approximation,
        atomics,
        blocks,
        contraction,
        launch,
        libdevice,
        numbers,
        reductions,
        speed,
        suspicion,
    )

    speed.repair(interpreter, language)
    _patch_language_once(interpreter, language)
    numbers.repair(interpreter, language)
    reductions.repair(interpreter, language)
    contraction.repair(interpreter, language)
    suspicion.repair(interpreter)
    alignment.repair(interpreter)
    approximation.repair(interpreter)
    libdevice.repair(interpreter, language)
    launch.repair()
    blocks.repair(interpreter, language)
    atomics.repair(interpreter, language)
    _check_memory(interpreter, language)
    _run_first_configuration()
    _refuse(interpreter, language)
    hetkern.impl.triton_interprets = True
    done = True


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
    from hetkern.testing.triton_interpreter import control

    names: dict[str, Any] = {"language": language, "core": language.core}
    interpreter._patch_lang(types.FunctionType(active.__code__, names))

    class NothingToRestore:
        def restore(self) -> None:
            """Leave the language as it is."""

    interpreter._patch_lang = lambda fn: NothingToRestore()
    language.tensor.__bool__ = lambda self: True  # Triton's own code asks whether there is one
    language.static_assert = language.core.static_assert = control.static_assert
    interpreter.interpreter_semantic.device_assert = control.device_assert
    interpreter.interpreter_semantic.assume = control.assume
    language.range = language.core.range = control.counting
    language.static_range = language.core.static_range = control.unrolled


def _check_memory(interpreter: Any, language: Any) -> None:
    """Every access asks for leave."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def width(pointer: Any) -> int:
        return max(1, pointer.get_element_ty().primitive_bitwidth // 8)

    def handle(mask: Any) -> Any:  # descriptors and block pointers give an array
        array = isinstance(mask, numpy.ndarray)
        return interpreter.TensorHandle(mask, language.int1) if array else mask

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        mask = handle(mask)
        memory.access("load", pointers.data, mask.data, width(pointers), self)
        return load(self, pointers, mask, *rest, **more)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        mask = handle(mask)
        memory.access("store", pointers.data, mask.data, width(pointers), self, value.data)
        return store(self, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store

    def with_barrier(owner: Any, name: str) -> None:
        stock = getattr(owner, name)

        def apply(self: Any, *arguments: Any, **named: Any) -> Any:
            memory.order.barrier()
            return stock(self, *arguments, **named)

        setattr(owner, name, apply)

    for name in ("barrier", "dot", "histogram", "gather"):
        with_barrier(builder, f"create_{name}")
    for operation in (interpreter.ReduceOps, interpreter.ScanOps):
        with_barrier(operation, "apply_impl")


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


def _refuse(interpreter: Any, language: Any) -> None:
    """Name what would run wrongly, or fail in an obscure place."""
    builder = interpreter.InterpreterBuilder

    def refusal(what: str) -> Any:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"triton_interpreter: {what} is not interpreted")

        return refuse

    builder.create_inline_asm = refusal("inline assembly")
    histogram = builder.create_histogram

    def create_histogram(self: Any, data: Any, *rest: Any) -> Any:
        if data.data.itemsize == 1:
            raise KernelError(f"a histogram of {data.dtype} does not compile: cast to int32 first")
        return histogram(self, data, *rest)

    gather = builder.create_gather

    def create_gather(self: Any, source: Any, indices: Any, axis: Any) -> Any:
        at, extent = indices.data, source.data.shape[axis]
        if (outside := (at < 0) | (at >= extent)).any():
            what = f"tl.gather of element {at[outside].flat[0]} of an axis of {extent}"
            raise KernelError(f"{source_line()}: {what}: a GPU gives any ({memory.where()})")
        return gather(self, source, indices, axis)

    language.dot_scaled = language.core.dot_scaled = refusal("tl.dot_scaled")
    builder.create_histogram, builder.create_gather = create_histogram, create_gather
    builder.create_map_elementwise = refusal("map_elementwise")


# ---- Plugin and launcher. ------------------------------------------------------------------------


def pytest_load_initial_conftests() -> None:
    """Before any conftest, which may import kernels."""
    activate()


def pytest_addoption(parser: Any) -> None:
    """Add ``--compiled`` and ``--approximate``."""
    parser.addoption(
        "--compiled",
        choices=MODES,
        nargs="?",
        const="bits",
        help="run each launch's PTX too: it must give the same bits, or the test judges its values",
    )

    parser.addoption(
        "--approximate",
        type=int,
        metavar="SEED",
        help="move approximations' results within their documented error, and widen the budget",
    )


def pytest_configure(config: Any) -> None:
    """In a worker of pytest-xdist, which hears of its plugins later."""
    activate()
    check.mode = config.getoption("--compiled") or ""
    begin(config.getoption("--approximate"))


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
