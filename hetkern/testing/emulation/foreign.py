"""Anybody's CUDA file on the CPU: :func:`emulate_cuda` builds it, its result runs it.

In this process where that can be, else (under a sanitizer, or counting) in a child process that
takes the tensors' bytes and brings the results back (csrc/cuda/emulation/driver.cpp).
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import tempfile
import warnings
from pathlib import Path

from torch import Tensor

from hetkern.testing.emulation.build import EmulationError, build
from hetkern.testing.traffic.table import Traffic

_ERRORS = {1: IndexError, 2: ValueError, 3: EmulationError}
_FORMATS = {
    "bool": "?7x", "float32": "f4x", "float64": "d", "int8": "b7x", "int16": "h6x", "int32": "i4x",
    "int64": "q", "uint8": "B7x", "uint16": "H6x", "uint32": "I4x", "uint64": "Q",
}  # fmt: skip


def emulate_cuda(
    source: str | os.PathLike[str],
    launcher: str | None = None,
    *,
    sanitize: str | None = None,
    traffic: bool = False,
    flags: tuple[str, ...] = (),
) -> EmulatedKernel:
    """Build a CUDA file for the CPU; the result is called with the launcher's arguments.

    Args:
        source: the ``.cu`` file.
        launcher: its ``extern "C"`` function; may be left out if the file has one alone.
        sanitize: None runs in this process; "address" finds accesses outside tensors and shared
            memory and misaligned ones, "thread" races within and between blocks, each in a child
            process that reports back.
        traffic: count memory traffic instead; a call returns a :class:`Traffic`.
        flags: more for the compiler, such as ``-DTHREADS=128``.

    Raises:
        EmulationError: the file uses what the emulation refuses, by name, or does not compile.
        NotImplementedError: g++ or CUDA's headers are missing.
        ValueError: an argument is none of those above, or no launcher has that name.
    """
    file = Path(source)
    if sanitize not in (None, "address", "thread"):
        raise ValueError(f"emulate_cuda: sanitize: wanted 'address' or 'thread', got {sanitize!r}")
    if sanitize and traffic:
        raise ValueError("emulate_cuda: traffic is counted without a sanitizer")
    names = _launchers(file.read_text())
    if launcher is None and len(names) == 1:
        launcher = next(iter(names))
    if launcher not in names:
        known = ", ".join(names) or "none"
        raise ValueError(f'{file}: launcher: wanted one of its extern "C" functions ({known})')
    kind = sanitize or ("traffic" if traffic else "plain")
    return EmulatedKernel(file, launcher, names[launcher], kind, flags)


def _launchers(text: str) -> dict[str, list[str]]:
    """The file's extern "C" functions, and their parameters' names."""
    found = re.finditer(r'extern\s*"C"\s+void\s+(\w+)\s*\(([^)]*)\)', text)
    return {
        m[1]: [re.sub(r"=.*", "", p).split()[-1].strip("*& ") for p in m[2].split(",") if p.strip()]
        for m in found
    }


class EmulatedKernel:
    """A launcher on the CPU. Tensors are written in place, as on a GPU.

    Called with tensors, numbers and None for null pointers, in the launcher's order and without the
    stream. Raises what the kernel was caught in: IndexError of a device check,
    :class:`EmulationError` of a barrier, a misaligned access or a sanitizer's report.
    """

    def __init__(
        self, file: Path, launcher: str, names: list[str], kind: str, flags: tuple[str, ...]
    ) -> None:
        self.kind = kind
        self._launcher = launcher
        self._names = names
        built = build(file, launcher, kind, flags)
        self._library = ctypes.CDLL(str(built)) if kind == "plain" else None
        self._program = built
        if self._library:
            self._library.hetkern_parameters.restype = ctypes.c_char_p
            described = self._library.hetkern_parameters().decode()
        else:
            described = subprocess.run(
                [built, "--parameters"], capture_output=True, text=True, check=True
            ).stdout
        self.parameters: list[str] = described.split("\n")[:-1]

    def __call__(self, *args: object) -> Traffic | None:
        """Run the launcher; return what was counted, if traffic is counted."""
        wanted = self.parameters[:-1]
        if len(args) != len(wanted):
            raise TypeError(f"{self._launcher}: wanted {len(wanted)} arguments, got {len(args)}")
        slots = [
            self._slot(name, parameter, value)
            for name, parameter, value in zip(self._names, wanted, args, strict=False)
        ]
        slots.append(bytes(8))
        if self._library:
            error = ctypes.create_string_buffer(4096)
            kind = self._library.hetkern_call(b"".join(slots), error, ctypes.c_size_t(len(error)))
            if kind:
                raise _ERRORS[kind](error.value.decode())
            return None
        return self._in_a_child(args, slots)

    def _slot(self, name: str, parameter: str, value: object) -> bytes:
        what = f"{self._launcher}: {name}"
        if parameter.endswith("*"):
            if value is None:
                return bytes(8)
            if not isinstance(value, Tensor) or not value.is_cpu:
                raise TypeError(f"{what}: wanted a CPU tensor or None, got {type(value).__name__}")
            dtype = str(value.dtype).removeprefix("torch.")
            element = parameter.removesuffix("*").removesuffix(" const")
            if element not in (dtype, "any", "other"):
                raise TypeError(f"{what}: wanted {element}, got {dtype}")
            return struct.pack("Q", value.data_ptr())
        if not isinstance(value, (int, float)):
            raise TypeError(f"{what}: wanted a number, got {type(value).__name__}")
        if "float" not in parameter and isinstance(value, float):
            raise TypeError(f"{what}: wanted {parameter}, got a float")
        try:
            return struct.pack(_FORMATS[parameter], value)
        except struct.error as error:
            raise ValueError(f"{what}: {value} is no {parameter}: {error}") from None

    def _in_a_child(self, args: tuple[object, ...], slots: list[bytes]) -> Traffic | None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tensors, same = _write_arguments(folder, self._names, args, slots)
            environment = {
                **os.environ,
                "ASAN_OPTIONS": "detect_leaks=0",  # threads stop where a check fails
                "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
                "UBSAN_OPTIONS": "print_stacktrace=1",
            }
            done = subprocess.run(
                [self._program, folder], capture_output=True, text=True, env=environment
            )
            if done.returncode or "WARNING: ThreadSanitizer" in done.stderr:
                report = "\n".join(done.stderr.strip().splitlines()[:80])
                raise EmulationError(f"{self._launcher}: {self.kind}:\n{report}")
            if (error := folder / "error").exists():
                kind, text = error.read_text().split(" ", 1)
                raise _ERRORS[int(kind)](text)
            for line in done.stderr.splitlines():
                if line.startswith("hetkern: launch of"):  # a check that has seen less than all
                    warnings.warn(f"{self._launcher}: {line}", RuntimeWarning, stacklevel=3)
            written = {same.get(i, i) for i, p in enumerate(self.parameters) if " const" not in p}
            for i, (tensor, size) in tensors.items():
                if i in written:
                    ctypes.memmove(tensor.data_ptr(), (folder / f"{i}.bin").read_bytes(), size)
            if self.kind == "traffic":
                return Traffic.read_from(folder / "traffic", self._program)
        return None


def _write_arguments(
    folder: Path, names: list[str], args: tuple[object, ...], slots: list[bytes]
) -> tuple[dict[int, tuple[Tensor, int]], dict[int, int]]:
    """What the driver reads (csrc/cuda/emulation/driver.cpp).

    Returns:
        Each tensor and its bytes by the position where it came first; and for a position where it
        came again, that first one.
    """
    lines: list[str] = []
    tensors: dict[int, tuple[Tensor, int]] = {}
    again: dict[int, int] = {}
    for i, slot in enumerate(slots):
        value = args[i] if i < len(args) else None
        if not isinstance(value, Tensor):
            lines.append(f"value {int.from_bytes(slot, 'little'):x}")
            continue
        spans = ((s - 1) * step for s, step in zip(value.shape, value.stride(), strict=True))
        size = (sum(spans) + 1) * value.element_size() if value.numel() else 0
        start = value.data_ptr()
        same = next(
            (j for j, (t, n) in tensors.items() if (t.data_ptr(), n) == (start, size)), None
        )
        if same is not None:
            lines.append(f"same {same}")
            again[i] = same
            continue
        for j, (t, n) in tensors.items():
            if start < t.data_ptr() + n and t.data_ptr() < start + size:
                raise ValueError(f"{names[i]} and {names[j]} overlap without being the same")
        tensors[i] = value, size
        (folder / f"{i}.bin").write_bytes(ctypes.string_at(start, size))
        # A GPU's allocations begin at multiples of 256, torch's on the CPU at multiples of 64.
        align = 0 if start % 64 == 0 else start % 64
        lines.append(f"tensor {names[i]} {i}.bin {size} {align}")
    (folder / "arguments").write_text("\n".join(lines) + "\n")
    return tensors, again
