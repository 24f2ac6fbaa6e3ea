"""Softmax and log-softmax, values and gradients, within the error budget of the reference."""

import pytest
import torch

import hetkern
from hetkern.testing import Case, check_seed
from hetkern.testing.cases import inputs
from hetkern.testing.cases.families import check_softmax, torch_softmax
from hetkern.testing.devices import normal
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.check import DTYPES
from hetkern.testing.values.dispatched import ops_of

SHORT = [n for n in inputs.LENGTHS if n <= 4097]
LONG = [n for n in inputs.LENGTHS if n > 4097]
FEATURES = {
    "scale": {"scale": 0.125},
    "negative scale": {"scale": -2.0},
    "softcap": {"softcap": 2.0},
    "bias": {"bias": torch.linspace(-2, 2, 4 * 65).reshape(4, 65)},
    "mask": {"mask": torch.arange(65) % 3 > 0},
    "causal": {"causal": True},
    "sink": {"sink": torch.tensor([[-1.0], [0.5], [3.0]])},
}
EVERYTHING = {name: value for options in FEATURES.values() for name, value in options.items()}


def case(kind, shape, dim=-1, **options):
    x = inputs.logits(kind, shape, dim, torch.Generator().manual_seed(0))
    return Case(f"{kind} {shape} {options}", (x,), {"dim": dim, **options}, dim)


@pytest.mark.sample(1, simulated=2)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("length", SHORT)
def test_softmax_is_within_budget_at_every_length_and_dtype(impl, length, log):
    check_softmax(impl.name, case("normal", (3, length), log=log))
    check_softmax(impl.name, case("normal", (length, 3), dim=0, log=log))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "length, dtype",
    [(50257, torch.bfloat16), pytest.param(262145, torch.float32, marks=pytest.mark.large)],
)
def test_softmax_is_within_budget_in_long_rows(impl, length, dtype, log):
    check_softmax(impl.name, case("normal", (2, length), log=log), dtypes=[dtype])


@pytest.mark.proof
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("length", LONG)
def test_softmax_is_within_budget_in_long_rows_of_every_kind(impl, length, log):
    for kind in inputs.LOGITS if not impl.simulated else inputs.LOGITS_IN_SHORT:
        check_softmax(impl.name, case(kind, (3, length), log=log))
        check_softmax(impl.name, case(kind, (length, 2), dim=0, log=log))


@pytest.mark.sample(1, simulated=2)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("kind", inputs.LOGITS)
def test_softmax_is_within_budget_on_adversarial_logits(impl, kind, log):
    check_softmax(impl.name, case(kind, (5, 257), log=log), case(kind, (257, 5), dim=0, log=log))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("feature", FEATURES)
def test_softmax_is_within_budget_with_each_feature(impl, feature, log):
    check_softmax(impl.name, case("normal", (3, 4, 65), log=log, **FEATURES[feature]))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("left_out", [None, *EVERYTHING])
def test_softmax_is_within_budget_with_all_features_and_with_all_but_one(impl, left_out, log):
    options = {name: value for name, value in EVERYTHING.items() if name != left_out}
    check_softmax(impl.name, case("normal", (3, 4, 65), log=log, **options))


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -2])
def test_softmax_is_within_budget_along_any_dimension(impl, dim):
    shape = (6, 5, 33, 4)
    rows = torch.Size(size for i, size in enumerate(shape) if i != dim % 4)
    options = {"bias": torch.ones(1, 5, 33, 1).cumsum(2) / 9, "sink": torch.zeros(rows)}
    options["mask"] = torch.arange(6 * 33).reshape(6, 1, 33, 1) % 7 > 0
    check_softmax(impl.name, case("normal", shape, dim), case("normal", shape, dim, **options))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_softmax_is_within_budget_in_every_layout(impl, dim):
    layouts = list(LAYOUTS)
    check_softmax(impl.name, case("normal", (5, 1, 40), dim), layouts=layouts)
    options = {"bias": torch.ones(5, 1, 40).cumsum(dim), "mask": torch.arange(40) % 5 > 0}
    check_softmax(impl.name, case("normal", (5, 6, 40), dim, **options), layouts=layouts)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (1, 4), (0,), (0, 4), (4, 0), (2, 0, 3)])
