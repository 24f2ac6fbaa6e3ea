"""A block's barrier orders that block, and no other: TSan keeps every thread of a launch apart."""

import re
import resource
import warnings
from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulatedKernel, EmulationError, emulate_cuda
from hetkern.testing.emulation.build import _cheap_fibers

SOURCE = Path(__file__).parent / "kernels" / "blocks.cu"
APART = 256  # threads that TSan tells apart, of some 8000 at most


HAND_OVER, LAST_BLOCK, LOOK_BACK, ADD, ADD_GROWING = range(5)


@pytest.fixture(scope="module")
def kernel() -> EmulatedKernel:
    skip_unless_possible()
    return emulate_cuda(SOURCE, sanitize="thread")


def run(
    kernel: EmulatedKernel, which: int, blocks: int, threads: int, p: int = 0, bug: int = 0
) -> list[float]:
    """What each block, or thread, wrote."""
    x, words = torch.zeros(blocks), torch.zeros(blocks, dtype=torch.uint32)
    y = torch.zeros(blocks if which in (LAST_BLOCK, LOOK_BACK) else blocks * threads)
    kernel(which, x, words, y, blocks, threads, p, bug)
    return y.tolist()


def assert_a_race(*arguments: object) -> None:
    with pytest.raises(EmulationError, match="data race") as caught:
        run(*arguments)
    assert "blocks.cu:" in str(caught.value)


@pytest.mark.parametrize(
    ("writer", "reader", "blocks", "threads"),
    [(0, 0, 2, 64), (1, 5, 2, 64), (33, 62, 3, 64), (0, 5, 8, 128), (33, 0, 8, 128)],
)
def test_a_number_handed_to_another_block_is_a_race(kernel, writer, reader, blocks, threads):
    assert_a_race(kernel, HAND_OVER, blocks, threads, writer, reader)


@pytest.mark.proof
@pytest.mark.parametrize(("blocks", "threads"), [(2, 64), (3, 64), (8, 128)])
def test_whichever_threads_write_and_read_it_is_a_race(kernel, blocks, threads):
    for writer in (0, 1, 2, 16, 31, 32, 33, 47, 62, 63):
        for reader in (0, 1, 5, 15, 16, 31, 32, 33, 34, 47, 48, 60, 61, 62, 63):
            assert_a_race(kernel, HAND_OVER, blocks, threads, writer, reader)


@pytest.mark.parametrize("blocks", [2, 3, 6])
def test_the_last_block_may_take_the_others_numbers_in_order_alone(kernel, blocks):
    assert run(kernel, LAST_BLOCK, blocks, 64) == list(range(1, blocks + 1))
    assert_a_race(kernel, LAST_BLOCK, blocks, 64, 0, 1)  # by an atomic, which orders nothing


def test_a_flag_is_raised_after_the_number_that_it_announces(kernel):
    assert run(kernel, LOOK_BACK, 8, 64) == list(range(8))
    assert_a_race(kernel, LOOK_BACK, 8, 64, 0, 1)


def test_a_block_that_touches_the_next_ones_number_is_in_a_race(kernel):
    assert_a_race(kernel, ADD, 4, 64, 1, 1)


def test_launches_are_in_order_though_their_threads_are_the_same_ones(kernel):
    assert run(kernel, ADD, 4, 64, 5) == [5] * 256
    each = [5, 4, 3, 3, *[2] * 4, *[1] * 8]
    assert run(kernel, ADD_GROWING, 16, 32) == [n for n in each for _ in range(32)]


def test_a_launch_of_more_threads_than_tsan_tells_apart_says_so(kernel, monkeypatch):
    """By name, and what goes unseen; what else there is to see is seen."""
    monkeypatch.setenv("HETKERN_EMULATION_THREADS", str(APART))
    threads = 32
    blocks = APART // threads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(kernel, ADD, blocks, threads, 1)  # just as many
    unseen = (
        f"launch of add_one: {APART + threads} threads, and ThreadSanitizer tells {APART} apart: "
        f"of two blocks whose numbers differ by a multiple of {blocks}, no race is seen"
    )
    with pytest.warns(RuntimeWarning, match=unseen):
        assert run(kernel, ADD, blocks + 1, threads, 2) == [2] * (APART + threads)
    for more in (0, 2):
        assert_a_race(kernel, HAND_OVER, blocks + more, threads, 0, 5)
    with pytest.warns(RuntimeWarning, match="launch of hand_over"):  # its only race is of that kind
        run(kernel, HAND_OVER, blocks + 1, threads, 0, 5)


def test_a_thread_takes_few_pages_of_memory(kernel):
    """Nine tenths of a thread's time went into pages that hold zeros (tsan_fibers.cpp)."""
    if not _cheap_fibers():
        pytest.skip("this compiler's ThreadSanitizer is not the one whose threads are dear")
    used = [resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt]
    for blocks in (1, 9):
        run(kernel, ADD, blocks, 128, 1)
        used.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt)
    assert (used[2] - used[1]) - (used[1] - used[0]) < 100 * 8 * 128  # 380 each without


def test_a_large_launch_says_what_it_costs_before_it_begins(kernel, capfd):
    with pytest.warns(RuntimeWarning, match="no race is seen"):
        run(kernel, ADD, 80, 128, 1)
    assert re.search(r"cost of \w+: 10240 threads .* take some [1-9]\d? s", capfd.readouterr().err)


@pytest.mark.proof
def test_as_many_threads_as_there_can_be(kernel):
    assert_a_race(kernel, HAND_OVER, 62, 128, 0, 5)
    with pytest.warns(RuntimeWarning, match="tells 8000 apart: .* by a multiple of 62, no race"):
        assert run(kernel, ADD, 64, 128, 2) == [2] * (64 * 128)
