#!/usr/bin/env bash
# torch 2.13.0: on a processor without AVX-512 a product of bfloat16 or float16 matrices takes plain loops on one thread. Seen with AVX2
# and two threads, 512x512 by 512x512: float32 53 GFLOP/s; 16 bits 1.3 GFLOP/s as `a @ b`, 10 as `a @ b.mT`, what a linear layer's
# forward pass asks for. Its backward pass asks for `a @ b`: a step of a recurrent layer of 512 units took 20 to 50 times as long in bfloat16 as in float32.
# Copies converted to float32, multiplied and rounded once give the same numbers or better ones, in a fraction of the time.
# ONEDNN_MAX_CPU_ISA stands below so that a processor with AVX-512 does as one without.
# Expected: float32's product of converted blocks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/products.py" <<'END'
import time

import torch


def least_ms(call):
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


torch.set_num_threads(2)
a, b = torch.randn(512, 512), torch.randn(512, 512)
single = least_ms(lambda: a @ b)
for dtype in (torch.bfloat16, torch.float16):
    x, y = a.to(dtype), b.to(dtype)
    plain, rows, widened = map(least_ms, (lambda: x @ y, lambda: x @ y.mT, lambda: (x.float() @ y.float()).to(dtype)))
    print(f"torch {torch.__version__} float32 {single:.1f} ms; {dtype} {plain:.1f} ms, by rows {rows:.1f}, by float32 {widened:.1f}")
    assert plain > 5 * widened, "seen: 30 times as long"
END
ONEDNN_MAX_CPU_ISA=AVX2 "$folder/venv/bin/python" -W ignore "$folder/products.py"
