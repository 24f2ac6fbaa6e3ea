"""The edges of cross-entropy's meaning: near 0, ignored, not a number, out of range."""

import pytest
import torch

import hetkern
from hetkern.testing import assert_stays_inside
from hetkern.testing.cases import inputs
from hetkern.testing.cases.families import cross_entropy_op
from hetkern.testing.devices import far_apart, normal
from hetkern.testing.values.check import DTYPES

REDUCTIONS = ["none", "mean", "sum"]


@pytest.mark.parametrize("margin", [1.0, 5.0, 10.0, 17.0, 30.0, 60.0])
@pytest.mark.parametrize("columns", [2, 65, 5000])
def test_cross_entropy_near_zero_is_right_to_rounding(impl, columns, margin):
    """Not log of a sum near 1, which has no digits left: log1p of what stands beside the 1."""
    x = normal(64, columns)
    target = x.argmax(1)
    x = x.scatter_add(1, target[:, None], torch.full((64, 1), margin))
    loss = hetkern.cross_entropy(x, target, reduction="none")
    exact = hetkern.cross_entropy(x.double(), target, reduction="none", impl="reference")
    # Each x_j - max is rounded once, and its exponential is off by as much as that.
    spread = x.amax(1) - x.amin(1)
    relative = (loss.double() / exact - 1).abs() / torch.finfo(torch.float32).eps
    assert (exact > 0).all() and (relative <= 2.0 + spread).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_of_shifted_rows_keeps_its_gradient(impl, dtype):
    """A float32 lse of 1e4 has no digits for the gradient: the row maximum is kept beside it."""
    for shift in (1e4, -1e4):
        x = (normal(50, 200) + shift).to(dtype).requires_grad_()
        target = torch.arange(50)
        dx = torch.autograd.grad(hetkern.cross_entropy(x, target, reduction="sum"), x)[0]
        centred = (x.detach().double() - shift).requires_grad_()
        loss = hetkern.cross_entropy(centred, target, reduction="sum", impl="reference")
        exact = torch.autograd.grad(loss, centred)[0]
        torch.testing.assert_close(dx.double(), exact, rtol=0, atol=8e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1, "label_smoothing": 0.1}])
def test_cross_entropy_of_nothing_but_ignored_rows_is_as_torch_says(impl, reduction, options):
    x = normal(4, 9).requires_grad_()
    target = torch.full((4,), -100)
    loss = hetkern.cross_entropy(x, target, reduction=reduction, **options)
    (dx,) = torch.autograd.grad(loss.sum(), x)
    assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()
    if reduction != "mean":
        assert torch.equal(dx, torch.zeros_like(dx))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [0.0, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_ignored_row_adds_nothing_whatever_it_holds(impl, reduction, poison, dtype):
    x = normal(5, 9).to(dtype)
    x[2] = poison
    x.requires_grad_()
    target = torch.tensor([0, 8, -100, 3, 4])
    options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0}
    loss = hetkern.cross_entropy(x, target, **options)
    (dx,) = torch.autograd.grad(loss.sum(), x)
    rest = [0, 1, 3, 4]
    without = hetkern.cross_entropy(x.detach()[rest], target[rest], **options)
    torch.testing.assert_close(loss[rest] if reduction == "none" else loss, without)
    assert reduction != "none" or loss[2] == 0
    assert torch.equal(dx[2], torch.zeros_like(dx[2])) and dx[rest].ne(0).any(1).all()


def test_cross_entropy_ignored_row_keeps_its_own_lse_and_entropy(impl):
    x, target = normal(3, 9), torch.tensor([0, -100, 2])
    _, stats = hetkern.cross_entropy(x, target, z_loss=0.1, return_stats=True)
    torch.testing.assert_close(stats.lse, x.logsumexp(1))
    p = x.softmax(1)
    torch.testing.assert_close(stats.entropy, -(p * p.log()).sum(1))
    for name in ("loss", "z_loss", "log_prob", "correct"):
        assert getattr(stats, name)[1] == 0


@pytest.mark.parametrize("poison", ["nan_row", "plus_inf", "minus_inf_row"])
@pytest.mark.parametrize("target", ["random", "dense"])
def test_cross_entropy_nan_stays_in_its_row(impl, target, poison):
    generator = torch.Generator().manual_seed(0)
    x = inputs.logits(poison, (5, 40), 1, generator)
    t = (
        inputs.probabilities("dense", x, 1, generator)
        if target == "dense"
        else torch.tensor([0, 1, 2, 3, 4])
    )
    x.requires_grad_()
    loss, stats = hetkern.cross_entropy(x, t, reduction="none", return_stats=True)
    (dx,) = torch.autograd.grad(loss, x, torch.ones(5))
    for values in (loss, stats.lse, stats.entropy, stats.log_prob):
        assert values.isnan().tolist() == [False] * 4 + [True]
    assert not stats.correct[4]
    assert dx[:4].isfinite().all() and dx[4].isnan().any()


