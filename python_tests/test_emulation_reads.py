"""A read that goes to memory each time is in no race with an atomic; a plain one is."""

from pathlib import Path

import pytest
import torch
from emulating import ints, launchers

from hetkern.testing.emulation import EmulationError

SOURCE = Path(__file__).parent / "kernels" / "reads.cu"
PLAIN = 0
COHERENT = {
    "__ldcg": 1, "__ldcv": 2, "volatile": 3, "ld.cg": 4, "ld.volatile": 5, "ld.relaxed": 6,
    "__ldcg of a pair": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def go():
    return launchers(SOURCE)


@pytest.mark.sample(2)
@pytest.mark.parametrize("how", COHERENT.values(), ids=COHERENT)
def test_a_loop_of_compare_and_swap_may_begin_with_a_read_of_memory(go, how):
    for sanitize in (None, "thread"):
        p = ints(2)
        go("added", sanitize)(p, how)
        assert p.tolist() == [64, 0]


def test_a_plain_read_beside_an_atomic_is_a_race(go):
    with pytest.raises(EmulationError, match="data race at p") as caught:
        go("added")(ints(2), PLAIN)
    assert "reads.cu:" in str(caught.value)


@pytest.mark.sample(4)
@pytest.mark.parametrize("how", COHERENT.values(), ids=COHERENT)
def test_a_plain_store_beside_any_read_is_a_race(go, how):
    with pytest.raises(EmulationError, match="data race at p") as caught:
        go("stored")(ints(2), ints(1), how)
    assert caught.value.args[0].count("reads.cu:") == 2, caught.value


@pytest.mark.parametrize("how", [None, "thread"])
def test_a_volatile_flag_in_global_memory_may_be_waited_for(go, how):
    y = ints(1)
    go("flagged", how)(ints(1), y)
    assert y.tolist() == [7]


def test_volatile_shared_memory_does_not_hold_a_warp_together(go):
    with pytest.raises(EmulationError, match="data race in shared memory: write of 4 bytes"):
        go("synchronous")(torch.ones(32, dtype=torch.int32), ints(1))
