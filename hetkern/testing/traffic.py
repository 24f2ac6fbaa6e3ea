"""Prints the memory traffic of a CUDA kernel, counted without a GPU.

Anybody's kernel, by its launcher's arguments (the names are the launcher's own):

    python -m hetkern.testing.traffic my.cu y=float32:64x1000 x=float32:64x1000 64 1000

hetkern's own, by a public operation and a shape; the emulated library that counts must be built
(``cmake -DHETKERN_EMULATION=ON``, target ``hetkern_traffic``):

    python -m hetkern.testing.traffic softmax 64x1000 --dtype bfloat16 --backward

Where nvcc is installed, registers, spills and occupancy stand below the table.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetkern.testing.emulation import emulate_cuda, emulated_cuda
from hetkern.testing.emulation_build import own_headers
from hetkern.testing.traffic_table import Launch, Traffic

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
    package = Path(__file__).parents[1]
    built = [*package.glob(_NAME), *(package.parent / "build").glob(f"*/{_NAME}")]
    return max(built, key=lambda f: f.stat().st_mtime, default=None)


@contextlib.contextmanager
def counting() -> Iterator[Watch]:
    """Within this context, hetkern's CUDA kernels run on CPU tensors and are counted.

    The process must not have run them otherwise: one emulated library is loaded in a process.

    Raises:
        NotImplementedError: the counting library is not built, or another one is loaded.
    """
    from hetkern.testing import emulation

    file = traffic_library()
    if file is None:
        raise NotImplementedError(f"{_NAME} is not built: cmake -DHETKERN_EMULATION=ON")
    if emulation._loaded not in ([], [file]):
        raise NotImplementedError(f"{emulation._loaded[0]} is loaded: count in another process")
    before = os.environ.get("HETKERN_EMULATED")
    os.environ["HETKERN_EMULATED"] = str(file)
    try:
        with emulated_cuda():
            yield Watch(file)
    finally:
        if before is None:
            del os.environ["HETKERN_EMULATED"]
        else:
            os.environ["HETKERN_EMULATED"] = before


# ---- The command. --------------------------------------------------------------------------------


def _tensor(spec: str) -> Tensor:
    dtype, shape = spec.split(":")
    sizes = [int(n) for n in shape.split("x")]
    kind = getattr(torch, dtype)
    return torch.randn(sizes).to(kind) if kind.is_floating_point else torch.zeros(sizes, dtype=kind)


def _argument(word: str) -> object:
    value = word.split("=", 1)[-1]
    if ":" in value:
        return _tensor(value)
    return None if value == "null" else float(value) if "." in value else int(value)


def _of_file(file: Path, launcher: str | None, words: list[str]) -> None:
    traffic = emulate_cuda(file, launcher, traffic=True)(*(_argument(w) for w in words))
    assert traffic is not None
    print(traffic)
    print(*resources(file, traffic.launches), sep="\n")


def _of_operation(name: str, shape: str, dtype: str, backward: bool) -> None:
    import hetkern

    operation: Callable[..., Tensor] = getattr(hetkern, name)
    with counting() as watch:
        x = _tensor(f"{dtype}:{shape}").requires_grad_(backward)
        more: list[Any] = [torch.zeros(x.shape[0], dtype=torch.int64)] if "cross" in name else []
        y = operation(x, *more, impl="cuda")
        watch.name(x=x.detach(), y=y.detach(), target=more[0] if more else None)
        print(f"{name} {tuple(x.shape)} {dtype}, forward\n{watch.traffic()}")
        if backward:
            dy = torch.ones_like(y)
            (dx,) = torch.autograd.grad(y, x, dy)
            watch.name(x=x.detach(), y=y.detach(), dy=dy, dx=dx)
            print(f"\n{name} {tuple(x.shape)} {dtype}, backward\n{watch.traffic()}")


def resources(file: Path, launches: tuple[Launch, ...], arch: str = "sm_90") -> Iterator[str]:
    """Registers, spills and occupancy of each kernel that was launched, if nvcc is here."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        yield "registers: nvcc is not installed"
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", f"-arch={arch}", "-I", str(own_headers()), "-Xptxas", "-v"]
        command += ["-cubin", str(file), "-o", str(Path(folder, "x"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        yield f"registers: nvcc fails:\n{done.stderr}"
        return
    compiled = re.findall(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        done.stderr,
        re.S,
    )
    for mangled, spills, registers in compiled:
        kernel = _readable(mangled)
        bare = kernel.replace("(anonymous namespace)::", "").split("<")[0].split("(")[0]
        for launch in dict.fromkeys(
            n for n in launches if n.name == bare.split("::")[-1].split()[-1]
        ):
            yield (
                f"{arch} {kernel}: {registers} registers, {spills} bytes spilled, "
                f"{launch.shared_bytes} bytes shared, {occupancy(int(registers), launch)}"
            )


def _readable(kernel: str) -> str:
    filt = shutil.which("c++filt")
    if filt is None:
        return kernel
    return subprocess.run([filt, kernel], capture_output=True, text=True).stdout.strip()


def occupancy(registers: int, launch: Launch) -> str:
    """Warps of a multiprocessor that can be there at once, of 64, and what limits them.

    For compute capability 9.0: 65536 registers, given to a warp 256 at a time; 233472 bytes of
    shared memory, of which a block takes 1024 more than it asks for; 2048 threads; 32 blocks.
    (CUDA C++ Programming Guide, Compute Capabilities)
    """
    warps = -(-launch.threads // 32)
    limits = {
        "registers": 65536 // (-(-registers * 32 // 256) * 256 * warps),
        "shared memory": 233472 // (launch.shared_bytes + 1024),
        "threads": 64 // warps,
        "blocks": 32,
    }
    least = min(limits, key=lambda what: limits[what])
    return f"{limits[least] * warps} of 64 warps (limited by {least})"


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m hetkern.testing.traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", help="a .cu file, or a public operation of hetkern")
    parser.add_argument("arguments", nargs="*", help="NAME=DTYPE:SHAPE, numbers, null; or a shape")
    parser.add_argument("--launcher", help='the file\'s extern "C" function')
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backward", action="store_true")
    given = parser.parse_args()
    if given.what.endswith(".cu"):
        _of_file(Path(given.what), given.launcher, given.arguments)
    else:
        _of_operation(given.what, given.arguments[0], given.dtype, given.backward)


if __name__ == "__main__":
    main()
