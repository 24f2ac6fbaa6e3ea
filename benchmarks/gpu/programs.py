"""Builds the torch-free programs: for a GPU with nvcc, and for the emulation with a C++ compiler.

The emulated programs run in the GPU's place where there is none, and beside it as the other half
of the twin table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from running import ROOT, Failed, Runner

HERE = ROOT / "benchmarks/gpu"
EMULATION = ROOT / "csrc/cuda/emulation"
# The compiler's flags under each of the emulation's kinds; what it links with.
KINDS = {
    "plain": (["-O2", "-fsanitize=alignment", "-fno-sanitize-recover=alignment"], []),
    "address": (
        ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
        ["-fsanitize=address,undefined"],
    ),
    "thread": (["-O1", "-fsanitize=thread"], ["-fsanitize=thread"]),
}


class Programs:
    """Where programs are built and with what. ``architecture``: such as 90a; None without a GPU."""

    def __init__(self, runner: Runner, folder: Path, architecture: str | None, quick: bool) -> None:
        self.runner, self.folder, self.architecture = runner, folder, architecture
        self.quick = quick
        folder.mkdir(parents=True, exist_ok=True)

    def kernels(self) -> list[Path]:
        """The families' kernel files."""
        return sorted((ROOT / "csrc/cuda").glob("*.cu"))

    def on_device(self, name: str, sources: Sequence[Path], kind: str = "plain") -> Path:
        """A program for the GPU, or without one for the emulation under a sanitizer or none."""
        if self.architecture is None:
            return self.emulated(f"{name}_{kind}", sources, kind)
        number = self.architecture
        code = f"-gencode=arch=compute_{number},code=sm_{number}"
        flags = ["-std=c++17", code, "-lineinfo", "-I", ROOT / "csrc"]
        return self._build(name, sources, [nvcc(), *flags], [nvcc(), code])

    def emulated(self, name: str, sources: Sequence[Path], kind: str = "plain") -> Path:
        """A program in which the emulation stands for the GPU."""
        instrument, link = KINDS[kind]
        if self.quick and kind == "plain":
            instrument = ["-O0", *instrument[1:]]
        common = [cxx(), "-std=c++17", "-g", "-fno-omit-frame-pointer"]
        common += ["-fvisibility=hidden", "-I", ROOT / "csrc", "-isystem", cuda_headers()]
        machine = [EMULATION / name for name in (EMULATION / "sources.txt").read_text().split()]
        parts = {
            source: [*common, "-O2", f"-DHETKERN_EMULATION_{kind.upper()}"] for source in machine
        }
        language = ["-Wall", "-Wno-unknown-pragmas", "-ffp-contract=off", "-x", "c++"]
        parts |= {source: [*common, *instrument, *language] for source in sources}
        return self._build(name, [*machine, *sources], parts, [cxx(), *link])

    def _build(self, name: str, sources: Sequence[Path], compile_: object, link: list) -> Path:
        """Compile the sources, as many at a time as there are processors, and link them."""
        to = self.folder / f"{name}.objects"
        to.mkdir(exist_ok=True)

        def build(source: Path) -> Path:
            words = compile_[source] if isinstance(compile_, dict) else compile_
            ours = to / f"{source.stem}.o"
            # Words after "-x c++" apply to what follows: the source comes last.
            self.runner.command([*words, "-c", "-o", ours, source])
            return ours

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(build, sources))
        program = self.folder / name
        self.runner.command([*link, *made, "-o", program])
        return program


def cxx() -> str:
    """The C++ compiler.

    Raises:
        Failed: there is none.
    """
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise Failed("a C++ compiler is missing: install g++ or set CXX")


def nvcc() -> str:
    """The CUDA compiler.

    Raises:
        Failed: there is none.
    """
    for name in (os.environ.get("CUDACXX", ""), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if name and (found := shutil.which(name)):
            return found
    raise Failed("nvcc is missing: install CUDA's compiler or set CUDACXX")


def cuda_headers() -> Path:
    """The folder of cuda_runtime.h.

    Raises:
        Failed: there is none.
    """
    places = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    if found := shutil.which(os.environ.get("CUDACXX", "nvcc")):
        places.append(Path(found).resolve().parents[1])
    for place in [*places, Path("/usr/local/cuda")]:
        if (place / "include/cuda_runtime.h").exists():
            return place / "include"
    raise Failed("cuda_runtime.h is missing: install CUDA's headers or set CUDA_HOME")


def has_nvcc() -> bool:
    """Whether there is a CUDA compiler."""
    try:
        return bool(nvcc())
    except Failed:
        return False


def sanitizer() -> str:
    """compute-sanitizer.

    Raises:
        Failed: there is none.
    """
    for name in ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"):
        if found := shutil.which(name):
            return found
    raise Failed("compute-sanitizer is missing: it comes with the CUDA toolkit")
