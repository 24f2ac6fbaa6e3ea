#!/usr/bin/env bash
# torch 2.13.0, CPU: torch.nn.functional.scaled_dot_product_attention turns a query row of NaN into a row of zeros if there are few
# keys (4 here), and into NaN if there are many (64). With an attention mask of zeros, or from the MATH backend, it is NaN either way.
# A diverged activation is thus hidden in short sequences and seen in long ones. Expected: NaN, as softmax(q k') v has it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'END'
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

print("torch", torch.__version__)
torch.manual_seed(0)
query = torch.randn(1, 1, 3, 8)
query[0, 0, 1] = float("nan")
for keys, wanted in ((4, "zeros"), (64, "NaN")):
    k, v = torch.randn(2, 1, 1, keys, 8)
    row = F.scaled_dot_product_attention(query, k, v)[0, 0, 1]
    seen = "NaN" if row.isnan().all() else "zeros" if (row == 0).all() else str(row)
    with sdpa_kernel(SDPBackend.MATH):
        math = F.scaled_dot_product_attention(query, k, v)[0, 0, 1]
    masked = F.scaled_dot_product_attention(query, k, v, torch.zeros(3, keys))[0, 0, 1]
    print(keys, "keys: the NaN row becomes", seen)
    assert seen == wanted
    assert math.isnan().all() and masked.isnan().all()
END
