"""What stands before a fence is seen behind an atomic of the same place, and nothing else is."""

from pathlib import Path

import pytest
import torch
from emulating import ints, launchers

from hetkern.testing.emulation import EmulationError

SOURCE = Path(__file__).parent / "kernels" / "fences.cu"
SUMS = {"the guide's": 0, "a fence of every thread": 1, "inline PTX": 2}
WRONG = {
    "without a fence": 3, "a fence behind the atomic": 4, "stores behind the fence": 5,
    "no barrier before the count": 6, "a fence of the block": 7, "no look at the count": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def go():
    return launchers(SOURCE)


def summed(go, how, sanitize="thread"):
    x, y = torch.arange(256.0), torch.zeros(1)
    go("sum", sanitize)(x, torch.zeros(256), y, torch.zeros(1, dtype=torch.uint32), how)
    return y.item()


@pytest.mark.parametrize("how", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("sanitize", [None, "thread"])
def test_the_last_block_may_take_what_the_others_have_fenced(go, how, sanitize):
    assert summed(go, how, sanitize) == 255 * 128


@pytest.mark.parametrize("how", WRONG.values(), ids=WRONG)
def test_what_no_fence_hands_over_is_a_race(go, how):
    with pytest.raises(EmulationError, match=r"data race at part\[") as caught:
        summed(go, how)
    assert " by block (" in str(caught.value) and str(caught.value).count("fences.cu:") == 2


HANDED_ON = {
    "locked": ((ints(1), ints(1)), 1, [6]),
    "chained": ((torch.ones(6, dtype=torch.int32), ints(6), ints(6)), 1, [1, 2, 3, 4, 5, 6]),
    "of_block": ((ints(1), ints(1), ints(1)), 2, [7]),
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_a_lock_a_flag_and_a_block_hand_on_by_fences(go, name):
    tensors, result, expected = HANDED_ON[name]
    for sanitize in (None, "thread"):
        given = [t.clone() for t in tensors]
        go(name, sanitize)(*given, 0)
        assert given[result].tolist() == expected


@pytest.mark.parametrize("name", HANDED_ON)
def test_a_lock_a_flag_and_a_block_without_fences_are_races(go, name):
    with pytest.raises(EmulationError, match=r"data race at (y|data)"):
        go(name)(*(t.clone() for t in HANDED_ON[name][0]), 1)
