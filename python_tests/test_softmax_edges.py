"""The edges of softmax's meaning: what is not a number, what is masked away, what is not there."""

import pytest
import torch

import hetkern
from hetkern.testing import assert_stays_inside
from hetkern.testing.cases.families import softmax_op
from hetkern.testing.devices import far_apart, normal
from hetkern.testing.values.check import DTYPES

POISONS = [torch.nan, torch.inf, -torch.inf]


def both(log):
    """The function, and what it gives where there is nothing."""
    return (hetkern.log_softmax, -torch.inf) if log else (hetkern.softmax, 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("log", [False, True])
def test_softmax_row_of_minus_inf_is_nan_and_alone(impl, log, dim, dtype):
    x = normal(5, 40).to(dtype)
    x[2] = -torch.inf
    y = both(log)[0](x.movedim(1, dim), dim).movedim(dim, 1)
    assert y.isnan().any(1).tolist() == [False, False, True, False, False]
    assert y[2].isnan().all()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("column", [0, 17, 39])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("log", [False, True])
def test_softmax_nan_and_inf_stay_in_their_row_forward_and_backward(impl, log, poison, column, dim):
    x = normal(5, 40)
    x[3, column] = poison
    x.requires_grad_()
    y = both(log)[0](x.movedim(1, dim), dim).movedim(dim, 1)
    (dx,) = torch.autograd.grad(y, x, normal(5, 40))
    wanted = [False, False, False, True, False]
    assert y.isnan().all(1).tolist() == wanted and y.isnan().any(1).tolist() == wanted
    assert dx.isnan().all(1).tolist() == wanted and dx.isnan().any(1).tolist() == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("poison", [0.0, *POISONS])
@pytest.mark.parametrize("log", [False, True])
def test_softmax_emptied_row_is_nothing_and_has_no_gradient(impl, log, poison, dim, dtype):
    softmax, nothing = both(log)
    x = normal(5, 40).to(dtype)
    x[1] = poison
    x.requires_grad_()
    bias, sink = (t.to(dtype).requires_grad_() for t in (normal(5, 40), normal(5)))
    mask = torch.ones(5, 1, dtype=torch.bool)
    mask[1] = False
    turned, bias_turned, mask_turned = (t.movedim(1, dim) for t in (x, bias, mask))
    y = softmax(turned, dim, softcap=3.0, bias=bias_turned, mask=mask_turned, sink=sink)
    y = y.movedim(dim, 1)
    grads = torch.autograd.grad(y, (x, bias, sink), normal(5, 40).to(dtype))
    assert torch.equal(y[1], torch.full((40,), nothing, dtype=dtype))
    assert y[[0, 2, 3, 4]].isfinite().all()
    for grad in grads:
        assert torch.equal(grad[1], torch.zeros_like(grad[1]))
        assert grad[[0, 2, 3, 4]].isfinite().all() and grad[0].ne(0).any()


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("log", [False, True])
def test_softmax_never_sees_what_is_masked(impl, log, poison):
    softmax, nothing = both(log)
    mask = torch.arange(40) % 3 > 0
    clean, dirty = normal(5, 40), normal(5, 40).masked_fill(~mask, poison)
    results = []
    for x in (clean.requires_grad_(), dirty.requires_grad_()):
        y = softmax(x, mask=mask, softcap=3.0)
        results.append((y.detach(), *torch.autograd.grad(y, x, normal(5, 40))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert (results[1][0][:, ~mask] == nothing).all() and (results[1][1][:, ~mask] == 0).all()


@pytest.mark.parametrize("rows, columns", [(4, 4), (2, 5), (5, 2), (1, 3), (3, 1)])
def test_softmax_causal_is_aligned_bottom_right(impl, rows, columns):
    kept = torch.arange(columns) <= torch.arange(rows)[:, None] + columns - rows
    x = normal(3, rows, columns)
    assert torch.equal(hetkern.softmax(x, causal=True), hetkern.softmax(x, mask=kept))
    assert torch.equal(hetkern.softmax(x, causal=True).ne(0), kept.expand(x.shape))


def test_softmax_mask_true_keeps(impl):
    y = hetkern.softmax(torch.zeros(4), mask=torch.tensor([True, False, True, False]))
    assert y.tolist() == [0.5, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("sink, share", [(-torch.inf, 1.0), (0.0, 0.5), (1e4, 0.0)])
def test_softmax_sink_takes_its_share(impl, sink, share):
    x = torch.zeros(3, 4) - torch.tensor(4.0).log()
    y = hetkern.softmax(x, sink=torch.tensor(sink))
    torch.testing.assert_close(y.sum(-1), torch.full((3,), share))


def test_softmax_sink_is_a_raw_logit(impl):
    x, sink = normal(3, 8), normal(3)
    mask, bias = torch.arange(8) < 5, torch.ones(8)
    y = hetkern.softmax(x, scale=2.0, softcap=1.5, bias=bias, mask=mask, sink=sink)
    z = (1.5 * (2.0 * x / 1.5).tanh() + bias).masked_fill(~mask, -torch.inf)
    wanted = torch.cat([z, sink[:, None]], 1).softmax(1)[:, :8]
    torch.testing.assert_close(y, wanted)


def test_softmax_does_not_write_its_inputs_nor_read_outside_them(native):
    bias, mask, sink = normal(40), torch.arange(40) % 3 > 0, normal(7)
    for options in ({}, {"bias": bias, "mask": mask, "sink": sink, "softcap": 2.0, "log": True}):
        for dtype in DTYPES:
            tensors = {
                name: value.to(dtype)
                if torch.is_tensor(value) and value.is_floating_point()
                else value
                for name, value in options.items()
            }
            assert_stays_inside(softmax_op(native.name), normal(7, 40).to(dtype), **tensors)
    assert_stays_inside(softmax_op(native.name), normal(40, 7), dim=0)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("far", [0, 1])
def test_softmax_finds_elements_two_to_the_31_apart(native, far, dim):
    x, dy = normal(2, 3, 40).bfloat16()
    found = []
    for leaf, upstream in ((x, dy), (far_apart(x, far), far_apart(dy, far))):
        y = hetkern.softmax(leaf.requires_grad_(), dim, softcap=30.0)  # backward reads x, too
        found.append((y, *torch.autograd.grad(y, leaf, upstream)))
    assert all(map(torch.equal, *found))


@pytest.mark.proof
@pytest.mark.parametrize("dim", [0, 1])
def test_softmax_is_right_past_two_to_the_31_elements(native, dim):
    if native.simulated:
        pytest.skip("two to the 31 elements take it hours: rows so far apart stand for them")
    rows, columns = 1 << 16, (1 << 15) + 3
    if torch.iinfo(torch.int32).max >= rows * columns:
        raise AssertionError("the tensor is too small for its claim")
    x = torch.zeros(rows, columns, dtype=torch.bfloat16)
    x[0], x[-1] = normal(columns).bfloat16(), normal(columns).bfloat16().flip(0)
    if dim == 1:
        y = hetkern.softmax(x)
        assert torch.equal(y[[0, -1]], hetkern.softmax(x[[0, -1]]))
        assert y[1:-1].eq(hetkern.softmax(x[1:2])).all()
    else:
        y = hetkern.softmax(x, 0)
        picked = [0, 1, columns - 1]
        assert torch.equal(y[:, picked], hetkern.softmax(x[:, picked].contiguous(), 0))
