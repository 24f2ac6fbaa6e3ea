"""Which implementation runs, and why.

``impl=``, :func:`use` and ``HETKERN_IMPL`` choose; :func:`explain` and :func:`record` tell. A named
implementation never falls back: it raises and says why. "auto" takes the best one that supports the
call, and the reference only with a warning, once per op and reason; ``HETKERN_STRICT=1`` makes that
warning an error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "cpu", "cuda", "triton", "reference")
REFERENCE = "the plain PyTorch reference"

missing_library: str | None = "the native library has not been looked for"  # None: it is loaded
native: ModuleType | None = None  # hetkern._C


class Fallback(UserWarning):
    """Nothing better than the reference can serve a call that left the choice to hetkern."""


def _checked(name: str, source: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{source}: wanted one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


class _Thread(threading.local):
    """What this thread asked for: plain attributes, since every call reads them.

    They are set here and not in the class: Dynamo's guards on an attribute of a thread-local
    object fail where the instance may lack it.
    """

    def __init__(self) -> None:  # runs in each thread
        self.used: str = _from_outside
        self.logs: tuple[list[Call], ...] = ()


_from_outside = _checked(os.environ.get("HETKERN_IMPL", "auto"), "HETKERN_IMPL")
thread = _Thread()
emulated = False  # CUDA kernels run on the CPU, in every thread: hetkern.testing's doing
_warned: set[tuple[str, str]] = set()


@contextlib.contextmanager
def use(impl: str) -> Iterator[None]:
    """Within this context and thread, calls with ``impl="auto"`` run ``impl``; also a decorator.

    It overrules ``HETKERN_IMPL``, and an inner ``use`` an outer one; ``use("auto")`` gives the
    choice back. A backward pass runs the implementation of its forward pass, wherever it is called.

    Raises:
        ValueError: no implementation has that name.
    """
    before, thread.used = thread.used, _checked(impl, "hetkern.use: impl")
    try:
        yield
    finally:
        thread.used = before


def why_not(impl: str, device: torch.device | str, dtype: torch.dtype | None = None) -> str | None:
    """Why ``impl`` cannot serve tensors on ``device`` (of ``dtype``); None if it can.

    "cuda" without an index stands for any GPU that is there.
    """
    if impl == "reference":
        return None
    if isinstance(device, str):
        device = torch.device(device)
    if device.type == "meta":  # only shapes are computed
        return missing_library
    return _REASONS[impl](device, dtype)


def _not_cpu(device: torch.device, dtype: torch.dtype | None) -> str | None:
    if device.type != "cpu":
        return f"it serves tensors on the CPU, not on {device.type}"
    return missing_library


def _not_cuda(device: torch.device, dtype: torch.dtype | None) -> str | None:
    on_cpu = device.type == "cpu"
    if emulated:
        return None if on_cpu else "it is emulated here, and serves tensors on the CPU"
    if device.type != "cuda":
        return f"it serves tensors on a CUDA GPU, not on {device.type}"
    if missing_library is not None:
        return missing_library
    if "cuda" not in _found:
        _found["cuda"] = _no_cuda_kernels() or _no_gpu()
    return _found["cuda"] or _gpu_too_old(device.index)


def _not_triton(device: torch.device, dtype: torch.dtype | None) -> str | None:
    if dtype is torch.float64:
        return "its kernels have no float64"
    if device.type == "cpu" and not triton_interprets:
        return "it serves tensors on a GPU; on the CPU only in its interpreter (hetkern.testing)"
    if device.type not in ("cpu", "cuda"):
        return f"it serves tensors on a CUDA GPU, not on {device.type}"
    if "triton" not in _found:
        missing = importlib.util.find_spec("triton") is None
        _found["triton"] = "triton is not installed: pip install triton" if missing else None
    return _found["triton"] or (_no_gpu() if device.type == "cuda" else None)


_REASONS = {"cpu": _not_cpu, "cuda": _not_cuda, "triton": _not_triton}
_found: dict[str, str | None] = {}  # what was looked for, and why it cannot run
triton_interprets = os.environ.get("TRITON_INTERPRET") == "1"  # triton asks at its import
LEAST_CAPABILITY = (8, 0)
_DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")  # the last one: WSL


def _no_cuda_kernels() -> str | None:
    if torch._C._dispatch_has_kernel_for_dispatch_key("hetkern::softmax", "CUDA"):
        return None
    reason = "the native library was built without CUDA kernels"
    return f"{reason}: {native.why_no_cuda()}" if native else reason


def _no_gpu() -> str | None:
    if torch.version.cuda is None:
        return "this torch is a build without CUDA"
    if not any(map(os.path.exists, _DRIVERS)):  # before torch is asked, which starts the driver
        return "no NVIDIA driver is loaded"
    return None if torch.cuda.is_available() else "torch finds no CUDA GPU"


def _gpu_too_old(index: int | None) -> str | None:
    """Why GPU ``index`` is; of None, why every GPU is."""
    key = f"capability of GPU {index}"
    if key not in _found:
        indices = range(torch.cuda.device_count()) if index is None else (index,)
        reasons = [_capability_too_low(i) for i in indices]
        _found[key] = None if None in reasons else next(iter(reasons), None)
    return _found[key]


def _capability_too_low(index: int) -> str | None:
    if (capability := torch.cuda.get_device_capability(index)) >= LEAST_CAPABILITY:
        return None
    got, wanted = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
    name = torch.cuda.get_device_name(index)
    return f"{name} has compute capability {got}, the kernels need {wanted}"


def choose(
    op: str, served: dict[str, SimpleNamespace], x: Tensor, impl: str
) -> SimpleNamespace | None:
    """The callables that serve a call on ``x``, or None for the reference.

    Raises:
        ValueError: no implementation has that name.
        NotImplementedError: the named implementation cannot run here.
    """
    if impl == "auto":
        impl = thread.used
        if impl == "auto":
            if (x.is_cpu or x.is_meta) and missing_library is None:
                return served["cpu"]
            if x.is_cuda:
                for name in ("cuda", "triton"):
                    if why_not(name, x.device, x.dtype) is None:
                        return served[name]
            _fall_back(op, x)
            return None
    name = _able(op, x, impl)
    if name == "cuda" and emulated:
        name = "emulated"
    return served.get(name)


def _able(op: str, x: Tensor, impl: str) -> str:
    """The named implementation, once it is sure that it can run."""
    reason = why_not(_checked(impl, f"{op}: impl"), x.device, x.dtype)
    if reason:
        raise NotImplementedError(f"{op}: impl: {impl!r} cannot run here: {reason}")
    return impl


def _fall_back(op: str, x: Tensor) -> None:
    reason = why_not("cuda" if x.is_cuda else "cpu", x.device, x.dtype) or ""
    _warn(op, REFERENCE, reason)


def leave_to_torch(op: str, impl: str, reason: str) -> None:
    """Before a call that torch's own code serves, since nothing of ours takes its arguments.

    Raises:
        NotImplementedError: an implementation is named, or nothing but ours may run.
    """
    impl = thread.used if impl == "auto" else impl
    if impl != "auto":
        raise NotImplementedError(f"{op}: impl: {impl!r} cannot run here: {reason}")
    _warn(op, "torch's own code", reason)


def _warn(op: str, instead: str, reason: str) -> None:
    _refuse_if_strict(op, instead, reason)
    if not torch.compiler.is_compiling() and (op, reason) not in _warned:
        _warned.add((op, reason))
        message = f"{op} runs {instead}: {reason}"
        warnings.warn(message, Fallback, stacklevel=_users_level())


def _refuse_if_strict(op: str, instead: str, reason: str) -> None:
    if os.environ.get("HETKERN_STRICT") == "1":
        raise NotImplementedError(f"{op}: nothing but {instead} can run here: {reason}")


def _users_level() -> int:
    """The stacklevel, in this function's caller, of the line that called into hetkern."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(module: str) -> bool:
    return module.startswith(("hetkern.", "torch.nn.modules."))


