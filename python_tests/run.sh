#!/usr/bin/env bash
# The CI-sized part of every rung; `make test` calls it. Each rung prints its time. What this machine lacks is skipped, unless
# HETKERN_EVERY_RUNG=1 says that nothing may be: then fewer passed tests than the rung's number are a failure.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
rung() {  # rung AT-LEAST NAME pytest-arguments…
  local least=$(($1 * ${HETKERN_EVERY_RUNG:-0})) name=$2 start=$SECONDS
  local results="build/results/${2//[^a-zA-Z0-9]/_}.xml"   # for docs/support.md
  shift 2
  echo "== $name"
  python -m pytest -q -m "not proof" --junitxml "$results" --at-least "$least" "$@" || failed=1
  echo "== $name: $((SECONDS - start)) s"
}
alone=(python_tests/test_{thread,address}_sanitizer.py python_tests/test_foreign_kernels.py)   # they keep both cores busy themselves
rung 6000 "families on the CPU, kit and layers, on two workers" -n 2 --dist worksteal "${alone[@]/#/--ignore=}" python_tests
rung 1500 "families in CUDA, emulated" -n 2 --dist worksteal --impl cuda python_tests/test_{softmax,cross_entropy,rnn,attention}_{values,edges,errors,derivatives,bits,wiring,mutations}.py python_tests/test_attention_parts.py \
  python_tests/test_torch_samples.py
rung 800 "families in Triton, interpreted" -n 2 --dist worksteal -p hetkern.testing.triton_interpreter --impl triton \
  python_tests/test_{softmax,cross_entropy,attention}_{values,edges,errors,derivatives,wiring,mutations}.py python_tests/test_rnn_{values,errors}.py python_tests/test_torch_samples.py \
  python_tests/test_attention_parts.py
rung 12 "kernels under ASan + UBSan and TSan, planted bugs" -n 2 --dist loadfile python_tests/test_{thread,address}_sanitizer.py
rung 13 "the kit from a wheel, on kernels from outside, planted bugs" python_tests/test_foreign_kernels.py
exit $failed
