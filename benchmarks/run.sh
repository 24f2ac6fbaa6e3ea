#!/usr/bin/env bash
# Speed beside torch, with this machine's ceilings, on a quiet machine; `make bench` calls it.
set -euo pipefail
cd "$(dirname "$0")"
python ceilings.py
python bench_softmax.py "$@"
python bench_cross_entropy.py "$@"
python readme_tables.py
python plot.py
