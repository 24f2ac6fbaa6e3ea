"""An RNN gives the same bits whatever surrounds a row: threads, neighbours, cuts in time.

The input product is torch's; so these tests call the op behind it.
"""

import pytest
import torch
from recurrent import CELLS

from hetkern.ops.rnn import OPS
from hetkern.testing.devices import normal
from hetkern.testing.values.calls import same_bits

GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Rows, units and threads, and the plan's path for them.
PATHS = [(1, 256, 2, "split_units"), (16, 48, 2, "split_rows"), (3, 80, 5, "split_units")]


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rnn_sequence(native):
    """The op's callable of the implementation under test."""
    return OPS["emulated" if native.name == "cuda" else native.name].rnn_sequence


@pytest.fixture
def own_product(native):
    """For claims about every bit of a sequence."""
    if native.name != "cpu":
        pytest.skip("the steps' products are torch's, whose bits depend on the number of rows")


def draw(cell, T, B, H, dtype):
    """x_gates, w_hh, b_hh, h0, c0."""
    columns = GATES[cell] * H
    x, w, b = normal(T, B, columns), normal(columns, H, seed=1) / H**0.5, normal(columns, seed=2)
    h0, c0 = normal(B, H, seed=3), normal(B, H, seed=4)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [t.to(dtype) for t in (x, w, b, h0)]
    return *tensors, c0.to(accumulator) if cell == "lstm" else None


def walk(op, cell, x, w, b, h0, c0, dy=None, **options):
    """y, h_n, c_n and the gradients of x_gates and the states."""
    order = ("lengths", "batch_sizes", "h_mask", "reset")
    x, h0 = x.detach().requires_grad_(), h0.detach().requires_grad_()
    c0 = None if c0 is None else c0.detach().requires_grad_()
    more = [options.get(name) for name in order]
    y, h_n, c_n, *_ = op(
        CELLS.index(cell), x, w, b, h0, c0, *more, options.get("reverse", False), True
    )
    ends = [y, h_n] if c0 is None else [y, h_n, c_n]
    upstream = [normal(*t.shape, seed=6 + i).to(t.dtype) for i, t in enumerate(ends)]
    if dy is not None:
        upstream = dy
    leaves = [x, h0] if c0 is None else [x, h0, c0]
    return [t.detach() for t in ends], list(torch.autograd.grad(ends, leaves, upstream))


