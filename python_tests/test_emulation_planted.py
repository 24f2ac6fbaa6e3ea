"""One bug planted for each check of the CUDA emulation, and the same kernels clean."""

from pathlib import Path

import pytest
import torch
from emulating import in_every_way

from hetkern.testing.emulation import EmulatedKernel, EmulationError

SOURCE = Path(__file__).parent / "kernels" / "planted.cu"
ROW_SUMS, STAGED_SUMS, CLUSTER_SUMS, FILL, BULK_SUMS = range(5)
N = 100


@pytest.fixture(scope="module")
def kernel() -> dict[str | None, EmulatedKernel]:
    return in_every_way(SOURCE)


def run(kernel: EmulatedKernel, which: int, bug: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel wrote, and what it should have."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-9, 9, (2, N) if which == ROW_SUMS else (3, 64, 4), generator=g).float()
    y = torch.full((64,), -1.0)
    kernel(which, bug, x, y, {ROW_SUMS: N, STAGED_SUMS: 3, BULK_SUMS: 3}.get(which, 8))
    wanted = torch.full((64,), -1.0)
    if which == ROW_SUMS:
        wanted[:2] = x.sum(1)
    elif which in (STAGED_SUMS, BULK_SUMS):
        wanted = x.sum((0, 2)).roll(-1)
    elif which == CLUSTER_SUMS:
        wanted[:4] = x.view(-1)[:4].view(2, 2).sum(1).repeat_interleave(2)
    else:
        wanted[: 3 * (8 - bug) + bug] = 1
    return y, wanted


@pytest.mark.parametrize("which", [ROW_SUMS, STAGED_SUMS, CLUSTER_SUMS, FILL, BULK_SUMS])
@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_a_clean_kernel_passes_every_check(kernel, how, which):
    y, wanted = run(kernel[how], which, 0)
    assert torch.equal(y, wanted)


@pytest.mark.parametrize(
    ("which", "bug", "how", "report"),
    [
        (ROW_SUMS, 1, "thread", "data race"),
        (ROW_SUMS, 2, None, "divergent __syncthreads"),
        (ROW_SUMS, 3, "address", "heap-buffer-overflow"),
        (ROW_SUMS, 4, None, "misaligned address"),
        (ROW_SUMS, 4, "address", "misaligned address"),
        (STAGED_SUMS, 1, "thread", "data race"),
        (CLUSTER_SUMS, 1, None, "before the first cluster barrier"),
        (CLUSTER_SUMS, 2, "thread", "data race"),
        (CLUSTER_SUMS, 3, None, "which has ended"),
        (CLUSTER_SUMS, 3, "thread", "which has ended"),
        (FILL, 1, "thread", "data race"),
        (BULK_SUMS, 1, "thread", "data race"),
        (BULK_SUMS, 2, "thread", "data race"),
        (BULK_SUMS, 3, None, "cp.async.bulk: wanted multiples of 16"),
    ],
    ids=[
        "a missing barrier",
        "a divergent barrier",
        "out of bounds",
        "a misaligned load",
        "a misaligned load under a sanitizer",
        "write after read on an asynchronous copy",
        "a peer's memory before any cluster barrier",
        "a peer's memory without a cluster barrier between",
        "a block leaves while peers read",
        "a block leaves while peers read, under a sanitizer",
        "two blocks write one element",
        "write after read on a bulk copy",
        "a barrier that others meet before it is there",
        "a bulk copy of an odd size",
    ],
)
def test_a_planted_bug_is_named_with_its_line(kernel, which, bug, how, report):
    with pytest.raises(EmulationError, match=report) as caught:
        run(kernel[how], which, bug)
    assert "planted.cu:" in str(caught.value)


@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_a_tensor_given_to_be_read_and_to_be_written_is_written(kernel, how):
    y, wanted = torch.full((64,), -1.0), torch.full((64,), -1.0)
    kernel[how](FILL, 0, y, y, 8)  # first for a pointer to const
    wanted[:24] = 1
    assert torch.equal(y, wanted)


def test_a_copy_that_nobody_waits_for_is_nan(kernel):
    y, _ = run(kernel[None], STAGED_SUMS, 2)
    assert y.isnan().all()


def test_values_alone_would_not_have_shown_two_blocks_at_one_element(kernel):
    y, wanted = run(kernel[None], FILL, 1)
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("how", [None, "address"])
def test_a_device_check_raises_the_cpus_error(kernel, how):
    with pytest.raises(IndexError, match=r"^row 0: planted$"):
        run(kernel[how], ROW_SUMS, 5)


def test_a_failed_launch_does_not_spoil_the_next(kernel):
    with pytest.raises(EmulationError):
        run(kernel[None], ROW_SUMS, 2)
    y, wanted = run(kernel[None], ROW_SUMS, 0)
    assert torch.equal(y, wanted)


def test_arguments_are_checked_against_the_launcher(kernel):
    x = torch.zeros(8)
    with pytest.raises(TypeError, match="wanted 5 arguments, got 4"):
        kernel[None](0, 0, x, x)
    with pytest.raises(TypeError, match="planted: x: wanted float32, got float64"):
        kernel[None](0, 0, x.double(), x, 8)
    with pytest.raises(TypeError, match="planted: n: wanted int32, got a float"):
        kernel[None](0, 0, x, x, 8.0)
    with pytest.raises(ValueError, match="planted: n: 4294967296 is no int32"):
        kernel[None](0, 0, x, x, 2**32)
