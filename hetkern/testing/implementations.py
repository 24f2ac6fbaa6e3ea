"""The implementations that a test can run on this machine, and why the others cannot."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hetkern.testing.devices import placed_on

#: Every level of the CPU kernels, from the one that runs anywhere.
ISA_LEVELS = ("base", "avx2", "avx512")


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation: what ``impl=`` takes, and for the CPU the instruction set."""

    name: str  #: "reference", "cpu", "cuda" or "triton"
    isa: str | None = None  #: "base", "avx2" or "avx512" for "cpu"

    def __str__(self) -> str:
        """``reference`` or ``cpu-avx2``."""
        return f"{self.name}-{self.isa}" if self.isa else self.name

    @property
    def device(self) -> str:
        """Where its tensors are: "cuda" where it runs on a GPU; "cpu", emulated or interpreted."""
        from hetkern import impl

        if self.name not in ("cuda", "triton") or impl.triton_interprets:
            return "cpu"
        return "cpu" if impl.why_not(self.name, "cuda") else "cuda"

    @property
    def simulated(self) -> bool:
        """Whether a kernel for GPUs runs on the CPU, a thousand times slower."""
        return self.name in ("cuda", "triton") and self.device == "cpu"

    def why_absent(self) -> str | None:
        """Why it cannot run here; None if it can."""
        if self.device != "cpu":
            return None
        if self.name == "cuda":
            from hetkern.testing.emulation import why_no_emulation

            return why_no_emulation()
        if self.name == "triton":
            from hetkern.impl import why_not

            return why_not("triton", "cpu")
        if self.isa is None:
            return None
        try:
            levels = _native().isa_levels()
        except ImportError:
            return "hetkern._C is not built"
        if self.isa not in levels:
            return f"this machine has no {self.isa}: it runs {', '.join(levels)}"
        chosen = os.environ.get("HETKERN_ISA", self.isa)
        return None if chosen == self.isa else f"HETKERN_ISA asks for {chosen}"

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make it the one that ``impl="auto"`` takes, and its device the one of new tensors.

        Clamps the instruction set to its own.
        """
        import hetkern

        if self.device != "cpu":
            with placed_on(self.device), hetkern.use(self.name):
                yield
            return
        if self.name == "cuda":
            from hetkern.testing.emulation import emulated_cuda

            with emulated_cuda(), hetkern.use("cuda"):
                yield
            return
        if self.isa is None:
            with hetkern.use(self.name):
                yield
            return
        native = _native()
        before = native.isa()
        if (level := native.set_isa(self.isa)) != self.isa:
            raise AssertionError(f"asked for {self.isa}, {level} is in force")
        try:
            with hetkern.use(self.name):
                yield
        finally:
            native.set_isa(before)


def _native() -> Any:
    """hetkern._C: what the native library knows of itself."""
    return importlib.import_module("hetkern._C")


#: Every implementation, in the order of a report.
IMPLEMENTATIONS = (
    Implementation("reference"),
    *(Implementation("cpu", isa) for isa in ISA_LEVELS),
    Implementation("cuda"),
    Implementation("triton"),
)
