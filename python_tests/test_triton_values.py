"""Values of the repaired interpreter against those of the compiled PTX, and everyday kernels.

test_triton_interpreter.py starts these in a process of their own.
"""

import importlib.util

import pytest
import torch

from hetkern.testing import triton_interpreter
from hetkern.testing.triton_interpreter import KernelError

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not triton_interpreter.active():
    pytest.skip("test_triton_interpreter.py runs it in a process", allow_module_level=True)

import triton.language as tl
import triton_values_kernels as kernels

NAN, INF = float("nan"), float("inf")
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def test_triton_bfloat16_and_a_number_is_bfloat16():
    x, o = torch.tensor([3.0, 0.1, -7.0, 1e4]).bfloat16(), torch.empty(4).bfloat16()
    more = torch.empty(4, dtype=torch.bool)
    kernels.with_numbers[(1,)](x, o, more, 4)
    once = (x.float() * 2.5 + 1).bfloat16()  # one fma
    assert torch.equal(o, once + 0.5) and torch.equal(more, x > 2.5)


@pytest.mark.parametrize("target", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", FP8)
def test_triton_reads_every_8_bit_float_exactly(source, target):
    x = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(source)
    o, wanted = torch.zeros(256, dtype=target), x.to(target)
    kernels.converted[(1,)](x, o, 256)
    assert torch.equal(o.isnan(), wanted.isnan())
    assert torch.equal(o.nan_to_num(7.0), wanted.nan_to_num(7.0))


@pytest.mark.parametrize("source", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", FP8)
def test_triton_rounds_to_8_bit_floats_once_and_saturates(target, source):
    most = torch.finfo(target).max
    special = [NAN, INF, -INF, 0.0, -0.0, 448.0, 464.0, 480.0, 61440.0, 2.0**-10, 1.0625, -1.1875]
    x = torch.cat([torch.tensor(special), 3 ** torch.linspace(-9, 9, 116)]).to(source)
    o = torch.zeros(128).to(target)
    kernels.converted[(1,)](x, o, 128)
    wanted = x.float().clamp(-most, most).to(target).view(torch.uint8)
    wanted[0] = 0x7F  # the one NaN of the instruction
    assert torch.equal(o.view(torch.uint8), wanted), "torch rounds once too"


@pytest.mark.parametrize("source", [torch.float64, torch.float8_e5m2])
def test_triton_refuses_casts_to_8_bits_that_do_not_compile(source):
    o = torch.zeros(4).to(torch.float8_e4m3fn)
    with pytest.raises(KernelError, match=r"does not compile: a cast of .* by way of float32"):
        kernels.converted[(1,)](torch.zeros(4).to(source), o, 4)


@pytest.mark.parametrize("dtype", FP8)
def test_triton_arithmetic_on_8_bit_floats_is_refused(dtype):
    o = torch.zeros(4).to(dtype)
    with pytest.raises(NotImplementedError, match=r"arithmetic on fp8.*: cast first"):
        kernels.with_numbers[(1,)](o, o, torch.empty(4, dtype=torch.bool), 4)


def test_triton_indices_assertions_and_atomics_that_a_gpu_does_not_check_are_named():
    x, at, o = torch.arange(8.0), torch.arange(8, dtype=torch.int32), torch.zeros(8)
    kernels.gathered[(1,)](x, at.flip(0), o, 8)
    assert torch.equal(o, x.flip(0))
    for wrong in (8, -1):
        at[3] = wrong
        with pytest.raises(KernelError, match=rf"tl.gather of element {wrong} of an axis of 8: a"):
            kernels.gathered[(1,)](x, at, o, 8)
    with pytest.raises(KernelError, match=r"py:\d+ assertion failed: small \(kernel asserted"):
        kernels.asserted[(1,)](x, 8)
    kernels.asserted[(1,)](x / 8, 8)
    with pytest.raises(KernelError, match=r"an atomic of a block at one pointer: reduce it"):
        kernels.added_at_one_pointer[(1,)](x, o, 8)


@pytest.mark.parametrize(
    "dtype, values, wanted",
    [
        (torch.int32, [NAN, INF, 1e10, -1e10], [0, 2**31 - 1, 2**31 - 1, -(2**31)]),
        (torch.int32, [1.9, -1.9, 2147483520.0, -0.5], [1, -1, 2147483520, 0]),
        (torch.int16, [NAN, INF, 7e4, -7e4], [0, 32767, 32767, -32768]),
        (torch.uint32, [NAN, -1.0, INF, 5e9], [0, 0, 2**32 - 1, 2**32 - 1]),
        (torch.uint8, [-1.0, 3.0, 200.0, 0.5], [0, 3, 200, 0]),
        (torch.int64, [1e30, -1e30, 3.7, -INF], [2**63 - 1, -(2**63), 3, -(2**63)]),
    ],
)
def test_triton_float_to_integer_saturates(dtype, values, wanted):
    o = torch.zeros(4, dtype=dtype)
    kernels.converted[(1,)](torch.tensor(values), o, 4)
    assert o.tolist() == wanted


def test_triton_bfloat16_to_integer_is_of_values():
    o = torch.zeros(4, dtype=torch.int32)
    kernels.converted[(1,)](torch.tensor([NAN, 2.5, -3e38, 100.0]).bfloat16(), o, 4)
    assert o.tolist() == [0, 2, -(2**31), 100]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_clamp_drops_nan(dtype):
    x = torch.tensor([NAN, -3.0, 0.5, 7.0], dtype=dtype)
    o = torch.empty_like(x)
    kernels.clamped[(1,)](x, o, 4)
    assert o.tolist() == [-1.0, -1.0, 0.5, 2.0]


def test_triton_approximate_functions_flush_subnormals():
    o = torch.zeros(5, 4)
    kernels.approximate[(1,)](torch.full((4,), 1e-40), o, 4)
    assert o[:4, 0].tolist() == [0.0, INF, 0.0, 0.0]
    assert o[4, 0] > 0, "sqrt_rn keeps them"
    kernels.approximate[(1,)](torch.full((4,), 6.25), o, 4)
    assert o[:3, 0].tolist() == [2.5, torch.tensor(0.4).item(), 7.0]


def test_triton_sum_of_halves_adds_halves():
    x = torch.randn(1024, generator=torch.Generator().manual_seed(5)).abs().half()
    o = torch.zeros(1, dtype=torch.float16)
    kernels.total[(1,)](x, o, 1024)
    assert o.item() == 772.0, "what the PTX of four warps gives; the exact sum is 771.2"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("N, warps, each", [(256, 4, 2), (512, 1, 8), (1024, 4, 8), (2048, 8, 8)])
def test_triton_sum_of_16_bits_rounds_in_the_order_of_lanes_and_warps(N, warps, each, dtype):
    x = torch.randn(N, generator=torch.Generator().manual_seed(N)).abs().to(dtype)
    o, parts = torch.zeros(1, dtype=dtype), x.view(-1, warps, 32, each)
    kernels.total[(1,)](x, o, N, num_warps=warps)
    lane = [parts[turn, :, :, i] for turn in range(len(parts)) for i in range(each)]
    total = lane[0]
    for part in lane[1:]:
        total = total + part
    for dim in (1, 0):
        while total.shape[dim] > 1:
            first, second = total.chunk(2, dim)
            total = first + second
    assert torch.equal(o, total.flatten())
    rows, y = x.view(4, -1), torch.zeros(4, dtype=dtype)
    kernels.totals[(1,)](rows, y, 4, N // 4)
    torch.testing.assert_close(y.float(), rows.float().sum(1), rtol=0.02, atol=0)


def test_triton_argmax_of_nan_is_refused():
    x, o = torch.arange(64.0) * 7 % 64, torch.zeros(1, dtype=torch.int32)
    kernels.largest_at[(1,)](x, o, 64)
    assert o.item() == x.argmax()
    x[57] = NAN
    with pytest.raises(KernelError, match="argmax or argmin of NaN: which index a GPU gives is"):
        kernels.largest_at[(1,)](x, o, 64)


def test_triton_inverts_unsigned_and_exchanges_floats():
    x, o = torch.tensor([1, 255], dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    kernels.inverted[(1,)](x, o, 2)
    assert o.tolist() == [254, 0]
    x, o = torch.tensor([1.0, 2.0]), torch.zeros(2)
    kernels.exchanged[(1,)](x, o, 2)
    assert o.tolist() == [1.0, 2.0] and x.tolist() == [7.5, 7.5]


# ---- Block pointers, descriptors, hints. ---------------------------------------------------------


@pytest.mark.skipif(not hasattr(tl, "make_block_ptr"), reason="this Triton has no block pointers")
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_triton_block_pointers_are_checked_and_padded():
    x, o = torch.arange(64.0).reshape(8, 8), torch.ones(8, 8)
    kernels.by_block_pointer[(1,)](x, o, 8, 8, 8)
    wanted = torch.zeros(8, 8)
    wanted[:6, :6] = x[2:, 2:]
    assert torch.equal(o, wanted)
    with pytest.raises(KernelError, match="out-of-bounds load"):
        kernels.by_block_pointer[(1,)](x, o, 9, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad, row, column", [("zero", 4, 4), ("zero", 2, 1), ("nan", 4, -3)])
def test_triton_descriptors_take_any_coordinate(pad, row, column, dtype):
    x, o = torch.arange(64.0).reshape(8, 8).to(dtype), torch.ones(8, 8, dtype=dtype)
    kernels.by_descriptor[(1,)](x, o, 8, 8, row, column, pad, 8)
    around = torch.full((24, 24), NAN if pad == "nan" else 0.0, dtype=dtype)
    around[8:16, 8:16] = x
    wanted = around[8 + row : 16 + row, 8 + column : 16 + column]
    assert torch.equal(o.isnan(), wanted.isnan())
    assert torch.equal(o.nan_to_num(7.0), wanted.nan_to_num(7.0))


def test_triton_false_hints_about_blocks_are_named():
    x, o = torch.arange(256.0), torch.zeros(64)
    kernels.hinted[(1,)](x, o, 16, 1, 64)
    assert torch.equal(o, x[16:80])
    with pytest.raises(KernelError, match=r"tl.multiple_of\(8\) of a block is false"):
        kernels.hinted[(1,)](x, o, 4, 1, 64)
    with pytest.raises(KernelError, match=r"tl.max_contiguous\(8\) of a block is false"):
        kernels.hinted[(1,)](x, o, 0, 0, 64)
    kernels.constant_in_groups[(1,)](x, o, 32, 64)
    with pytest.raises(KernelError, match=r"tl.max_constancy\(8\) of a block is false"):
        kernels.constant_in_groups[(1,)](x, o, 33, 64)


# ---- Programs, and addresses in a tensor. --------------------------------------------------------


def test_triton_programs_are_told_apart_in_large_grids():
    for X in (1, 1024):
        with pytest.raises(KernelError, match="stores what another program stored"):
            kernels.two_programs[(1025, 2)](torch.zeros(1), X)
    y = torch.zeros(2049)
    kernels.own_element[(1, 1, 2049)](y)
    assert y.all()


def test_triton_follows_addresses_in_a_tensor():
    parts, y = [torch.full((10,), float(i)) for i in range(3)], torch.empty(3, 10)
    addresses = torch.tensor([part.data_ptr() for part in parts])
    kernels.grouped[(3,)](addresses, y, 10, 16)
    assert torch.equal(y, torch.stack(parts))
    with pytest.raises(KernelError, match=r"out-of-bounds load: 1 of 11 lanes, .* '\*addresses\[0"):
        kernels.grouped[(1,)](addresses, torch.empty(3, 11), 11, 16)
    addresses[0] += 4096 * 4096 * 16
    with pytest.raises(KernelError, match="out-of-bounds load: 10 of 10 lanes"):
        kernels.grouped[(1,)](addresses, y, 10, 16)
