#!/usr/bin/env bash
# Speed beside torch, with this machine's ceilings, on a quiet machine; `make bench` calls it.
set -euo pipefail
cd "$(dirname "$0")"
python ceilings.py
for bench in bench_softmax.py bench_cross_entropy.py; do
  python $bench --compile "$@"
  python $bench --kept "$@"
done
python bench_shapes.py "$@" --threads 1
python bench_rnn.py "$@"
python bench_rnn_error.py "$@"
python bench_attention.py "$@"
python speed_tables.py
python plot.py
