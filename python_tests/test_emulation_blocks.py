"""A block's barrier orders that block, and no other: TSan keeps every thread of a launch apart."""

import warnings
from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulatedKernel, EmulationError, emulate_cuda

SOURCE = Path(__file__).parent / "kernels" / "blocks.cu"
APART = 256  # threads that TSan tells apart, of some 8000 at most


@pytest.fixture(scope="module")
def under_tsan():
    """A launcher of the file under TSan; each is built once."""
    skip_unless_possible()
    built: dict[str, EmulatedKernel] = {}

    def launcher(name: str) -> EmulatedKernel:
        if name not in built:
            built[name] = emulate_cuda(SOURCE, name, sanitize="thread")
        return built[name]

    return launcher


def assert_a_race(kernel: EmulatedKernel, *arguments: object) -> None:
    with pytest.raises(EmulationError, match="data race") as caught:
        kernel(*arguments)
    assert "blocks.cu:" in str(caught.value)


def hand_over(kernel, writer, reader, blocks, threads):
    assert_a_race(kernel, torch.zeros(1), torch.zeros(1), writer, reader, blocks, threads)


@pytest.mark.parametrize(
    ("writer", "reader", "blocks", "threads"),
    [(0, 0, 2, 64), (1, 5, 2, 64), (33, 62, 3, 64), (0, 5, 8, 128), (33, 0, 8, 128)],
)
def test_a_number_handed_to_another_block_is_a_race(under_tsan, writer, reader, blocks, threads):
    hand_over(under_tsan("hand_over_between"), writer, reader, blocks, threads)


@pytest.mark.proof
@pytest.mark.parametrize(("blocks", "threads"), [(2, 64), (3, 64), (8, 128)])
def test_whichever_threads_write_and_read_it_is_a_race(under_tsan, blocks, threads):
    for writer in (0, 1, 2, 16, 31, 32, 33, 47, 62, 63):
        for reader in (0, 1, 5, 15, 16, 31, 32, 33, 34, 47, 48, 60, 61, 62, 63):
            hand_over(under_tsan("hand_over_between"), writer, reader, blocks, threads)


@pytest.mark.parametrize("bug", [0, 1], ids=["in order", "by an atomic that orders nothing"])
def test_the_last_block_takes_the_others_numbers(under_tsan, bug):
    partial, y, counter = torch.zeros(3), torch.zeros(3), torch.zeros(1, dtype=torch.uint32)
    arguments = partial, counter, y, 3, bug
    if bug:
        assert_a_race(under_tsan("last_of"), *arguments)
    else:
        under_tsan("last_of")(*arguments)
        assert y.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bug", [0, 1], ids=["in order", "the flag before the number"])
def test_a_block_waits_for_the_one_before_it(under_tsan, bug):
    flag, prefix, y = torch.zeros(8, dtype=torch.uint32), torch.zeros(8), torch.zeros(8)
    arguments = flag, prefix, y, 8, bug
    if bug:
        assert_a_race(under_tsan("scan"), *arguments)
    else:
        under_tsan("scan")(*arguments)
        assert y.tolist() == list(range(8))


def test_a_block_that_touches_the_next_ones_number_is_in_a_race(under_tsan):
    assert_a_race(under_tsan("add"), torch.zeros(256), 256, 64, 1, 1)


def test_launches_are_in_order_though_their_threads_are_the_same_ones(under_tsan):
    y = torch.zeros(256)
    under_tsan("add")(y, 256, 64, 5, 0)
    assert y.eq(5).all()
    y = torch.zeros(16 * 32)
    under_tsan("add_growing")(y, 16)
    assert y.view(16, 32).sum(1).tolist() == [32.0 * k for k in (5, 4, 3, 3, *[2] * 4, *[1] * 8)]


def test_a_launch_of_more_threads_than_tsan_tells_apart_says_so(under_tsan, monkeypatch):
    """By name, and what goes unseen; what else there is to see is seen."""
    monkeypatch.setenv("HETKERN_EMULATION_THREADS", str(APART))
    threads = 32
    blocks = APART // threads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = torch.zeros(APART)
        under_tsan("add")(y, APART, threads, 1, 0)  # just as many
    unseen = (
        f"launch of add_one: {APART + threads} threads, and ThreadSanitizer tells {APART} apart: "
        f"of two blocks whose numbers differ by a multiple of {blocks}, no race is seen"
    )
    y = torch.zeros(APART + threads)
    with pytest.warns(RuntimeWarning, match=unseen):
        under_tsan("add")(y, len(y), threads, 1, 0)
    assert y.eq(1).all()
    for last in (blocks - 1, blocks + 1):
        hand_over(under_tsan("hand_over_between"), 0, 5, last + 1, threads)
    with pytest.warns(RuntimeWarning, match="launch of hand_over"):  # its only race is of that kind
        under_tsan("hand_over_between")(torch.zeros(1), torch.zeros(1), 0, 5, blocks + 1, threads)


@pytest.mark.proof
def test_as_many_threads_as_there_can_be(under_tsan):
    hand_over(under_tsan("hand_over_between"), 0, 5, 62, 128)
    with pytest.warns(RuntimeWarning, match="tells 8000 apart: .* by a multiple of 62, no race"):
        y = torch.zeros(64 * 128)
        under_tsan("add")(y, len(y), 128, 2, 0)
    assert y.eq(2).all()