# ---- What ran, and what would run. ---------------------------------------------------------------


@dataclass
class Call:
    """One call of a public function: what ran, on what, by which path and why."""

    op: str
    shape: tuple[int, ...]  # of the first argument, as its dtype
    dtype: str
    impl: str
    why: str  # impl was taken
    plan: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why the others did not serve it

    def __str__(self) -> str:
        """One line, and one for each implementation that was passed over."""
        plan = " ".join(f"{name}={value}" for name, value in self.plan.items())
        plan = plan or "(no plan: hetkern._C is missing)"
        line = f"{self.op} {self.shape} {self.dtype}: {self.impl} ({self.why}) {plan}"
        return "\n  ".join([line, *(f"not {name}: {why}" for name, why in self.reasons.items())])


Planner = Callable[..., dict[str, Any]]
Function = TypeVar("Function", bound=Callable[..., Any])
_planners: dict[Callable[..., Any], tuple[str, dict[str, SimpleNamespace], Planner]] = {}


def explainable(
    op: str, served: dict[str, SimpleNamespace], planner: Planner
) -> Callable[[Function], Function]:
    """Decorate a public function.

    ``planner`` takes the implementation's name and the function's arguments, and gives its plan.
    """

    def mark(function: Function) -> Function:
        _planners[function] = (op, served, planner)
        return function

    return mark


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call:
    """Say which implementation ``function(*args, **kwargs)`` would run, by what path and why.

    Runs nothing and warns of nothing.

    Raises:
        ValueError: ``function`` is not one of hetkern's public operations.
        ValueError, NotImplementedError: as the call itself would, of its ``impl``.
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
    excluded = {name: why_not(name, x.device, x.dtype) for name in IMPLEMENTATIONS[1:]}

    # The same choice as choose() makes, without its warning.
    if impl != "auto":
        name, why, others = _able(op, x, impl), "named in the call", "another one is named"
    elif thread.used != "auto":
        name, why = _able(op, x, thread.used), "named by hetkern.use or HETKERN_IMPL"
        others = "another one is named"
    else:
        name = next(name for name, reason in excluded.items() if reason is None)
        why, others = "the best that can run here", "a faster one serves this call"
        if name == "reference":
            _refuse_if_strict(op, REFERENCE, excluded["cuda" if x.is_cuda else "cpu"] or "")

    plan = planner(name, **arguments) if name in served else {"path": "eager PyTorch"}
    reasons = {n: reason or others for n, reason in excluded.items() if n != name}
    return Call(op, tuple(x.shape), str(x.dtype).removeprefix("torch."), name, why, plan, reasons)


@contextlib.contextmanager
def record() -> Iterator[list[Call]]:
    """Collect what every public operation ran in this thread.

    ``with hetkern.record() as log: …`` gives a list of :class:`Call`, in the order of the calls.
    Recordings nest: each hears every call inside it. What torch.compile has compiled runs without
    hetkern's Python and is not heard.
    """
    log: list[Call] = []
    thread.logs = (*thread.logs, log)
    try:
        yield log
    finally:
        thread.logs = tuple(kept for kept in thread.logs if kept is not log)


def note(function: Callable[..., Any], **arguments: Any) -> None:
    """Enter a call that has run into this thread's logs; ask ``if thread.logs`` first."""
    if torch.compiler.is_compiling():
        return
    call = _describe(function, arguments)
    call.reasons = {}
    for log in thread.logs:
        log.append(call)
