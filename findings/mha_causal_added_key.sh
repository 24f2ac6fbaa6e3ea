#!/usr/bin/env bash
# torch 2.13.0: nn.MultiheadAttention with a learned or a zero key added (add_bias_kv, add_zero_attn) hides that key from most
# queries when it is told `is_causal=True` beside its causal mask and asked for no weights.
# Seen: one call, `attn_mask=causal, is_causal=True`, gives other outputs with `need_weights=False` than with `need_weights=True`, by
# several tenths, and other ones than without the hint, which the documentation calls a hint alone. Without weights the mask is dropped
# for the rule "query i sees keys 0 … i", over one key more than the mask was made for: the added key stands last, and is hidden.
# Expected: the same outputs whatever is asked for, and whether the hint is given or not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from torch import nn

torch.manual_seed(0)
print("torch", torch.__version__)
x = torch.randn(1, 3, 8, dtype=torch.double)
causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.double)
for added in ({}, {"add_bias_kv": True}, {"add_zero_attn": True}):
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.double, **added)

    def call(**arguments):
        return attention(x, x, x, attn_mask=causal, **arguments)[0]

    right = call(need_weights=True, is_causal=True)
    hinted = (call(need_weights=False, is_causal=True) - right).abs().max().item()
    unhinted = (call(need_weights=False) - right).abs().max().item()
    print(f"{added or 'no added key'}: without weights off by {hinted:.2g}, without the hint by {unhinted:.2g}")
    assert unhinted < 1e-12 and (hinted > 0.1) == bool(added), "the added key was hidden when this was written"
END
