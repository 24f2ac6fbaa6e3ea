"""Products of 16 bits by way of float32, as on a processor without its own: on any processor."""

import pytest
import torch

import hetkern
from hetkern.ops import products
from hetkern.testing import assert_close_to_exact

HALVES = torch.bfloat16, torch.float16


@pytest.fixture(params=HALVES, ids=str)
def dtype(request, monkeypatch):
    """A dtype that torch is taken to have no product of."""
    monkeypatch.setattr(products, "WIDENED", frozenset(HALVES))
    return request.param


def _drawn(*shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def test_linear_is_rounded_once_with_its_bias(dtype):
    x, w = _drawn(3, 5, 7, dtype=dtype), _drawn(4, 7, dtype=dtype)
    b = _drawn(8, dtype=dtype)[::2]
    wanted = torch.nn.functional.linear(x.double(), w.double(), b.double())
    out = products.linear(x, w, b)
    assert out.dtype is dtype
    # Within float32's error of the exact value, and so at most one number of 16 bits beside it.
    assert (out == wanted.to(dtype)).float().mean() > 0.95
    assert_close_to_exact(out, wanted, baseline=wanted.to(dtype))


def test_gradients_are_float32s(dtype):
    inputs = [_drawn(6, 9, dtype=dtype), _drawn(4, 9, dtype=dtype), _drawn(4, dtype=dtype)]
    ours = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    dy = _drawn(6, 4, dtype=dtype)
    products.linear(*ours).backward(dy)
    torch.nn.functional.linear(*exact).backward(dy.double())
    for a, e in zip(ours, exact, strict=True):
        assert a.grad.dtype is dtype
        assert_close_to_exact(a.grad, e.grad, baseline=e.grad.to(dtype))


def test_autocast_does_not_take_it_back(dtype):
    a, b = _drawn(40, 300, dtype=dtype), _drawn(300, 20, dtype=dtype)
    alone = products.matmul(a, b)
    with torch.autocast("cpu", dtype):
        assert torch.equal(products.matmul(a, b), alone)
        out = products.linear(a.float(), b.mT.float(), None)
    assert out.dtype is dtype
    assert torch.equal(out, alone)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_layers_and_cells_agree_with_the_reference(cell, dtype):
    torch.manual_seed(0)
    layer = {"rnn": hetkern.nn.RNN, "lstm": hetkern.nn.LSTM, "gru": hetkern.nn.GRU}[cell](6, 5)
    layer = layer.to(dtype)
    x = _drawn(7, 3, 6, dtype=dtype)
    exact = layer.double()
    weights = [[p.detach().requires_grad_() for p in exact.parameters()]]
    half = [[p.detach().to(dtype).requires_grad_() for p in weights[0]]]
    run = getattr(hetkern, cell)
    y = run(x, None, half)[0]
    wanted = run(x.double(), None, weights, impl="reference")[0]
    step = run(x, None, half, impl="reference")[0]
    assert_close_to_exact(y, wanted, baseline=step)
    y.float().sum().backward()
    wanted.sum().backward()
    step_weights = [[p.detach().clone().requires_grad_() for p in half[0]]]
    run(x, None, step_weights, impl="reference")[0].float().sum().backward()
    for a, e, s in zip(half[0], weights[0], step_weights[0], strict=True):
        assert_close_to_exact(a.grad, e.grad, baseline=s.grad)


def test_compiled_and_batched(dtype):
    x, w = _drawn(4, 6, 9, dtype=dtype), _drawn(5, 9, dtype=dtype)
    eager = products.linear(x, w, None)
    compiled = torch.compile(products.linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, w, None), eager)
    rows = torch.func.vmap(lambda row: products.linear(row, w, None))(x)
    assert torch.equal(rows, eager)