def test_softmax_is_right_on_tiny_and_empty_tensors(impl, shape, log):
    x = normal(*shape).requires_grad_()
    ours, torchs = (
        (hetkern.log_softmax, torch.log_softmax) if log else (hetkern.softmax, torch.softmax)
    )
    y, wanted = ours(x), torchs(x, -1)
    assert y.shape == wanted.shape
    torch.testing.assert_close(y, wanted)
    dx, dx_wanted = (torch.autograd.grad(result.sum(), x)[0] for result in (y, wanted))
    torch.testing.assert_close(dx, dx_wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_of_16_bit_logits_is_float32_when_asked(impl, dtype):
    check_softmax(impl.name, case("normal", (4, 100), dtype=torch.float32), dtypes=[dtype])
    x = normal(4, 100).to(dtype)
    assert hetkern.softmax(x, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("wanted", DTYPES)
def test_softmax_casts_x_first_as_torch_does(impl, given, wanted):
    x = (9 * normal(4, 100)).to(given)
    y = hetkern.softmax(x, dtype=wanted)
    assert y.dtype == wanted
    torch.testing.assert_close(y, torch.softmax(x, -1, wanted))


#: Found in longer runs: gradients of confident rows, beside a sink and in 16 bits; rows whose
#: rounded y do not add up to 1; many y too small for float16; a softcap's slope in float64.
FAILED_ONCE = (41408, 66174, 1675, 3171, 25340, 301, 49268, 20701)


@pytest.mark.sample(1, simulated=2)
@pytest.mark.parametrize("seed", (*range(150), *FAILED_ONCE))
def test_softmax_is_within_budget_in_random_configurations(impl, seed):
    if impl.name == "reference" and seed in FAILED_ONCE:
        pytest.skip("a claim about our kernels: the reference is torch's own arithmetic")
    check_seed("softmax", seed, impl.name)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("certainty", [5.0, 20.0, 40.0])
def test_a_confident_gradient_keeps_its_digits(impl, certainty, sink, dim):
    if impl.name == "reference":
        pytest.skip("a claim about our kernels: the reference is torch's own arithmetic")
    x, dy = normal(2, 40, 70)
    x.select(dim, 3).add_(certainty)
    options = {"sink": torch.zeros(())} if sink else {}

    def gradient(function, dtype):
        leaf = x.to(dtype).requires_grad_()
        y = function(leaf, dim=dim, **{name: t.to(dtype) for name, t in options.items()})
        return torch.autograd.grad(y, leaf, dy.to(dtype))[0].double()

    exact = gradient(torch_softmax, torch.float64)  # by differences from the maximum
    error = (gradient(hetkern.softmax, torch.float32) - exact).abs()
    eps = torch.finfo(torch.float32).eps  # scores round to eps of their distance to the maximum
    assert (error <= (8 + certainty) * eps * exact.abs().sum(dim, keepdim=True)).all()
    if certainty == 20.0 and not sink:  # what it is about: torch loses them
        lost = (gradient(torch_softmax, torch.float32) - exact).abs()
        lost /= exact.abs().amax(dim, keepdim=True)
        assert lost.max() > 0.1


def test_softmax_rows_sum_to_one_with_their_sink(impl):
    x = normal(9, 1000)
    torch.testing.assert_close(hetkern.softmax(x).sum(-1), torch.ones(9))
    with_sink = hetkern.softmax(x, sink=x.logsumexp(-1))
    torch.testing.assert_close(with_sink.sum(-1), torch.full((9,), 0.5))


def test_softmax_is_shift_invariant_to_the_last_bit_where_the_shift_is_exact(impl):
    x = (20 * normal(9, 300)).round().clamp(-20, 20)
    assert torch.equal(hetkern.softmax(x), hetkern.softmax(x + 4096))


def test_sum_of_softmax_has_no_gradient_but_rounding(impl):
    x = normal(9, 300).requires_grad_()
    y = hetkern.softmax(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert (dx.abs() <= 4 * torch.finfo(torch.float32).eps * y).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 5, 300, 5000, pytest.param(40_000, marks=pytest.mark.large)])
@pytest.mark.parametrize("kind", ["any", "several above a half", "negative", "too large a top"])
def test_the_backward_op_takes_a_y_that_is_no_softmax(native, kind, length, dtype):
    calls = ops_of(hetkern.softmax, normal(6, length).to(dtype), order=1)
    ((op, args),) = [call for name, call in calls.items() if name.endswith("softmax_backward")]
    y, dy = normal(6, length).abs() % 1, normal(6, length, seed=1).to(dtype)
    if kind == "several above a half":
        y = torch.full_like(y, 0.6)
    elif kind == "negative":
        y = 4 * y - 2
    elif kind == "too large a top":
        y = torch.softmax(y, -1)
        y[:, -1] = 0.9
    y = y.to(dtype)

    g, v = dy.double(), y.double()
    mean, terms = ((t * v).sum(-1, keepdim=True) for t in (g, g.abs() * v.sign()))
    error = (op(dy, y, *args[2:]).double() - v * (g - mean)).abs()
    # Such rows' terms cancel, which the budget, made for sums of a softmax, does not know.
    assert (error <= 2 * torch.finfo(dtype).eps * v.abs() * (g.abs() + terms)).all()
