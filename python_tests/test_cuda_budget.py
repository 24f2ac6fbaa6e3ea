"""Registers, spills and shared memory of every CUDA kernel, against csrc/cuda/budget.json.

``python python_tests/test_cuda_budget.py`` writes the file anew, to be read before it is committed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from hetkern.testing.traffic.table import short_name

CUDA = Path(__file__).parent.parent / "csrc" / "cuda"
BUDGET = CUDA / "budget.json"
ARCHITECTURES = ("80", "86", "89", "90", "90a", "100", "120")  # a release's, and the development's
IN_CI = "80", "90a"
SOURCES = sorted(path.name for path in CUDA.glob("*.cu"))
#: ptxas says this of kernels that use the tensor cores one at a time, or without a fence.
FORBIDDEN = ("C7511", "C7519")


def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=_path())


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin"))


@cache
def compiled(source: str, architecture: str) -> str:
    """What ptxas says of one file for one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc(), "-std=c++17", "-O3", "-Xptxas", "-v", "-c", str(CUDA / source)]
        command += ["-Werror=all-warnings", "-Xptxas", "-warn-spills,-Werror"]
        command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
        command += ["-o", str(Path(folder, "kernels.o"))]
        if ccache := shutil.which("ccache"):
            command.insert(0, ccache)
        run = subprocess.run(command, capture_output=True, text=True, cwd=CUDA)
    assert run.returncode == 0, run.stderr
    return run.stderr


def usage(told: str) -> dict[str, dict[str, int]]:
    """What each kernel of ptxas' report takes."""
    names = re.findall(r"Compiling entry function '(\w+)'", told)
    plain = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    readable = dict(zip(names, plain.stdout.splitlines(), strict=True))
    taken = {}
    for block in re.split(r"(?=Compiling entry function)", told)[1:]:
        name = re.search(r"entry function '(\w+)'", block)[1]
        taken[short_name(readable[name])] = {
            "registers": _number(r"Used (\d+) registers", block),
            "spilled": _number(r"(\d+) bytes spill stores", block),
            "stack": _number(r"(\d+) bytes stack frame", block),
            "shared": _number(r"(\d+) bytes smem", block),
        }
    return taken


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc is missing")
needs_filt = pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is missing")


@needs_nvcc
@needs_filt
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=() if a in IN_CI else pytest.mark.proof) for a in ARCHITECTURES],
)
@pytest.mark.parametrize(
    "source",  # attention's budget is not written yet
    [pytest.param(s, marks=pytest.mark.proof if "attention" in s else ()) for s in SOURCES],
)
def test_every_cuda_kernel_keeps_its_budget(source, architecture):
    budget = json.loads(BUDGET.read_text())[f"sm_{architecture}"].get(source, {})
    told = compiled(source, architecture)
    taken = usage(told)
    assert taken.keys() == budget.keys(), "kernels came or went: write the budget anew"
    over = {
        name: (kernel, budget[name])
        for name, kernel in taken.items()
        if any(kernel[what] > budget[name][what] for what in kernel)
    }
    assert not over, f"over budget (taken, allowed): {over}"
    assert not [code for code in FORBIDDEN if code in told]


def test_no_budgeted_kernel_spills_registers_or_has_static_shared_memory():
    budget = json.loads(BUDGET.read_text())
    kernels = [k for files in budget.values() for file in files.values() for k in file.values()]
    assert kernels and budget.keys() == {f"sm_{a}" for a in ARCHITECTURES}
    assert not [k for k in kernels if k["spilled"] or k["shared"]]


def test_every_cuda_kernel_states_its_launch_bounds():
    # nvcc 13.0's own warning reports every template, whatever stands there.
    kernels = 0
    for file in (*CUDA.glob("*.cu"), *CUDA.glob("device/*.cuh")):
        for declared in re.findall(r"__global__\s+void(.{0,40})", file.read_text(), re.DOTALL):
            kernels += 1
            assert declared.lstrip().startswith("__launch_bounds__"), f"{file.name}: {declared}"
    assert kernels >= 4


if __name__ == "__main__":
    written = {
        f"sm_{a}": {s: kernels for s in SOURCES if (kernels := usage(compiled(s, a)))}
        for a in ARCHITECTURES
    }
    BUDGET.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{BUDGET}: {sum(len(f) for f in written.values())} files\n")
