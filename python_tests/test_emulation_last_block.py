"""The block that comes last reads what the others wrote: a race, unless something orders it."""

from pathlib import Path

import pytest
import torch
from emulating import in_every_way

from hetkern.testing.emulation import EmulatedKernel, EmulationError

SOURCE = Path(__file__).parent / "kernels" / "last_block.cu"
BLOCKS = 6


@pytest.fixture(scope="module")
def kernel() -> dict[str | None, EmulatedKernel]:
    return in_every_way(SOURCE)


def run(kernel: EmulatedKernel, cluster: int, bug: int) -> tuple[float, float]:
    """What the last block wrote, and what it should have."""
    x = torch.arange(64.0 * BLOCKS)
    y, counter = torch.full((1,), -1.0), torch.zeros(1, dtype=torch.uint32)
    kernel(x, torch.empty_like(x), y, counter, BLOCKS, cluster, bug)
    assert counter.item() == 0, "no block came last"
    return y.item(), x.sum().item()


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_the_last_block_may_read_what_the_others_released(kernel, how, cluster):
    y, wanted = run(kernel[how], cluster, 0)
    assert y == wanted


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize(
    "bug", [1, 2, 3], ids=["no barrier before the count", "a plain atomic", "nothing acquired"]
)
def test_a_last_block_without_order_is_in_a_race(kernel, cluster, bug):
    """Though all blocks meet the same barriers: one block's orders nothing in another."""
    y, wanted = run(kernel[None], cluster, bug)
    assert y == wanted, "the values show it"
    with pytest.raises(EmulationError, match="data race") as caught:
        run(kernel["thread"], cluster, bug)
    assert "last_block.cu:" in str(caught.value)
