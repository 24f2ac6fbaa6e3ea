"""Softmax gives the same bits whatever surrounds a row: threads, neighbours, layout."""

import math

import pytest
import torch

import hetkern
from hetkern.testing.cases.families import softmax_op
from hetkern.testing.devices import normal
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.calls import Call, random_upstream, run, same_bits

# Shapes (M, N), whether rows lie along dimension 0, and the plan's path on two threads.
PATHS = [
    ((4096, 257), False, "whole_rows"),
    ((30011, 10), False, "whole_rows"),  # a vector of rows at a time
    ((1, 262145), False, "split_rows"),
    ((300, 1000), True, "columns"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(impl, x, dim, *, log=False, upstream=None, **options):
    """Everything that comes out of one call: y and the gradients."""
    call = Call((x,), {"dim": dim, "log": log, **options})
    return run(softmax_op(impl.name), call, upstream=upstream or random_upstream(0))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert same_bits(a[name], b[name]), f"{name} has other bits"


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape, columns, path", PATHS)
def test_softmax_bits_do_not_depend_on_the_thread_count(native, shape, columns, path, log, dtype):
    if native.name != "cpu":
        pytest.skip("a claim about the C++ kernels' threads")
    from hetkern import _C

    plan = _C.softmax_plan(*shape, columns, "float32", "float32", threads=2)
    assert plan["path"] == path, "the test does not reach the path that it claims to"
    assert plan["tasks"] == 2, "the test does not reach a second thread"
    x = normal(*shape).to(dtype)
    dim = 1
    if columns:
        x, dim = x.t().contiguous(), 0
    seen = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        sink = torch.zeros(shape[0], dtype=dtype)
        seen.append(results(native, x, dim, log=log, sink=sink))
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])


@pytest.mark.large
@pytest.mark.any_level(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [3, 64, 257, 5000])
@pytest.mark.parametrize("log", [False, True])
def test_softmax_bits_of_a_row_do_not_depend_on_its_neighbours(native, log, length, dtype):
    rows = 260 if native.simulated else 4096
    x, dy = normal(rows, length).to(dtype), normal(rows, length).to(dtype)
    for dim in (1, 0):
        turned, dy_turned = (t.movedim(1, dim).contiguous() for t in (x, dy))
        many = results(native, turned, dim, log=log, upstream=lambda i, y, d=dy_turned: d)
        for row in (0, 1, rows // 2 - 1, rows - 1):
            one, dy_one = (t.select(1 - dim, row).unsqueeze(1 - dim) for t in (turned, dy_turned))
            alone = results(native, one, dim, log=log, upstream=lambda i, y, d=dy_one: d)
            for name, value in alone.items():
                assert same_bits(value.select(1 - dim, 0), many[name].select(1 - dim, row)), name


def nasty(rows, length, dtype):
    """Rows of every kind side by side: infinities, NaN, ties, a single large score, nothing."""
    x = normal(rows, length).to(dtype)
    for i, value in enumerate((math.inf, -math.inf, math.nan, 0.0, -0.0)):
        x[i] = value
        x[i + 7, length // 2] = value
    x[13, 0], x[14, -1], x[15, : length - 1] = 300.0, -300.0, -math.inf
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 5, 16, 50, 128])
@pytest.mark.parametrize("log", [False, True])
def test_softmax_bits_of_a_short_row_do_not_depend_on_nasty_neighbours(native, log, length, dtype):
    x, dy = nasty(19, length, dtype), nasty(19, length, dtype).flip(0)
    many = results(native, x, 1, log=log, upstream=lambda i, y: dy)
    for row in range(19):
        alone = results(
            native,
            x[row : row + 1],
            1,
            log=log,
            upstream=lambda i, y, one=dy[row : row + 1]: one,
        )
        for name, value in alone.items():
            assert same_bits(value[0], many[name][row]), (name, row)
    # The general path: a bias of zeros does nothing, and is not for short rows. A NaN has a sign.
    general = results(
        native, x, 1, log=log, upstream=lambda i, y: dy, bias=normal(1, 1).to(dtype) * 0
    )
    assert torch.equal(general["output"].nan_to_num(7.0), many["output"].nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [2, 7, 50, 128])
