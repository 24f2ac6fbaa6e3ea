"""Textures and surfaces: addressing and filtering as CUDA's programming guide has them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulationError, emulate_cuda

SOURCE = Path(__file__).parent / "kernels" / "textures.cu"
WRAP, CLAMP, MIRROR, BORDER = range(4)


@pytest.fixture(scope="module")
def go():
    skip_unless_possible()
    return lambda name, *given, how=None: emulate_cuda(SOURCE, name, sanitize=how)(*given)


def texel(x, i, j, mode):
    """The number at row j and column i, wherever that is."""
    height, width = x.shape
    place = []
    for at, n in ((j, height), (i, width)):
        if mode == BORDER and not 0 <= at < n:
            return 7.0
        if mode == WRAP:
            at %= n
        if mode == MIRROR:
            at %= 2 * n
            at = 2 * n - 1 - at if at >= n else at
        place.append(min(max(at, 0), n - 1))
    return float(x[place[0], place[1]])


def expected(x, u, v, mode, filtered, normalized):
    """By the formulas of the guide: eight bits of the fraction."""
    height, width = x.shape
    if not normalized and mode in (WRAP, MIRROR):
        mode = CLAMP
    u, v = (u * width, v * height) if normalized else (u, v)
    if not filtered:
        return texel(x, int(np.floor(u)), int(np.floor(v)), mode)
    i, j = int(np.floor(u - 0.5)), int(np.floor(v - 0.5))
    a, b = (np.floor((w - 0.5 - k) * 256 + 0.5) / 256 for w, k in ((u, i), (v, j)))
    rows = [(1 - a) * texel(x, i, k, mode) + a * texel(x, i + 1, k, mode) for k in (j, j + 1)]
    return (1 - b) * rows[0] + b * rows[1]


@pytest.mark.parametrize("mode", [WRAP, CLAMP, MIRROR, BORDER])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_texel_is_where_its_coordinates_and_mode_say(go, mode, filtered, normalized):
    torch.manual_seed(0)
    x, y = torch.randint(-8, 9, (4, 8)).float(), torch.zeros(40)
    # Odd multiples of 1/128 of a texel: exact in eight bits, and never between two texels.
    at = (2 * torch.randint(-1024, 1536, (2, 40)) + 1) / 128
    at = at / torch.tensor([[8.0], [4.0]]) if normalized else at
    go("read", x, at[0].contiguous(), at[1].contiguous(), y, 8, 4, 40, mode, filtered, normalized)
    exact = [expected(x, *map(float, p), mode, filtered, normalized) for p in at.T]
    assert y.tolist() == exact  # small integers and eight bits: nothing is rounded


def test_bytes_are_fractions_where_the_texture_says_so_and_else_no_floats(go):
    x, y = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4) * 10, torch.zeros(2, 3, 4)
    go("pixels", x, y, 3, 2, True, True)
    assert torch.equal(y, x.float() / 255)
    with pytest.raises(EmulationError, match="texture of integers is read as float"):
        go("pixels", x, y, 3, 2, False, False)


@pytest.mark.parametrize("how", [None, "address"])
def test_linear_memory_has_zeros_around_it(go, how):
    x, y = torch.arange(5, dtype=torch.int32) + 1, torch.full((7,), -1, dtype=torch.int32)
    go("fetch", x, y, 5, how=how)
    assert y.tolist() == [0, 1, 2, 3, 4, 5, 0]


def test_volumes_and_layers(go):
    x = torch.arange(24.0).reshape(2, 3, 4)  # linear in its coordinates, as a filter is
    at = torch.tensor([[1.0, 1.5, 1.0], [2.25, 2.0, 1.25], [-5.0, 9.0, 0.5]])
    y, layers, four = torch.zeros(3), torch.zeros(2), torch.zeros(4)
    go("volumes", x, at, y, layers, four, 4, 3, 2, 3)
    assert y.tolist() == [0.5 + 4 * 1 + 12 * 0.5, 1.75 + 4 * 1.5 + 12 * 0.75, 8.0]
    assert layers.tolist() == [1, 13]
    assert four.tolist() == [4, 5, 1, 0]


def test_surfaces_are_read_and_written_by_bytes_and_trap_outside(go):
    x, y = torch.randn(3, 5), torch.zeros(3, 5)
    go("surfaces", x, y, 5, 3, 0)
    assert torch.equal(y, 2 * x.flip(1))
    with pytest.raises(EmulationError, match="surf2Dread at byte 20, row 0, depth 0 of a surface"):
        go("surfaces", x, y, 5, 3, 1)


def test_a_filtered_texture_of_integers_is_none(go):
    with pytest.raises(EmulationError, match="a texture of integers is filtered"):
        go("pixels", torch.zeros(24, dtype=torch.uint8), torch.zeros(24), 3, 2, False, True)
