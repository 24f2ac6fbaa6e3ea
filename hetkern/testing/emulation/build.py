"""Builds anybody's CUDA file for the CPU: which compiler, which headers, and a cache by content."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from hetkern.testing.emulation.refused import refusals


class EmulationError(RuntimeError):
    """A kernel that the emulation cannot build, refuses, or has caught in an error."""


_ALIGNMENT = ("-fsanitize=alignment", "-fno-sanitize-recover=alignment")
_SCALAR = ("-O2", "-fno-tree-vectorize", "-fno-tree-slp-vectorize")
_COUNTED = ("-include", "cuda/emulation/counted_words.h")
#: For each way to run: the kernel's flags, the linker's, and what the emulation is told.
KINDS = {
    "plain": ((*_SCALAR, *_ALIGNMENT), ("-shared", "-Wl,--no-undefined"), "PLAIN"),
    "address": (
        ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        ("-fsanitize=address,undefined",),
        "ADDRESS",
    ),
    "thread": (("-O1", "-fsanitize=thread", *_ALIGNMENT), ("-fsanitize=thread",), "THREAD"),
    "traffic": (
        (*_SCALAR, "-fno-tree-sra", "-fno-ipa-sra", "-fsanitize=thread", *_ALIGNMENT, *_COUNTED),
        (),
        "TRAFFIC",
    ),
}
# DWARF 4: of DWARF 5, older addr2lines take the wrong file.
_COMMON = ("-std=c++17", "-gdwarf-4", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer")


@functools.cache
def compiler() -> str:
    """g++, or CXX if that is one.

    Raises:
        NotImplementedError: there is none.
    """
    for name in (os.environ.get("CXX", ""), "g++"):
        if name and (found := shutil.which(name)):
            return found
    raise NotImplementedError("the CUDA emulation needs g++ (11 or newer): install it or set CXX")


@functools.cache
def own_headers() -> Path:
    """The folder of ``cuda/device/launch.cuh``: in the source tree or the installed package."""
    package = Path(__file__).parents[2]
    for root in (package.parent / "csrc", package / "include"):
        if (root / "cuda/device/launch.cuh").exists():
            return root
    raise NotImplementedError(f"cuda/device/launch.cuh is neither in csrc nor in {package}/include")


@functools.cache
def cuda_headers() -> Path:
    """The folder of CUDA's own headers; no nvcc is needed, but its types are.

    Raises:
        NotImplementedError: there are none.
    """
    places = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    if nvcc := shutil.which("nvcc"):
        places.append(Path(nvcc).resolve().parents[1])
    places.append(Path("/usr/local/cuda"))
    for place in places:
        if (place / "include/cuda_fp16.h").exists():
            return place / "include"
    raise NotImplementedError(
        "the CUDA emulation needs CUDA's headers (cuda_runtime.h, cuda_fp16.h): "
        "install the toolkit or set CUDA_HOME"
    )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HETKERN_EMULATION_CACHE") or Path(base) / "hetkern" / "emulation")


def _run(command: list[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise _failed(command, done.stderr or done.stdout)
    return done.stdout


def _failed(command: list[str | Path], report: str) -> EmulationError:
    return EmulationError(f"{' '.join(map(str, command))} failed:\n{report}")


def _cached(
    name: str, parts: list[bytes], commands: list[list[str | Path]], wrapper: str = ""
) -> Path:
    """The file that the commands make in a folder of their own ({}), unless it is there already."""
    key = hashlib.sha256()
    for part in (
        *parts,
        wrapper.encode(),
        repr(commands).encode(),
        _version(),
        str(cuda_headers()).encode(),
    ):
        key.update(hashlib.sha256(part).digest())
    kept = _cache() / key.hexdigest()[:32] / name
    if not kept.exists():
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            Path(folder, "wrapper.cpp").write_text(wrapper)
            for command in commands:
                _run([str(word).replace("{}", folder) for word in command])
            kept.parent.mkdir(exist_ok=True)
            os.replace(Path(folder) / name, kept)
    return kept


@functools.cache
def _version() -> bytes:
    return _run([compiler(), "--version"]).encode()


@functools.cache
def _own_sources() -> bytes:
    files = sorted(
        p for d in ("device", "emulation") for p in (own_headers() / "cuda" / d).iterdir()
    )
    return b"".join(p.name.encode() + p.read_bytes() for p in files if p.name != "table.cpp")


def _front(flags: tuple[str, ...]) -> list[str | Path]:
    headers = ("-I", own_headers(), "-isystem", cuda_headers())
    return [compiler(), *_COMMON, *flags, *map(str, headers)]


def _compile(source: Path | str, to: str, flags: tuple[str, ...]) -> list[str | Path]:
    return [*_front(flags), "-c", source, "-o", to]


def _preprocessed(text: str, flags: tuple[str, ...]) -> bytes:
    """What the compiler makes of the text and all that it includes, wherever the flags find it.

    Raises:
        EmulationError: a word is refused in the user's files, or the preprocessor fails.
    """
    # The working directory would stand in the text, which is the key that a build is kept by.
    command = [*_front(flags), "-fno-working-directory", "-E", "-x", "c++", "-"]
    done = subprocess.run(command, input=os.fsencode(text), capture_output=True)
    # First the refusals: a refused header is often one that the compiler does not find either.
    refused = [
        line
        for f in _users_files(done.stdout)
        for line in refusals(f.read_text(encoding="utf-8", errors="replace"), str(f))
    ]
    if refused:
        raise EmulationError("\n".join(refused))
    if done.returncode:
        raise _failed(command, os.fsdecode(done.stderr))
    return done.stdout


# "# 1 FILE 1": the preprocessor enters a file; a 3 after it says that it is the system's.
_ENTERED = re.compile(rb'^# \d+ "((?:[^"\\\n]|\\.)*)" 1(?: 4)?$', re.M)


def _users_files(preprocessed: bytes) -> list[Path]:
    """The files in a preprocessed text that are neither the system's nor the kit's own."""
    names = (re.sub(rb"\\(.)", rb"\1", m[1]) for m in _ENTERED.finditer(preprocessed))
    files = dict.fromkeys(Path(os.fsdecode(name)).resolve() for name in names)
    ours = (own_headers() / "cuda").resolve()
    return [f for f in files if ours not in f.parents and f.is_file()]


def _machine(kind: str) -> list[Path]:
    """The emulation's own objects, without instrumentation."""
    folder = own_headers() / "cuda" / "emulation"
    sources = (folder / "sources.txt").read_text().split()
    sources += ["traffic.cpp"] if kind == "traffic" else []
    sources += ["driver.cpp"] if kind != "plain" else []
    flags = ("-O2", f"-DHETKERN_EMULATION_{KINDS[kind][2]}")
    return [
        _cached("object.o", [_own_sources()], [_compile(folder / s, "{}/object.o", flags)])
        for s in sources
    ]


