"""Counts what hetkern's own CUDA kernels move, by the emulated library that counts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from hetkern.testing.emulation import library
from hetkern.testing.traffic.table import Traffic

_NAME = "libhetkern_traffic.so"


class Watch:
    """Names tensors for the counter and takes its results; see :func:`counting`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._library = ctypes.CDLL(str(file))
        self._library.hetkern_traffic_watch.argtypes = [
            ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
        ]  # fmt: skip
        self.clear()

    def clear(self) -> None:
        """Forget what was counted and named."""
        self.traffic()

    def name(self, **tensors: Tensor | None) -> None:
        """Give tensors their names, before or after the call that used them."""
        for name, t in tensors.items():
            if t is not None and t.numel():
                storage = t.untyped_storage()
                self._library.hetkern_traffic_watch(
                    name.encode(), storage.data_ptr(), storage.nbytes()
                )

    def traffic(self) -> Traffic:
        """What was counted since the last time. Tensors must be named and alive."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "traffic")
            self._library.hetkern_traffic_report(os.fsencode(file))
            return Traffic.read_from(file, self._file)


def traffic_library() -> Path | None:
    """The counting build of the emulated library: beside the package, or the newest build."""
    package = Path(__file__).parents[2]
    built = [*package.glob(_NAME), *(package.parent / "build").glob(f"*/{_NAME}")]
    return max(built, key=lambda f: f.stat().st_mtime, default=None)


@contextlib.contextmanager
def counting() -> Iterator[Watch]:
    """Within this context, hetkern's CUDA kernels run on CPU tensors and are counted.

    The process must not have run them otherwise: one emulated library is loaded in a process.

    Raises:
        NotImplementedError: the counting library is not built, or another one is loaded.
    """
    file = traffic_library()
    if file is None:
        raise NotImplementedError(f"{_NAME} is not built: cmake -DHETKERN_EMULATION=ON")
    if library._loaded not in ([], [file]):
        raise NotImplementedError(f"{library._loaded[0]} is loaded: count in another process")
    before = os.environ.get("HETKERN_EMULATED")
    os.environ["HETKERN_EMULATED"] = str(file)
    try:
        with library.emulated_cuda():
            yield Watch(file)
    finally:
        if before is None:
            del os.environ["HETKERN_EMULATED"]
        else:
            os.environ["HETKERN_EMULATED"] = before
