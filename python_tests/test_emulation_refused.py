"""What the emulation does not know it refuses by name, before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulationError, emulate_cuda, refused

HEADER = '#include "cuda/device/launch.cuh"\n'
LAUNCHER = 'extern "C" void launch(float* y, void* stream) {}\n'


@pytest.fixture
def cuda_file(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "kernel.cu"
        file.write_text(HEADER + text + "\n" + LAUNCHER)
        return file

    skip_unless_possible()
    return write


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("void f() { kernel<<<1, 32>>>(); }", "<<<…>>>"),
        ("__global__ void k() { __shared__ float s[32]; }", "__shared__"),
        ("extern __shared__ float s[];", "__shared__"),
        ('__device__ void f() { asm volatile("bar.sync 3, 64;"); }', "asm: it does not know bar.s"),
        ("#include <cub/block/block_reduce.cuh>", "#include <cub/"),
        ("using Reduce = cub::BlockReduce<float, 128>;", "CUB"),
        ("#include <cooperative_groups/memcpy_async.h>", "#include <cooperative_groups/memcpy"),
        ("void f() { cudaLaunchKernel(nullptr, 1, 1, nullptr); }", "cudaLaunch…"),
        (
            '__device__ void f() { asm volatile("fence.proxy.async;"); }',
            "asm: it does not know fence.p",
        ),
    ],
)
def test_a_refused_word_is_named_with_its_line_and_a_way_out(cuda_file, text, word):
    with pytest.raises(EmulationError) as caught:
        emulate_cuda(cuda_file(text))
    assert f"kernel.cu:2: the emulation refuses {word}" in str(caught.value)


def test_refused_words_are_found_in_headers_beside_the_file(cuda_file, tmp_path):
    (tmp_path / "mine.cuh").write_text("// asm\n__shared__ float s;\n")
    with pytest.raises(EmulationError, match=r"mine\.cuh:2: the emulation refuses __shared__"):
        emulate_cuda(cuda_file('#include "mine.cuh"'))


@pytest.mark.parametrize("include", ["<mine.cuh>", '"mine.cuh"', "NAMED"])
def test_refused_words_are_found_in_headers_that_the_compiler_finds(cuda_file, tmp_path, include):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "mine.cuh").write_text('#include <deeper.cuh>\n#include "cuda/device/ptx.cuh"\n')
    (folder / "deeper.cuh").write_text("\n__shared__ float s;\n")
    flags = (f"-I{folder}", "-DNAMED=<mine.cuh>")
    with pytest.raises(EmulationError) as caught:
        emulate_cuda(cuda_file(f"#include {include}"), flags=flags)
    assert str(caught.value).startswith(f"{folder}/deeper.cuh:2: the emulation refuses")
    assert str(caught.value).count("refuses") == 1, "the kit's own headers are not asked"


def test_a_refused_header_is_named_where_the_compiler_has_no_such_file(cuda_file, tmp_path):
    (tmp_path / "mine.cuh").write_text("#include <cub/not/there.cuh>\n")
    with pytest.raises(EmulationError, match=r"mine\.cuh:1: the emulation refuses #include <cub/"):
        emulate_cuda(cuda_file("#include <mine.cuh>"), flags=(f"-I{tmp_path}",))


def test_headers_of_the_system_are_not_looked_into(cuda_file, tmp_path):
    (tmp_path / "theirs.cuh").write_text("#ifdef __CUDACC__\n__shared__ int s;\n#endif\n")
    emulate_cuda(cuda_file("#include <theirs.cuh>"), flags=("-isystem", str(tmp_path)))


def test_a_header_that_is_missing_is_the_compilers_error(cuda_file):
    with pytest.raises(EmulationError, match=r"nowhere\.h: No such file"):
        emulate_cuda(cuda_file("#include <nowhere.h>"))


def test_comments_and_strings_are_not_words(cuda_file):
    text = '// asm <<<\n/* __shared__\n cub:: */ const char* const s = "<<<";'
    assert not list(refused.refusals(text, "kernel.cu"))


def test_this_projects_own_sources_have_no_inline_ptx(tmp_path):
    file = tmp_path / "kernel.cu"
    file.write_text('__device__ void f() { asm volatile("bar.sync 0;"); }')
    program = [sys.executable, refused.__file__, str(file)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode and "kernel.cu:1: the emulation refuses asm: PTX goes" in done.stderr


def test_a_word_that_nobody_knows_does_not_compile(cuda_file):
    text = "__global__ void k(float* y) { *y = __some_new_intrinsic(1.0f); }"
    with pytest.raises(EmulationError, match="__some_new_intrinsic"):
        emulate_cuda(cuda_file(text))


def test_a_runtime_call_without_a_twin_does_not_link(cuda_file):
    with pytest.raises(EmulationError, match="undefined reference to `cudaStreamBeginCapture"):
        emulate_cuda(cuda_file("void f() { cudaStreamBeginCapture({}, {}); }"))


def test_a_launcher_that_is_missing_is_named(cuda_file):
    with pytest.raises(
        ValueError, match=r"launcher: wanted one of its extern \"C\" functions \(launch\)"
    ):
        emulate_cuda(cuda_file(""), "other")


def test_a_kernel_without_launch_bounds_is_found_where_nvcc_cannot(tmp_path):
    good = "template <class T>\n__global__ void __launch_bounds__(256) good(T* p) {}\n"
    file = tmp_path / "bounds.cu"
    file.write_text(good + "template <class T>\n__global__ void bad(T* p) {}\n")
    done = subprocess.run([sys.executable, refused.__file__, file], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{file}:4: a kernel without __launch_bounds__"
