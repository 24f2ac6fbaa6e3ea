"""A launch in the repaired Triton interpreter: grid, arguments, programs one after another.

An argument has the type that Triton's launcher gives it. A number without annotation is an int32,
or int64 where it needs to be, a float32 or an int1; one that equals 1 is a constant, unless
``do_not_specialize`` names it; an annotation such as ``n: tl.int64`` decides.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import threading
import types
from typing import Any

import numpy as np
import triton.language as tl
from triton.compiler.code_generator import CodeGenerator
from triton.runtime import interpreter, jit

from hetkern.testing.triton_interpreter import control, suspicion
from hetkern.testing.triton_interpreter.checked_memory import KernelError, memory, source_line_of
from hetkern.testing.triton_interpreter.compiled import Shadow, check
from hetkern.testing.triton_interpreter.numbers import float32_to_bfloat16
from hetkern.testing.triton_interpreter.source import RUNTIME, rewrite

_one_at_a_time = threading.RLock()  # there is one grid, and one memory
_LANGUAGE = os.path.dirname(tl.__file__) + os.sep
_WITHOUT_VALUE = re.compile(r"cannot access \w+ variable '(\w+)'")
_GRID_LIMITS = (2**31 - 1, 65535, 65535)


def repair() -> None:
    """Put launches and the rewriting of kernels in place."""
    executor, function = interpreter.GridExecutor, interpreter.InterpretedFunction
    interpreter.FunctionRewriter.rewrite_ast = _rewritten
    executor.__call__ = _launch
    interpreter._get_np_dtype = _remembering(interpreter._get_np_dtype)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if not warmup:
            made = executor(self.rewrite(), self.arg_names, grid, self.pre_run_hooks)
            made.parameters, made.function = _parameters(self), self.fn
            return made(*args, **kwargs)

    function.run = run


def _remembering(stock: Any) -> Any:
    """Triton's table of numpy's dtypes, which stock Triton makes anew for every block."""
    known: dict[str, Any] = {}

    def numpy_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar
        name = "pointer" if scalar.is_ptr() else scalar.name
        if name not in known:
            known[name] = stock(scalar)
        return known[name]

    return numpy_dtype


# ---- Source. -------------------------------------------------------------------------------------


def _names_outside(function: types.FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def _supported(node: ast.AST) -> bool:
    """Whether the compiler has a rule for this kind of node."""
    if isinstance(node, ast.Starred | ast.FormattedValue):
        return True
    if isinstance(node, ast.BinOp):
        return type(node.op) in CodeGenerator._method_name_for_bin_op
    return hasattr(CodeGenerator, f"visit_{type(node).__name__}")


def _rewritten(self: Any) -> Any:
    """The function as Triton's compiler would understand it; without source it could not."""
    function = self.fn
    try:
        lines, _ = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise KernelError(f"{function.__name__} has no source that Triton could compile") from error
    self.filename, first = self._get_jit_fn_file_line()
    self.def_lineno = self._find_def(lines)
    tree = ast.parse(self._prepare_source(lines))
    inner = _names_outside(function)
    suspicious = rewrite(tree, function.__globals__ | inner, _supported)
    ast.increment_lineno(tree, first - 1)
    names = function.__globals__ | inner if inner else function.__globals__
    names[RUNTIME] = control
    made: dict[str, Any] = {}
    exec(compile(tree, filename=self.filename, mode="exec"), names, made)
    made[function.__name__].suspicious = suspicious
    return made[function.__name__]


# ---- Arguments. ----------------------------------------------------------------------------------


def _parameters(function: Any) -> dict[str, jit.KernelParam]:
    fixed = function.kwargs.get("do_not_specialize") or ()
    unaligned = function.kwargs.get("do_not_specialize_on_alignment") or ()
    parameters = inspect.signature(function.fn).parameters.values()
    return {
        p.name: jit.KernelParam(
            i, p, i in fixed or p.name in fixed, i in unaligned or p.name in unaligned
        )
        for i, p in enumerate(parameters)
    }


def _scalar(value: Any, dtype: Any) -> Any:
    numpy_type = interpreter._get_np_dtype(dtype)
    if dtype == tl.bfloat16:
        data = float32_to_bfloat16(np.array([value], np.float32))
    elif dtype.is_int() and not dtype.is_int1():
        bits = dtype.primitive_bitwidth
        data = np.array([int(value) % 2**bits], f"uint{bits}").view(numpy_type)
    else:
        data = np.array([value]).astype(numpy_type)
    return tl.tensor(interpreter.TensorHandle(data, dtype), dtype)


