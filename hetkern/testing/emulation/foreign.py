"""Anybody's CUDA file on the CPU: :func:`emulate_cuda` builds it, its result runs it.

In this process where that can be, else (under a sanitizer, or counting) in a child process that
takes the tensors' bytes and brings the results back (csrc/cuda/emulation/driver.cpp).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from torch import Tensor

from hetkern.testing.emulation.arguments import Arguments
from hetkern.testing.emulation.build import EmulationError, build
from hetkern.testing.emulation.fenced import Fenced
from hetkern.testing.emulation.reports import describe, of_address, of_thread, with_places
from hetkern.testing.emulation.rewriting import closing
from hetkern.testing.traffic.table import Traffic

_ERRORS = {1: IndexError, 2: ValueError, 3: EmulationError}
_CTRL_C = 4
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
    return EmulatedKernel(file, launcher, names, kind, flags)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_FUNCTION = re.compile(r"^\s*(?:__host__\s+)?void\s+(\w+)\s*\(([^()]*)\)\s*\{", re.M)


def _launchers(text: str) -> dict[str, list[str]]:
    """The file's extern "C" functions that are no kernels, and their parameters' names."""
    code = _COMMENT.sub(" ", text)
    found = [
        (m[1], m[2])
        for m in re.finditer(r'extern\s*"C"\s+(?:__host__\s+)?void\s+(\w+)\s*\(([^()]*)\)', code)
    ]
    for block in re.finditer(r'extern\s*"C"\s*\{', code):
        inside = code[block.end() - 1 : closing(code, block.end() - 1)]
        found += [(m[1], m[2]) for m in _FUNCTION.finditer(inside, 1)]
    return {
        name: [
            re.sub(r"=.*", "", p).split()[-1].strip("*& ") for p in given.split(",") if p.strip()
        ]
        for name, given in found
    }


class EmulatedKernel:
    """A launcher on the CPU. Tensors are written in place, as on a GPU.

    Called with tensors, numbers and None for null pointers, in the launcher's order and without the
    stream. Raises what the kernel was caught in: IndexError of a device check,
    :class:`EmulationError` of a barrier, a misaligned access or a sanitizer's report.
    """

    def __init__(
        self,
        file: Path,
        launcher: str,
        launchers: dict[str, list[str]],
        kind: str,
        flags: tuple[str, ...],
    ) -> None:
        self.kind = kind
        self._launcher = launcher
        self._names = launchers[launcher]
        self._program = built = build(file, list(launchers), kind, flags)
        self._checked = lambda: EmulatedKernel(file, launcher, launchers, "address", flags)
        self._library = ctypes.CDLL(str(built)) if kind == "plain" else None
        if self._library:
            self._library.hetkern_parameters.restype = ctypes.c_char_p
            self._library.hetkern_undefined.restype = ctypes.c_ulong
            described = (self._library.hetkern_parameters(launcher.encode()) or b"").decode()
        else:
            described = subprocess.run(
                [built, launcher, "--parameters"], capture_output=True, text=True, check=True
            ).stdout
        if not described:
            raise ValueError(f"{file}: launcher: the compiler has seen no {launcher}")
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
            self._in_this_process(args, slots)
            return None
        return self._in_a_child(args, slots)

    def _where(
        self, args: tuple[object, ...], addresses: list[int]
    ) -> list[tuple[str, Tensor, int]]:
        return [
            (name, value, at)
            for name, value, at in zip(self._names, args, addresses, strict=False)
            if isinstance(value, Tensor)
        ]

    def _run(self, args: tuple[object, ...], slots: list[bytes], fenced: Fenced, fill: int) -> None:
        assert self._library is not None
        error = ctypes.create_string_buffer(4096)
        size = ctypes.c_size_t(len(error))
        given = b"".join(slots)
        kind = self._library.hetkern_call(self._launcher.encode(), given, fill, error, size)
        if kind == _CTRL_C:
            raise KeyboardInterrupt
        where = self._where(args, [fenced.address(t) if isinstance(t, Tensor) else 0 for t in args])
        touched = fenced.touched()
        if kind:
            said = error.value.decode(errors="replace")
            raise _ERRORS[kind](with_places(said, self._program, where))
        if touched is not None:
            self._say_who_stored(args)
            raise EmulationError(
                f"{self._launcher}: out of bounds: a store {describe(touched, where)}; "
                'sanitize="address" may say by whom'
            )

    def _say_who_stored(self, args: tuple[object, ...]) -> None:
        """Run the call once more, where a store outside of a tensor is seen when it is made."""
        with contextlib.suppress(NotImplementedError):
            try:
                checked = self._checked()
            except EmulationError:  # there is no AddressSanitizer here
                return
            checked(*args)

    def _in_this_process(self, args: tuple[object, ...], slots: list[bytes]) -> None:
        """One run, and more where a shuffle gave values that CUDA leaves undefined.

        A right kernel may take such values, and does not use them: its results are the same
        whatever they are. A run that fails leaves the tensors as they were.
        """
        assert self._library is not None
        tensors = [
            (value, " const" not in parameter)
            for value, parameter in zip(args, self.parameters, strict=False)
            if isinstance(value, Tensor)
        ]
        with Fenced(self._library, tensors) as fenced:
            slots = [
                struct.pack("Q", fenced.address(value)) if isinstance(value, Tensor) else slot
                for value, slot in zip((*args, None), slots, strict=True)
            ]
            self._run(args, slots, fenced, 0)
            self._check_undefined(args, slots, fenced)
            fenced.bring_back()

    def _check_undefined(
        self, args: tuple[object, ...], slots: list[bytes], fenced: Fenced
    ) -> None:
        assert self._library is not None
        place = ctypes.create_string_buffer(512)
        if not self._library.hetkern_undefined(place, ctypes.c_size_t(len(place))):
            return
        what = (
            "a value that a shuffle takes from a lane outside its mask, or from one that has "
            f"returned, where CUDA gives none [{place.value.decode(errors='replace')}]"
        )
        if not fenced.fenced:
            warnings.warn(f"{self._launcher}: takes {what}", RuntimeWarning, stacklevel=5)
            return
        results = fenced.results()

        def same_again(fill: int) -> bool:
            fenced.fill()
            self._run(args, slots, fenced, fill)
            return fenced.results() == results

        for fill in range(1, 4):
            # What is never the same may depend on a clock.
            if not same_again(fill) and same_again(0):
                raise EmulationError(f"{self._launcher}: the results depend on {what}")

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

    def _child(self, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the program; what a run will cost is told at once, the rest when it has ended."""
        command: list[str | Path] = [self._program, self._launcher, folder]
        said: list[str] = []
        with (
            open(folder / "stdout", "w") as out,
            subprocess.Popen(
                command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment
            ) as process,
        ):
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("hetkern: cost of"):
                    print(line, end="", file=sys.stderr, flush=True)
                else:
                    said.append(line)
        shown = (folder / "stdout").read_text(errors="replace")
        return subprocess.CompletedProcess(command, process.returncode, shown, "".join(said))

    def _in_a_child(self, args: tuple[object, ...], slots: list[bytes]) -> Traffic | None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            arguments = Arguments(folder, self._names, args, slots)
            ours = "handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0"
            every = "suppress_equal_stacks=0:suppress_equal_addresses=0"  # for races.cpp
            environment = {
                **os.environ,
                "ASAN_OPTIONS": f"detect_leaks=0:{ours}",  # threads stop where a check fails
                "TSAN_OPTIONS": f"halt_on_error=1:exitcode=66:{every}:{ours}",
                "UBSAN_OPTIONS": "print_stacktrace=1",
            }
            done = self._child(folder, environment)
            if self.kind == "traffic" and done.returncode == 0:
                counts = folder / "traffic"
                if packs := Traffic.packs_in(counts, self._program):
                    (folder / "packs").write_text("\n".join(packs))
                    Arguments(folder, self._names, args, slots)
                    done = self._child(folder, environment)
            print(done.stdout, end="", flush=True)
            addresses = [int(a, 16) for a in (folder / "places").read_text().split()]
            where = self._where(args, addresses)
            if done.returncode or "WARNING: ThreadSanitizer" in done.stderr:
                raw = done.stderr.strip() or f"the process ended with status {done.returncode}"
                if self.kind == "thread":
                    said = of_thread(raw, where)
                else:
                    said = of_address(folder, raw, self._program, where)
                raise EmulationError(f"{self._launcher}: {self.kind}: {said}")
            if (error := folder / "error").exists():
                kind, text = error.read_text().split(" ", 1)
                raise _ERRORS[int(kind)](with_places(text, self._program, where))
            for line in done.stderr.splitlines():
                if line.startswith("hetkern: launch of"):  # a check that has seen less than all
                    warnings.warn(f"{self._launcher}: {line}", RuntimeWarning, stacklevel=3)
            arguments.bring_back({i for i, p in enumerate(self.parameters) if " const" not in p})
            if self.kind == "traffic":
                return Traffic.read_from(folder / "traffic", self._program)
        return None
