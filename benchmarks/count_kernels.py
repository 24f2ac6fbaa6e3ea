"""How many of other people's CUDA kernels the emulation compiles.

    python benchmarks/count_kernels.py FOLDER [-I FOLDER]... [-D NAME]... [--arch 60] [--why]

Each ``.cu`` file and header of the folder is copied to a temporary one, with what the emulation
wants written otherwise: ``k<<<…>>>(…)`` as HETKERN_LAUNCH, ``__shared__`` arrays as memory of the
block. A kernel counts if no error of g++ and no refused word lies in it, in device code of its
file, or in a header; host code around it may use what is not here (cuBLAS, torch). A header's
kernels are those of the first file that reads it. One that the preprocessor leaves out has not
compiled.
"""

from __future__ import annotations

import argparse
import collections
import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from hetkern.testing.emulation import build, refused, rewriting
from hetkern.testing.emulation.rewriting import closing

_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.S)
_FUNCTION = re.compile(r"\b([A-Za-z_]\w*)\s*(?:<[^<>;{}]*>)?\s*\(")
_LATE = "KERNELS_COUNTED"
_HEAD = f"""#include "cuda/device/launch.cuh"
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#define {_LATE}_SHARED static
template <class T> T* {_LATE}_dynamic() {{
  return static_cast<T*>(::hetkern::emulation::shared_memory(0));
}}
"""


#: What host code declares with headers that may not be here.
_STUBS = {
    "cublas_v2.h": "#pragma once\ntypedef int cublasStatus_t, cublasMath_t, cublasComputeType_t;\n"
    "typedef void* cublasHandle_t;\n",
    "cuda.h": "#pragma once\ntypedef int CUresult, CUdevice;\n",
}


def without_noise(text: str) -> str:
    """The text without comments and literals, each place where it was."""
    return _NOISE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


def rewritten(text: str) -> str:
    """The file as the emulation wants it, line by line the same."""
    text = re.sub(
        r"extern\s+__shared__\s+(?:__align__\s*\(\s*\w+\s*\)\s*|alignas\s*\(\s*\w+\s*\)\s*)?"
        r"((?:unsigned\s+|const\s+|volatile\s+)*[\w:]+(?:\s*\*+(?:\s*const\b)?|\b))\s*"
        r"(?:__align__\s*\(\s*\w+\s*\)\s*)?"
        r"(\w+)\s*\[\s*\]\s*((?:\[[^]]*\]\s*)*);",
        rf"auto* \2 = {_LATE}_dynamic<\1\3>();",
        re.sub(r"extern\s+([\w:]+)\s+__shared__\b", r"extern __shared__ \1", text),
    )
    # g++ wants them the other way round.
    text = re.sub(r"__shared__\s+(alignas\s*\(\s*(?:[^()]|\([^()]*\))*\))", r"\1 __shared__", text)
    text = re.sub(r"\b__shared__\b", f"{_LATE}_SHARED", text)
    while "<<<" in text and (launched := _with_macro(text)) is not None:
        text = launched
    return text


