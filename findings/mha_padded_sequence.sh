#!/usr/bin/env bash
# torch 2.13.0, CPU: nn.MultiheadAttention on a batch in which one sequence is padded throughout (key_padding_mask all True) gives NaN
# for it in eval mode, NaN in training mode with need_weights=True, and finite numbers in training mode with need_weights=False.
# So the same batch trains without a sign and is NaN in validation. Expected: one answer whatever the mode and need_weights.
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
wanted = {(True, True): True, (True, False): False, (False, True): True, (False, False): True}
for (training, need_weights), is_nan in wanted.items():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    x = torch.randn(2, 4, 8)
    padded = torch.tensor([[False] * 4, [True] * 4])
    with torch.no_grad():
        output, _ = module(x, x, x, key_padding_mask=padded, need_weights=need_weights)
    print(f"training={training} need_weights={need_weights}: NaN is {bool(output[1].isnan().any())}")
    assert output[0].isfinite().all()
    assert bool(output[1].isnan().any()) == is_nan
END
