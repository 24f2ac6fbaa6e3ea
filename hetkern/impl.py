"""Which implementation runs, and why: ``impl=``, :func:`use`, ``HETKERN_IMPL``, :func:`explain`, :func:`record`.

A named implementation never falls back: it raises and says why. "auto" takes the best one that supports the call, and the
reference only with a warning, once per op and reason; ``HETKERN_STRICT=1`` makes that warning an error.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "cpu", "cuda", "triton", "reference")

missing_library: str | None = "the native library has not been looked for"  # None: it is loaded
native: ModuleType | None = None  # hetkern._C


class Fallback(UserWarning):
    """ "auto" has nothing better than the reference for a call."""


def _checked(name: str, source: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{source}: wanted one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


class _State(threading.local):
    """What this thread asked for."""

    used: str = _checked(os.environ.get("HETKERN_IMPL", "auto"), "HETKERN_IMPL")
    logs: tuple[list[Call], ...] = ()


_state = _State()
_warned: set[tuple[str, str]] = set()


@contextlib.contextmanager
def use(impl: str) -> Iterator[None]:
    """Within this context and thread, calls with ``impl="auto"`` run ``impl``.

    Raises:
        ValueError: no implementation has that name.
    """
    before, _state.used = _state.used, _checked(impl, "hetkern.use: impl")
    try:
        yield
    finally:
        _state.used = before


def why_not(impl: str, device: str) -> str | None:
    """Why ``impl`` cannot serve tensors on ``device``; None if it can."""
    if impl == "reference":
        return None
    if impl in ("cuda", "triton"):
        return "this version of hetkern has no such kernels yet"
    if device != "cpu":
        return f"it serves tensors on the CPU, not on {device}"
    return missing_library


def choose(op: str, served: dict[str, SimpleNamespace], x: Tensor, impl: str) -> SimpleNamespace | None:
    """The callables that serve a call on ``x``, or None for the reference.

    Raises:
        ValueError: no implementation has that name.
        NotImplementedError: the named implementation cannot run here.
    """
    if impl == "auto":
        impl = _state.used
        if impl == "auto":
            if x.is_cpu and missing_library is None:
                return served["cpu"]
            _fall_back(op, x.device.type)
            return None
    if impl == "reference":
        return None
    reason = why_not(_checked(impl, f"{op}: impl"), x.device.type)
    if reason:
        raise NotImplementedError(f"{op}: impl: {impl!r} cannot run here: {reason}")
    return served[impl]


def _fall_back(op: str, device: str) -> None:
    reason = why_not("cpu", device) or ""
    if os.environ.get("HETKERN_STRICT") == "1":
        raise NotImplementedError(f"{op}: no implementation but the reference can run: {reason}")
    if not torch.compiler.is_compiling() and (op, reason) not in _warned:
        _warned.add((op, reason))
        warnings.warn(f"{op} runs the plain PyTorch reference: {reason}", Fallback, stacklevel=4)


# ---- What ran, and what would run. ----------------------------------------------------------------


@dataclass
class Call:
    """One call of a public function: what ran, on what, by which path."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    impl: str
    plan: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why the others did not serve it

    def __str__(self) -> str:
        """One line, and one for each implementation that was passed over."""
        plan = " ".join(f"{name}={value}" for name, value in self.plan.items())
        line = f"{self.op} {self.shape} {self.dtype}: {self.impl} {plan or '(no plan: hetkern._C is missing)'}"
        return "\n  ".join([line, *(f"not {name}: {why}" for name, why in self.reasons.items())])


Planner = Callable[..., dict[str, Any]]
_planners: dict[Callable[..., Any], tuple[str, dict[str, SimpleNamespace], Planner]] = {}


def explainable(op: str, served: dict[str, SimpleNamespace], planner: Planner) -> Callable[..., Any]:
    """Decorate a public function: ``planner`` takes its arguments and gives the native plan as a dict."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        _planners[function] = (op, served, planner)
        return function

    return mark


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
    """Say which implementation ``function(*args, **kwargs)`` would run, by what path and why; runs nothing.

    Raises:
        ValueError: ``function`` is not one of hetkern's public operations.
    """
    if function not in _planners:
        raise ValueError(f"hetkern.explain: wanted a public operation of hetkern, got {function!r}")
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return _describe(function, dict(bound.arguments))


def _describe(function: Callable[..., Any], arguments: dict[str, Any]) -> Call:
    op, served, planner = _planners[function]
    arguments = dict(arguments)
    impl = arguments.pop("impl")
    x: Tensor = next(iter(arguments.values()))
    chosen = choose(op, served, x, impl)
    name = next((n for n, calls in served.items() if calls is chosen), "reference")
    device = x.device.type
    reasons = {n: why for n in IMPLEMENTATIONS[1:] if n != name and (why := why_not(n, device))}
    if name != "reference":
        reasons["reference"] = "a faster implementation serves this call"
    plan = {"path": "eager PyTorch"} if chosen is None else planner(**arguments)
    return Call(op, tuple(x.shape), str(x.dtype).removeprefix("torch."), name, plan, reasons)


@contextlib.contextmanager
def record() -> Iterator[list[Call]]:
    """Collect, in this thread, what every public operation ran: ``with hetkern.record() as log: …``."""
    log: list[Call] = []
    _state.logs = (*_state.logs, log)
    try:
        yield log
    finally:
        _state.logs = tuple(kept for kept in _state.logs if kept is not log)


def recording() -> bool:
    """Whether a call should :func:`note` itself."""
    return bool(_state.logs)


def note(function: Callable[..., Any], **arguments: Any) -> None:
    """Enter a call into this thread's logs."""
    call = _describe(function, arguments)
    call.reasons = {}
    for log in _state.logs:
        log.append(call)
