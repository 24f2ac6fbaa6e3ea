"""Sanitizer builds of the native libraries, and Python with their runtime before it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hetkern.testing.emulation.build import cuda_headers

ROOT = Path(__file__).parent.parent
WORKLOAD = Path(__file__).with_name("sanitized_workload.py")


def preload(sanitizer: str) -> str:
    """The runtimes that must be in the process before Python."""
    names = {"address": ["libasan.so", "libstdc++.so"], "thread": ["libtsan.so"]}[sanitizer]
    found = [
        subprocess.run(["g++", f"-print-file-name={n}"], capture_output=True, text=True, check=True)
        for n in names
    ]
    paths = [f.stdout.strip() for f in found]
    if not all(Path(p).is_absolute() for p in paths):
        pytest.skip(f"g++ has no {names[0]} here")
    return " ".join(paths)


def built(sanitizer: str, library: str) -> dict[str, str]:
    """Build a library under a sanitizer; the environment in which Python loads it."""
    if any(shutil.which(tool) is None for tool in ("g++", "cmake", "ninja")):
        pytest.skip("g++, cmake and ninja are needed for a sanitizer build")
    try:
        cuda_headers()
        emulation = "ON"
    except NotImplementedError as reason:
        emulation = "OFF"
        if library == "hetkern_emulated":
            pytest.skip(str(reason))
    level = "avx2" if " avx2 " in Path("/proc/cpuinfo").read_text() else "base"
    build = ROOT / "build" / sanitizer / library  # a folder each: they may be built side by side
    configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja"]
    options = {
        "Python_EXECUTABLE": sys.executable,
        "HETKERN_SANITIZE": sanitizer,
        "HETKERN_LEVELS": level,
        "HETKERN_EMULATION": emulation,
    }
    subprocess.run(
        [*configure, *(f"-D{name}={value}" for name, value in options.items())],
        check=True,
        capture_output=True,
    )
    made = subprocess.run(["ninja", "-C", build, library], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:]
    variable = {"hetkern_ops": "HETKERN_LIBRARY", "hetkern_emulated": "HETKERN_EMULATED"}[library]
    return {
        **os.environ,
        variable: str(build / f"lib{library}.so"),
        "LD_PRELOAD": preload(sanitizer),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "exitcode=66 halt_on_error=1",
        "OMP_NUM_THREADS": "1",  # torch's own pool: the kernels' threads are the build's
    }


def run(
    environment: dict[str, str], *command: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Python under a sanitizer: a command line, or the workload."""
    return subprocess.run(
        [sys.executable, *(command or [str(WORKLOAD)])],
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=900,
    )


def assert_clean(done: subprocess.CompletedProcess[str]) -> None:
    """No sanitizer said anything."""
    quiet = "ERROR" not in done.stderr and "WARNING: Thread" not in done.stderr
    assert done.returncode == 0 and quiet, done.stderr[-4000:]


class Sanitized:
    """Tests of a library under one sanitizer; a file has those of one sanitizer, for one worker."""

    library: str
    sanitizer: str

    @pytest.fixture(scope="class")
    def environment(self, request: pytest.FixtureRequest) -> dict[str, str]:
        """Build the library; the environment that loads it."""
        return built(request.cls.sanitizer, request.cls.library)

    def assert_seen(
        self, environment: dict[str, str], planted: str, seen: str, *command: str
    ) -> None:
        """The sanitizer names a bug that the library is told to make."""
        done = run(environment, *command, HETKERN_PLANT=planted)
        assert done.returncode != 0 and seen in done.stderr, (
            f"{self.sanitizer} has gone blind:\n{done.stderr[-2000:]}"
        )


class NativeKernels(Sanitized):
    """The library of the CPU kernels."""

    library = "hetkern_ops"

    def test_the_kernels_are_clean(self, environment: dict[str, str]) -> None:
        """Nothing is found in a workload of all families."""
        done = run(environment)
        assert_clean(done)
        assert "calls on 4 threads" in done.stdout


class EmulatedKernels(Sanitized):
    """The library of the CUDA kernels, emulated."""

    library = "hetkern_emulated"
    dtypes: str  # "two" or "all"

    def test_the_cuda_kernels_are_clean(self, environment: dict[str, str]) -> None:
        """Nothing is found in a workload of all families."""
        done = run(environment, str(WORKLOAD), "cuda", self.dtypes)
        assert_clean(done)
        assert "calls of emulated CUDA kernels" in done.stdout