def _with_macro(text: str) -> str | None:
    """The first k<<<…>>>(…) as HETKERN_LAUNCH((k), …)."""
    at = text.index("<<<")
    end = text.find(">>>", at)
    call = re.compile(r"\s*\(").match(text, end + 3) if end >= 0 else None
    start = at
    depth = 0
    while start and (depth or re.match(r"[\w:>\s\\]", text[start - 1])):
        start -= 1
        depth += (text[start] == ">") - (text[start] == "<")
        if not depth and text[start].isspace() and not re.match(r"[\s\\]*(<|$)", text[start:at]):
            break
    kernel = text[start:at].strip(" \t\n\\")
    gap = text[start:at].partition(kernel)[2]  # in a macro the end of a line
    if not call or not kernel:
        return text[:at] + "//" + text[at + 3 :]
    try:
        past = closing(text, call.end() - 1)
    except ValueError:
        return None
    given = _split(text[at + 3 : end])
    given += ["0"] * (4 - len(given))
    arguments = text[call.end() : past - 1]
    comma = ", " if arguments.strip() else ""
    return (
        f"{text[:start]} HETKERN_LAUNCH(({kernel}){gap}, {', '.join(given)}{comma}{arguments})"
        + text[past:]
    )


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def functions(code: str) -> list[tuple[int, int, str, str]]:
    """First and last line, kind (kernel, device, host) and name of each function with a body."""
    found, i = [], 0
    line = lambda at: code.count("\n", 0, at) + 1  # noqa: E731
    while match := _FUNCTION.search(code, i):
        i = match.end()
        try:
            end = closing(code, match.end() - 1)
        except ValueError:
            break
        body = re.compile(r"\s*(?:const|noexcept|override|\s)*\{").match(code, end)
        if not body or match[1] in ("if", "for", "while", "switch", "catch", "__launch_bounds__"):
            if match[1] in ("__launch_bounds__", "__align__", "alignas"):
                i = end
            continue
        start = max(code.rfind(c, 0, match.start()) for c in ";}{") + 1
        head = code[start : match.start()]
        start += len(head) - len(head.lstrip())  # its own first line
        try:
            past = closing(code, body.end() - 1)
        except ValueError:
            break
        kind = "kernel" if "__global__" in head else "device" if "__device__" in head else "host"
        found.append((line(start), line(past), kind, match[1]))
        i = past
    return found


@functools.cache
def functions_of(name: str) -> list[tuple[int, int, str, str]]:
    """Those of a header."""
    try:
        return functions(without_noise(Path(name).read_text(errors="replace")))
    except OSError:
        return []


def compiling(file: Path, flags: list[str], stubs: Path) -> list[str]:
    """The command that compiles a file as the emulation does."""
    front = build._front((*build._CASTS, "-w", *build.gpu_flags(tuple(flags))))
    return [*map(str, front), "-I", str(stubs), "-x", "c++", str(file)]


def preprocessed(copy: Path, flags: list[str], stubs: Path) -> tuple[str, str]:
    """What the preprocessor makes of a file and what it says.

    A header that is not there is an empty one.
    """
    command = compiling(copy, ["-E", "-DHETKERN_MARKS", *flags], stubs)
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        missing = re.search(r"fatal error: (\S+): No such file", done.stderr)
        if not missing or missing[1].startswith(("/", "..")):
            break
        (stubs / missing[1]).parent.mkdir(parents=True, exist_ok=True)
        (stubs / missing[1]).write_text(_STUBS.get(missing[1], ""))
    return done.stdout, done.stderr


def lines_left(text: str) -> dict[str, set[int]]:
    """Of each file read the lines of which the preprocessor leaves something, by its markers."""
    left: dict[str, set[int]] = collections.defaultdict(set)
    name, number = "", 0
    for line in text.split("\n"):
        if marker := re.match(r'# (\d+) "([^"]*)"', line):
            name, number = marker[2], int(marker[1])
            continue
        if line.strip():
            left[name].add(number)
        number += 1
    return left


def errors_of(text: str, said: str, flags: list[str], stubs: Path) -> list[tuple[str, int, str]]:
    """File, line and text of each error in preprocessed text, and those said of it before.

    What goes wrong in a template of the emulation's own headers stands where it was asked for.
    """
    calls, unknown = build.with_asm_as_calls(text)
    found = [(file, line, f"the emulation refuses {what}") for file, line, what in unknown]
    whole = stubs.parent / "text.ii"
    whole.write_text(rewriting.rewritten(calls))
    command = compiling(whole, ["-fpreprocessed", "-fsyntax-only", "-fmax-errors=0", *flags], stubs)
    said += subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
    asked = None
    for m in re.finditer(r"^(\S+?):(\d+):(?:\d+:)? +(.*)$", said, re.M):
        if m[3] == "required from here":
            asked = m[1], int(m[2])
        elif error := re.match("(?:fatal )?error: (.*)", m[3]):
            ours = asked and Path(m[1]).is_relative_to(build.own_headers())
            found.append((*(asked if ours and asked else (m[1], int(m[2]))), error[1]))
            asked = None
    return found


