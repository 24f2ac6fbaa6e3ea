"""hetkern.nn.convert swaps torch's recurrent modules inside models of the usual kinds, and back."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import hetkern
from hetkern.nn import convert
from hetkern.testing.devices import normal

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated"),
]
NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


class Codec(nn.Module):
    """A neural audio codec: convolutions around a residual LSTM whose time comes last."""

    def __init__(self):
        super().__init__()
        self.encode = nn.utils.weight_norm(nn.Conv1d(1, 8, 4, stride=2))
        self.lstm = nn.LSTM(8, 8, num_layers=2)
        self.decode = nn.ConvTranspose1d(8, 1, 4, stride=2)

    def forward(self, x):
        x = self.encode(x).permute(2, 0, 1)
        x = self.lstm(x)[0] + x
        return self.decode(nn.functional.elu(x.permute(1, 2, 0)))

    @staticmethod
    def inputs():
        return (normal(2, 1, 30),)


class Translator(nn.Module):
    """A packed bidirectional GRU that a decoder of LSTM cells attends to."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.encoder = nn.GRU(6, 4, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.start = nn.RNNCell(16, 8)
        self.decoder = nn.ModuleList([nn.LSTMCell(6 + 8, 8), nn.GRUCell(8, 8)])
        self.attention = nn.Softmax(-1)
        self.head = nn.Linear(8, 11)

    def forward(self, source, lengths, target):
        packed = pack_padded_sequence(
            self.words(source), lengths, batch_first=True, enforce_sorted=False
        )
        memory, ends = self.encoder(packed)
        memory, _ = pad_packed_sequence(memory, batch_first=True)
        h = self.start(ends.transpose(0, 1).flatten(1))
        c, g, scores = torch.zeros_like(h), h, []
        for word in self.words(target).unbind(1):
            weights = self.attention((memory @ h.unsqueeze(-1)).squeeze(-1))
            seen = (weights.unsqueeze(1) @ memory).squeeze(1)
            h, c = self.decoder[0](torch.cat([word, seen], -1), (h, c))
            g = self.decoder[1](h, g)
            scores.append(self.head(g))
        return torch.stack(scores, 1)

    @staticmethod
    def inputs():
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(11, (3, 7), generator=generator)
        return words, torch.tensor([2, 7, 4]), words[:, :5]


