"""The kit as a stranger has it: installed from a wheel, outside the source tree, on their kernels.

python_tests/foreign holds an RMSNorm in Triton and in CUDA that knows hetkern.testing and nothing
else of hetkern. It passes; with a bug planted in it, the check that is there for such a bug fails.
"""

import importlib.util
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from emulating import why_impossible

ROOT = Path(__file__).parents[1]
FOREIGN = Path(__file__).with_name("foreign")
PLUGIN = {"triton": ["-p", "hetkern.testing.triton_interpreter"], "cuda": []}
TRITON = [*PLUGIN["triton"], "check_rms_norm_triton.py"]
CUDA = ["check_rms_norm_cuda.py"]


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    was: str
    becomes: str
    test: str  # the one that is there for it
    words: str  # of its message, a pattern

    @property
    def kind(self):
        return "triton" if self.file == "rms_norm_triton.py" else "cuda"


VALUES = "test_rms_norm_and_its_gradients_are_within_the_error_budget"
SANITIZED = "test_rms_norm_runs_clean_under_a_sanitizer"
BUGS = [
    Bug(
        "a Triton load without its mask",
        "rms_norm_triton.py",
        "v = tl.load(x + row * N + lanes, mask=lanes < N, other=0.0)",
        "v = tl.load(x + row * N + lanes)",
        f"check_rms_norm_triton.py::{VALUES}",
        r"rms_norm_triton\.py:\d+: out-of-bounds load: .* past the end of 'x' .* kernel forward_k",
    ),
    Bug(
        "two Triton programs that write one element, the same value",
        "rms_norm_triton.py",
        "tl.program_id(0) * BLOCK + tl.arange",
        "tl.program_id(0) * (BLOCK - 1) + tl.arange",
        f"check_rms_norm_triton.py::{VALUES}",
        r"KernelError: rms_norm_triton\.py:\d+: race on 'dw': a program stores what another pro",
    ),
    Bug(
        "a row that a Triton sum leaves out",
        "rms_norm_triton.py",
        "for row in range(M):",
        "for row in range(M - 1):",
        f"check_rms_norm_triton.py::{VALUES}",
        r"gradient of argument 1: error ÷ limit is",
    ),
    Bug(
        "a missing barrier",
        "rms_norm.cu",
        "  __syncthreads();\n",
        "",
        f"check_rms_norm_cuda.py::{SANITIZED}[thread]",
        r"EmulationError: rms_norm_forward: thread:\s+.*(\n.*)*?data race",
    ),
    Bug(
        "a store past the end",
        "rms_norm.cu",
        "j < N; j += kThreads) y[",
        "j <= N; j += kThreads) y[",
        f"check_rms_norm_cuda.py::{SANITIZED}[address]",
        r"EmulationError: rms_norm_forward: address:\s+.*(\n.*)*?heap-buffer-overflow",
    ),
    Bug(
        "a tail that the sum leaves out",
        "rms_norm.cu",
        "sum += v * v;",
        "if (j < N - N % kThreads) sum += v * v;",
        f"check_rms_norm_cuda.py::{VALUES}",
        r"error ÷ limit is",
    ),
    Bug(
        "a tensor read twice",
        "rms_norm.cu",
        "s.row[j] * scale * w[j]",
        "x[first + j] * scale * w[j]",
        "check_rms_norm_cuda.py::test_rms_norm_moves_its_bytes_once_and_coalesced",
        r"x: 24576 bytes read, the budget is 12288",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stranger")


def clean_environment(folder):
    """Nothing of this source tree; what the suite has built of the emulation itself may be used."""
    ours = ("PYTHON", "PYTEST", "HETKERN_", "TRITON_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    built = "HETKERN_EMULATION_CACHE"  # their kernels lie elsewhere each time, and are built anew
    kept |= {built: os.environ[built]} if built in os.environ else {}
    return {**kept, "OMP_NUM_THREADS": "1"}


def run(command, folder, **options):
    return subprocess.run(
        [str(word) for word in command],
        env=clean_environment(folder),
        text=True,
        capture_output=True,
        timeout=600,
        **options,
    )


def checked(command, folder, **options):
    done = run(command, folder, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(folder):
    """hetkern without CUDA, for one instruction set."""
    settings = ["CUDA=OFF", "LEVELS=base", "WARNINGS_AS_ERRORS=ON"]
    defined = [
        word for s in settings for word in ("--config-settings", f"cmake.define.HETKERN_{s}")
    ]
    build = ["-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    # As deep as the build that is tested here: its compiler cache serves this one.
    place = ROOT / "build/wheel"
    where = ["--config-settings", f"build-dir={place}", "--wheel-dir", folder / "wheel"]
    checked([sys.executable, *build, *defined, *where, ROOT], folder)
    (file,) = (folder / "wheel").glob("hetkern-*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel, folder):
    """An interpreter with that wheel, and of this environment the packages but not our source.

    A line in a .pth file lends the packages; editable installs among them, whose own .pth
    files are not read that way, stay behind.
    """
    checked([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv/bin/python"
    (packages,) = (folder / "venv/lib").glob("python3*/site-packages")
    lent = {str(Path(module.__file__).parents[1]) for module in (torch, pytest)}
    (packages / "lent.pth").write_text("".join(f"{place}\n" for place in sorted(lent)))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    checked([*pip, "--no-deps", "--no-index", wheel], folder)
    return python


#: Runs of pytest, processes that have loaded torch already, two at a time.
RUNS = """
import json, os, sys
import pytest, torch
assert "triton" not in sys.modules  # the plugin comes before it
running, ended = {}, {}
def wait():
    pid, status = os.wait()
    ended[running.pop(pid)] = os.waitstatus_to_exitcode(status)
for name, (work, arguments) in json.load(sys.stdin).items():
    if len(running) == 2:
        wait()
    if not (pid := os.fork()):
        os.chdir(work)
        out = os.open("output", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.path.insert(0, work)
        status = pytest.main(arguments)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    running[pid] = name
while running:
    wait()
json.dump(ended, sys.stdout)
"""


def prepared(folder, name, tests, bug=None):
    """A copy of the stranger's folder, with a bug or without, and what pytest is told there."""
    work = folder / name.replace(" ", "_")
    shutil.copytree(FOREIGN, work, ignore=shutil.ignore_patterns("__pycache__"))
    if bug is not None:
        text = (work / bug.file).read_text()
        assert bug.was in text, f"{bug.file} has no longer {bug.was!r}"
        (work / bug.file).write_text(text.replace(bug.was, bug.becomes, 1))
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", work, "-rA", *tests]
    return str(work), [str(word) for word in options]


def why_absent(kind):
    """Why kernels in Triton, or in CUDA, cannot run here; None if they can."""
    if kind == "triton":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    return why_impossible()


@pytest.fixture(scope="module")
def outcome_of(python, folder):
    """Each run's output and exit status; skips if there is none."""
    absent = {kind: why_absent(kind) for kind in ("triton", "cuda")}
    runs = {"triton": (TRITON, None), "cuda": (CUDA, None)}
    runs |= {bug.name: ([*PLUGIN[bug.kind], bug.test], bug) for bug in BUGS}
    kinds = {"triton": "triton", "cuda": "cuda"} | {bug.name: bug.kind for bug in BUGS}
    jobs = {
        name: prepared(folder, name, *how)
        for name, how in runs.items()
        if absent[kinds[name]] is None
    }
    ended = json.loads(checked([python, "-c", RUNS], folder, cwd=folder, input=json.dumps(jobs)))

    def outcome(name):
        if name not in jobs:
            pytest.skip(absent[kinds[name]])
        output = Path(jobs[name][0], "output").read_text(encoding="utf-8")
        return subprocess.CompletedProcess(jobs[name][1], ended[name], output, "")

    return outcome


def test_the_wheel_carries_the_kits_headers_and_whatever_they_include(wheel):
    archive = zipfile.ZipFile(wheel)
    headers = [name for name in archive.namelist() if "/include/" in name]
    names = ("check", "launch", "ptx", "shared_parts")
    device = [f"hetkern/include/cuda/device/{name}.cuh" for name in names]
    folder = ROOT / "csrc/cuda/emulation"
    files = (file for file in folder.rglob("*") if file.is_file())
    emulation = {str(file.relative_to(folder)) for file in files} - {"table.cpp"}
    assert sorted(headers) == sorted(
        [*device, *(f"hetkern/include/cuda/emulation/{name}" for name in emulation)]
    )
    for header in headers:
        for other in re.findall(r'^#include "([^"]+)"', archive.read(header).decode(), re.M):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(header), other))
            assert found in headers, f"{header} includes {other}, which the wheel lacks"


def test_a_stranger_imports_the_installed_kit(python, folder):
    code = "from hetkern import impl, testing as t; print(t.__file__, impl.missing_library)"
    file, missing = checked([python, "-c", code], folder, cwd=folder).split()
    assert Path(file).is_relative_to(folder / "venv")
    assert missing == "None"


@pytest.mark.parametrize(("kind", "passed"), [("triton", 3), ("cuda", 4)])
def test_kernels_from_outside_pass(kind, passed, outcome_of):
    done = outcome_of(kind)
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(rf"^{passed} passed in", done.stdout, re.M), done.stdout[-2000:]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_planted_in_a_kernel_from_outside_is_found(bug, outcome_of):
    done = outcome_of(bug.name)
    assert done.returncode == 1, done.stdout[-6000:]  # tests ran, and failed
    assert re.search(r"^1 failed in", done.stdout, re.M), done.stdout[-2000:]
    assert re.search(bug.words, done.stdout), done.stdout[-6000:]


def test_the_kit_imports_without_the_native_library_and_without_a_compiler(python, folder):
    (installed,) = (folder / "venv/lib").glob("python3*/site-packages/hetkern")
    native = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(installed, folder / "bare/hetkern", ignore=native)
    (folder / "my.cu").write_text('extern "C" void mine(float* x, void* stream) {}\n')
    code = f"""
import os, sys
# Alone: sources without a library give way to an installed package.
sys.path = [{str(folder / "bare")!r}, *(p for p in sys.path if p != {str(installed.parent)!r})]
os.environ["PATH"], _ = "", os.environ.pop("CXX", None)
import torch, hetkern.impl
from hetkern.testing import Case, check_op, emulate_cuda
assert "is not in" in hetkern.impl.missing_library
print(check_op(torch.softmax, torch.softmax, [Case("plain", (torch.randn(8, 100), -1))]))
try:
    emulate_cuda("my.cu")
except NotImplementedError as error:
    print(error)
"""
    printed = checked([python, "-c", code], folder, cwd=folder)
    assert re.search(r"^\d+ comparisons", printed, re.M)
    assert "needs g++ (11 or newer): install it or set CXX" in printed


def test_the_file_from_outside_compiles_for_a_gpu_with_the_installed_headers(python, folder):
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("nvcc is not installed")
    include = checked([python, "-m", "hetkern.testing", "--include"], folder, cwd=folder).strip()
    assert Path(include).is_relative_to(folder / "venv")
    flags = ["-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-I", include]
    checked([nvcc, *flags, "-c", FOREIGN / "rms_norm.cu", "-o", folder / "rms_norm.o"], folder)