def rewrite_headers(folder: Path, work: Path) -> None:
    """The folder's headers where its files' copies look for them first."""
    for file in folder.rglob("*"):
        if file.suffix in (".cuh", ".h", ".hpp", ".inl"):
            copy = work / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(f'#line 1 "{file}"\n{rewritten(file.read_text(errors="replace"))}')


def count(
    file: Path, folder: Path, flags: list[str], work: Path, why: collections.Counter[str]
) -> tuple[int, int]:
    """How many of a file's kernels compile, and how many it has."""
    text = file.read_text(errors="replace")
    copy = work / file.relative_to(folder)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(f'{_HEAD}#line 1 "{file}"\n{rewritten(text)}')
    # A header that is named with its folder is the copy, too.
    flags = ["-I", str(work.parent), "-I", str(file.parent), *flags]
    whole, said = preprocessed(copy, flags, work / "stubs")
    found = errors_of(whole, said, flags, work / "stubs")
    left = lines_left(whole)
    theirs = [Path(name) for name in left if folder in Path(name).parents and name != str(file)]
    kernels = [
        (str(name), *f)
        for name in (file, *theirs)
        if name not in _counted
        for f in functions_of(str(name))
        if f[2] == "kernel"
    ]
    if not kernels:
        return 0, 0
    _counted.update(theirs)
    for name in (file, *theirs):
        code = without_noise(name.read_text(errors="replace"))
        for line in refused.refusals(re.sub(_LEFT_OUT, " ", code), "-"):
            _, number, reason = line.split(":", 2)
            if int(number) in left[str(name)]:
                found.append((str(name), int(number), reason.strip()))
    shared, own = [], collections.defaultdict(list)
    for where, line, said in found:
        if where.endswith("cuda/device/launch.cuh"):  # a launch, which is host code
            continue
        inside = [f for f in functions_of(where) if f[0] <= line <= f[1]]
        if inside and inside[0][2] == "kernel":
            own[where, *inside[0]].append(said)
        elif (
            not inside or inside[0][2] != "host" or Path(where).is_relative_to(build.own_headers())
        ):
            shared.append(f"{Path(where).name}: {said}")
    good = 0
    for kernel in kernels:
        reasons = own[kernel] or shared
        if left[kernel[0]].isdisjoint(range(kernel[1], kernel[2] + 1)):
            reasons = ["the preprocessor leaves it out"]
        good += not reasons
        if reasons:
            why[reasons[0][:110]] += 1
    return good, len(kernels)


_counted: set[Path] = set()  # headers
# What is rewritten, and what host code launches with, a header's structs included.
_LEFT_OUT = re.compile(r"<<<|__shared__|cudaLaunch\w*")


def main() -> None:
    """Print the counts, and with --why the first reason of each that does not compile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-I", dest="include", action="append", default=[])
    parser.add_argument("-D", dest="define", action="append", default=[])
    parser.add_argument("--arch", help="compute capability that __CUDA_ARCH__ tells, such as 60")
    parser.add_argument("--why", action="store_true")
    given = parser.parse_args()
    flags = [word for folder in given.include for word in ("-I", folder)]
    flags += [f"-D{name}" for name in given.define]
    flags += [f"-arch=sm_{given.arch}"] if given.arch else []
    why: collections.Counter[str] = collections.Counter()
    good = all_of_them = 0
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder.resolve()
        work = Path(name) / folder.name
        (work / "stubs").mkdir(parents=True)
        rewrite_headers(folder, work)
        for file in sorted(folder.rglob("*.cu")):
            ran, had = count(file, folder, flags, work, why)
            good, all_of_them = good + ran, all_of_them + had
            if had and ran < had:
                print(f"{file.relative_to(folder)}: {ran} of {had}", file=sys.stderr)
    print(f"{folder.name}: {good} of {all_of_them} kernels compile")
    if given.why:
        for reason, times in why.most_common(25):
            print(f"{times:5d}  {reason}")


if __name__ == "__main__":
    main()
