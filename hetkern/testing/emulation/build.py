"""Builds anybody's CUDA file for the CPU: which compiler, which headers, and a cache by content."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hetkern.testing.emulation.inline_asm import without_asm
from hetkern.testing.emulation.refused import refusals
from hetkern.testing.emulation.rewriting import closing, rewritten
from hetkern.testing.emulation.whole_reports import keep_report


class EmulationError(RuntimeError):
    """A kernel that the emulation cannot build, refuses, or has caught in an error."""


_ALIGNMENT = ("-fsanitize=alignment", "-fno-sanitize-recover=alignment")
_SCALAR = ("-O2", "-fno-tree-vectorize", "-fno-tree-slp-vectorize")
_COUNTED = ("-include", "cuda/emulation/counted_words.h")
#: For each way to run: the kernel's flags, the linker's, and what the emulation is told.
KINDS = {
    "plain": (
        (*_SCALAR, *_ALIGNMENT, "-fstack-protector-strong"),
        ("-shared", "-Wl,--no-undefined"),
        "PLAIN",
    ),
    "address": (
        ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        ("-fsanitize=address,undefined",),
        "ADDRESS",
    ),
    "thread": (
        ("-O1", "-fsanitize=thread", "--param=tsan-distinguish-volatile=1", *_ALIGNMENT),
        ("-fsanitize=thread",),
        "THREAD",
    ),
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


def _run(command: list[str | Path], place: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=place)
    if done.returncode:
        raise _failed(command, done.stderr or done.stdout)
    return done.stdout + done.stderr


def _failed(command: list[str | Path], report: str) -> EmulationError:
    """The errors, each with the line that it is about; all that was said stands in a file."""
    lines = report.splitlines()
    kept: list[str] = []
    for i, line in enumerate(lines):
        if re.search(r"error: |undefined reference|: error", line):
            shown = [line, *(s for s in lines[i + 1 : i + 3] if re.match(r"\s+\d* ?\|", s))]
            origin = next((s for s in lines[i:0:-1] if "required from here" in s), None)
            kept += [*([origin] if origin and origin not in kept else []), *shown]
    whole = keep_report(f"{' '.join(map(str, command))}\n{report}")
    return EmulationError("\n".join([*(s[:400] for s in kept[:24] or lines[-8:]), whole]))


def _cached(
    name: str,
    parts: list[bytes],
    commands: list[list[str | Path]],
    text: str = "",
    place: Path | None = None,
) -> Path:
    """The file that the commands make in a folder of their own ({}), unless it is there already.

    They run in ``place``; where that is, the file does not depend on. The text is there as text.ii;
    beside the file, "warnings" has what the commands said.
    """
    source = os.fsencode(text) if text.isascii() else text.encode(errors="surrogateescape")
    key = hashlib.sha256()
    for part in (
        *parts,
        source,
        repr(commands).encode(),
        _version(),
        str(cuda_headers()).encode(),
    ):
        key.update(hashlib.sha256(part).digest())
    kept = _cache() / key.hexdigest()[:32] / name
    if not kept.exists():
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            Path(folder, "text.ii").write_bytes(source)
            said = [
                _run([str(w).replace("{}", folder) for w in command], place) for command in commands
            ]
            kept.parent.mkdir(exist_ok=True)
            (kept.parent / "warnings").write_text("".join(said))
            os.replace(Path(folder) / name, kept)
    return kept


@functools.cache
def _version() -> bytes:
    return _run([compiler(), "--version"]).encode()


@functools.cache
def _own_sources() -> bytes:
    files = sorted(
        p for d in ("device", "emulation") for p in (own_headers() / "cuda" / d).rglob("*.*")
    )
    return b"".join(p.name.encode() + p.read_bytes() for p in files if p.name != "table.cpp")


def _front(flags: tuple[str, ...], own: Path | None = None) -> list[str | Path]:
    own = own or own_headers()
    # Ours of CUDA's names (cuda_fp16.h, cooperative_groups.h) come before CUDA's.
    ours = own / "cuda" / "emulation" / "headers"
    headers = ("-I", own, "-isystem", ours, "-isystem", cuda_headers())
    return [compiler(), *_COMMON, *flags, *map(str, headers)]


#: Conversions out of range give what a GPU gives (csrc/cuda/emulation/casts.cpp).
_CASTS = ("-fsanitize=float-cast-overflow", "-fsanitize-recover=float-cast-overflow")


def _preprocessed(text: str, flags: tuple[str, ...]) -> bytes:
    """What the compiler makes of the text and all that it includes, wherever the flags find it.

    Raises:
        EmulationError: a word is refused in the user's files, or the preprocessor fails.
    """
    # The working directory would stand in the text, which is the key that a build is kept by.
    marks = ("-DHETKERN_MARKS", "-fno-working-directory")
    command = [*_front(flags), *marks, "-E", "-x", "c++", "-"]
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
    return [
        f for f in dict.fromkeys(Path(os.fsdecode(name)).resolve() for name in names) if is_users(f)
    ]


def is_users(file: Path) -> bool:
    """Whether a file is there and not the kit's own."""
    return (own_headers() / "cuda").resolve() not in file.parents and file.is_file()


def with_asm_as_calls(preprocessed: str) -> tuple[str, list[tuple[str, int, str]]]:
    """The text with the inline PTX of the user's files as C++, and what of it is not known."""
    return without_asm(preprocessed, lambda name: is_users(Path(name).resolve()), closing)


