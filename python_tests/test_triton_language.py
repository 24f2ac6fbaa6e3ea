"""Kernels mean in the interpreter what they mean to Triton's compiler: types, logic, names.

test_triton_interpreter.py starts these in a process of their own. The values are those that the
compiled PTX gives.
"""

import importlib.util

import numpy as np
import pytest
import torch

from hetkern.testing import triton_interpreter
from hetkern.testing.triton_interpreter import KernelError

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not triton_interpreter.active():
    pytest.skip("test_triton_interpreter.py runs it in a process", allow_module_level=True)

import triton_kernels
import triton_language_kernels as kernels


def ints(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


# ---- Logic. --------------------------------------------------------------------------------------


def test_triton_and_or_not_of_blocks_are_elementwise():
    o = ints(4, 8)
    kernels.logic[(1,)](o, 2, 5, 8)
    assert o.tolist() == [
        [0, 0, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0],
    ]


def test_triton_builtin_min_and_max_are_elementwise():
    o = torch.zeros(3, 4)
    kernels.extremes[(1,)](torch.tensor([-1.0, 0.25, 0.75, 2.0]), o, 7, 4)
    assert o.tolist() == [[-1, 0.25, 0.5, 0.5], [0.25, 0.25, 0.75, 2], [7, 7, 7, 7]]


# ---- Numbers that are float32 and int32. ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_float_argument_is_a_float32(dtype):
    x, o = torch.full((4,), 1000.0, dtype=dtype), torch.zeros(4)
    kernels.scaled[(1,)](x, o, 100.1, 4)
    assert torch.equal(o, x.float() * torch.tensor(100.1))  # float16 would overflow


def test_triton_arguments_have_the_types_of_a_launch():
    o = torch.zeros(5, dtype=torch.float64)
    kernels.types_of[(1,)](o, 0.1, 5, True, 0.1, 0.1, 100000, 1)
    tenth = np.float32(0.1)
    assert o.tolist() == [tenth * tenth, 0.1 * 0.1, 1e10, 2.0**32 - 1, float(np.float16(0.1))]
    kernels.types_of[(1,)](o.zero_(), 0.1, 5, False, 0.1, 0.1, 100000, 1)
    assert o[0] == 0


def test_triton_number_with_a_name_has_a_type():
    x, o = torch.full((4,), 3.0, dtype=torch.float16), torch.zeros(4)
    kernels.assigned[(1,)](x, o, 4)
    assert torch.equal(o, x.float() * torch.tensor(0.1))


def test_triton_loop_counter_is_an_int32():
    o = ints(17, dtype=torch.int64)
    kernels.counters[(1,)](o, -3, 1, 4)
    assert o[:8].tolist() == [-1, -1, 0, 0, 0, -2, -1, 0], "towards zero"
    assert o[8:12].tolist() == [0, 0, 0, 0], "2^32 times i wraps"
    assert o[12:].tolist() == [0, 0, 1, 1, 9]


def test_triton_loop_counter_is_as_wide_as_its_bounds():
    o = ints(3, dtype=torch.int64)
    kernels.wide_counter[(1,)](o, 3)
    assert o.tolist() == [0, 2**32, 2**33]


def test_triton_argument_of_one_is_a_constant_unless_told():
    o = ints(2)
    kernels.constants[(1,)](o, 1)
    assert o.tolist() == [-2, 1], "Python's // and %"
    kernels.no_constant[(1,)](o, 1)
    assert o.tolist() == [-1, 1]
    kernels.of_a_tuple[(1,)](o, (2, 1))
    assert o[0] == 0
    with pytest.raises(KernelError, match=r"1 is a constant .* has no 'dtype'"):
        kernels.of_a_tuple[(1,)](o, (1, 1))


def test_triton_grid_function_gets_the_arguments_themselves():
    x, y = torch.ones(100), torch.zeros(100)
    triton_kernels.double[lambda meta: [-(-meta["n"] // meta["BLOCK"])]](x, y, 100, BLOCK=64)
    assert torch.equal(y, 2 * x)
    with pytest.raises(KernelError, match="a grid is at most"):
        triton_kernels.double[(1, 65536)](x, y, 100, BLOCK=64)


# ---- Names and branches. -------------------------------------------------------------------------


def test_triton_ternary_takes_one_side():
    o = torch.zeros(2)
    kernels.chosen[(1,)](o, 3, 4)
    assert o.tolist() == [2.5, 7.0]


@pytest.mark.parametrize("kind, n, wanted", [(1, 3, 3.0), (2, 2, 2.0)])
def test_triton_names_of_constant_branches_live_on(kind, n, wanted):
    o = torch.zeros(1)
    kernels.branches[(1,)](o, n, KIND=kind)
    assert o.item() == wanted


@pytest.mark.parametrize(
    "kernel, message",
    [
        ("chained", r"a chained comparison, '1 <= tl.arange\(0, N\) < n'"),
        ("contained", "'in' is no part of Triton's language"),
        ("if_of_a_block", "'if' of a block, .*: use tl.where"),
        ("while_of_a_block", "'while' of a block"),
        ("ternary_of_a_block", "a ternary on a block, .*: use tl.where"),
        ("ternary_of_two_types", "a ternary of int32 and fp32"),
        ("small_dot", "K >= 16"),
        ("histogram", "a histogram of int8 does not compile"),
        ("conversion", r"8 is a constant \(a literal, .* has no 'to'"),
        ("used_after_its_loop", "'last' has no value here: a name ends with the loop"),
        ("counter_after_its_loop", "'i' has no value here: a name ends with the loop"),
        ("used_after_its_branch", "'x' has no value here: a name ends with the loop or the branch"),
        ("type_changes_in_a_loop", "total is of type int32 before the loop and fp32 after it"),
        ("type_changes_in_a_branch", "total is of type int32 before the branch and fp32 after it"),
        ("constant_changes_in_a_loop", "N is of type constant 8 before the loop and int32"),
        ("broken_loop", "'break' is no part of Triton's language"),
        ("loop_over_a_tuple", "a loop over a tuple: use range, tl.range or tl.static_range"),
        ("unrolled_unknown", "tl.static_range over a number that is known only when the kernel"),
        ("global_number", r"'SIX' is a global variable, and no constant as SIX = tl.constexpr"),
        ("power_of_a_block", r"does not compile: unsupported operand type\(s\) for \*\*"),
        ("element_assigned", "an assignment to 'x.0.': a block's elements"),
    ],
)
def test_triton_interpreter_refuses_what_does_not_compile(kernel, message):
    with pytest.raises(KernelError, match=message) as caught:
        getattr(kernels, kernel)[(1,)](ints(8), 3, 8)
    assert f"kernel {kernel}" in str(caught.value) or kernel == "histogram"


def test_triton_interpreter_refuses_nothing_that_is_switched_off():
    o = ints(8)
    kernels.switched_off[(1,)](o, 3, 8)
    assert o[0] == 3


# ---- Dots in TF32. -------------------------------------------------------------------------------


def of_bits(x):
    return x.view(torch.int32).numpy().view(np.uint32)


@pytest.mark.parametrize("precision", ["tf32", None])
def test_triton_dot_in_tf32_cuts_its_operands_towards_zero(precision):
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    one, c, d = torch.eye(32), torch.empty(32, 32), torch.empty(32, 32)
    triton_kernels.product[(1,)](x, one, c, N=32, PRECISION=precision)
    triton_kernels.product[(1,)](one, x, d, N=32, PRECISION=precision)
    cut = of_bits(x) >> 13 << 13
    assert (cut != of_bits(x)).mean() > 0.9
    assert (of_bits(c) == cut).all() and (of_bits(d) == cut).all()


def test_triton_dot_in_tf32x3_rounds_ties_away_from_zero():
    tie = 2.0**-12 + 2.0**-23  # what ten bits leave of 1 + tie, and a tie itself
    x, c = torch.eye(32) * torch.tensor([1 + tie, -1 - tie] * 16), torch.empty(32, 32)
    triton_kernels.product[(1,)](x, torch.eye(32), c, N=32, PRECISION="tf32x3")
    up = 1 + 2.0**-12 + 2.0**-22
    assert c.diag()[:2].tolist() == [up, -up] and c.count_nonzero() == 32


def test_triton_dot_in_tf32x3_is_nearly_float32_and_keeps_infinity():
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    c, exact = torch.empty(32, 32), x.double() @ y.double()
    triton_kernels.product[(1,)](x, y, c, N=32, PRECISION="tf32x3")
    error = ((c - exact).abs() / (x.double().abs() @ y.double().abs())).max()
    assert error < 32 * 2.0**-22
    x = torch.zeros(32, 32)
    x[0, 0] = torch.inf
    triton_kernels.product[(1,)](x, torch.ones(32, 32), c, N=32, PRECISION="tf32x3")
    assert c[0].isinf().all() and not c[1:].any()
