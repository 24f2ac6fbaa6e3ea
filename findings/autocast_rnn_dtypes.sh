#!/usr/bin/env bash
# torch 2.13.0: under torch.autocast("cpu", torch.bfloat16) recurrent modules give different dtypes for the same float32 input.
# Seen: RNN, LSTM and RNNCell give bfloat16; GRU, LSTMCell and GRUCell give float32. So replacing an LSTM by a GRU, or an LSTM by
# its cell in a loop, changes the dtype of what follows, its precision and its memory. Expected: one rule for the family.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'END'
import torch
from torch import nn

print("torch", torch.__version__)
wanted = {
    "RNN": torch.bfloat16,
    "LSTM": torch.bfloat16,
    "GRU": torch.float32,
    "RNNCell": torch.bfloat16,
    "LSTMCell": torch.float32,
    "GRUCell": torch.float32,
}
for name, dtype in wanted.items():
    module = getattr(nn, name)(4, 4)
    x = torch.randn(3, 4) if name.endswith("Cell") else torch.randn(3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)
    output = output[0] if isinstance(output, tuple) else output
    print(name, output.dtype)
    assert output.dtype == dtype, f"{dtype} was seen"
END