def _argument(name: str, value: Any, parameter: Any) -> Any:
    """What the kernel sees of an argument."""
    if parameter is not None and parameter.is_constexpr:
        return value.value if isinstance(value, tl.constexpr) else value
    annotation = parameter.annotation_type if parameter is not None else ""
    if isinstance(value, bool | int | float) and annotation:
        dtype = tl.str_to_ty(annotation, None)
        if isinstance(value, float) and not dtype.is_floating():
            raise TypeError(f"{name} is annotated {annotation}, got {value}")
        return _scalar(value, dtype)
    if isinstance(value, bool):
        return _scalar(value, tl.int1)
    if isinstance(value, int):
        if value == 1 and not (parameter is not None and parameter.do_not_specialize):
            return value
        if not -(2**63) <= value < 2**64:
            raise OverflowError(f"{name}: {value} has more than 64 bits")
        wide = tl.int64 if value < 2**63 else tl.uint64
        return _scalar(value, tl.int32 if -(2**31) <= value < 2**31 else wide)
    if isinstance(value, float):
        return _scalar(value, tl.float32)
    if isinstance(value, tuple):
        parts = [_argument(f"{name}[{i}]", part, None) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if annotation and hasattr(value, "data_ptr"):
        made = interpreter._implicit_cvt(value)
        dtype = tl.str_to_ty(annotation, None)
        return tl.tensor(interpreter.TensorHandle(made.handle.data, dtype), dtype)
    return interpreter._implicit_cvt(value)


def _grid(grid: Any, bound: dict[str, Any]) -> tuple[int, int, int]:
    """Three numbers of programs, as a launch takes them."""
    grid = tuple(grid(bound) if callable(grid) else grid)
    if len(grid) > 3:
        raise KernelError(f"{memory.kernel}: a grid has at most 3 dimensions, got {grid}")
    for size, most in zip(grid, _GRID_LIMITS, strict=False):
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"{memory.kernel}: a grid of integers is wanted, got {grid}")
        if not 0 <= size <= most:
            raise KernelError(
                f"{memory.kernel}: a grid is at most {_GRID_LIMITS} programs, got {grid}"
            )
    x, y, z = (*map(int, grid), 1, 1, 1)[:3]
    return x, y, z


# ---- Programs. -----------------------------------------------------------------------------------


def _launch(self: Any, *args: Any, **kwargs: Any) -> None:
    warps = kwargs.get("num_warps", 4)
    if warps not in (1, 2, 4, 8, 16, 32):
        raise KernelError(f"{self.fn.__name__}: num_warps: wanted a power of two, got {warps}")
    self.options = {k: v for k, v in kwargs.items() if k not in self.arg_names}
    with _one_at_a_time, np.errstate(all="ignore"):
        try:
            _run(self, args, {k: v for k, v in kwargs.items() if k in self.arg_names}, warps)
        finally:
            memory.finish()


def _run(self: Any, args: Any, kwargs: dict[str, Any], warps: int) -> None:
    host_args, host_kwargs = self._init_args_hst(args, kwargs)
    bound = inspect.getcallargs(self.fn, *host_args, **host_kwargs)
    memory.launch(self.fn.__name__, bound.items(), warps)
    memory.fuses = self.options.get("enable_fp_fusion", True)
    for hook in self.pre_run_hooks:
        hook(*host_args, **host_kwargs)
    builder = interpreter.interpreter_builder
    given = inspect.getcallargs(self.fn, *args, **kwargs)
    sizes = _grid(self.grid, given)
    values = {name: _argument(name, v, self.parameters.get(name)) for name, v in bound.items()}
    memory.aligned = True
    builder.set_grid_dim(*sizes)
    suspicious: frozenset[str] = getattr(self.fn, "suspicious", frozenset())
    shadow = Shadow(bound) if check.mode or suspicious else None
    try:
        for x in range(sizes[0]):
            for y in range(sizes[1]):
                for z in range(sizes[2]):
                    builder.set_grid_idx(x, y, z)
                    self.fn(**values)
    except Exception as error:
        told, cause = _explained(error)
        raise told from cause
    if suspicion.ACCUMULATOR in suspicious:
        memory.suspect = suspicion.ACCUMULATOR
    if shadow is not None and (check.mode or memory.suspect):
        suspicion.judge(shadow, self, sizes, check.mode)
    self._restore_args_dev(args, host_args, kwargs, host_kwargs)


def _explained(error: BaseException) -> tuple[BaseException, BaseException | None]:
    """The error that matters within those that each function of a kernel wrapped around it."""
    line = source_line_of(error)
    while isinstance(error, interpreter.InterpreterError) and error.__cause__ is not None:
        error = error.__cause__
        line = source_line_of(error) or line
    if isinstance(error, KernelError | NotImplementedError):
        return error, None
    where, does_not = memory.where(), f"{line} does not compile:"
    if isinstance(error, NameError) and (free := _WITHOUT_VALUE.search(str(error))):
        ends = "a name ends with the loop or the branch that alone gives it a value"
        return KernelError(f"{does_not} {free[1]!r} has no value here: {ends} ({where})"), error
    if isinstance(error, AttributeError) and isinstance(error.obj, bool | int | float):
        what = f"{error.obj} is a constant (a literal, a tl.constexpr or an argument that equals 1)"
        return KernelError(f"{does_not} {what} and has no {error.name!r} ({where})"), error
    if _raised_by_triton(error) or str(error).startswith("unsupported operand type"):
        text = " ".join(str(error).split())  # some have the values of a block in them
        return KernelError(f"{does_not} {text[:300]} ({where})"), error
    return interpreter.InterpreterError(f"{line}: {error!r} ({where})"), error


def _raised_by_triton(error: BaseException) -> bool:
    """Whether Triton's own language refused: the compiler goes through the same code."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_LANGUAGE)
