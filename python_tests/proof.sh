#!/usr/bin/env bash
# The whole matrix of every rung; resumable: a rung that has passed for the same tree is not run again, and the random
# configurations keep their place, in build/proof.   proof.sh [PART]: only the rungs whose name has that part
set -uo pipefail
cd "$(dirname "$0")/.."
only=${1:-}
mkdir -p build/proof/passed
tree=$(git rev-parse 'HEAD^{tree}')
[ -z "$(git status --porcelain)" ] || tree=uncommitted
failed=0
summary=()
rung() {  # rung NAME command…
  local name=$1 start=$SECONDS result=passed
  shift
  [[ $name == *$only* ]] || return
  local file="build/proof/passed/${name//[^a-zA-Z0-9]/_}" known="" took=0
  [ -f "$file" ] && read -r known took < "$file"
  if [ "$tree" = "$known" ]; then
    summary+=("$(printf '%-60s %-7s %5d s, earlier' "$name" "$result" "$took")")
    return
  fi
  echo "== $name"
  "$@" || { failed=1; result=FAILED; }
  took=$((SECONDS - start))
  [ $result = FAILED ] || [ "$tree" = uncommitted ] || echo "$tree $took" > "$file"
  summary+=("$(printf '%-60s %-7s %5d s' "$name" "$result" "$took")")
}
levels=($(python -c 'import hetkern; print(*hetkern._C.isa_levels())'))
best=${levels[-1]}
for level in "${levels[@]}"; do
  tests=(--at-least 3000 python_tests/test_{softmax,cross_entropy,rnn,attention,training}_*.py python_tests/test_{nn,convert,impl,explain,simd,worked_example}.py)
  [ "$level" = "$best" ] && tests=(--at-least 3700 --ignore python_tests/test_thread_sanitizer.py --ignore python_tests/test_address_sanitizer.py python_tests)
  rung "tests on instruction set $level" env HETKERN_ISA="$level" python -m pytest -q -n 2 -m "proof or not proof" "${tests[@]}"
