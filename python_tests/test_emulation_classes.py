"""CUDA's classes in the emulation: wmma, groups by a label, libcu++'s barrier and pipeline."""

from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulationError, emulate_cuda

SOURCE = Path(__file__).parent / "kernels" / "classes.cu"


@pytest.fixture(scope="module")
def go():
    skip_unless_possible()
    return lambda name, *given, how=None: emulate_cuda(SOURCE, name, sanitize=how)(*given)


@pytest.mark.parametrize(
    ("name", "dtype", "sum_dtype", "shape"),
    [
        ("halves", torch.float16, torch.float32, (16, 16, 16)),
        ("bfloats", torch.bfloat16, torch.float32, (32, 8, 16)),
        ("tf32s", torch.float32, torch.float32, (16, 16, 8)),
        ("bytes", torch.int8, torch.int32, (16, 16, 16)),
        ("doubles", torch.float64, torch.float64, (8, 8, 4)),
    ],
)
def test_wmma_multiplies(go, name, dtype, sum_dtype, shape):
    torch.manual_seed(0)
    m, n, k = shape
    a, b = (torch.randint(-50, 50, (rows, k)).to(dtype) for rows in (m, n))
    c, d = torch.randint(-50, 50, (m, n)).to(sum_dtype), torch.zeros(n, m, dtype=sum_dtype)
    go(name, a, b, c, d, *([32] if name == "doubles" else []))
    # Small integers: every sum is exact.
    assert torch.equal(d.T.double(), a.double() @ b.double().T + 2 * c.double())


def test_tf32_has_ten_bits(go):
    a, b = torch.full((16, 8), 1 + 2.0**-11), torch.eye(16, 8)
    c, d = torch.zeros(16, 16), torch.zeros(16, 16)
    go("tf32s", a, b, c, d)
    assert torch.equal(d[:8], torch.ones(8, 16))


def test_half_a_warp_has_no_matrix(go):
    x = [torch.zeros(64, dtype=torch.float64) for _ in range(4)]
    with pytest.raises(EmulationError, match="wmma wants all 32 lanes"):
        go("doubles", *x, 16)


@pytest.mark.parametrize("how", [None, pytest.param("thread", marks=pytest.mark.proof)])
def test_groups_by_a_label(go, how):
    label = torch.tensor([7, -2, 7, 4, 4, 7, -2, 9] * 8, dtype=torch.int32)
    y = torch.zeros(64, 6, dtype=torch.int32)
    go("labels", label, y, 64, how=how)
    for i, (rank, size, total, before, odd, last) in enumerate(y.tolist()):
        warp = range(i // 32 * 32, i // 32 * 32 + 32)
        alike = [j for j in warp if label[j] == label[i]]
        assert (rank, size, total) == (alike.index(i), len(alike), sum(alike))
        assert before == alike[max(rank - 1, 0)]
        assert odd == sum((j % 2) << r for r, j in enumerate(alike))
        # Of the whole tile lane 3 brings 4.5.
        assert last == 900 + sum(int(label[j] % 2 == label[i] % 2) for j in warp)


@pytest.mark.parametrize("by_barrier", [True, False])
@pytest.mark.parametrize(
    "how", [None, *(pytest.param(how, marks=pytest.mark.proof) for how in ("address", "thread"))]
)
def test_what_a_barrier_or_a_pipeline_counts_has_arrived(go, by_barrier, how):
    x, y = torch.randn(3, 16, 4), torch.zeros(3, 16, 4)
    go("turned", x, y, 3, by_barrier, True, how=how)
    assert torch.equal(y, x.flip(1))


def test_a_copy_that_nobody_waits_for_has_not_arrived(go):
    x, y = torch.randn(3, 16, 4), torch.zeros(3, 16, 4)
    go("turned", x, y, 3, False, False)
    assert y.isnan().any()


@pytest.mark.proof
def test_a_copy_that_nobody_waits_for_is_a_race(go):
    x, y = torch.randn(3, 16, 4), torch.zeros(3, 16, 4)
    with pytest.raises(EmulationError, match="data race"):
        go("turned", x, y, 3, True, False, how="thread")


def test_a_word_that_a_file_brings_is_taken(go):
    y = torch.zeros(2)
    go("brought", y)
    assert y.tolist() == [1000.5, 5 + 2 + 7]


@pytest.mark.parametrize("by_group", [False, True], ids=["__activemask", "coalesced_threads"])
def test_lanes_that_run_together_take_their_places_in_a_list(go, by_group):
    x, y, count = torch.randn(64), torch.zeros(64), torch.zeros(1, dtype=torch.int32)
    go("filtered", x, y, count, by_group)
    kept = x[x > 0]
    assert count.item() == len(kept)
    assert torch.equal(y[: len(kept)].sort().values, kept.sort().values)


def test_a_mask_of_lanes_that_run_together_is_not_the_whole_warp(go):
    with pytest.raises(EmulationError, match="a shuffle takes from a lane outside its mask"):
        go("believed", torch.randn(32), torch.zeros(1))