class Acoustic(nn.Module):
    """A stack of plain RNNs, relu and tanh, with the state carried from part to part."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.RNN(4, 8, nonlinearity="relu", bidirectional=True), nn.RNN(16, 6, bias=False)]
        )
        self.summary = nn.LSTM(6, 8, proj_size=3)

    def forward(self, x):
        state = None
        for part in x.chunk(2):
            y, _ = self.layers[0](part)
            y, state = self.layers[1](y, state)
        return self.summary(y)[1]

    @staticmethod
    def inputs():
        return (normal(8, 2, 4),)


CONVERTED = {
    Codec: {"lstm": "LSTM"},
    Translator: {
        "encoder": "GRU",
        "start": "RNNCell",
        "decoder.0": "LSTMCell",
        "decoder.1": "GRUCell",
        "attention": "Softmax",
    },
    Acoustic: {"layers.0": "RNN", "layers.1": "RNN", "summary": "LSTM"},
}


def results(model, inputs):
    torch.manual_seed(3)  # of the dropout between layers
    y = model(*inputs)
    y = y if isinstance(y, torch.Tensor) else torch.cat([t.flatten() for t in y])
    return [y, *torch.autograd.grad(y.sin().sum(), list(model.parameters()))]


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_model_computes_the_same_in_training_and_eval_and_goes_back(kind):
    torch.manual_seed(0)
    model = kind().double()
    inputs = [t.double() if t.is_floating_point() else t for t in kind.inputs()]
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    before = results(model, inputs), results(model.eval(), inputs)
    model.train()
    pickled = pickle.dumps(model)

    report = convert(model)
    wanted = CONVERTED[kind]
    assert report.converted == {name: f"hetkern.nn.{what}" for name, what in wanted.items()}
    assert report.left == {}
    with hetkern.record() as log:
        model(*inputs)
    assert {call.op for call in log} >= {
        {"RNN": "hetkern.rnn", "LSTM": "hetkern.lstm", "GRU": "hetkern.gru"}.get(
            what, f"hetkern.{what.lower().removesuffix('cell')}_cell"
        )
        for what in wanted.values()
        if what != "Softmax"
    }
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close((results(model, inputs), results(model.eval(), inputs)), before)
    again = copy.deepcopy(model) if kind is not Codec else model  # a normed weight is no leaf
    torch.testing.assert_close(results(again, inputs), before[1])

    model.train()
    report = convert(model, to="torch")
    assert report.converted == {name: f"torch.nn.{what}" for name, what in wanted.items()}
    if kind is not Codec:
        assert pickle.dumps(model) == pickled
    torch.testing.assert_close(results(model, inputs), before[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_identity_and_what_is_shared_stay(name):
    module = getattr(nn, name)(4, 4)
    model, heard = nn.ModuleList([module, nn.Linear(4, 4), module]), []
    module.register_forward_hook(lambda m, args, output: heard.append(type(m)))
    module.register_forward_pre_hook(lambda m, args: heard.append("before"))
    weights = list(module.parameters())
    report = convert(model)
    assert list(report.converted) == ["0", "2"] and model[0] is model[2] is module
    ours = getattr(hetkern.nn, name)
    x = normal(3, 2, 4) if "Cell" not in name else normal(2, 4)
    module(x)
    assert heard == ["before", ours] and type(module) is ours
    assert all(a is b for a, b in zip(weights, module.parameters(), strict=True))
    assert repr(module) == repr(getattr(nn, name)(4, 4))
    convert(model, to="torch")
    assert type(module) is getattr(nn, name)


@pytest.mark.parametrize("name", NAMES)
def test_one_that_was_built_as_ours_is_torchs_without_a_trace(name):
    torch.manual_seed(0)
    ours = getattr(hetkern.nn, name)(4, 5, impl="reference")
    torch.manual_seed(0)
    torchs = getattr(nn, name)(4, 5)
    convert(ours, to="torch")
    assert type(ours) is type(torchs) and vars(ours).keys() == vars(torchs).keys()
    x = normal(3, 2, 4) if "Cell" not in name else normal(2, 4)
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=0)


def test_what_the_other_library_lacks_stays_and_is_named():
    model = nn.ModuleList([nn.LSTM(4, 4, 2, dropout=1.0), nn.LSTM(4, 4, 2, dropout=0.5)])
    report = convert(model)
    assert report.left == {"0": "torch.nn.LSTM, hetkern has no dropout=1.0"}
    assert list(report.converted) == ["1"]

    model = nn.ModuleList([hetkern.nn.GRU(4, 4, variational_dropout=0.1), hetkern.nn.GRU(4, 4)])
    report = convert(model, to="torch")
    assert report.left == {"0": "hetkern.nn.GRU, torch has no variational_dropout=0.1"}
    assert list(report.converted) == ["1"]


def test_a_subclass_and_a_parametrized_module_are_left():
    class Mine(nn.LSTM):
        pass

    model = nn.ModuleList([Mine(4, 4), nn.GRU(4, 4)])
    parametrizations.weight_norm(model[1], "weight_hh_l0")
    report = convert(model)
    assert report.converted == {} and list(report.left) == ["0", "1"]
    assert report.left["0"].endswith("a subclass of LSTM")
    assert report.left["1"].endswith("a subclass of GRU")


def test_a_weight_that_a_hook_computes_is_used():
    """The older ``nn.utils.weight_norm`` writes the weight anew before each call."""
    torch.manual_seed(0)
    module, x = nn.utils.weight_norm(nn.LSTM(4, 5), "weight_hh_l0"), normal(3, 2, 4)
    before = module(x)[0]
    convert(module)
    assert type(module) is hetkern.nn.LSTM
    torch.testing.assert_close(module(x)[0], before)
    module(x)[0].sum().backward()
    assert module.weight_hh_l0_g.grad.abs().max() > 0
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)
    assert not torch.equal(module(x)[0], before)
    module.double()
    convert(module, to="torch")
    assert module(x.double())[0].dtype == torch.float64
