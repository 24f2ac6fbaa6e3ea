"""What a kernel's conditions, loops and assignments mean to Triton's compiler (source).

A *constant* is what the compiler knows: a literal, a ``tl.constexpr``, an argument that equals 1.
It stays a Python number here. All else is a tensor of one element or a block of several.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from hetkern.testing.triton_interpreter.checked_memory import KernelError, memory, source_line

_Later = Callable[[], Any]


def refuse(what: str) -> NoReturn:
    """Raise for what the compiler does not take."""
    raise KernelError(f"{source_line()} does not compile: {what} ({memory.where()})")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, tl.constexpr) else value


def _is_tensor(value: Any) -> bool:
    return isinstance(value, tl.tensor)


def _one(value: Any) -> bool:
    """The truth of a tensor of one element."""
    return bool(value.to(tl.int1).handle.data.reshape(-1)[0])


# ---- Logic. --------------------------------------------------------------------------------------


def conjunction(*parts: _Later) -> Any:
    """``a and b``: elementwise, but for constants."""
    return _connected("logical_and", parts)


def disjunction(*parts: _Later) -> Any:
    """``a or b``: elementwise, but for constants."""
    return _connected("logical_or", parts)


def _connected(method: str, parts: tuple[_Later, ...]) -> Any:
    kept, value = [], None
    for part in parts:
        value = _plain(part())
        if _is_tensor(value):
            kept.append(value)
        elif bool(value) is (method == "logical_or"):
            return value
    if not kept:
        return value
    result = kept.pop()
    while kept:
        result = getattr(kept.pop(), method)(result)
    return result


def negation(value: Any) -> Any:
    """``not a``: elementwise, but for constants."""
    value = _plain(value)
    return value.__not__() if _is_tensor(value) else not value


def least(*values: Any, **how: Any) -> Any:
    """``min(a, b)``."""
    return _extreme(builtins.min, tl.minimum, values, how)


def greatest(*values: Any, **how: Any) -> Any:
    """``max(a, b)``."""
    return _extreme(builtins.max, tl.maximum, values, how)


def _extreme(plain: Any, of_two: Any, values: tuple[Any, ...], how: dict[str, Any]) -> Any:
    values = tuple(map(_plain, values))
    if not any(map(_is_tensor, values)):
        return plain(*values)
    if len(values) < 2:
        refuse(f"{plain.__name__} of one block: tl.{plain.__name__} reduces it")
    result = values[0]
    for value in values[1:]:
        result = of_two(result, value, **how)
    return result


# ---- Conditions. ---------------------------------------------------------------------------------


class _Outcome:
    """A condition's value, and whether both of its branches are compiled."""

    def __init__(self, value: bool, compiled: bool) -> None:
        self.value, self.compiled = value, compiled

    def __bool__(self) -> bool:
        return self.value


_OUTCOMES = {(v, c): _Outcome(v, c) for v in (False, True) for c in (False, True)}


def truth(value: Any, acts: bool = True) -> _Outcome:
    """The condition of an ``if``; one whose branches only compute becomes a selection."""
    value = _plain(value)
    if _is_tensor(value):
        memory.code_block += acts
        if value.handle.data.size != 1:
            refuse(f"'if' of a block, {value.type}: use tl.where")
        return _OUTCOMES[_one(value), True]
    if type(value) not in (bool, int, type(None)):
        refuse(f"'if' of a {type(value).__name__}: a condition is a bool, an int, None or a scalar")
    return _OUTCOMES[bool(value), False]


def condition(value: Any) -> bool:
    """The condition of a ``while``."""
    value = getattr(_plain(value), "condition", value)
    if not _is_tensor(value):
        refuse("'while' of a constant")
    if value.handle.data.size != 1:
        refuse(f"'while' of a block, {value.type}")
    if not value.dtype.is_int1():
        refuse(f"'while' of an {value.dtype}: compare it")
    memory.code_block += 1
    return _one(value)


def choice(test: Any, then: _Later, other: _Later, then_free: bool, other_free: bool) -> Any:
    """``then if test else other``; a free side has no effect, so that its type can be asked."""
    test = _plain(test)
    if not _is_tensor(test):
        return then() if truth(test) else other()
    if test.handle.data.size != 1 or test.type.is_block():
        refuse(f"a ternary on a block, {test.type}: use tl.where")
    taken, left, free = (then, other, other_free) if _one(test) else (other, then, then_free)
    result = interpreter.interpreter_semantic.to_tensor(taken())
    if free:
        unused = interpreter.interpreter_semantic.to_tensor(left())
        if unused.type != result.type:
            refuse(f"a ternary of {result.type} and {unused.type}")
    return result


def claim(test: Any, message: _Later) -> None:
    """``assert``: a GPU checks it in debug mode only, so a false one is named here."""
    test = _plain(test)
    holds = bool(test.handle.data.all()) if _is_tensor(test) else bool(test)
    if not holds:
        raise KernelError(f"{source_line()} assertion failed: {message()} ({memory.where()})")