def test_softmax_bits_of_a_gradient_do_not_depend_on_the_layout_whatever_y_holds(
    native, length, dtype
):
    y, dy = torch.rand(37, length).to(dtype), normal(37, length).to(dtype)  # several above a half
    assert int((y > 0.5).sum(1).max()) > 1
    backward = torch.ops.hetkern.softmax_backward

    def gradient(dy, y, dim):
        return backward(dy, y, None, dim, dtype, 1.0, 0.0, None, False, False, None)

    turned = gradient(dy.t().contiguous(), y.t().contiguous(), 0)
    assert same_bits(gradient(dy, y, 1), turned.t().contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "rows, length", [(7, 63), (300, 65), (3, 4097), (37, 2), (40, 10), (20, 128)]
)
def test_softmax_bits_do_not_depend_on_the_layout(native, rows, length, log, dtype):
    x, dy = normal(rows, length).to(dtype), normal(rows, length).to(dtype)
    wanted = results(native, x, 1, log=log, upstream=lambda i, y: dy)
    for name, layout in LAYOUTS.items():
        if name != "expanded":
            got = results(native, layout(x), 1, log=log, upstream=lambda i, y, f=layout: f(dy))
            assert_same(wanted, got)
    turned = results(
        native, x.t().contiguous(), 0, log=log, upstream=lambda i, y: dy.t().contiguous()
    )
    assert_same(wanted, {name: value.t() for name, value in turned.items()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 300_000), (300, 1000)])
def test_softmax_bits_of_a_gradient_with_one_element_do_not_depend_on_threads(native, shape, dtype):
    x, sink, bias = normal(*shape).to(dtype), torch.zeros(1, dtype=dtype), torch.zeros(1, 1)
    seen = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        seen.append(results(native, x, 1, sink=sink, bias=bias.to(dtype)))
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])


def test_softmax_bits_do_not_depend_on_features_that_do_nothing(native):
    x = normal(50, 300)
    wanted = hetkern.softmax(x)
    assert torch.equal(wanted, hetkern.softmax(x, mask=torch.ones(300, dtype=torch.bool)))
    assert torch.equal(wanted, hetkern.softmax(x, bias=torch.zeros(50, 1)))
    assert torch.equal(wanted, hetkern.softmax(x, sink=torch.full((50,), -torch.inf)))


def test_softmax_bits_repeat(native):
    x = normal(300, 1000)
    assert_same(results(native, x, 1), results(native, x, 1))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 21, 32, 64, 65, 100, 150, 256, 257])
def test_softmax_bits_of_few_columns_are_those_of_rows(native, length, log, dtype):
    for rows, options in ((1, {}), (47, {"scale": 0.7}), (300, {}), (33, {"softcap": 3.0})):
        x, dy = (3 * normal(rows, length)).to(dtype), normal(rows, length).to(dtype)
        x[:: rows // 3 + 1, 0] = 30  # confident rows: a y above a half stands apart
        wanted = results(native, x, 1, log=log, upstream=lambda i, y, d=dy: d, **options)
        turned = x.t().contiguous(), dy.t().contiguous()
        got = results(
            native, turned[0], 0, log=log, upstream=lambda i, y, d=turned[1]: d, **options
        )
        assert_same(wanted, {name: value.t() for name, value in got.items()})


@pytest.mark.parametrize("log", [False, True])
def test_softmax_bits_of_few_columns_do_not_depend_on_a_mask_that_does_nothing(native, log):
    x, keep = normal(3, 21, 300), torch.ones(300, dtype=torch.bool)
    wanted = results(native, x, 1, log=log)
    assert_same(wanted, results(native, x, 1, log=log, mask=keep))  # masks take the general path
