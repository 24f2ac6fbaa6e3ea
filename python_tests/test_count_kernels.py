"""benchmarks/count_kernels.py counts what the emulation compiles, and nothing else."""

import collections
import sys
from pathlib import Path

from emulating import skip_unless_possible

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import count_kernels

SOURCE = """
template <class T> __global__ void asks(T* x, int n) {  // nothing included: nvcc includes it itself
  assert(n == 1);
  printf("%d", n);
  *x = T(n);
}
__global__ void one(float* x) { extern __shared__ float* rows[]; rows[0] = x; }
__global__ void other(int* x) { extern __shared__ unsigned char* const rows[]; if (rows) *x = 1; }
#if ONLY_IF_ASKED
__global__ void left_out(float* x) { *x = 1; }
#endif
__global__ void unknown(float* x) { *x = __a_word_of_nobody(1); }
__global__ void within(float3* x) { *x = __ldg(x); }  // goes wrong in a header of the emulation
__global__ void refused(float* x) { asm("tcgen05.fence;"); }
__global__ void known(float* x) { asm("add.f32 %0, %0, %0;" : "+f"(*x)); }
void host(float* x) { one<<<1, 32>>>(x); cublasSgemm(x); }
"""


def test_a_kernel_counts_if_it_was_compiled(tmp_path):
    skip_unless_possible()
    folder = tmp_path / "theirs"
    folder.mkdir()
    file = folder / "kernels.cu"
    file.write_text(SOURCE)
    for flags, wanted in ([], 4), (["-DONLY_IF_ASKED"], 5):
        why: collections.Counter[str] = collections.Counter()
        work = tmp_path / f"work{wanted}" / "theirs"
        (work / "stubs").mkdir(parents=True)
        assert count_kernels.count(file, folder, flags, work, why) == (wanted, 8)
        reasons = "\n".join(why)
        assert "__a_word_of_nobody" in reasons and "tcgen05.fence" in reasons
        assert ("leaves it out" in reasons) == (not flags)


def test_a_headers_kernels_count_once_and_are_judged_by_themselves(tmp_path):
    skip_unless_possible()
    folder, work = tmp_path / "theirs", tmp_path / "work" / "theirs"
    (work / "stubs").mkdir(parents=True)
    folder.mkdir()
    (folder / "both.cuh").write_text(
        "#pragma once\n__global__ void good(float* x)"
        " { extern __shared__ float s[][4]; *x = s[1][0]; }\n"
        "__global__ void bad(float* x) { *x = __a_word_of_nobody(1); }\n"
    )
    count_kernels.rewrite_headers(folder, work)
    why: collections.Counter[str] = collections.Counter()
    for name, wanted in ("a", (1, 2)), ("b", (0, 0)):
        (folder / f"{name}.cu").write_text('#include "both.cuh"\n')
        assert count_kernels.count(folder / f"{name}.cu", folder, [], work, why) == wanted
    assert list(why.values()) == [1] and "__a_word_of_nobody" in "".join(why)


def test_a_headers_launch_configuration_is_host_code_and_no_kernels_fault(tmp_path):
    skip_unless_possible()
    folder, work = tmp_path / "theirs", tmp_path / "work" / "theirs"
    (work / "stubs").mkdir(parents=True)
    folder.mkdir()
    (folder / "host.cuh").write_text("#pragma once\nstruct How { cudaLaunchConfig_t how; };\n")
    file = folder / "one.cu"
    file.write_text('#include "host.cuh"\n__global__ void one(float* x) { *x = 1.0f; }\n')
    count_kernels.rewrite_headers(folder, work)
    why: collections.Counter[str] = collections.Counter()
    assert count_kernels.count(file, folder, [], work, why) == (1, 1), why


def test_a_launch_in_a_macro_keeps_the_ends_of_its_lines():
    text = "#define GO(k, n) \\\n  k<n, f(1, 2)> \\\n    <<<grid, 32, 0, s>>>( \\\n    x);\n"
    launched = count_kernels.rewritten(text)
    assert "HETKERN_LAUNCH((k<n, f(1, 2)>) \\\n" in launched
    assert [line[-1] for line in launched.splitlines()] == ["\\", "\\", "\\", ";"]
