"""What goes past a tensor, shared memory or a local array ends a plain call, and not Python."""

from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulationError, emulate_cuda

SOURCE = Path(__file__).parent / "kernels" / "overruns.cu"


@pytest.fixture(scope="module")
def go():
    """A launcher of the file by its name."""
    skip_unless_possible()
    return lambda name: emulate_cuda(SOURCE, f"go_{name}")


@pytest.mark.parametrize("i", [1024, 5000, 10**8, -2000, -(10**8)])
def test_a_store_past_a_tensors_pages_names_it(go, i):
    y = torch.zeros(1024)
    with pytest.raises(EmulationError) as caught:
        go("store")(y, i)
    said = str(caught.value)
    assert f"a store at y[{i}], and y has 1024 elements (1024)" in said
    assert "store, block (0, 0, 0) thread 0" in said and "overruns.cu:6" in said
    assert not y.any()


@pytest.mark.parametrize(("n", "i"), [(1024, -1), (10, 10), (10, -3)])
def test_a_store_beside_a_tensor_is_seen_afterwards_and_its_line_is_found(go, n, i):
    y = torch.zeros(n)
    with pytest.raises(EmulationError) as caught:
        go("store")(y, i)
    said = str(caught.value)
    assert "out of bounds" in said and f"y[{i}], and y has {n} elements ({n})" in said
    assert "in store, block (0, 0, 0) thread 0" in said and "overruns.cu:6" in said


def test_a_load_past_a_tensor_names_it(go):
    with pytest.raises(EmulationError, match=r"a load at x\[1024\], and x has 1024 elements"):
        go("load")(torch.zeros(1024), torch.zeros(1), 1024)


def test_what_lies_beside_a_tensor_is_nan(go):
    y = torch.zeros(1)
    go("load")(torch.zeros(10), y, 10)
    assert y.isnan().all()


@pytest.mark.parametrize("i", [25, -1, 10**6])
def test_a_store_outside_of_shared_memory_ends_the_call(go, i):
    with pytest.raises(EmulationError, match=r"a store at .*shared, block \(0, 0, 0\) thread"):
        go("shared")(torch.zeros(1), i)
    with pytest.raises(EmulationError):
        go("shared")(None, i)  # what this call did is no fault of the next one's
    y = torch.zeros(1)
    go("shared")(y, 24)
    assert y.item() == 2


@pytest.mark.parametrize("n", [12, 40, 4000])
def test_a_store_past_a_local_array_ends_the_call(go, n):
    with pytest.raises(EmulationError, match=r"local, block \(0, 0, 0\) thread 0"):
        go("local")(torch.ones(4096), n)
    y = torch.ones(4096)
    go("local")(y, 8)
    assert y[0].item() == 8


def test_memory_that_the_launcher_takes_ends_as_well(go):
    go("own")(1023)
    with pytest.raises(EmulationError, match=r"a store at .*store, block"):
        go("own")(1024)


def test_tensors_that_share_memory_share_it_in_a_plain_call(go):
    both = torch.zeros(1024)
    go("load")(both[1000:], both[1001:], 1)  # y[0] is x[1]
    both[5] = 7
    go("load")(both, both[9:], 5)
    assert both[9].item() == 7
