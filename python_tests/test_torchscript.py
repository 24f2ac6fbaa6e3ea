"""TorchScript: what is refused by name, and traces, for other shapes and in a file too."""

import io

import pytest
import torch
from torch import nn

import hetkern
import hetkern.nn.functional as HF
from hetkern.testing.devices import normal

pytestmark = pytest.mark.any_level


@pytest.mark.parametrize(
    "name", ["Softmax", "CrossEntropyLoss", "MultiheadAttention", "LSTM", "GRU", "RNN", "GRUCell"]
)
def test_torchscript_is_refused_by_name(name):
    args = {"Softmax": (-1,), "CrossEntropyLoss": ()}.get(name, (8, 2))
    module = getattr(hetkern.nn, name)(*args)
    for whole in (module, nn.Sequential(module)):
        with pytest.raises(NotImplementedError, match=rf"hetkern\.nn\.{name}: torch\.jit\.script"):
            torch.jit.script(whole)
    if name in ("LSTM", "GRU", "RNN"):
        with pytest.raises(NotImplementedError, match=rf"hetkern\.nn\.{name}: torch\.jit\.trace"):
            torch.jit.trace(module, normal(3, 8))
    hetkern.nn.convert(module, to="torch")
    torch.jit.script(module)


def _leaves(*shapes):
    return [normal(*shape).requires_grad_() for shape in shapes]


def _cross_entropy(x):
    return hetkern.cross_entropy(x, torch.arange(x.shape[0]) % 3)


def _attend(q, k, v, keep):
    return HF.scaled_dot_product_attention(q, k, v, keep)


def _attention_arguments(B, L, S):
    keep = torch.ones(L, S, dtype=torch.bool).tril(1)
    return [*_leaves((B, 2, L, 4), (B, 2, S, 4), (B, 2, S, 4)), keep]


CASES = {
    "softmax": (lambda x: hetkern.softmax(x, 1, scale=0.5), _leaves((2, 5, 4)), _leaves((3, 4, 6))),
    "log_softmax": (hetkern.log_softmax, _leaves((2, 5)), _leaves((3, 7))),
    "cross_entropy": (_cross_entropy, _leaves((6, 5)), _leaves((6, 7))),
    "attention": (_attend, _attention_arguments(2, 5, 6), _attention_arguments(3, 7, 4)),
    "Softmax": (hetkern.nn.Softmax(-1), _leaves((2, 5)), _leaves((3, 7))),
    "MultiheadAttention": (
        hetkern.nn.MultiheadAttention(8, 2),
        _leaves(*[(5, 2, 8)] * 3),
        _leaves(*[(7, 3, 8)] * 3),
    ),
    "GRUCell": (hetkern.nn.GRUCell(8, 4), _leaves((2, 8), (2, 4)), _leaves((3, 8), (3, 4))),
    "LSTMCell": (hetkern.nn.LSTMCell(8, 4), _leaves((2, 8)), _leaves((3, 8))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_trace_has_the_values_and_gradients_of_what_it_traced(name):
    function, first, other = CASES[name]
    traced = torch.jit.trace(function, tuple(first))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for arguments in (first, other):
        wanted = function(*arguments)
        for got in (traced, loaded):
            torch.testing.assert_close(got(*arguments), wanted, rtol=0, atol=0)
            # A traced module's products are torch's, which may add in another order.
            found, right = (_gradients(f, arguments) for f in (got, function))
            torch.testing.assert_close(found, right)


def _gradients(function, arguments):
    """Of the arguments and, if it is a module, its parameters."""
    leaves = [t for t in arguments if t.requires_grad]
    if isinstance(function, nn.Module):
        leaves += function.parameters()
    result = function(*arguments)
    first = result[0] if isinstance(result, tuple) else result
    return torch.autograd.grad(first.square().sum(), leaves)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_whole_sequences_are_refused_by_name(name):
    module = getattr(nn, name.upper())(8, 4)
    weights = [tuple(w.detach() for w in module.all_weights[0])]
    function = getattr(hetkern, name)
    with pytest.raises(NotImplementedError, match=rf"hetkern\.{name}: torch\.jit\.trace: wanted"):
        torch.jit.trace(lambda x: function(x, None, weights)[0], normal(5, 2, 8))