@functools.cache
def _cheap_fibers() -> tuple[str, ...]:
    """The linker's flags for csrc/cuda/emulation/tsan_fibers.cpp; none: this compiler goes without.

    It knows the runtime of GCC 11 and 12, where a fiber is dear, and needs the static library.
    """
    if _run([compiler(), "-dumpversion"]).split(".")[0].strip() not in ("11", "12"):
        return ()
    if "/" not in _run([compiler(), "-print-file-name=libtsan.a"]):
        return ()
    wrapped = ("15internal_memsetEPvim", "13internal_mmapEPvmiiiy")
    return ("-static-libtsan", *(f"-Wl,--wrap=_ZN11__sanitizer{name}" for name in wrapped))


def _machine(kind: str) -> list[Path]:
    """The emulation's own objects, without instrumentation: for every copy of it the same."""
    folder = own_headers() / "cuda" / "emulation"
    sources = (folder / "sources.txt").read_text().split()
    sources += {"traffic": ["traffic.cpp"], "thread": ["races.cpp", "volatiles.cpp"]}.get(kind, [])
    if kind == "thread" and _cheap_fibers():
        sources.insert(0, "tsan_fibers.cpp")  # which marks where the kernel ends
    sources += [
        "foreign.cpp",
        "runtime.cpp",
        "textures.cpp",
        *(["driver.cpp"] if kind != "plain" else []),
    ]
    flags = ("-O2", f"-DHETKERN_EMULATION_{KINDS[kind][2]}")

    def made(source: str) -> Path:
        file = Path("cuda/emulation", source)
        command = [*_front(flags, Path(".")), "-c", file, "-o", "{}/object.o"]
        return _cached("object.o", [_own_sources()], [command], place=own_headers())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(made, sources))


def build(source: Path, launchers: list[str], kind: str, flags: tuple[str, ...]) -> Path:
    """A library ("plain") or else a program that runs any of the source's launchers.

    What the compiler warns of goes to stderr, as from any compiler.

    Raises:
        EmulationError: a word is refused, or the compiler fails.
        NotImplementedError: the compiler or a header is missing.
    """
    kernel, link, _ = KINDS[kind]
    link = (*link, *_cheap_fibers()) if kind == "thread" else link
    wanted = f'#include "{source.resolve()}"\n\n#include "cuda/emulation/foreign.h"\n'
    quiet = ("-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare")
    flags = (*kernel, *_CASTS, *quiet, *gpu_flags(flags))
    text, unknown = with_asm_as_calls(_preprocessed(wanted, flags).decode(errors="surrogateescape"))
    if unknown:
        refused = (f"{file}:{line}: the emulation refuses {what}" for file, line, what in unknown)
        raise EmulationError("\n".join(refused))
    text = rewritten(text)
    there = [name for name in launchers if re.search(rf"\b{name}\s*\(", text)]
    text += _ENTRIES + "".join(_ENTRY.format(name) for name in there) + "{nullptr}};\n"
    fast = str("-DHETKERN_FAST_MATH" in flags).lower()
    text += _FAST_MATH.format(fast) + (_BEGINS if kind == "thread" and _cheap_fibers() else "")
    name = "kernel.so" if kind == "plain" else "kernel"
    front = [compiler(), *_COMMON, *flags, "-fpreprocessed", "-x", "c++"]
    commands: list[list[str | Path]] = [
        [*front, "-c", "{}/text.ii", "-o", "{}/kernel.o"],
        [compiler(), *link, "{}/kernel.o", *_machine(kind), "-o", "{}/" + name],
    ]
    built = _cached(name, [], commands, text)
    if built not in _told and (warnings := (built.parent / "warnings").read_text()):
        print(warnings, file=sys.stderr, end="")
    _told.add(built)
    return built


#: The table that foreign.cpp looks launchers up in; the preprocessor has been there already.
_ENTRIES = """
extern "C" __attribute__((visibility("hidden"))) const hetkern::emulation::Entry
    hetkern_launchers[] = {
"""
_FAST_MATH = """extern "C" __attribute__((visibility("hidden"))) const bool hetkern_fast_math = {};
"""
#: For signals.cpp: GCC puts it before all functions.
_BEGINS = r"""asm(".text\n.globl hetkern_kernel_begins\n.hidden hetkern_kernel_begins\n"
    "hetkern_kernel_begins:");
"""
_ENTRY = """    hetkern::emulation::entry<&::{0}>("{0}"),
"""
_told: set[Path] = set()


@functools.cache
def _has_fma() -> bool:
    try:
        return " fma " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def gpu_flags(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Nvcc's own flags as g++'s; others stay as they are.

    As nvcc does, a product that feeds a sum is fused with it unless -fmad=false is given.
    """
    fused = ("-mfma", "-ffp-contract=fast") if _has_fma() else ()
    kept: list[str] = []
    for flag in flags:
        bare = flag.lstrip("-")
        if bare in ("fmad=false", "fmad=true"):
            fused = fused if bare == "fmad=true" else ("-ffp-contract=off", "-DHETKERN_FMAD=0")
        elif bare == "use_fast_math":
            kept.append("-DHETKERN_FAST_MATH")
        elif match := re.fullmatch(r"arch=(?:sm|compute)_(\d+)[af]?", bare):
            kept.append(f"-DHETKERN_CUDA_ARCH={match[1]}0")
        else:
            kept.append(flag)
    return (*fused, *kept)
