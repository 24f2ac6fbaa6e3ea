#!/usr/bin/env bash
# torch 2.13.0: set_flush_denormal reaches one thread, and the threads that torch has started keep computing with denormal numbers.
# Seen with two threads: after any operation that used both, `torch.set_flush_denormal(True)` returns True, and a million quarters of the
# least normal number then are zeros in the first half, which the calling thread computes, and denormal in the second. In a process where
# the call comes first all are zeros. So a result depends on the number of threads, and training that calls it after its first step
# keeps much of the cost that it was called against. Expected: the setting of the process, or of the operation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat > "$folder/halves.py" <<'END'
import sys

import torch

torch.set_num_threads(2)
if sys.argv[1] == "later":
    torch.ones(1_000_000).mul(2.0)  # starts the second thread
assert torch.set_flush_denormal(True)
x = torch.full((1_000_000,), 2**-126).mul(0.25)
torch.set_flush_denormal(False)
halves = [half.count_nonzero().item() for half in x.chunk(2)]
print("torch", torch.__version__, "told", sys.argv[1], "numbers left in the two halves:", halves)
assert halves == ([0, 0] if sys.argv[1] == "first" else [0, 500_000]), "seen: the calling thread's alone flushed"
END
"$folder/venv/bin/python" -W ignore "$folder/halves.py" first
"$folder/venv/bin/python" -W ignore "$folder/halves.py" later
