"""The repaired interpreter beside the compiled code: the same bits, or a refusal by name.

Runs in the process that test_triton_interpreter.py starts; the long part in ``make proof``.
"""

import pytest
import torch

from hetkern.testing import triton_interpreter
from hetkern.testing.triton_interpreter import KernelError, compiled

if not triton_interpreter.active():
    pytest.skip("runs in test_triton_interpreter.py's process", allow_module_level=True)

import triton_compiled_kernels as kernels

from hetkern.testing.triton_interpreter.suspicion import KernelWarning

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
NASTY = torch.tensor(
    [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 3e38] * 8
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(kernel, *arguments, grid=1, **named):
    with compiled():
        kernel[(grid,)](*arguments, **named)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(t, marks=pytest.mark.proof) for t in FLOATS[1:])],
    ids=str,
)
def test_triton_products_are_fused_with_sums_as_compiled(dtype):
    x, y, z = (normal(256, seed=seed).to(dtype) for seed in range(3))
    o = torch.empty(4, 256, dtype=dtype)
    same(kernels.products_and_sums, x, y, z, o, N=256)
    assert not torch.equal(o[0], x * y + z), "two roundings"


@pytest.mark.parametrize(
    ("kernel", "more"),
    [
        (kernels.rotations, ()),
        pytest.param(kernels.products_used_twice, (), marks=pytest.mark.proof),
        pytest.param(kernels.averages, (0.9, 5), marks=pytest.mark.proof),
    ],
    ids=str,
)
def test_triton_of_two_products_the_compiled_one_is_fused(kernel, more):
    x, y, z = (normal(256, seed=seed) for seed in range(3))
    same(kernel, x, y, z, torch.empty(4, 256), *more, N=256)


@pytest.mark.proof
def test_triton_a_product_from_before_a_loop_is_rounded_as_compiled():
    x, y, z, o = (normal(256, seed=seed) for seed in range(4))
    same(kernels.product_before_a_loop, x, y, z, o, 3, N=256)
    same(kernels.outer_sum, x, y, torch.empty(32, 64), M=32, N=64)


@pytest.mark.proof
@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("size", [64, 256, 1024, 4096])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_triton_sums_have_the_compiled_order(dtype, size, warps):
    x, y = normal(size).to(dtype), normal(size, seed=1).to(dtype)
    same(kernels.total, x, torch.empty(1, dtype=dtype), N=size, num_warps=warps)
    same(kernels.inner_product, x, y, torch.empty(1, dtype=dtype), N=size, num_warps=warps)


@pytest.mark.proof
@pytest.mark.parametrize("warps", [1, 4])
@pytest.mark.parametrize("size", [64, 256, 1024])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_triton_running_sums_have_the_compiled_order(dtype, size, warps):
    for reverse in (False, True):
        x, o = normal(size).to(dtype), torch.empty(size, dtype=dtype)
        same(kernels.running, x, o, N=size, REVERSE=reverse, num_warps=warps)


@pytest.mark.proof
@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (4, 256), (128, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_sums_of_rows_and_columns_have_the_compiled_order(dtype, shape):
    m, n = shape
    rows, columns = torch.empty(m, dtype=dtype), torch.empty(n, dtype=dtype)
    same(kernels.sums_of_a_matrix, normal(m, n).to(dtype), rows, columns, M=m, N=n)


def test_triton_softmax_has_the_compiled_bits():
    x, o = normal(3, 250) * 4, torch.empty(3, 250)
    same(kernels.softmax, x, o, 250, grid=3, N=256)
    torch.testing.assert_close(o, torch.softmax(x, 1))


@pytest.mark.proof
@pytest.mark.parametrize("values", ["plain", "nasty"])
def test_triton_elementwise_functions_have_the_compiled_bits(values):
    x, y = (normal(64) * 9, normal(64, seed=1)) if values == "plain" else (NASTY, NASTY.roll(9))
    same(kernels.elementwise, x, y, torch.empty(6, 64), N=64)


@pytest.mark.proof
def test_triton_integers_have_the_compiled_bits():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-(2**31), 2**31, (64,), generator=draw, dtype=torch.int32) for _ in "xy")
    y[:8] = 0
    same(kernels.integers, x, y, torch.empty(4, 64, dtype=torch.int32), N=64)


@pytest.mark.proof
@pytest.mark.parametrize("to", ["int8", "int16", "int32", "int64", "uint32", "float16", "bfloat16"])
@pytest.mark.parametrize("have", ["float32", "float64", "bfloat16", "int64"])
def test_triton_casts_have_the_compiled_bits(have, to):
    x = torch.cat(
        [NASTY.double(), normal(62).double() * 1e3, torch.tensor([1.00390625000091, 1e10])]
    )
    x = x.nan_to_num(0.0, 7e15, -7e15) if have == "int64" else x
    same(
        kernels.cast, x.to(getattr(torch, have)), torch.empty(128, dtype=getattr(torch, to)), N=128
    )


