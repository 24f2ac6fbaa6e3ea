"""torch's recurrent modules and the same call of ours, for the tests of the RNN family."""

import torch
from torch import nn

import hetkern
from hetkern.testing.devices import here, normal

CELLS = ("tanh", "relu", "lstm", "gru")


def module(
    cell, columns, H, *, layers=1, bidirectional=False, bias=True, proj=0, dtype=torch.float64
):
    """One of torch.nn's, with weights that do not depend on the run."""
    options = {"bias": bias, "bidirectional": bidirectional, "num_layers": layers}
    if cell == "lstm":
        made = nn.LSTM(columns, H, proj_size=proj, **options)
    elif cell == "gru":
        made = nn.GRU(columns, H, **options)
    else:
        made = nn.RNN(columns, H, nonlinearity=cell, **options)
    with torch.no_grad():
        for seed, p in enumerate(made.parameters()):
            p.copy_(0.4 * normal(*p.shape, seed=100 + seed))
    return here(made.to(dtype))


def weights_of(made):
    """The tuples that the public functions take."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    names = names if made.proj_size else names[:4]
    directions = ("", "_reverse") if made.bidirectional else ("",)
    return [
        tuple(getattr(made, f"{name}_l{layer}{direction}", None) for name in names)
        for layer in range(made.num_layers)
        for direction in directions
    ]


def call(cell, x, state, weights, **options):
    """The public function of a cell: y, h_n and for an lstm c_n."""
    if cell == "lstm":
        y, (h_n, c_n) = hetkern.lstm(x, state, weights, **options)
        return y, h_n, c_n
    h0 = None if state is None else state[0]
    if cell == "gru":
        return hetkern.gru(x, h0, weights, **options)
    return hetkern.rnn(x, h0, weights, nonlinearity=cell, **options)


def by_torch(made, x, state):
    """What torch's module gives: y (or a PackedSequence's data), h_n and for an lstm c_n."""
    lstm = isinstance(made, nn.LSTM)
    y, ends = made(x, state if lstm or state is None else state[0])
    y = y.data if isinstance(y, nn.utils.rnn.PackedSequence) else y
    return (y, *ends) if lstm else (y, ends)
