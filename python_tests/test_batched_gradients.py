"""Gradients for many weights at once, by ``is_grads_batched``: they can be differentiated again.

torch runs them by its older vmap, which keeps the graph of a second derivative with the tensors
inside; ``torch.autograd.functional.jacobian(…, vectorize=True, create_graph=True)`` asks for it.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import hetkern
from hetkern.testing.devices import normal

pytestmark = pytest.mark.any_level
F64 = torch.float64
TARGET = torch.tensor([0, 1, 4])
RESET = torch.tensor([[0, 1, 0], [0, 0, 1]]).bool()


def of_module(name, *sizes, call=lambda module, x: module(x), **options):
    """The module's first result as a function of x and its parameters."""
    module = getattr(hetkern.nn, name)(*sizes, **options).double()
    names = list(dict(module.named_parameters()))
    values = [p.detach() for p in module.parameters()]

    def function(x, *parameters):
        state = dict(zip(names, parameters, strict=True))
        result = torch.func.functional_call(Called(module, call), in_module(state), (x,))
        return result[0] if isinstance(result, tuple) else result

    return function, values


class Called(torch.nn.Module):
    def __init__(self, module, call):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x):
        return self.call(self.module, x)


def in_module(state):
    return {f"module.{name}": value for name, value in state.items()}


def attend(q, k, v, bias):
    return hetkern.attention(q, k, v, causal=True, bias=bias)


SEQUENCE = {
    "RNN": {},
    "LSTM": {"bidirectional": True},
    "GRU": {},
    "GRU, lengths": {"call": lambda m, x: m(x, lengths=torch.tensor([2, 3]))},
    "GRU, packed": {"call": lambda m, x: m(pack_padded_sequence(x, [3, 2]))[0].data},
    "GRU, reset": {"call": lambda m, x: m(x, reset=RESET)},
}
CASES = {
    "softmax": (hetkern.softmax, [(3, 5)]),
    "log_softmax, bias": (lambda x, b: hetkern.log_softmax(x, bias=b), [(3, 5), (5,)]),
    "cross_entropy": (lambda x: hetkern.cross_entropy(x, TARGET), [(3, 5)]),
    "losses": (lambda x: hetkern.cross_entropy(x, TARGET, reduction="none"), [(3, 5)]),
    "attention": (attend, [(1, 2, 3, 4), (1, 1, 5, 4), (1, 1, 5, 4), (2, 3, 5)]),
} | {
    name: (*of_module(name, 4, 3), (2, 4)) for name in ("RNNCell", "LSTMCell", "GRUCell")
} | {
    name: (*of_module(name.split(",")[0], 4, 3, **options), (3, 2, 4))
    for name, options in SEQUENCE.items()
} | {
    "MultiheadAttention": (
        *of_module("MultiheadAttention", 4, 2, call=lambda m, x: m(x, x, x, need_weights=False)),
        (3, 2, 4),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_batched_gradients_can_be_differentiated_again(name):
    function, more, *first = CASES[name]
    if first:
        leaves = [normal(*first[0], dtype=F64), *(value.clone() for value in more)]
    else:
        leaves = [normal(*shape, dtype=F64, seed=i) for i, shape in enumerate(more)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    y = function(*leaves)
    weights = normal(4, *y.shape, dtype=F64, seed=9)
    batched = torch.autograd.grad(y, leaves, weights, is_grads_batched=True, create_graph=True)
    single = [torch.autograd.grad(y, leaves, weight, create_graph=True) for weight in weights]
    stacked = tuple(map(torch.stack, zip(*single, strict=True)))
    torch.testing.assert_close(batched, stacked)
    second = [
        torch.autograd.grad(
            sum(t.sin().sum() for t in found), leaves, retain_graph=True, materialize_grads=True
        )
        for found in (batched, stacked)
    ]
    torch.testing.assert_close(*second)
