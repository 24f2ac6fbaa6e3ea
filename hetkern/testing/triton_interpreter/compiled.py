"""The check of last resort: each launch's compiled code runs too, and must give the same bits.

The kernel is compiled for sm_90 in another process, as a launch with these arguments would compile
it; its PTX runs on copies of the tensors (hetkern.testing.ptx), and each tensor of the launch is
then compared with what the interpreter left. What the evaluator does not know raises by name.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hetkern.testing import ptx
from hetkern.testing.triton_aot import specialised
from hetkern.testing.triton_interpreter.checked_memory import KernelError
from hetkern.testing.triton_interpreter.compiler_process import Failure, Function, Request

MODES = ("bits", "values")
_ARCHITECTURE = 90
_LARGEST_GRID = 1024
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")


class Check:
    """Whether launches are compared: the mode, or nothing."""

    mode = ""


check = Check()


@contextlib.contextmanager
def compiled(mode: str = "bits") -> Iterator[None]:
    """Run each launch's PTX beside the interpreter.

    ``"bits"``: a tensor that differs in one bit raises :class:`KernelError` (NaN equals NaN).
    ``"values"``: nothing is compared, the tensors keep what the compiled code gave, and the test
    judges that: for kernels with approximations or with sums in another order.

    Raises:
        NotImplementedError: the evaluator does not know an instruction; more than 1024 programs.
    """
    if mode not in MODES:
        raise ValueError(f"compiled: mode: wanted one of {MODES}, got {mode!r}")
    before, check.mode = check.mode, mode
    try:
        yield
    finally:
        check.mode = before


# ---- Compilation. --------------------------------------------------------------------------------


class _Compiler:
    """The other process, begun when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[bytes, str | Failure] = {}

    def __call__(self, request: Request) -> str:
        question = pickle.dumps(request)
        if question not in self._known:
            self._known[question] = self._ask(question)
        found = self._known[question]
        if isinstance(found, Failure):
            raise KernelError(f"{request.function.name} does not compile: {found.text}")
        return found

    def _ask(self, question: bytes) -> str | Failure:
        if self._process is None:
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hetkern.testing.triton_interpreter.compiler_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            atexit.register(self._end)
            assert self._process.stdin is not None
            pickle.dump([os.path.abspath(p) for p in sys.path], self._process.stdin)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(question)
        self._process.stdin.flush()
        answer: str | Failure = pickle.load(self._process.stdout)
        return answer

    def _end(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


_compile = _Compiler()


def _function(function: Any) -> Function:
    if "<locals>" in function.__qualname__:
        raise NotImplementedError(
            f"triton_interpreter: {function.__qualname__} is defined inside a function: compiled() "
            "finds kernels by their module"
        )
    file = os.path.abspath(function.__code__.co_filename)
    return Function(file, function.__module__, function.__qualname__)


def _portable(value: Any) -> Any:
    """A constant as the other process can have it."""
    if hasattr(value, "fn") and callable(value):
        return _function(value.fn)
    if isinstance(value, tuple):
        return tuple(map(_portable, value))
    return value


# ---- One launch. ---------------------------------------------------------------------------------


class Shadow:
    """Copies of a launch's tensors from before it, on which its compiled code will run."""

    def __init__(self, bound: dict[str, Any]) -> None:
        self.bound = bound
        self.tensors = list(_tensors("", bound))
        self.storages: dict[int, torch.Tensor] = {}
        for _, tensor in self.tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.storages:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]
                # numpy's memory: what a kernel allocates of torch's is counted by some tests
                self.storages[storage.data_ptr()] = torch.from_numpy(whole.numpy().copy())

    def run(
        self, function: Any, parameters: dict[str, Any], options: dict[str, Any], grid: Any
    ) -> None:
        """Run the compiled code on the copies."""
        if (programs := int(np.prod(grid))) > _LARGEST_GRID:
            raise NotImplementedError(
                f"triton_interpreter: {function.__name__}: a grid of {programs} programs: compiled "
                f"code is run for at most {_LARGEST_GRID}"
            )
        made = specialised(list(parameters.values()), self.bound)
        constants = {path: _portable(value) for path, value in made.constants.items()}
        kept = {name: options[name] for name in _OPTIONS if options.get(name) is not None}
        text = _compile(
            Request(
                _function(function), made.signature, constants, made.attributes, kept, _ARCHITECTURE
            )
        )
        threads = re.search(r"\.reqntid\s+(\d+)", text)
        program = ptx.parse(text)
        machine = ptx.Machine(
            program, int(threads[1]) if threads else 128, _words(made.values, program.parameters)
        )
        for at, copy in self.storages.items():
            machine.memory.add(copy.numpy(), at)
        machine.run(grid)

    def _copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = self.storages[tensor.untyped_storage().data_ptr()].untyped_storage()
        out = torch.empty(0, dtype=tensor.dtype)
        return out.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def keep(self) -> None:
        """Let the tensors have what the compiled code gave."""
        for _, tensor in self.tensors:
            with torch.no_grad():
                tensor.copy_(self._copy_of(tensor))

    def difference(self) -> str:
        """Where a bit differs, or nothing."""
        for name, tensor in self.tensors:
            other = self._copy_of(tensor)
            differs = _bits(tensor) != _bits(other)
            if tensor.is_floating_point():
                differs &= ~(_wide(tensor).isnan() & _wide(other).isnan())
            if differs.any():
                at = tuple(int(n) for n in differs.nonzero()[0])
                return (
                    f"compiled for sm_{_ARCHITECTURE}, {name} differs in {int(differs.sum())} of "
                    f"{differs.numel()} elements, the first at {at}: interpreted "
                    f"{_wide(tensor)[at].item()!r}, compiled {_wide(other)[at].item()!r}"
                )
        return ""


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()]).reshape(tensor.shape)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor.detach().float()
        if tensor.element_size() == 1 and tensor.is_floating_point()
        else tensor.detach()
    )


def _tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(str(key), part)
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _tensors(f"{name}[{i}]", part)
    elif isinstance(value, torch.Tensor):
        if value.numel():
            yield name, value
    elif hasattr(value, "base") and hasattr(value, "block_shape"):
        raise NotImplementedError(
            f"triton_interpreter: {name} is a tensor descriptor made outside the kernel: its "
            "compiled code is not run"
        )


def _words(values: Sequence[tuple[str, Any]], kinds: Sequence[str]) -> list[int]:
    """Arguments as bits; Triton's own parameters, scratch memory, are null."""
    words = []
    for kind, value in values:
        if isinstance(value, torch.Tensor):
            words.append(value.data_ptr())
        elif kind == "fp32":
            words.append(int(np.float32(value).view(np.uint32)))
        elif kind == "fp64":
            words.append(int(np.float64(value).view(np.uint64)))
        elif kind in ("fp16", "bf16"):
            dtype = torch.float16 if kind == "fp16" else torch.bfloat16
            bits = torch.tensor(value, dtype=dtype).view(torch.int16)
            words.append(int(bits.item()) & 0xFFFF)
        else:
            words.append(int(value))
    return words + [0] * (len(kinds) - len(words))
