"""CUDA's words in the emulation: shuffles, votes, atomics, waiting, and what ends in an error."""

import math
from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulatedKernel, EmulationError, emulate_cuda

SOURCE = Path(__file__).parent / "kernels" / "words.cu"
T = range(64)


@pytest.fixture(scope="module", params=[None, "thread"])
def kernel(request) -> EmulatedKernel:
    skip_unless_possible()
    return emulate_cuda(SOURCE, sanitize=request.param)


def run(kernel: EmulatedKernel, which: int, shared_bytes: int = 0) -> list[float]:
    y, x = torch.zeros(64), torch.arange(128.0)
    kernel(y, x, torch.zeros(1, dtype=torch.uint32), which, shared_bytes)
    return y.tolist()


def matrices(lane: int, transposed: bool) -> float:
    """Four matrices of 8x8, element e of matrix m being ``64 m + e``."""
    result = 0
    for m in range(4):
        i, k = lane // 4, lane % 4 * 2
        low, high = (8 * k + i, 8 * (k + 1) + i) if transposed else (8 * i + k, 8 * i + k + 1)
        result += (m + 1) * (64 * m + low + 2 * (64 * m + high))
    return result


def product(lane: int) -> float:
    """1 + a b for ``a_ik = i - k`` and ``b_kj = k + 2 j``, at the lane's four places."""
    places = [(lane // 4 + 8 * half, lane % 4 * 2 + n) for half in (0, 1) for n in (0, 1)]
    sums = [1 + sum((i - k) * (k + 2 * j) for k in range(16)) for i, j in places]
    return sum(factor * d for factor, d in zip((1, 3, 5, 7), sums, strict=True))


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        (0, [t ^ 5 for t in T]),
        (1, [t + 3 if t % 8 < 5 else t for t in T]),
        (2, [t - 1 if t % 32 else t for t in T]),
        (3, [t // 16 * 16 + 2 for t in T]),
        (4, [11] * 64),
        (5, [2 if t < 32 else 1 for t in T]),
        (6, [16 + 200] * 64),
        (7, [*(480 + 16 * i for i in range(4)), 60, 61, 62, 63, 5, *[0] * 55]),
        (8, [*[-1] * 32, *(3 * t for t in range(32))]),
        (9, [2 * t for t in T]),
        (10, [2.0 ** (-2 * t) if t < 64 else 0 for t in T]),
        (13, [0, *[-1] * 63]),
        (14, [-1] * 64),
        (15, [2 * (63 - t) + 1 for t in T]),
        (16, [matrices(t % 32, False) for t in T]),
        (17, [matrices(t % 32, True) for t in T]),
        (18, [product(t % 32) for t in T]),
        (19, [product(t % 32) for t in T]),
    ],
    ids=[
        "xor", "down in groups of 8", "up", "from a lane in groups of 16", "ballot", "any and all",
        "barriers that vote", "atomics", "a warp waits for another", "cp.async fills with zeros",
        "ex2.approx flushes subnormals", "a thread leaves before the barrier",
        "a lane leaves before its warp meets", "bulk copies and their barriers", "ldmatrix",
        "ldmatrix, transposed", "mma of bfloat16", "mma of half",
    ],
)  # fmt: skip
def test_a_word_gives_each_thread_what_cuda_gives_it(kernel, which, wanted):
    if which == 10:
        wanted = [w if w >= 2.0**-126 else 0 for w in wanted]
    assert run(kernel, which) == wanted


EVERYDAY = """#include "cuda/device/launch.cuh"
#include <cuda_fp16.h>
static __global__ void everyday(float* y, unsigned* u) {
  const unsigned few = 0xfffffu;  // the shuffle's last source is outside
  if (threadIdx.x >= 20) return;
  const float from = __shfl_down_sync(few, 1.0f, 1);
  if (threadIdx.x == 0) y[0] = from;  // lane 19 takes a value that is none, and uses it not
  if (threadIdx.x) return;
  y[1] = max(NAN, 1.0f), y[2] = abs(-0.75f), y[3] = min(2.0f, NAN), y[4] = __saturatef(NAN);
  const __half tenth(0.1f), lost = __hfma(tenth, tenth, -(tenth * tenth));
  y[8] = static_cast<float>(hexp2(tenth * __half(20.0f)));
  y[5] = static_cast<float>(lost) * 0x1p24f;
  y[6] = __float2int_rn(1e20f) == 2147483647, y[7] = cospif(0.5f);
  atomicAdd(u, 3), atomicOr(u + 1, 5u), atomicInc(u + 2, 0u);
  u[3] = __byte_perm(0x33221100u, 0x77665544u, 0x7410u), u[4] = __umulhi(1u << 31, 6u);
  u[5] = __funnelshift_r(1u << 8, 2u, 8u), u[6] = __brev(1u), u[7] = __mul24(-3, 5) == -15;
  u[8] = max(-1, 7u), u[9] = __dp4a(0x01020304, 0x01010101, 1);
  u[10] = __vsub4(0x00057f80u, 0x01030101u), u[11] = __vsubss4(0x00057f80u, 0x0103ff01u);
  u[12] = __vcmpgtu2(0x80000001u, 0x00010001u), u[13] = __vsadu4(0x01020304u, 0x04030201u);
}
extern "C" void go(float* y, unsigned* u, void* stream) {
  HETKERN_LAUNCH(everyday, 1, 32, 0, stream, y, u);
}
"""


def test_everyday_words_give_what_cuda_gives(tmp_path):
    skip_unless_possible()
    (tmp_path / "everyday.cu").write_text(EVERYDAY)
    y, u = torch.zeros(9), torch.zeros(14, dtype=torch.uint32)
    emulate_cuda(tmp_path / "everyday.cu")(y, u)
    assert y.tolist() == [1, 1, 0.75, 2, 0, 10, 1, 0, 4]
    assert u[:10].tolist() == [3, 5, 0, 0x77441100, 3, 0x02000001, 1 << 31, 1, 2**32 - 1, 11]
    assert u[10:].tolist() == [0xFF027E7F, 0xFF027F80, 0xFFFF0000, 8]


@pytest.mark.parametrize(
    "word",
    ["atomicMax(x, 1.0f)", "atomicCAS(x, 0.0f, 1.0f)", "x[0] = __half2float(__float2half(1.0f))"],
)
def test_what_nvcc_refuses_does_not_compile(tmp_path, word):
    skip_unless_possible()
    (tmp_path / "refused.cu").write_text(
        '#include "cuda/device/launch.cuh"\n'
        f"__global__ void k(float* x) {{ {word}; }}\n"
        'extern "C" void go(float* x, void* s) { HETKERN_LAUNCH(k, 1, 1, 0, s, x); }\n'
    )
    with pytest.raises(EmulationError, match="error:"):
        emulate_cuda(tmp_path / "refused.cu")


def test_shared_memory_that_nobody_wrote_is_nan(kernel):
    assert all(math.isnan(v) for v in run(kernel, 11))


def test_a_bulk_copy_that_nobody_waits_for_is_nan():
    assert all(math.isnan(v) for v in run(emulate_cuda(SOURCE), 20))


@pytest.mark.parametrize(
    ("which", "report"),
    [
        (12, r"deadlock in words.*words\.cu:\d+ waits, as do 63 others"),
        (21, r"deadlock in words.*words\.cu:\d+"),
        (22, r"mbarrier: more arrivals than its 2 in one phase.*words\.cu:\d+"),
    ],
    ids=[
        "a store that never comes",
        "bytes that never come",
        "an arrival too many",
    ],
)
def test_waiting_for_ever_is_a_deadlock_with_its_line(kernel, which, report):
    with pytest.raises(EmulationError, match=report):
        run(kernel, which)


def test_a_launch_outside_the_hardwares_limits_is_refused_by_name(kernel):
    with pytest.raises(EmulationError, match="launch of words: wanted at most 232448 bytes"):
        run(kernel, 0, 300_000)
    with pytest.raises(
        EmulationError, match=r"wants 1296 bytes of shared memory, its launch gives 64"
    ):
        run(kernel, 0, 64)