done
rung "all tests of the families in CUDA, emulated" python -m pytest -q -n 2 --at-least 1400 --impl cuda -m "proof or not proof" python_tests
rung "all tests of the families in Triton, interpreted" python -m pytest -q -n 2 -p hetkern.testing.triton_interpreter --at-least 1000 --impl triton -m "proof or not proof" python_tests
rung "Triton, interpreted and compiled, bit by bit" python -m pytest -q -p hetkern.testing.triton_interpreter --at-least 85 -m "proof or not proof" python_tests/test_triton_compiled.py
liger() {  # somebody else's Triton kernels, installed beside
  rm -rf build/proof/liger
  if ! python -m pip install -q --disable-pip-version-check --no-deps --target build/proof/liger liger-kernel==0.8.5; then
    echo "skipped: liger-kernel 0.8.5 cannot be installed here"
    return
  fi
  PYTHONPATH=$PWD/build/proof/liger python -m pytest -q -n 2 -p hetkern.testing.triton_interpreter --at-least 48 -m proof python_tests/test_liger.py
}
rung "Liger's operations in Triton, interpreted" liger
rung "kernels under sanitizers, planted bugs" env HETKERN_WORKLOAD=all python -m pytest -q -n 2 --dist loadfile --at-least 12 python_tests/test_{thread,address}_sanitizer.py
configurations() {  # every family in a process of one thread, side by side
  local running=() result=0
  for family in softmax cross_entropy rnn attention; do
    local count=$1
    [ $family = attention ] && count=$((count / 20))  # each takes as long as many of softmax's
    OMP_NUM_THREADS=1 python -m hetkern.testing.repro "$family" --count "$count" --state "build/proof/$family.json" \
      --known python_tests/over_budget.json &
    running+=($!)
  done
  for child in "${running[@]}"; do wait "$child" || result=1; done
  return $result
}
rung "${COUNT:-100000} random configurations a family, of attention a twentieth" configurations "${COUNT:-100000}"
# Build promises, in throw-away environments beside the work: every one starts from the files that git knows.
venv() { rm -rf "build/proof/$1" && python -m venv "build/proof/$1"; }  # venv NAME
tests_beside() {  # tests_beside VENV FILE…: the tests next to the installed package, not next to the sources
  local site=$(echo "build/proof/$1"/lib/python3*/site-packages) python=$PWD/build/proof/$1/bin/python config=$PWD/pyproject.toml
  shift
  rm -rf "$site/python_tests" && cp -r python_tests "$site" && (cd "$site" && "$python" -m pytest -q -c "$config" --rootdir . "$@")
}
isolated() {  # pip's own build environment, its torch held where the constraints hold ours
  venv isolated &&
    PIP_CONSTRAINT=$PWD/constraints.txt build/proof/isolated/bin/pip install -q . pytest pytest-xdist expecttest &&
    (cd build/proof && isolated/bin/hetkern doctor) && tests_beside isolated python_tests/test_import.py
}
without_torch() {  # must fail, and say what to type
  venv bare && build/proof/bare/bin/pip install -q scikit-build-core pybind11 cmake ninja &&
    ! build/proof/bare/bin/pip install --no-build-isolation --no-deps . > build/proof/bare.log 2>&1 &&
    tr -s ' \n' ' ' < build/proof/bare.log | grep -o "type .pip install 'torch>=2.11'. first"  # CMake breaks lines
}
from_sdist() {
  rm -rf build/proof/dist &&
    python -c 'from scikit_build_core.build import build_sdist; build_sdist("build/proof/dist")' &&
    python -m pip wheel -q --no-build-isolation --no-deps -w build/proof/dist build/proof/dist/*.tar.gz &&
    ls build/proof/dist
}
plain_cmake() {
  rm -rf build/proof/cmake && cmake -S . -B build/proof/cmake -DHETKERN_CUDA=OFF -DPython_EXECUTABLE="$(command -v python)" > /dev/null &&
    cmake --build build/proof/cmake -j 2 > /dev/null && ls build/proof/cmake/libhetkern_ops.so
}
release() {  # every architecture, no warning and no spill, in at most a quarter of an hour
  local start=$SECONDS
  rm -rf build/proof/release && cmake -G Ninja -S . -B build/proof/release -DHETKERN_CUDA=ON -DHETKERN_CUDA_ARCHS=release -DHETKERN_WARNINGS_AS_ERRORS=ON \
    -DPython_EXECUTABLE="$(command -v python)" > /dev/null &&
    CCACHE_DISABLE=1 cmake --build build/proof/release -j 2 > /dev/null && [ $((SECONDS - start)) -le 900 ]
}
other_torch() {  # other_torch PIP-ARGUMENTS…: an environment where the release library as built here meets another torch
  venv other && build/proof/other/bin/pip install -q "$@" numpy safetensors typer rich pytest pytest-xdist expecttest &&
    site=$(echo build/proof/other/lib/python3*/site-packages) && cp -rL hetkern "$site" &&
    cp build/proof/release/libhetkern_ops.so build/proof/release/_C*.so "$site/hetkern" &&
    build/proof/other/bin/python -c 'import torch; print("torch", torch.__version__, "for CUDA", torch.version.cuda)'
}
values_beside() {
  other_torch "$@" &&
    HETKERN_WANTED_CUDA=13 tests_beside other --at-least 300 python_tests/test_{softmax,cross_entropy}_values.py python_tests/test_registered.py
}
triton_beside() {
  other_torch -c constraints-torch211.txt torch triton &&
    tests_beside other -n 2 -p hetkern.testing.triton_interpreter --impl triton -m "not proof" --at-least 950 \
      python_tests/test_{softmax,cross_entropy,attention}_{values,edges,errors,derivatives,wiring,mutations}.py python_tests/test_torch_samples.py &&
    tests_beside other -p hetkern.testing.triton_interpreter --at-least 140 python_tests/test_triton_{interpreter,kernels,language,values}.py
}
rung "an isolated pip install" isolated
rung "no torch: one sentence" without_torch
rung "sdist, and a wheel from it" from_sdist
rung "plain cmake" plain_cmake
rung "a release build for every GPU architecture" release
rung "values on the oldest torch, the same library" values_beside "torch==2.11.*"
rung "values on the newest torch, the same library" values_beside torch
rung "Triton, interpreted, on the oldest torch" triton_beside
rm -rf build/proof/other  # a torch is up to 5 GB
printf '%s\n' "== proof of $(git rev-parse --short HEAD)" "${summary[@]}"
exit $failed
