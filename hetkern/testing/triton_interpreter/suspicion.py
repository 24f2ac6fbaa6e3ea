"""Where Triton's compiler is known to make other code than the source says, the code decides.

Triton 3.7.1 (both found by running its PTX):

* an accumulator that a loop reads before it adds a reduction to it keeps its first value for that
  reader (the pass that lets each thread accumulate its own part forgets the reader);
* ``//`` and ``%`` of offsets that are negative somewhere are taken for non-negative, and neighbours
  for neighbours, so that one wide access reads what the source does not name.

A launch where one of these may matter runs its compiled code too (compiled). Where that gives
other bits the tensors keep those, as on a GPU, and a :class:`KernelWarning` says so.
"""

from __future__ import annotations

import ast
import math
import warnings
from typing import Any

import numpy as np

from hetkern.testing.triton_interpreter.checked_memory import KernelError, memory, source_line

ACCUMULATOR = "an accumulator is read before its update in its loop"
DIVISION = "a division"
_REDUCTIONS = {"sum", "max", "min", "reduce"}


class KernelWarning(UserWarning):
    """The compiled kernel does not do what its source says."""


# ---- In a kernel's source. -----------------------------------------------------------------------


def of_source(definition: ast.FunctionDef) -> frozenset[str]:
    """Which of the two could be in a function, before it is rewritten."""
    found = set()
    for node in ast.walk(definition):
        if isinstance(node, ast.For) and _reads_accumulator(node.body):
            found.add(ACCUMULATOR)
        operator = getattr(node, "op", None)
        if isinstance(operator, ast.FloorDiv | ast.Mod):
            found.add(DIVISION)
    return frozenset(found)


def _reads_accumulator(body: list[ast.stmt]) -> bool:
    for place, statement in enumerate(body):
        name = _accumulated(statement)
        if name and any(_reads(earlier, name) for earlier in body[:place]):
            return not any(_reads(later, name) for later in body[place + 1 :])
    return False


def _accumulated(statement: ast.stmt) -> str:
    """The name to which a statement adds a reduction."""
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        name, value = statement.target.id, statement.value
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name, value = statement.targets[0].id, statement.value
        if not _reads(statement, name):
            return ""
    else:
        return ""
    calls = [n.func for n in ast.walk(value) if isinstance(n, ast.Call)]
    return name if any(getattr(f, "attr", "") in _REDUCTIONS for f in calls) else ""


def _reads(statement: ast.stmt, name: str) -> bool:
    return any(
        isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)
        for n in ast.walk(statement)
    )


# ---- While it runs. ------------------------------------------------------------------------------


def repair(interpreter: Any) -> None:
    """Look at dividends."""
    builder = interpreter.InterpreterBuilder

    def looking(name: str) -> None:
        stock = getattr(builder, name)

        def apply(self: Any, left: Any, right: Any) -> Any:
            data = left.data
            if data.size > 1 and data.dtype.kind == "i" and (data < 0).any():
                _look(data, right.data)
            return stock(self, left, right)

        setattr(builder, name, apply)

    for name in ("create_sdiv", "create_srem"):
        looking(name)


def _look(dividend: np.ndarray, divisor: np.ndarray) -> None:
    """Suspect neighbours in a row, from a multiple of what divides the divisor too, below zero."""
    if not dividend.ndim or (divisor != divisor.reshape(-1)[0]).any():
        return
    by = int(divisor.reshape(-1)[0])
    for axis, extent in enumerate(dividend.shape):
        if extent > 1 and (np.diff(dividend.astype(np.int64), axis=axis) == 1).all():
            if math.gcd(int(dividend.reshape(-1)[0]), by) > 1:
                memory.suspect = f"{source_line()}: a dividend of // or % is below zero"


# ---- After it ran. -------------------------------------------------------------------------------


def judge(shadow: Any, executor: Any, grid: tuple[int, int, int], mode: str) -> None:
    """Run the compiled code, and say what differs."""
    kernel, why = executor.fn.__name__, memory.suspect
    try:
        shadow.run(executor.function, executor.parameters, executor.options, grid)
    except NotImplementedError as unknown:
        if mode:
            raise
        raise KernelError(
            f"{kernel}: {why}: Triton 3.7.1 compiles that to something else in some kernels, and "
            f"whether in this one cannot be told: {unknown}"
        ) from unknown
    if mode == "values":
        shadow.keep()
    elif told := shadow.difference():
        if mode:
            raise KernelError(f"{kernel}: {told}")
        shadow.keep()
        text = f"{kernel}: {why}, and Triton compiles it to something else: {told}"
        warnings.warn(f"{text} (the tensors keep what was compiled)", KernelWarning, stacklevel=2)
