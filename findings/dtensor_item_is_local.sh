#!/usr/bin/env bash
# torch 2.13.0: a number read from a DTensor is this process's part of it for a sum, mean, norm, maximum, any or all, and the whole's
# for a variance or median.
# Seen with 0 … 7 shared out over two processes: `.sum().item()` is 6 in one and 22 in the other, of 28; `.mean()` 1.5 and 5.5, of 3.5;
# `.max()` 3 and 7; `torch.linalg.vector_norm` 3.7 and 11.2, of 11.8; `(x < 4).all()` True and False. `.var().item()` is 6 in both, and so
# is `.sum()` after any step that needs the whole, `.sum().sqrt()`. Nothing is said. Under `fully_shard` every gradient is such a tensor:
# `if not torch.isfinite(p.grad).all(): skip the step` is decided otherwise in each process. `.full_tensor().item()` is right.
# Expected: the value of the tensor, the same in every process, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
cat > shared_out.py <<'END'
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor

READINGS = {
    "sum": lambda t: t.sum(),
    "mean": lambda t: t.mean(),
    "maximum": lambda t: t.max(),
    "norm": torch.linalg.vector_norm,
    "all below 4": lambda t: (t < 4).all(),
    "variance": lambda t: t.var(),
    "square root of the sum": lambda t: t.sum().sqrt(),
}
dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (2,))
whole = torch.arange(8.0)
shared = distribute_tensor(whole, mesh, [Shard(0)])
wrong = set()
for name, reading in READINGS.items():
    result, right = reading(shared), reading(whole).item()
    everywhere = [None, None]
    dist.all_gather_object(everywhere, result.item())
    assert abs(result.full_tensor().item() - right) < 1e-5, "full_tensor is right"
    if any(abs(value - right) > 1e-5 for value in everywhere):
        wrong.add(name)
    if dist.get_rank() == 0:
        print(f"{name:24} item() in the two processes: {everywhere}, of the whole: {right}")
if dist.get_rank() == 0:
    print("torch", torch.__version__)
dist.destroy_process_group()
assert wrong == {"sum", "mean", "maximum", "norm", "all below 4"}, wrong
END
OMP_NUM_THREADS=1 venv/bin/python -W ignore -m torch.distributed.run --standalone --nproc-per-node=2 shared_out.py
