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
        (15, [2 * (63 - t) + 1 for t in T]),
        (16, [matrices(t % 32, False) for t in T]),
        (17, [matrices(t % 32, True) for t in T]),
        (18, [product(t % 32) for t in T]),
        (19, [product(t % 32) for t in T]),
    ],
    ids=[
        "xor", "down in groups of 8", "up", "from a lane in groups of 16", "ballot", "any and all",
        "barriers that vote", "atomics", "a warp waits for another", "cp.async fills with zeros",
        "ex2.approx flushes subnormals", "bulk copies and their barriers", "ldmatrix",
        "ldmatrix, transposed", "mma of bfloat16", "mma of half",
    ],
)  # fmt: skip
def test_a_word_gives_each_thread_what_cuda_gives_it(kernel, which, wanted):
    if which == 10:
        wanted = [w if w >= 2.0**-126 else 0 for w in wanted]
    assert run(kernel, which) == wanted


def test_shared_memory_that_nobody_wrote_is_nan(kernel):
    assert all(math.isnan(v) for v in run(kernel, 11))


def test_a_bulk_copy_that_nobody_waits_for_is_nan():
    assert all(math.isnan(v) for v in run(emulate_cuda(SOURCE), 20))


@pytest.mark.parametrize(
    ("which", "report"),
    [
        (12, r"deadlock in words.*words\.cu:\d+ waits, as do 63 others"),
        (13, r"deadlock in words.*62 others; 1 have returned"),
        (14, r"deadlock in words"),
        (21, r"deadlock in words.*words\.cu:\d+"),
        (22, r"mbarrier: more arrivals than its 2 in one phase.*words\.cu:\d+"),
    ],
    ids=[
        "a store that never comes",
        "a thread that left before the barrier",
        "a lane that stays away from its warp",
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
