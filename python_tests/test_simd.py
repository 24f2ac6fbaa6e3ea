"""The error of simd_math.h's functions, in ulp, at every instruction set that this machine has."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hetkern.testing.implementations import ISA_LEVELS

FLAGS = {"base": "-march=x86-64-v2", "avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}
BOUNDS = [  # function, range, ulp (of 1 for shares)
    ("exp", -86.9, 88.7, 1.5),
    ("exp64", -707.0, 709.0, 1.0),
    ("exp_nonpositive", -86.9, 0.0, 1.6),
    ("share", -86.9, 0.0, 0.6),
    ("share_relative", -86.9, 0.0, 1.5),
    ("coarse_share", -86.9, 0.0, 32.0),  # 2^-18
    ("tanh", -0.7, 0.7, 1.2),
    ("tanh", -20.0, 20.0, 1.2),
    ("tanh_of_gate", -0.01, 0.01, 2.3),
    ("tanh_of_gate", -0.599, 0.599, 2.3),
    ("tanh_of_gate", 0.601, 20.0, 1.4),
    ("log1p", 0.0, 1e-6, 0.51),
    ("log1p", 0.0, 1e-4, 0.51),
    ("log1p", 0.0, 2.0, 0.9),
    ("log1p", 0.0, 300000.0, 1.1),
    ("log1p", 1e5, 1e30, 1.1),
    ("log1p_one", 0.0, 2.0, 0.9),
    ("expm1", -1e-3, 0.0, 1.0),
    ("expm1", -2.0, 0.0, 1.0),
    ("expm1", -200.0, 0.0, 1.0),
]


@pytest.fixture(scope="module", params=ISA_LEVELS)
def program(request, tmp_path_factory) -> Path:
    native = pytest.importorskip("hetkern._C")
    if request.param not in native.isa_levels():
        pytest.skip(f"this machine has no {request.param}")
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    source = Path(__file__).parent / "kernels" / "ulp.cpp"
    built = tmp_path_factory.mktemp("ulp") / "ulp"
    command = ["g++", "-std=c++17", "-O2", "-ffp-contract=off", "-Wno-psabi", "-Wno-attributes"]
    subprocess.run([*command, FLAGS[request.param], str(source), "-o", str(built)], check=True)
    return built


@pytest.mark.parametrize(("function", "least", "most", "ulp"), BOUNDS)
def test_an_elementary_function_keeps_its_bound(program, function, least, most, ulp):
    command = [str(program), function, str(least), str(most)]
    error = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0 < error <= ulp
