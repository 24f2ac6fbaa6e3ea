"""Inline PTX by the instruction: each against values that are worked out here."""

from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import emulate_cuda

SOURCE = Path(__file__).parent / "kernels" / "inline_words.cu"


@pytest.fixture(scope="module")
def go():
    """A launcher of the file by its name."""
    skip_unless_possible()
    return lambda name: emulate_cuda(SOURCE, f"go_{name}")


def bits(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=draw).to(torch.int32)


def small(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=draw).float()


def test_funnel_shifts_take_two_words_for_one(go):
    low, high = (bits(n, 32).view(torch.uint32) for n in (0, 1))
    by, y = torch.arange(1, 97, 3).to(torch.uint32), torch.zeros(32, 4, dtype=torch.uint32)
    go("shifted")(low, high, by, y)
    for t, got in enumerate(y.tolist()):
        both, n = int(high[t]) << 32 | int(low[t]), int(by[t])
        least = min(n, 32)
        assert got == [
            both << (n % 32) >> 32 & 0xFFFFFFFF,
            both << least >> 32 & 0xFFFFFFFF,
            both >> (n % 32) & 0xFFFFFFFF,
            both >> least & 0xFFFFFFFF,
        ]


def test_a_product_of_doubles_is_exact_where_its_numbers_are(go):
    a, b, c = small(0, 8, 4).double(), small(1, 4, 8).double(), small(2, 8, 8).double()
    y = torch.zeros(8, 8, dtype=torch.float64)
    go("product_double")(a, b, c, y)
    assert torch.equal(y, a @ b + c)


@pytest.mark.parametrize("rows_b", [0, 1], ids=["col", "row"])
def test_voltas_product_takes_a_in_columns(go, rows_b):
    """A lane of a group has a column's four rows: of the upper four if it is one of the upper."""
    a, b, y = small(0, 32, 4), small(1, 32, 4), torch.zeros(32, 8)
    go("product_volta")(*(x.half().view(torch.int32).view(torch.uint32) for x in (a, b)), y, rows_b)
    for group in range(4):
        of_a, of_b, got = torch.zeros(8, 4), torch.zeros(4, 8), torch.zeros(8, 8)
        for lane in (*range(4 * group, 4 * group + 4), *range(4 * group + 16, 4 * group + 20)):
            k, upper = lane % 4, lane // 16 * 4
            of_a[upper : upper + 4, k] = a[lane]
            if rows_b:
                of_b[k, upper : upper + 4] = b[lane]
            else:
                of_b[:, k + upper] = b[lane]
            for i in range(8):
                got[(lane & 1) + (i & 2) + upper, (i & 4) + (lane & 2) + (i & 1)] = y[lane, i]
        assert torch.equal(got, of_a @ of_b)


@pytest.mark.parametrize("which", [1, 2, 3, 4], ids=["x1", "x2 trans", "x4 trans", "x4"])
def test_matrices_are_stored_to_the_rows_that_the_lanes_name(go, which):
    x, y = bits(0, 32, 4), torch.zeros(32, 8, dtype=torch.uint16)
    go("stored")(x.view(torch.uint32), y, which)
    wanted = torch.zeros(4, 8, 8, dtype=torch.int64)
    for matrix in range({1: 1, 2: 2}.get(which, 4)):
        for lane in range(32):
            pair = int(x[lane, matrix]) & 0xFFFFFFFF
            for i in range(2):
                at = [lane // 4, lane % 4 * 2 + i]
                row, column = reversed(at) if which in (2, 3) else at
                wanted[matrix, row, column] = pair >> 16 * i & 0xFFFF
    assert torch.equal(y.long(), wanted.view(32, 8))


def test_atomics_change_a_word_by_one_lane_after_another(go):
    w = torch.zeros(8, dtype=torch.int32)
    w[3] = -1000
    f, wide = torch.zeros(1), torch.zeros(2, dtype=torch.int64)
    old = torch.zeros(3, 32, dtype=torch.uint32)
    go("counted")(w.view(torch.uint32), f, wide.view(torch.uint64), old)
    winner = int(w[2]) - 1  # the lanes come in any order
    assert w.tolist() == [496, 32 % 5, winner + 1, -9, -9, -1, 0, -31]
    assert f.tolist() == [16] and wide.tolist() == [2**32 - 1, -31]
    found = old.long()
    after = [int(n) + t for t, n in enumerate(found[0])]
    assert sorted([0, *after]) == sorted([*found[0].tolist(), 496])
    assert sorted(found[1].tolist()) == sorted(t % 5 for t in range(32))
    assert found[2].tolist() == [0 if t == winner else winner + 1 for t in range(32)]


@pytest.mark.parametrize("few", ["all", "none", "some"])
def test_votes_count_the_lanes_whose_predicate_holds(go, few):
    x = {"all": torch.ones(32), "none": torch.zeros(32), "some": torch.arange(32) % 3}[few].int()
    y = torch.zeros(32, 4, dtype=torch.uint32)
    go("voted")(x, y)
    ballot = sum(int(v > 0) << t for t, v in enumerate(x.tolist()))
    wanted = [int(ballot > 0), int(ballot == 2**32 - 1), ballot, int(ballot == 0)]
    assert y.tolist() == [wanted] * 32
