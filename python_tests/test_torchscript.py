"""TorchScript: what is refused by name, and traces that train, are saved and are loaded."""

import io

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import hetkern
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


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.loss = nn.Linear(8, 4), hetkern.nn.CrossEntropyLoss()

    def forward(self, x):
        return self.loss(self.head(x), x[:, 0].long().clamp(0, 3))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = hetkern.nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


TRACED = {
    "Softmax": lambda: nn.Sequential(nn.Linear(8, 8), hetkern.nn.Softmax(-1)),
    "LogSoftmax": lambda: nn.Sequential(nn.Linear(8, 8), hetkern.nn.LogSoftmax(-1)),
    "CrossEntropyLoss": Loss,
    "MultiheadAttention": Attention,
    "RNNCell": lambda: hetkern.nn.RNNCell(8, 4),
    "LSTMCell": lambda: hetkern.nn.LSTMCell(8, 4),
    "GRUCell": lambda: hetkern.nn.GRUCell(8, 4),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.parametrize("name", TRACED)
def test_a_trace_is_saved_and_trains_as_the_module_does(name):
    model = TRACED[name]()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, normal(3, 8)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x, found = normal(5, 8, seed=1), []
    for module in (loaded, model):
        given = x.clone().requires_grad_()
        outputs = tree_leaves(module(given))
        loss = sum(t.sin().sum() for t in outputs)
        gradients = torch.autograd.grad(loss, [given, *module.parameters()])
        found.append([*outputs, *gradients])
    torch.testing.assert_close(*found)
