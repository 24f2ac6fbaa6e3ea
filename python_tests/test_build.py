"""What the build does about CUDA: for which GPUs, without nvcc, beside one that is too old."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NVCC = next(
    filter(Path.is_file, [Path("/usr/local/cuda/bin/nvcc"), Path(shutil.which("nvcc") or "-")]),
    None,
)
pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None, reason="cmake is missing: pip install cmake"
)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")


@pytest.fixture
def configure(tmp_path):
    """Run CMake's configure step, and nothing of the build; gives its status and what it said."""

    def run(*options, **environment):
        found = {
            k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")
        }
        done = subprocess.run(
            [
                "cmake",
                "-S",
                ROOT,
                "-B",
                tmp_path / "build",
                f"-DPython_EXECUTABLE={sys.executable}",
                *options,
            ],
            env={**found, **environment},
            text=True,
            capture_output=True,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())  # CMake breaks lines

    return run


@pytest.fixture
def program(tmp_path):
    """Write a program of that name that prints a text."""

    def write(name, prints, status=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        file = folder / name
        file.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\nexit {status}\n")
        file.chmod(0o755)
        return file

    return write


def told(tmp_path):
    """The reason that is compiled in, for hetkern.doctor()."""
    flags = next((tmp_path / "build").glob("CMakeFiles/hetkern_ops.dir/build.make"), None)
    text = (flags or tmp_path / "build" / "build.ninja").read_text()
    return " ".join(text.split()) if "HETKERN_NO_CUDA" in text else ""


def test_an_nvcc_that_is_too_old_is_named_with_what_is_needed(configure, program, tmp_path):
    old = program("nvcc", "Cuda compilation tools, release 11.8, V11.8.89")
    reason = f"{old} is version '11.8', and 12.0 is needed"
    status, said = configure(CUDACXX=str(old))
    assert status == 0
    assert f"CUDA: {reason}: going on without" in said
    assert reason in told(tmp_path)
    status, said = configure("-DHETKERN_CUDA=ON", CUDACXX=str(old))
    assert status != 0
    assert f"HETKERN_CUDA=ON, but {reason}" in said


def test_an_nvcc_that_compiles_nothing_is_left_out_with_what_it_said(configure, program, tmp_path):
    broken = program("nvcc", 'release 13.0; gcc 99 is "not supported"', status=1)
    status, said = configure(CUDACXX=str(broken))
    assert status == 0
    assert f"{broken} does not compile a small file" in said
    assert "going on without" in said
    assert "gcc 99 is not supported" in told(tmp_path)  # a C string: without its quotes


def test_cuda_that_is_switched_off_is_not_looked_for(configure, tmp_path):
    status, said = configure("-DHETKERN_CUDA=OFF", CUDACXX="/nowhere/nvcc")
    assert status == 0
    assert "CUDA: HETKERN_CUDA is OFF: going on without" in said
    assert "HETKERN_CUDA is OFF" in told(tmp_path)


def test_a_torch_that_is_too_old_is_refused_with_what_to_type(configure, tmp_path):
    torch = tmp_path / "old" / "torch"
    header = torch / "include" / "torch" / "csrc" / "stable" / "library.h"
    header.parent.mkdir(parents=True)
    header.touch()
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("__version__ = '2.10.1+cpu'\ndebug = False\n")
    status, said = configure("-DHETKERN_CUDA=OFF", PYTHONPATH=str(torch.parent))
    assert status != 0
    assert "is 2.10: type `pip install 'torch>=2.11'`, then build again" in said


def test_a_wrong_choice_is_refused(configure):
    status, said = configure("-DHETKERN_CUDA=maybe")
    assert status != 0
    assert "HETKERN_CUDA: wanted AUTO, ON or OFF, got 'maybe'" in said


@needs_nvcc
def test_the_gpus_that_are_there_are_built_for(configure, program):
    smi = program("nvidia-smi", "8.6\n7.5\n12.1\n8.6")
    path = f"{smi.parent}:{os.environ['PATH']}"
    status, said = configure(CUDACXX=str(NVCC), PATH=path)
    assert status == 0, said
    assert "a GPU of capability 7.5 is below 8.0: Triton's kernels serve it" in said
    assert "for 86-real;121-real" in said


@needs_nvcc
def test_without_a_gpu_a_data_centers_are_built_for(configure, program):
    smi = program("nvidia-smi", "no devices", status=9)
    status, said = configure(CUDACXX=str(NVCC), PATH=f"{smi.parent}:{os.environ['PATH']}")
    assert status == 0, said
    assert "for 80;90a-real" in said


@needs_nvcc
def test_a_release_is_built_for_every_architecture(configure):
    status, said = configure("-DHETKERN_CUDA_ARCHS=release", CUDACXX=str(NVCC))
    assert status == 0, said
    assert "for 80-real;86-real;89-real;90-real;100-real;120-real;90-virtual" in said
