#!/usr/bin/env bash
# The CI-sized part of every rung; `make test` calls it. Each rung prints its time.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
rung() {  # rung NAME pytest-arguments…
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  python -m pytest -q -m "not proof" "$@" || failed=1
  echo "== $name: $((SECONDS - start)) s"
}
alone=(python_tests/test_sanitizers.py python_tests/test_cuda_sanitizers.py python_tests/test_foreign_kernels.py)   # they keep both cores busy themselves
rung "families on the CPU, kit and layers, on two workers" -n 2 "${alone[@]/#/--ignore=}" python_tests
rung "families in CUDA, emulated" -n 2 --impl cuda python_tests/test_{softmax,cross_entropy}_{values,edges,errors,derivatives,bits,wiring,mutations}.py python_tests/test_torch_samples.py
rung "families in Triton, interpreted" -n 2 -p hetkern.testing.triton_interpreter --impl triton \
  python_tests/test_{softmax,cross_entropy}_{values,edges,errors,derivatives,wiring,mutations}.py python_tests/test_torch_samples.py
rung "kernels under ASan + UBSan and TSan, planted bugs" python_tests/test_sanitizers.py python_tests/test_cuda_sanitizers.py
rung "the kit from a wheel, on kernels from outside, planted bugs" python_tests/test_foreign_kernels.py
exit $failed
