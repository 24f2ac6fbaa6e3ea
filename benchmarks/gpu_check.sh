#!/usr/bin/env bash
# One command for a GPU machine, under ten minutes: builds there, compares every ptx:: function with its twin, runs compute-sanitizer,
# the suite with impl=cuda and triton for real, and the benchmarks; prints a summary and writes ${OUT:-build/gpu_check}/gpu_check.json.
# Without a GPU, or with --dry, the emulation stands in the GPU's place and there are no figures.
#   gpu_check.sh [--dry] [--quick] [--installed] [--steps build,twins,...]      (what each means: gpu_check.sh --help)
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu/check.py "$@"