def assert_same(a, b):
    for one, other in zip(a, b, strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("B, H, threads, path", PATHS)
def test_bits_do_not_depend_on_the_thread_count(
    rnn_sequence, native, cell, B, H, threads, path, dtype
):
    if native.name != "cpu":
        pytest.skip("a claim about the C++ kernels' threads")
    from hetkern import _C

    T = 40
    name = str(dtype).removeprefix("torch.")
    plan = _C.rnn_plan(cell, T, B, H, name, threads=threads)
    if cell in ("lstm", "gru") and H % 64 == 0:
        assert plan["path"] == path, "the test does not reach the path that it claims to"
    drawn = draw(cell, T, B, H, dtype)
    seen = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results, gradients = walk(rnn_sequence, cell, *drawn)
        seen.append(results + gradients)
    assert_same(*seen)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_bits_of_a_row_do_not_depend_on_its_neighbours(
    rnn_sequence, own_product, cell, dtype, reverse
):
    T, B, H = 4, 13, 40
    x, w, b, h0, c0 = draw(cell, T, B, H, dtype)
    results, gradients = walk(rnn_sequence, cell, x, w, b, h0, c0, reverse=reverse)
    shapes = [t.shape for t in results]
    upstream = [
        normal(*s, seed=6 + i).to(t.dtype)
        for i, (s, t) in enumerate(zip(shapes, results, strict=True))
    ]
    for row in (0, 5, 12):
        one = slice(row, row + 1)
        dy = [t[:, one] if t.dim() == 3 else t[one] for t in upstream]
        alone = walk(
            rnn_sequence,
            cell,
            x[:, one],
            w,
            b,
            h0[one],
            None if c0 is None else c0[one],
            dy,
            reverse=reverse,
        )
        for many, single in zip(results + gradients, alone[0] + alone[1], strict=True):
            assert same_bits(many[:, one] if many.dim() == 3 else many[one], single)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_of_the_gates_of_a_row_do_not_depend_on_its_neighbours(native, cell, dtype):
    op = OPS["emulated" if native.name == "cuda" else native.name].rnn_gates
    x_gates, _, _, h, c = draw(cell, 2, 13, 40, dtype)
    h = h if cell == "gru" else None
    upstream = normal(13, 40, seed=5).to(dtype)

    def step(rows):
        given = [None if t is None else t[rows].requires_grad_() for t in (*x_gates, h, c)]
        h_next, c_next = op(CELLS.index(cell), *given)
        gradients = torch.autograd.grad(h_next, [t for t in given if t is not None], upstream[rows])
        return [h_next, *([c_next] if cell == "lstm" else []), *gradients]

    every = step(slice(None))
    for rows in (slice(0, 1), slice(5, 6), slice(4, 13)):
        assert_same([t[rows] for t in every], step(rows))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_permuted_rows_permute_the_bits_and_packed_rows_have_them_too(
    rnn_sequence, own_product, cell, dtype
):
    T, B, H = 5, 6, 24
    x, w, b, h0, c0 = draw(cell, T, B, H, dtype)
    lengths, order = torch.tensor([5, 3, 3, 2, 1, 0]), torch.tensor([4, 0, 5, 2, 1, 3])
    for reverse in (False, True):
        results, gradients = walk(
            rnn_sequence, cell, x, w, b, h0, c0, lengths=lengths, reverse=reverse
        )
        upstream = [normal(*t.shape, seed=6 + i).to(t.dtype) for i, t in enumerate(results)]
        take = [t[:, order] if t.dim() == 3 else t[order] for t in upstream]
        moved = walk(
            rnn_sequence,
            cell,
            x[:, order],
            w,
            b,
            h0[order],
            None if c0 is None else c0[order],
            take,
            lengths=lengths[order],
            reverse=reverse,
        )
        for plain, permuted in zip(results + gradients, moved[0] + moved[1], strict=True):
            assert same_bits(plain[:, order] if plain.dim() == 3 else plain[order], permuted)

        there = torch.arange(T)[:, None] < lengths
        packed = walk(
            rnn_sequence,
            cell,
            x[there],
            w,
            b,
            h0,
            c0,
            [upstream[0][there], *upstream[1:]],
            batch_sizes=there.sum(1),
            reverse=reverse,
        )
        for plain, rows in zip(results + gradients, packed[0] + packed[1], strict=True):
            assert same_bits(plain[there] if plain.dim() == 3 else plain, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_cut_in_two_has_the_same_bits(rnn_sequence, cell, dtype):
    T, B, H = 9, 3, 20
    x, w, b, h0, c0 = draw(cell, T, B, H, dtype)
    (y, *ends), _ = walk(rnn_sequence, cell, x, w, b, h0, c0)
    (first, *middle), _ = walk(rnn_sequence, cell, x[:4], w, b, h0, c0)
    (second, *last), _ = walk(
        rnn_sequence, cell, x[4:], w, b, *middle, *([None] if c0 is None else [])
    )
    assert same_bits(y, torch.cat([first, second]))
    assert_same(ends, last)


@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_whether_gates_are_saved(rnn_sequence, cell):
    drawn = draw(cell, 5, 3, 20, torch.float32)
    nothing = (None, None, None, None)
    with torch.no_grad():
        saved, unsaved = (
            rnn_sequence(CELLS.index(cell), *drawn, *nothing, False, save)[:3]
            for save in (True, False)
        )
    assert_same(saved, unsaved)


def test_a_team_does_not_hang_inside_another_region_or_with_too_many_threads(native):
    """Every thread of a pool that walks at once, with more threads than there are cores."""
    if native.name != "cpu":
        pytest.skip("a claim about the C++ kernels' threads")
    from concurrent.futures import ThreadPoolExecutor

    x, w, b, h0, _ = draw("gru", 20, 1, 256, torch.float32)
    torch.set_num_threads(5)

    def one(_):
        return OPS["cpu"].rnn_sequence(3, x, w, b, h0, None, None, None, None, None, False, False)[
            0
        ]

    wanted = one(0)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(one, range(16)):
            assert same_bits(y, wanted)