@pytest.mark.proof
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
def test_triton_atomics_have_the_compiled_bits(dtype):
    x = (normal(64) * 9).to(dtype)
    x[:4] = torch.tensor([1e-40, -1e-40, 0.0, 0.0]).to(dtype)
    same(
        kernels.added_atomically, x, (normal(64) * 5).to(dtype), torch.zeros(64, dtype=dtype), N=64
    )


@pytest.mark.proof
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_matrix_product_runs_compiled(dtype):
    x, y, o = normal(32, 32).to(dtype), normal(32, 32, seed=1).to(dtype), torch.empty(32, 32)
    with compiled("values"):
        kernels.matrix_product[(1,)](x, y, o, N=32)
    torch.testing.assert_close(o, x.float() @ y.float())


def test_triton_compiled_code_that_differs_is_named():
    o = torch.full((128,), -1.0)
    with pytest.raises(KernelError, match=r"o differs in \d+ of 128 elements, the first at \(1,\)"):
        same(kernels.negative_offsets, torch.arange(256.0), o, 64, N=128, num_warps=1)


def test_triton_what_the_compiler_gets_wrong_is_what_it_compiles_and_is_said():
    o = torch.empty(128)
    with pytest.warns(KernelWarning, match="a dividend of // or % is below zero, and Triton comp"):
        kernels.negative_offsets[(1,)](torch.arange(256.0), o, 64, N=128, num_warps=1)
    assert o[:4].tolist() == [32, 33, 34, 35], "the wide load of the compiled code"
    running, last = torch.empty(4, 16), torch.empty(16)
    with pytest.warns(KernelWarning, match="accumulator is read before its update in its loop"):
        kernels.running_sums[(1,)](torch.ones(4, 16, 256), running, last, 4, M=16, K=256)
    assert not running.any() and torch.equal(last, torch.full((16,), 1024.0))


def test_triton_lanes_that_meet_in_memory_need_a_barrier():
    x = normal(256)
    y, z = x.clone(), x.clone()
    kernels.turned_around_in_place[(1,)](y, N=256, BARRIER=True)
    kernels.turned_around_in_place[(1,)](z, N=256, BARRIER=False, num_warps=1)
    assert torch.equal(y, x.flip(0)) and torch.equal(z, y)
    with pytest.raises(
        KernelError, match=r"race on 'x' within a program: a lane stores what others"
    ):
        kernels.turned_around_in_place[(1,)](x, N=256, BARRIER=False)


def test_triton_libdevice_is_interpreted():
    x, o = normal(64), torch.empty(5, 64)
    kernels.of_libdevice[(1,)](x, o, N=64)
    wide = x.double()
    assert torch.equal(o[0], torch.tanh(wide).float()) and torch.equal(o[1], torch.round(x))
    exact = wide * wide + wide
    assert (o[2].double().abs() <= exact.abs()).all() and (o[4].double() >= wide + 1e-9).all()
    torch.testing.assert_close(o[3], torch.pow(x.abs(), x))


def test_triton_a_cast_to_uint8_out_of_range_is_named():
    o = torch.empty(64, dtype=torch.uint8)
    kernels.cast[(1,)](normal(64).abs() * 9 - 1, o, N=64)
    with pytest.raises(KernelError, match=r"cast to uint8 of 300\.0, out of its range"):
        kernels.cast[(1,)](torch.full((64,), 300.0), o, N=64)


def test_triton_approximations_are_moved_on_request_and_the_budget_with_them():
    from hetkern.testing import Case, check_op
    from hetkern.testing.triton_interpreter import approximate
    from hetkern.testing.values import budget

    def softmax(x):
        o = torch.empty_like(x)
        kernels.softmax[(x.shape[0],)](x, o, x.shape[1], N=256)
        return o

    x = normal(3, 250)
    plain = softmax(x)
    with approximate(seed=3):
        moved = softmax(x)
        case = Case("rows", (x,), constant=("argument 0",))
        check_op(softmax, lambda x: torch.softmax(x, -1), [case], [torch.float32])
    off = (moved / plain - 1).abs().max()
    assert 2**-23 < off < 2**-20 and torch.equal(softmax(x), plain) and not budget.widening.units


def test_triton_a_kernel_within_a_function_has_no_compiled_run():
    import triton

    @triton.jit
    def inner(o):
        o.to(o.dtype)

    with pytest.raises(NotImplementedError, match="is defined inside a function"), compiled():
        inner[(1,)](torch.zeros(1))
