#!/usr/bin/env bash
# The whole matrix of every rung; resumable: the random configurations keep their place in build/proof.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/proof
failed=0
summary=()
rung() {  # rung NAME command…
  local name=$1 start=$SECONDS result=passed
  shift
  echo "== $name"
  "$@" || { failed=1; result=FAILED; }
  summary+=("$(printf '%-60s %-7s %5d s' "$name" "$result" $((SECONDS - start)))")
}
for level in $(python -c 'import hetkern; print(*hetkern._C.isa_levels())'); do
  rung "all tests, instruction set $level" env HETKERN_ISA="$level" python -m pytest -q -n 2 -m "proof or not proof" --ignore python_tests/test_sanitizers.py python_tests
done
rung "kernels under sanitizers, planted bugs" python -m pytest -q python_tests/test_sanitizers.py
for family in softmax cross_entropy; do
  rung "random configurations, $family" python -m hetkern.testing.repro "$family" --count "${COUNT:-100000}" --state "build/proof/$family.json"
done
isolated() {  # pip's own build environment, its torch held where the constraints hold ours
  rm -rf build/proof/venv && python -m venv build/proof/venv &&
    PIP_CONSTRAINT=$PWD/constraints.txt build/proof/venv/bin/pip install -q . &&
    (cd build/proof && venv/bin/hetkern doctor)
}
rung "an isolated pip install" isolated
printf '%s\n' "== proof of $(git rev-parse --short HEAD)" "${summary[@]}"
exit $failed
