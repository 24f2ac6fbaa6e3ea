"""The oracle itself: cross-entropy against torch's own over torch's whole argument matrix."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from hetkern.reference import cross_entropy

F64 = torch.float64
CLASSES = 7
SHAPES = [(CLASSES,), (5, CLASSES), (5, CLASSES, 3), (2, CLASSES, 3, 4), (0, CLASSES)]


def rows_of(shape):
    return shape[:-1] if len(shape) == 1 else shape[:1] + shape[2:]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("target_kind", ["indices", "some ignored", "all ignored", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_equals_torch_over_its_argument_matrix(shape, target_kind, reduction):
    generator = torch.Generator().manual_seed(0)
    x = 3.0 * torch.randn(shape, generator=generator, dtype=F64)
    weight = torch.rand(CLASSES, generator=generator, dtype=F64)
    indices = torch.randint(CLASSES, rows_of(shape), generator=generator)
    target = {
        "indices": indices,
        "some ignored": indices.masked_fill(indices < 3, -100),
        "all ignored": torch.full_like(indices, -100),
        "probabilities": torch.randn(shape, generator=generator, dtype=F64).softmax(
            min(1, x.dim() - 1)
        ),
    }[target_kind]
    leaves = [x.requires_grad_()]
    if target_kind == "probabilities":
        leaves.append(target.requires_grad_())
    for w, smoothing in itertools.product([None, weight], [0.0, 0.1, 1.0]):
        got = cross_entropy(x, target, w, reduction=reduction, label_smoothing=smoothing)
        wanted = F.cross_entropy(x, target, w, reduction=reduction, label_smoothing=smoothing)
        close = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True}
        torch.testing.assert_close(got, wanted, **close)
        dy = torch.randn(got.shape, generator=generator, dtype=F64)
        grads = (torch.autograd.grad(loss, leaves, dy) for loss in (got, wanted))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, **close)


def test_reference_mean_is_nan_when_nothing_counts():
    loss = cross_entropy(torch.zeros(2, 3), torch.full((2,), -100), z_loss=0.1)
    assert loss.isnan()


def test_reference_z_loss_is_outside_the_weights_and_averaged_over_counted_rows():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    target, weight = torch.tensor([0, -100, 2, 1]), torch.tensor([0.5, 2.0, 3.0], dtype=F64)
    lse = x.logsumexp(1)
    counted = target != -100
    got = cross_entropy(x, target, weight, z_loss=0.1)
    wanted = F.cross_entropy(x, target, weight) + 0.1 * lse[counted].square().mean()
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("target", [torch.tensor([0]), torch.ones(1, 1, dtype=F64)])
def test_reference_z_loss_keeps_its_gradient_where_the_target_terms_cancel(target):
    x = torch.tensor([[1e-40]], dtype=F64, requires_grad=True)
    options = {"weight": torch.tensor([0.7], dtype=F64), "label_smoothing": 0.1, "z_loss": 1e-3}
    (dx,) = torch.autograd.grad(cross_entropy(x, target, **options), x)
    torch.testing.assert_close(dx.item(), 2e-3 * 1e-40, rtol=1e-12, atol=0.0)


def test_reference_statistics_are_what_their_names_say():
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    target = x.argmax(1)
    target[0, 0], target[1, 1] = -100, (target[1, 1] + 1) % 5
    z = 3.0 * torch.tanh(0.7 * x / 3.0)
    loss, stats = cross_entropy(
        x, target, label_smoothing=0.2, scale=0.7, softcap=3.0, z_loss=0.1, return_stats=True
    )
    counted = target != -100
    log_q = z.log_softmax(1)
    smoothed = F.cross_entropy(z, target, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(stats.lse, z.logsumexp(1))
    torch.testing.assert_close(stats.entropy, -(log_q.exp() * log_q).sum(1))
    torch.testing.assert_close(stats.z_loss, 0.1 * stats.lse.square() * counted)
    torch.testing.assert_close(stats.log_prob, -F.cross_entropy(z, target, reduction="none"))
    torch.testing.assert_close(stats.loss, smoothed + stats.z_loss)
    torch.testing.assert_close(loss, stats.loss.sum() / counted.sum())
    assert stats.correct.tolist() == [[False, True], [True, False], [True, True], [True, True]]


def test_reference_statistics_of_probabilities_have_the_shape_without_classes():
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    p = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(1), dtype=F64).softmax(1)
    _, stats = cross_entropy(x, p, label_smoothing=0.3, return_stats=True)
    torch.testing.assert_close(stats.log_prob, (p * x.log_softmax(1)).sum(1))
    assert torch.equal(stats.correct, p.argmax(1) == x.argmax(1))


def test_reference_has_every_derivative_with_all_features():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator, dtype=F64, requires_grad=True)
    p = torch.randn(4, 6, generator=generator, dtype=F64).softmax(1).requires_grad_()
    w = torch.rand(6, generator=generator, dtype=F64)

    def everything(x, target):
        loss, stats = cross_entropy(
            x, target, w, -100, "mean", 0.1, scale=0.7, softcap=4.0, z_loss=0.1, return_stats=True
        )
        return loss, *stats[:-1]

    assert gradcheck(everything, (x, p), check_forward_ad=True)
    assert gradgradcheck(everything, (x, p))
    indices = torch.tensor([0, 3, -100, 5])
    assert gradcheck(lambda x: everything(x, indices), (x,), check_forward_ad=True)
    assert gradgradcheck(lambda x: everything(x, indices), (x,))


@pytest.mark.parametrize("margin", [10.0, 20.0, 50.0, 80.0])
def test_reference_loss_near_zero_is_right_to_rounding_in_float32(margin):
    x = torch.tensor([[margin, 0.0, -1.0]])
    got = cross_entropy(x, torch.tensor([0]))
    exact = cross_entropy(x.double(), torch.tensor([0]))
    assert exact > 0
    assert abs(got.double() / exact - 1) < 2 * torch.finfo(torch.float32).eps


def test_reference_ignored_row_has_no_gradient_whatever_it_holds():
    x = torch.tensor([[torch.nan, 0.0], [1.0, 2.0]], requires_grad=True)
    loss = cross_entropy(x, torch.tensor([-100, 0]), label_smoothing=0.1, z_loss=0.1)
    (dx,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and dx[0].tolist() == [0.0, 0.0] and dx[1].ne(0).all()


def test_reference_nan_row_is_nan_and_never_correct():
    x = torch.tensor([[torch.nan, 0.0], [1.0, 2.0]])
    loss, stats = cross_entropy(x, torch.tensor([0, 1]), reduction="none", return_stats=True)
    for values in (loss, stats.lse, stats.entropy, stats.log_prob):
        assert values.isnan().tolist() == [True, False]
    assert stats.correct.tolist() == [False, True]


def test_reference_impossible_class_adds_nothing_to_the_entropy():
    x = torch.tensor([0.0, -torch.inf, 0.0], requires_grad=True)
    _, stats = cross_entropy(x, torch.tensor(0), return_stats=True)
    torch.testing.assert_close(stats.entropy, torch.tensor(2.0).log())
    assert torch.autograd.grad(stats.entropy, x)[0][1] == 0


def test_reference_loss_of_16_bit_logits_is_float32():
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.tensor([0, 8, 3, 1])
    assert torch.equal(cross_entropy(x, target), cross_entropy(x.float(), target))


@pytest.mark.parametrize("bad", [3, -1])
def test_reference_refuses_a_target_out_of_range(bad):
    wanted = rf"target: wanted a class in \[0, 3\).*got {bad} in row 1"
    with pytest.raises(IndexError, match=wanted):
        cross_entropy(torch.zeros(2, 3), torch.tensor([0, bad]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"input": torch.zeros(2, 3, dtype=torch.long)}, "input: wanted a floating dtype"),
        ({"input": torch.zeros(2, 0)}, "input: wanted at least one class"),
        (
            {"target": torch.zeros(3, dtype=torch.long)},
            "target: wanted integer class indices of shape .2,.",
        ),
        ({"target": torch.zeros(2)}, "target: wanted class probabilities of shape .2, 3."),
        ({"weight": torch.ones(2)}, "weight: wanted shape .3,., got .2,."),
        ({"reduction": "average"}, "reduction: wanted 'none', 'mean' or 'sum', got 'average'"),
        ({"label_smoothing": 1.5}, "label_smoothing: wanted .* got 1.5"),
        ({"softcap": -1.0}, "softcap: wanted .* got -1.0"),
        ({"target": torch.zeros(2, 3), "ignore_index": 1}, "ignore_index: wanted none"),
    ],
)
def test_reference_refuses_what_does_not_fit_by_name(wrong, message):
    right = {"input": torch.zeros(2, 3), "target": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=f"cross_entropy: {message}"):
        cross_entropy(**(right | wrong))