def test_cross_entropy_of_an_impossible_target_is_inf_with_a_finite_gradient(impl):
    x = normal(2, 5)
    x[0, 3] = -torch.inf
    x.requires_grad_()
    loss = hetkern.cross_entropy(x, torch.tensor([3, 3]), reduction="none")
    (dx,) = torch.autograd.grad(loss.sum(), x)
    assert loss[0] == torch.inf and loss[1].isfinite()
    assert dx.isfinite().all() and dx[0, 3] == -1


def test_cross_entropy_impossible_class_adds_nothing_to_the_entropy(impl):
    x = torch.tensor([[0.0, -torch.inf, 0.0]]).requires_grad_()
    _, stats = hetkern.cross_entropy(x, torch.tensor([0]), return_stats=True)
    torch.testing.assert_close(stats.entropy, torch.tensor([2.0]).log())
    (dx,) = torch.autograd.grad(stats.entropy.sum(), x)
    assert dx.isfinite().all() and dx[0, 1] == 0


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_of_no_rows_is_as_torch_says(impl, reduction, shape):
    x = torch.zeros(shape).requires_grad_()
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    loss, stats = hetkern.cross_entropy(x, target, reduction=reduction, return_stats=True)
    wanted = torch.nn.functional.cross_entropy(x, target, reduction=reduction)
    torch.testing.assert_close(loss, wanted, equal_nan=True)
    assert all(s.shape == target.shape for s in stats)
    assert torch.autograd.grad(loss.sum(), x)[0].shape == shape


def test_cross_entropy_takes_any_integer_index_that_torch_takes(impl):
    x, target = normal(5, 9), torch.tensor([0, 8, 3, 1, 2])
    wanted = hetkern.cross_entropy(x, target)
    assert torch.equal(wanted, hetkern.cross_entropy(x, target.to(torch.uint8)))


def test_cross_entropy_never_writes_its_inputs_nor_reads_outside_them(native):
    op = cross_entropy_op(native.name)
    weight, probabilities = torch.linspace(0.1, 2.0, 40), normal(7, 40, seed=1).softmax(1)
    target = torch.tensor([0, 39, -100, 5, 38, 1, 20])
    for dtype in DTYPES:
        x = normal(7, 40).to(dtype)
        assert_stays_inside(op, x, target)
        options = {"weight": weight.to(dtype), "label_smoothing": 0.1, "z_loss": 0.1}
        assert_stays_inside(op, x, target, constant=("weight",), return_stats=True, **options)
        assert_stays_inside(op, x, probabilities.to(dtype), constant=("weight",), **options)


def test_cross_entropy_reads_its_target_in_any_layout(impl):
    x = normal(6, 9, 4)
    target = (torch.arange(24).reshape(4, 6) * 5 % 9).t()
    wanted = hetkern.cross_entropy(x, target.contiguous(), reduction="none")
    assert torch.equal(hetkern.cross_entropy(x, target, reduction="none"), wanted)
    one = target[:1].expand(6, 4)
    assert torch.equal(
        hetkern.cross_entropy(x, one, reduction="none"),
        hetkern.cross_entropy(x, one.contiguous(), reduction="none"),
    )


@pytest.mark.parametrize("far", [0, 1])
def test_cross_entropy_finds_elements_two_to_the_31_apart(native, far):
    x = normal(3, 40).bfloat16()
    target = torch.tensor([39, 0, 20])
    found = []
    for leaf in (x, far_apart(x, far)):
        loss = hetkern.cross_entropy(leaf.requires_grad_(), target, reduction="none")
        found.append((loss, *torch.autograd.grad(loss.sum(), leaf)))
    assert all(map(torch.equal, *found))


@pytest.mark.proof
def test_cross_entropy_is_right_past_two_to_the_31_elements(native):
    if native.simulated:
        pytest.skip("two to the 31 elements take it hours: rows so far apart stand for them")
    rows, columns = 1 << 16, (1 << 15) + 3
    x = torch.zeros(rows, columns, dtype=torch.bfloat16)
    x[0], x[-1] = normal(columns).bfloat16(), normal(columns, seed=1).bfloat16()
    target = torch.arange(rows) % columns
    loss = hetkern.cross_entropy(x, target, reduction="none")
    ends = [0, rows - 1]
    assert torch.equal(loss[ends], hetkern.cross_entropy(x[ends], target[ends], reduction="none"))
    torch.testing.assert_close(loss[1:-1], torch.full((rows - 2,), columns).log())
