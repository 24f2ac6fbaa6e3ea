"""hetkern's own CUDA kernels on the CPU: the emulated library, and the context that serves it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

_NAME = "libhetkern_emulated.so"
_loaded: list[Path] = []
_inside = 0  # contexts that are open, in all threads
_lock = threading.Lock()


def _library_file() -> Path | None:
    """HETKERN_EMULATED, or the library beside the package, or the newest in the build tree."""
    if named := os.environ.get("HETKERN_EMULATED"):
        return Path(named)
    package = Path(__file__).parents[2]
    built = [*package.glob(_NAME), *(package.parent / "build").glob(f"*/{_NAME}")]
    plain = [f for f in built if f.parent.name not in ("address", "thread")]
    return max(plain, key=lambda f: f.stat().st_mtime, default=None)


def why_no_emulation() -> str | None:
    """Why hetkern's CUDA kernels cannot run on the CPU here; None if they can."""
    file = _library_file()
    if file is None:
        return f"{_NAME} is not built: cmake -DHETKERN_EMULATION=ON"
    return None if file.exists() else f"HETKERN_EMULATED: {file} does not exist"


@contextlib.contextmanager
def emulated_cuda() -> Iterator[None]:
    """While this context is open, ``impl="cuda"`` runs the CUDA kernels on CPU tensors.

    It does so in every thread: those that a test starts are part of it.

    Raises:
        NotImplementedError: the emulated library is not built.
    """
    from hetkern.ops import family

    if not _loaded:
        file = _library_file()
        if reason := why_no_emulation():
            raise NotImplementedError(reason)
        assert file is not None
        family.serve("emulated", "hetkern_emulated")
        torch.ops.load_library(file)
        _loaded.append(file)
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _inside
    from hetkern import impl

    with _lock:
        _inside += change
        impl.emulated = _inside > 0
