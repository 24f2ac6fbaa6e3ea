#!/usr/bin/env bash
# torch 2.13.0: under CPU autocast nn.LSTM raises on a processor without AVX-512, in bfloat16 and in float16, with gradients and without.
# Seen with AVX2: "could not create a primitive descriptor for the LSTM forward propagation primitive". nn.RNN and nn.GRU run under the
# same autocast, and so does the same LSTM converted to bfloat16 outside of it: autocast alone takes oneDNN's LSTM without asking
# whether the processor has its 16-bit arithmetic. ONEDNN_MAX_CPU_ISA stands below so that a processor with AVX-512 does as one without.
# Expected: the path that the converted module takes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/layers.py" <<'END'
import torch
from torch import nn


def dtype_or_error(layer, x):
    try:
        return layer(x)[0].dtype
    except RuntimeError as error:
        return str(error).split(". ")[0]


x = torch.randn(7, 3, 6)
for dtype in (torch.bfloat16, torch.float16):
    seen = {}
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        with torch.autocast("cpu", dtype):
            seen[kind.__name__] = dtype_or_error(kind(6, 5), x)
    seen["LSTM, converted"] = dtype_or_error(nn.LSTM(6, 5).to(dtype), x.to(dtype))
    print("torch", torch.__version__, dtype, seen)
    assert "could not create a primitive descriptor" in str(seen["LSTM"])
    assert all(isinstance(seen[k], torch.dtype) for k in ("RNN", "GRU", "LSTM, converted"))
END
ONEDNN_MAX_CPU_ISA=AVX2 "$folder/venv/bin/python" -W ignore "$folder/layers.py"
