"""The emulated library beside the native one, and test kernels that nvcc takes as they are."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import hetkern
from hetkern.testing.emulation import emulated_cuda, why_no_emulation
from hetkern.testing.emulation.build import own_headers
from hetkern.testing.emulation.library import _library_file

KERNELS = sorted((Path(__file__).parent / "kernels").glob("*.cu"))


@pytest.fixture
def library() -> Path:
    if reason := why_no_emulation():
        pytest.skip(reason)
    file = _library_file()
    assert file is not None
    return file


def test_the_emulated_library_exports_none_of_our_names(library):
    """A function of the same name in libhetkern_ops.so must not take the place of its own."""
    if shutil.which("nm") is None:
        pytest.skip("nm is missing: install binutils")
    out = subprocess.run(
        ["nm", "-DC", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    assert not [line for line in out.splitlines() if "hetkern::" in line]


def test_every_name_of_ours_that_the_emulated_library_needs_is_in_it(library):
    out = subprocess.run(["nm", "-DC", "-u", library], capture_output=True, text=True).stdout
    assert "aoti_torch" in out, "nm's output was not understood"
    assert not [line for line in out.splitlines() if "hetkern::" in line or " cuda" in line]


def test_cuda_kernels_serve_cpu_tensors_inside_the_context_alone(library):
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    with emulated_cuda():
        if not torch._C._dispatch_has_kernel_for_dispatch_key("hetkern_emulated::softmax", "CPU"):
            pytest.skip("no CUDA kernel serves softmax")
        y = hetkern.softmax(x, impl="cuda")
    torch.testing.assert_close(y, torch.softmax(x, -1))
    with pytest.raises(NotImplementedError, match="cuda"):
        hetkern.softmax(x, impl="cuda")


@pytest.mark.sample(2)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.stem)
def test_nvcc_compiles_the_emulated_file_as_it_is(kernel, arch, tmp_path):
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("nvcc is not installed")
    command = [nvcc, "-std=c++17", f"-arch={arch}", "-I", own_headers(), "-Werror", "all-warnings"]
    command += ["-Xcompiler", "-Wall,-Wextra", "-c", kernel, "-o", tmp_path / "kernel.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
