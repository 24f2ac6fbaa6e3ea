"""The oracle itself: softmax against torch's own in float64, and the edges of its meaning."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hetkern.reference import softmax

F64 = torch.float64


def random(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "shape, dim", [((7,), 0), ((4, 5), 0), ((4, 5), -1), ((2, 3, 4), 1), ((), -1)]
)
def test_reference_equals_torch_in_float64_with_its_gradients(shape, dim, log):
    x, dy = random(*shape).requires_grad_(), random(*shape, seed=1)
    got = softmax(x, dim, log=log)
    wanted = (torch.log_softmax if log else torch.softmax)(x, dim)
    dx, dx_wanted = (torch.autograd.grad(y, x, dy)[0] for y in (got, wanted))
    torch.testing.assert_close(got, wanted, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(dx, dx_wanted, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("log", [False, True])
def test_reference_composes_its_features_as_the_equations_say(log):
    x, bias, sink = random(3, 4, 5), random(4, 1, seed=1), random(3, 1, seed=2)
    mask = random(3, 4, 5, seed=3) > -0.5
    z = 2.0 * torch.tanh(0.7 * x / 2.0) + bias
    z = z.masked_fill(~(mask & torch.ones(4, 5, dtype=torch.bool).tril(1)), -torch.inf)
    total = z.exp().sum(-1, keepdim=True) + sink.unsqueeze(-1).exp()
    got = softmax(x, scale=0.7, softcap=2.0, bias=bias, mask=mask, causal=True, sink=sink, log=log)
    wanted = z - total.log() if log else z.exp() / total
    torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-15)


def test_reference_causal_is_aligned_bottom_right():
    assert softmax(torch.zeros(2, 4), causal=True).ne(0).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert softmax(torch.zeros(3, 2), causal=True).ne(0).tolist() == [[0, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("log", [False, True])
def test_reference_has_every_derivative_with_all_features(log):
    x, bias, sink = (
        t.requires_grad_() for t in (random(2, 3, 4), random(3, 1, seed=1), random(3, seed=2))
    )
    mask = torch.tensor([True, True, False, True])

    def kept(x, bias, sink):
        y = softmax(x, scale=0.7, softcap=3.0, bias=bias, mask=mask, sink=sink, log=log)
        return y[..., mask]

    assert gradcheck(kept, (x, bias, sink), check_forward_ad=True)
    assert gradgradcheck(kept, (x, bias, sink))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("log, nothing", [(False, 0.0), (True, -torch.inf)])
def test_reference_emptied_row_has_no_value_and_no_gradient_whatever_it_holds(log, nothing, poison):
    x = random(2, 3)
    x[0] = poison
    x.requires_grad_()
    y = softmax(x, softcap=2.0, mask=torch.tensor([[False], [True]]), log=log)
    assert torch.equal(y[0], torch.full((3,), nothing, dtype=F64))
    (dx,) = torch.autograd.grad(y, x, random(2, 3, seed=1))
    assert torch.equal(dx[0], torch.zeros(3, dtype=F64)) and dx[1].ne(0).all()


def test_reference_masked_entry_has_no_gradient_whatever_it_holds():
    x = torch.tensor([torch.nan, 1.0, 2.0], dtype=F64, requires_grad=True)
    y = softmax(x, softcap=2.0, mask=torch.tensor([False, True, True]))
    (dx,) = torch.autograd.grad(y[1], x)
    assert y[0] == 0 and dx[0] == 0 and dx[1] > 0


def test_reference_row_of_minus_inf_is_nan_and_nan_stays_in_its_row():
    x = torch.zeros(3, 2)
    x[0], x[1, 0] = -torch.inf, torch.nan
    assert softmax(x).isnan().tolist() == [[True, True], [True, True], [False, False]]


def test_reference_sums_16_bit_rows_in_float32_and_rounds_once():
    x = random(4, 1000).bfloat16()
    assert torch.equal(softmax(x, scale=0.3), softmax(x.float(), scale=0.3).bfloat16())


def test_reference_casts_x_first_when_given_a_dtype():
    x = 100 * random(4, 10, dtype=torch.float32)
    assert torch.equal(softmax(x, dtype=torch.bfloat16), softmax(x.bfloat16()))
    assert torch.equal(softmax(torch.arange(3), dtype=F64), softmax(torch.arange(3.0, dtype=F64)))


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"dim": 2}, IndexError, "dim: wanted one in .-2, 1., got 2"),
        ({"mask": torch.ones(3)}, ValueError, "mask: wanted torch.bool .*, got torch.float32"),
        ({"bias": torch.ones(4, 3)}, ValueError, "bias: wanted .* .2, 3., got .4, 3."),
        ({"sink": torch.ones(3)}, ValueError, "sink: wanted .* .2,., got .3,."),
        ({"softcap": 0.0}, ValueError, "softcap: wanted .*, got 0.0"),
        ({"dim": 0, "causal": True}, ValueError, "causal: wanted dim = -1 .*, got dim = 0"),
    ],
)
def test_reference_refuses_what_does_not_fit_by_name(wrong, error, message):
    with pytest.raises(error, match=f"softmax: {message}"):
        softmax(torch.zeros(2, 3), **wrong)