def build(source: Path, launcher: str, kind: str, flags: tuple[str, ...]) -> Path:
    """A library ("plain") or else a program that runs the source's launcher.

    Raises:
        EmulationError: a word is refused, or the compiler fails.
        NotImplementedError: the compiler or a header is missing.
    """
    kernel, link, _ = KINDS[kind]
    wrapper = _WRAPPER.format(source=source.resolve(), launcher=launcher)
    flags = (*kernel, "-Wall", "-Wno-unknown-pragmas", *flags)
    preprocessed = _preprocessed(wrapper, flags)
    name = "kernel.so" if kind == "plain" else "kernel"
    commands: list[list[str | Path]] = [
        _compile("{}/wrapper.cpp", "{}/kernel.o", flags),
        [compiler(), *link, "{}/kernel.o", *_machine(kind), "-o", "{}/" + name],
    ]
    return _cached(name, [preprocessed], commands, wrapper)


_WRAPPER = """#include "{source}"

#include "cuda/emulation/foreign.h"

#define VISIBLE extern "C" __attribute__((visibility("default")))
VISIBLE const char* hetkern_parameters() {{ return hetkern::emulation::parameters(&{launcher}); }}
VISIBLE int hetkern_call(const unsigned char* slots, char* error, size_t error_size) {{
  return hetkern::emulation::call(&{launcher}, slots, error, error_size);
}}
"""
