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
rung "families, kit and layers, on two workers" -n 2 --ignore python_tests/test_sanitizers.py python_tests
rung "kernels under ASan + UBSan and TSan, planted bugs" python_tests/test_sanitizers.py
exit $failed
