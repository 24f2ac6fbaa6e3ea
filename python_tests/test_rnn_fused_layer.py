"""A layer in one op, which eager float32 and float64 calls on the CPU take."""

import pytest
import torch
from recurrent import CELLS, call, module, weights_of

from hetkern import impl
from hetkern.ops import rnn_fused_layer
from hetkern.testing.cases.recurrent import check_rnn, sequence_case

pytestmark = pytest.mark.skipif(impl.missing_library is not None, reason=str(impl.missing_library))


@pytest.fixture
def calls(monkeypatch):
    made = []
    run = rnn_fused_layer.run

    def counted(*arguments):
        made.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(rnn_fused_layer, "run", counted)
    return made


@pytest.mark.sample(3)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"lengths": torch.tensor([4, 0, 6, 1])}], ids=str)
def test_the_ops_one_after_another_are_within_budget_too(cell, options, monkeypatch, calls):
    monkeypatch.setattr(rnn_fused_layer, "serves", lambda *_: False)
    dtypes = [torch.float32, torch.float64]
    check_rnn("cpu", sequence_case(cell, 6, 4, 5, 18, bidirectional=True, **options), dtypes=dtypes)
    assert not calls


def made_of(cell, columns=7, H=20, dtype=torch.float32):
    made = module(cell, columns, H, dtype=dtype)
    return made, weights_of(made)


@pytest.mark.parametrize("cell", CELLS)
def test_a_gradient_asked_for_alone_is_the_one_among_all(cell, calls):
    torch.manual_seed(0)
    made, weights = made_of(cell)
    x = torch.randn(5, 3, 7, requires_grad=True)
    inputs = [x, *made.parameters()]
    loss = call(cell, x, None, weights)[0].square().sum()
    assert calls
    together = torch.autograd.grad(loss, inputs, retain_graph=True)
    for k, one in enumerate(inputs):
        (alone,) = torch.autograd.grad(loss, one, retain_graph=True)
        assert torch.equal(alone, together[k])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_row_and_its_gradient_have_the_same_bits_alone(cell, dtype, calls):
    """The products with the input are the layer's own, and go by rows."""
    torch.manual_seed(0)
    _, weights = made_of(cell, columns=37, H=24, dtype=dtype)
    x = torch.randn(6, 50, 37, dtype=dtype, requires_grad=True)
    y = call(cell, x, None, weights)[0]
    (dx,) = torch.autograd.grad(y.sum(), x)
    for b in 0, 17, 49:
        one = x[:, b : b + 1].detach().requires_grad_()
        alone = call(cell, one, None, weights)[0]
        assert torch.equal(alone, y[:, b : b + 1])
        assert torch.equal(torch.autograd.grad(alone.sum(), one)[0], dx[:, b : b + 1])
    assert len(calls) == 4


def test_a_weight_changed_before_backward_is_found():
    made, weights = made_of("gru")
    loss = call("gru", torch.randn(5, 3, 7, requires_grad=True), None, weights)[0].sum()
    with torch.no_grad():
        next(iter(made.parameters())).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_traced_or_of_16_bits_takes_the_ops(calls):
    _, weights = made_of("lstm")
    x = torch.randn(5, 3, 7)
    torch.func.vmap(lambda x: call("lstm", x, None, weights)[0])(x[None])
    with torch.autocast("cpu", torch.bfloat16):
        call("lstm", x, None, weights)
    assert not calls
