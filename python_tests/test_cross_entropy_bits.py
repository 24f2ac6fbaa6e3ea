"""Cross-entropy gives the same bits whatever surrounds a row: threads, neighbours, layout."""

import math

import pytest
import torch

import hetkern
from hetkern.testing.cases.families import cross_entropy_op
from hetkern.testing.devices import normal
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.calls import Call, random_upstream, run, same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(impl, x, target, upstream=None, **options):
    """Everything that comes out of one call: loss, statistics and the gradient."""
    options = {"reduction": "none", "return_stats": True} | options
    op = cross_entropy_op(impl.name)
    call = Call((x, target), options)
    return run(op, call, constant=["weight"], upstream=upstream or random_upstream(0))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert same_bits(a[name], b[name]), f"{name} has other bits"


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(4096, 257), (1, 262145), (3, 100003), (8, 1000, 64)])
def test_cross_entropy_bits_do_not_depend_on_the_thread_count(native, shape, reduction, dtype):
    if native.name != "cpu":
        pytest.skip("a claim about the C++ kernels' threads")
    x = normal(*shape).to(dtype)
    rows = shape[:1] + shape[2:]
    target = torch.arange(math.prod(rows)).reshape(rows) * 7919 % shape[1]
    seen = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        seen.append(results(native, x, target, reduction=reduction, z_loss=1e-3))
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [3, 64, 257, 5000])
def test_cross_entropy_bits_of_a_row_do_not_depend_on_its_neighbours(native, length, dtype):
    rows = 260 if native.simulated else 4096
    x, target = normal(rows, length).to(dtype), torch.arange(rows) % length
    many = results(native, x, target, upstream=lambda i, y: torch.ones_like(y))
    for row in (0, 1, rows // 2 - 1, rows - 1):
        one = x[row : row + 1], target[row : row + 1]
        alone = results(native, *one, upstream=lambda i, y: torch.ones_like(y))
        for name, value in alone.items():
            assert same_bits(value[0], many[name][row]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize(
    "rows, length", [(7, 63), (300, 65), (3, 4097), (37, 2), (40, 10), (20, 128)]
)
def test_cross_entropy_bits_do_not_depend_on_the_layout(native, rows, length, statistics, dtype):
    x, target = normal(rows, length).to(dtype), torch.arange(rows) % length
    wanted = results(native, x, target, return_stats=statistics)
    for name, layout in LAYOUTS.items():
        if name != "expanded":
            got = results(native, layout(x), layout(target), return_stats=statistics)
            assert_same(wanted, got)
    # The classes before the positions: (1, C, rows).
    turned = results(native, x.t()[None].contiguous(), target[None], return_stats=statistics)
    for name, value in turned.items():
        value = value[0].t() if value.dim() == 3 else value[0]
        assert same_bits(value.contiguous(), wanted[name]), name


SHORT = [1, 2, 5, 16, 50, 128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_cross_entropy_bits_of_short_rows_do_not_depend_on_the_thread_count(
    native, reduction, dtype
):
    if native.name != "cpu":
        pytest.skip("a claim about the C++ kernels' threads")
    from hetkern import _C

    x, target = normal(30011, 10).to(dtype), torch.arange(30011) % 10
    assert _C.cross_entropy_plan(30011, 10, False, "float32", threads=2)["tasks"] == 2
    seen = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        seen.append(results(native, x, target, reduction=reduction, return_stats=False))
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("length", SHORT)
def test_cross_entropy_bits_of_a_short_row_do_not_depend_on_nasty_neighbours(
    native, length, weighted, dtype
):
    """Nor on statistics being wanted, which short rows leave to the general path."""
    x, target = normal(37, length).to(dtype), torch.arange(37) % length
    for i, value in enumerate((math.inf, -math.inf, math.nan, 0.0)):
        x[i] = value
        x[i + 7, length // 2] = value
    x[13, 0], x[14, -1] = 300.0, -300.0
    target[5], target[20] = -100, -100
    x[20] = math.nan
    weight = torch.rand(length).to(torch.float64 if dtype == torch.float64 else torch.float32)
    options = {"weight": weight} if weighted else {}
    upstream = normal(37).to(weight.dtype)

    def of(rows, **more):
        return results(
            native,
            x[rows],
            target[rows],
            upstream=lambda i, y: upstream[rows] if i == 0 else torch.zeros_like(y),
            **options,
            **more,
        )

    everything = slice(0, 37)
    many, with_statistics = of(everything, return_stats=False), of(everything)
    assert same_bits(many["output"], with_statistics["output 0"])
    for row in range(37):
        for name, value in of(slice(row, row + 1), return_stats=False).items():
            assert same_bits(value[0], many[name][row]), (name, row)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [2, 50, 200])
def test_cross_entropy_bits_of_a_gradient_do_not_depend_on_how_the_loss_is_asked_for(
    native, length, dtype
):
    """`loss` goes a vector of rows at a time, the statistic of the same name does not."""
    x, target, g = normal(37, length).to(dtype), torch.arange(37) % length, normal(37)
    g = g.to(torch.float64 if dtype == torch.float64 else torch.float32)
    gradients = []
    for statistic in (False, True):
        leaf = x.clone().requires_grad_()
        _, stats = hetkern.cross_entropy(leaf, target, reduction="none", return_stats=True)
        plain = hetkern.cross_entropy(leaf, target, reduction="none")
        (dx,) = torch.autograd.grad(stats.loss if statistic else plain, leaf, g)
        gradients.append(dx)
    assert same_bits(*gradients)


def test_cross_entropy_bits_repeat(native):
    x, target = normal(300, 1000), torch.arange(300)
    assert_same(results(native, x, target), results(native, x, target))


def test_cross_entropy_bits_of_the_loss_do_not_depend_on_a_gradient_being_wanted(native):
    x, target = normal(300, 1000), torch.arange(300)
    wanted = hetkern.cross_entropy(x, target, reduction="none")
    assert torch.equal(wanted, hetkern.cross_entropy(x.requires_grad_(), target, reduction="none"))


OPTIONS = {
    "plain": {},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weight and smoothing": {"weight": True, "label_smoothing": 0.3, "ignore_index": 1},
    "scale": {"scale": 0.7, "ignore_index": 0},
    "softcap": {"softcap": 3.0},
}


@pytest.mark.sample(2, simulated=16)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("length", [1, 2, 3, 5, 21, 64, 65, 150, 257])
def test_cross_entropy_bits_of_few_columns_are_those_of_rows(native, length, options, dtype):
    options = dict(options)
    if options.pop("weight", False):
        wide = torch.promote_types(dtype, torch.float32)
        options["weight"] = (normal(length).abs() + 0.5).to(wide)

    def loss_and_gradient(x, target, **kind):
        x = x.clone().requires_grad_()
        loss = hetkern.cross_entropy(x, target, **options, **kind)
        loss = loss[0] if kind["return_stats"] else loss
        (dx,) = torch.autograd.grad(loss, x, random_upstream(0)(0, loss))
        return loss.detach(), dx

    for rows, reduction in ((1, "none"), (47, "mean"), (300, "sum"), (300, "none"), (33, "mean")):
        x, target = (3 * normal(rows, length)).to(dtype), torch.arange(rows) * 7 % length
        x[:: rows // 3 + 1, 0] = 30  # confident rows, right ones and wrong ones
        target[5::9] = options.get("ignore_index", -100)
        for return_stats in (False, True):  # statistics take the general path
            kind = {"reduction": reduction, "return_stats": return_stats}
            loss, dx = loss_and_gradient(x, target, **kind)
            turned = loss_and_gradient(x.t()[None].contiguous(), target[None], **kind)
            assert same_bits(turned[0].reshape(loss.shape), loss), (rows, kind)
            assert same_bits(turned[1][0].t(), dx), (rows, kind)