def device_assert(test: Any, message: Any, mask: Any = None) -> None:
    """``tl.device_assert``, which a GPU checks in debug mode only, of the lanes of ``mask``."""
    holds = test.handle.data.astype(bool)
    if mask is not None:
        holds = holds | ~mask.handle.data.astype(bool)
    if not holds.all():
        raise KernelError(f"{source_line()} assertion failed: {message} ({memory.where()})")


def assume(test: Any) -> Any:
    """``tl.assume``: the compiler takes it for granted."""
    if not test.handle.data.all():
        what = "tl.assume of what is false: the compiler takes it for granted"
        raise KernelError(f"{source_line()}: {what} ({memory.where()})")
    return test


def static_assert(test: Any, message: Any = "") -> None:
    """``tl.static_assert``: of constants."""
    test = _plain(test)
    if _is_tensor(test):
        refuse("tl.static_assert of what is known only when the kernel runs")
    if not test:
        refuse(f"static assertion failed: {_plain(message)}")


# ---- Loops. --------------------------------------------------------------------------------------


class counting:
    """``range`` and ``tl.range``: a compiled loop, whose counter is an integer of fixed width."""

    compiled = True

    def __init__(self, *bounds: Any, **options: Any) -> None:
        names = ("arg1", "arg2", "step")
        given = dict(zip(names, bounds, strict=False)) | options
        first, second, step = (_plain(given.get(name)) for name in names)
        low, high = (0, first) if second is None else (first, second)
        step = 1 if step is None else step
        ends = [interpreter.interpreter_semantic.to_tensor(end) for end in (low, high, step)]
        for end in ends:
            if not end.dtype.is_int() or end.type.is_block():
                refuse(f"a loop over {end.type}: its bounds and its step are integers")
        promote = interpreter.interpreter_semantic.integer_promote_impl
        self.type = promote(promote(ends[0].dtype, ends[1].dtype), ends[2].dtype)
        start, stop, stride = (int(end.to(self.type).handle.data.reshape(-1)[0]) for end in ends)
        if stride == 0 or (stride < 0 and _is_tensor(step)):
            refuse(f"a loop with a step of {stride}: only a constant may be negative, none 0")
        self.steps = range(start, stop, stride)

    def __iter__(self) -> Iterator[Any]:
        numpy_type = interpreter._get_np_dtype(self.type)
        ragged = self.steps.start % 16 != 0 or self.steps.step % 16 != 0
        around, memory.loop_begins = memory.loop_begins, memory.code_block + 1
        try:
            for step in self.steps:
                memory.code_block += 1
                handle = interpreter.TensorHandle(np.array([step], numpy_type), self.type)
                handle.origin = memory.code_block, memory.code_block - 1 << 32  # contraction.py
                if ragged:
                    handle.ragged = True
                yield tl.tensor(handle, self.type)
        finally:
            memory.loop_begins = around
        memory.code_block += 1


class unrolled:
    """``tl.static_range``: its body is compiled once for each step, a constant."""

    compiled = False

    def __init__(self, *bounds: Any, **options: Any) -> None:
        names = ("arg1", "arg2", "step")
        given = dict(zip(names, bounds, strict=False)) | options
        first, second, step = (_plain(given.get(name)) for name in names)
        for bound in (first, second, step):
            if _is_tensor(bound):
                refuse("tl.static_range over a number that is known only when the kernel runs")
        low, high = (0, first) if second is None else (first, second)
        self.steps = range(low, high, 1 if step is None else step)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)


def steps(over: Any) -> Any:
    """What a ``for`` runs over."""
    if not isinstance(over, counting | unrolled):
        refuse(f"a loop over a {type(over).__name__}: use range, tl.range or tl.static_range")
    return over


def a_loop() -> _Outcome:
    """A ``while``, which is always compiled."""
    return _OUTCOMES[True, True]


# ---- Names. --------------------------------------------------------------------------------------


def assigned(value: Any) -> Any:
    """What a name gets: a number becomes a tensor."""
    if _is_tensor(value):
        return value
    value = _plain(value)
    if isinstance(value, bool | int | float):
        return interpreter.interpreter_semantic.to_tensor(value)
    if type(value) in (tuple, list):
        return type(value)(assigned(part) for part in value)
    return value


def annotated(annotation: Any, value: Any) -> Any:
    """``name: annotation = value``: tl.constexpr keeps a constant, other words say nothing."""
    if annotation is not tl.constexpr and annotation not in ("tl.constexpr", "constexpr"):
        return assigned(value)
    if _is_tensor(value):
        refuse("a tl.constexpr from a number that is known only when the kernel runs")
    return _plain(value)


def types(*values: Any) -> tuple[Any, ...]:
    """The types of values, to be compared with later ones."""
    return tuple(map(_type, values))


class _Constant:
    """A constant's type: only the same object is of it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"constant {self.value}"


def _type(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, tl.core.base_value):
        return value.type
    if isinstance(value, tuple | list):
        return tuple(map(_type, value))
    return _Constant(value)


def same(over: Any, where: str, names: str, before: Any, *values: Any) -> None:
    """Refuse a name whose type a compiled loop or branch changes."""
    if over.compiled:
        for name, old, value in zip(names.split(), before, values, strict=True):
            new = _type(value)
            if new != old:
                refuse(f"{name} is of type {old} before the {where} and {new} after it")
