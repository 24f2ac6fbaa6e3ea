#!/usr/bin/env bash
# torch 2.13.0: nn.RNN, LSTM and GRU compute a parametrized weight four times in each forward.
# Seen: weight_hh_l0 gets a parametrization that counts its calls and multiplies by 1: each forward calls it four times, packed input or not,
# where nn.Linear and nn.LSTMCell call theirs once. So parametrizations.spectral_norm with one power iteration makes four a forward: after one
# step in training mode its vector is the one that nn.Linear with the same weight and start has after four.
# Expected: once a forward; or once altogether inside parametrize.cached(), which helps here as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python -W ignore - <<'END'
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

print("torch", torch.__version__)


class Counting(nn.Module):
    calls = 0

    def forward(self, weight):
        Counting.calls += 1
        return weight * 1


def calls_of(module, name, x):
    parametrize.register_parametrization(module, name, Counting())
    Counting.calls = 0
    module(x)
    return Counting.calls


rows, packed = torch.randn(5, 4), nn.utils.rnn.pack_sequence([torch.randn(5, 4)])
once = [calls_of(nn.Linear(4, 4), "weight", rows), calls_of(nn.LSTMCell(4, 4), "weight_hh", rows)]
counted = [
    calls_of(kind(4, 4), "weight_hh_l0", x) for kind in (nn.RNN, nn.LSTM, nn.GRU) for x in (rows, packed)
]
with parametrize.cached():
    once.append(calls_of(nn.LSTM(4, 4), "weight_hh_l0", rows))
print("Linear, LSTMCell, LSTM inside cached():", once, "sequences:", counted)
assert once == [1] * 3 and counted == [4] * 6, "it is computed another number of times now"

recurrent, linear = nn.LSTM(8, 8), nn.Linear(8, 32, bias=False)
linear.weight.data.copy_(recurrent.weight_hh_l0.data)
parametrizations.spectral_norm(recurrent, "weight_hh_l0")
parametrizations.spectral_norm(linear, "weight")
ours, theirs = recurrent.parametrizations.weight_hh_l0[0], linear.parametrizations.weight[0]
theirs.load_state_dict(ours.state_dict())
recurrent(torch.randn(3, 8))
distances = []
for _ in range(5):
    linear(torch.randn(3, 8))
    distances.append(float((ours._u - theirs._u).norm()))
print("one forward of the LSTM beside 1 to 5 of a Linear:", [f"{d:.0e}" for d in distances])
assert distances[3] < 1e-6 < min(distances[2], distances[4])
END
