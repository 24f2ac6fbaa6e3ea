"""What a CUDA file may not use if the emulation is to run it: refused by name.

Run as a program on files, it prints what it finds and fails; it needs neither torch nor hetkern.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_MACROS = "csrc/cuda/device/launch.cuh"
_LAUNCH = f"launch with HETKERN_LAUNCH ({_MACROS})"
_SHARED = f"shared memory is dynamic, a struct obtained with HETKERN_SHARED ({_MACROS})"
_PTX = "PTX goes through hetkern::ptx (csrc/cuda/device/ptx.cuh), where each wrapper has a twin"
_ORDER = (
    "a block's threads meet at __syncthreads, and blocks hand data over "
    "with ptx::add_acquire_release, or ptx::add_release and ptx::load_acquire "
    "(csrc/cuda/device/ptx.cuh)"
)
_CLASSES = "the emulation does not know its classes; plain __syncthreads and __shfl_*_sync it knows"

#: Pattern in code without comments and strings, its name, and what to do instead.
REFUSED = (
    (r"<<<", "<<<…>>>", _LAUNCH),
    (r"\bcudaLaunch\w*|\bcuLaunch\w*", "cudaLaunch…", _LAUNCH),
    (r"\b__shared__\b", "__shared__", _SHARED),
    (r"\bcub\s*::", "CUB", "write the reduction out with shuffles"),
    (r"\bthrust\s*::", "Thrust", "write a kernel"),
    (r"\bwmma\s*::\s*experimental\b", "wmma::experimental", _PTX),
    (r"\bcuda\s*::\s*(pipeline_shared_state|pipeline_role|atomic\w*|ptx)\b", "libcu++", _CLASSES),
    (r"\b__cluster_dims__\b", "__cluster_dims__", "launch with HETKERN_LAUNCH_CLUSTER"),
)
#: In this project's own sources: those of others run as they are. (inline_asm.py)
OWN = (
    *REFUSED,
    (r"\b(asm|__asm__|__asm)\b", "asm", _PTX),
    (r"\b__threadfence(_block|_system)?\b", "__threadfence", _ORDER),
    (r"\b(__activemask|coalesced_threads)\b", "__activemask", "name the lanes that take part"),
)
_HEADERS = (
    r"#\s*include\s*<(cub/|thrust/|cooperative_groups/(?!reduce\.h|scan\.h)"
    r"|cuda/(?!device/|emulation/|barrier>|pipeline>))[^>]*>"
)
_DEFINING = ("ptx.cuh", "launch.cuh", "shared_parts.cuh")
_NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)


def refusals(
    text: str, name: str, words: tuple[tuple[str, str, str], ...] = REFUSED
) -> Iterator[str]:
    """One line for each refused word: file, line, word, what to do instead."""
    code = _NOISE.sub(lambda m: "\n" * m[0].count("\n"), text)
    for i, line in enumerate(code.split("\n"), 1):
        for pattern, word, instead in words:
            if re.search(pattern, line):
                yield f"{name}:{i}: the emulation refuses {word}: {instead}"
        if match := re.search(_HEADERS, line):
            yield f"{name}:{i}: the emulation refuses {match[0].strip()}: {_CLASSES}"


def unbounded_kernels(text: str, name: str) -> Iterator[str]:
    """One line for each kernel without ``__launch_bounds__``: nvcc's own warning is wrong there.

    nvcc 13.0's -Wmissing-launch-bounds names every template kernel, whatever bounds it has.
    """
    code = _NOISE.sub(lambda m: "\n" * m[0].count("\n"), text)
    for match in re.finditer(r"\b__global__\b[^{;]*", code):
        if "__launch_bounds__" not in match[0]:
            line = code.count("\n", 0, match.start()) + 1
            yield f"{name}:{line}: a kernel without __launch_bounds__"


def main() -> None:
    """Look at the files named; those that define the words for nvcc are not asked."""
    files = [Path(f) for f in sys.argv[1:] if Path(f).name not in _DEFINING]
    found = []
    for f in files:
        text = f.read_text()
        found += [*refusals(text, str(f), OWN), *unbounded_kernels(text, str(f))]
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
