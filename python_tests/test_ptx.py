"""The PTX evaluator: instructions against numpy and torch, and what it does not know."""

import numpy as np
import pytest
import torch

from hetkern.testing.ptx import Machine, PtxError, parse

HEAD = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1
)
{
	.reg .b32 	%r<40>;
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	ld.global.b32 	%r2, [%rd4];
	ld.global.b32 	%r3, [%rd4+128];
"""
TAIL = "	st.global.b32 	[%rd5], %r4;\n	ret;\n}\n"


def run(body, x, threads=32):
    """``body`` makes %r4 of %r2 and %r3, x's two halves."""
    x = np.ascontiguousarray(x)
    out = np.zeros(threads, x.dtype)
    machine = Machine(parse(HEAD + body + TAIL), threads, [])
    machine.parameters = [
        machine.memory.add(x.view(np.uint8)),
        machine.memory.add(out.view(np.uint8)),
    ]
    machine.run((1, 1, 1))
    return out


def floats(seed=0):
    return np.random.default_rng(seed).standard_normal(64).astype(np.float32)


@pytest.mark.parametrize(
    "body, expected",
    [
        ("add.f32 %r4, %r2, %r3;", lambda a, b: a + b),
        ("mul.rn.f32 %r4, %r2, %r3;", lambda a, b: a * b),
        ("div.full.f32 %r4, %r2, %r3;", lambda a, b: a / b),
        ("fma.rn.f32 %r4, %r2, %r3, %r2;", lambda a, b: (a.astype(float) * b + a).astype("f4")),
        ("max.f32 %r4, %r2, %r3;", np.maximum),
        ("sqrt.rn.f32 %r4, %r2;", np.sqrt),
        ("setp.lt.f32 %p1, %r2, %r3; selp.b32 %r4, %r2, %r3, %p1;", np.minimum),
        ("cvt.rmi.f32.f32 %r4, %r2;", np.floor),
        ("neg.f32 %r5, %r2; @!%p9 mov.b32 %r4, %r5; mov.b32 %r4, %r5;", lambda a, b: -a),
    ],
)
def test_ptx_arithmetic_of_floats_is_numpys(body, expected):
    x = floats()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(run(body, x), expected(x[:32], x[32:]))


@pytest.mark.parametrize(
    "body, expected",
    [
        ("mad.lo.s32 %r4, %r2, %r3, %r2;", lambda a, b: a * b + a),
        ("mul.hi.s32 %r4, %r2, %r3;", lambda a, b: (a.astype("i8") * b >> 32).astype("i4")),
        ("rem.s32 %r4, %r2, 7;", lambda a, b: np.fmod(a, 7).astype("i4")),
        ("shr.s32 %r4, %r2, 40;", lambda a, b: a >> 31),
        ("shl.b32 %r4, %r2, 32;", lambda a, b: 0 * a),
        ("prmt.b32 %r4, %r2, %r3, 0x3210;", lambda a, b: a),
        ("bfe.s32 %r4, %r2, 4, 8;", lambda a, b: (a << 20) >> 24),
        ("lop3.b32 %r4, %r2, %r3, 0, 0x3c;", lambda a, b: a ^ b),
        ("shfl.sync.bfly.b32 %r4, %r2, 16, 31, -1;", lambda a, b: np.roll(a, 16)),
        ("shfl.sync.down.b32 %r4, %r2, 1, 31, -1;", lambda a, b: np.append(a[1:], a[-1])),
        ("redux.sync.max.s32 %r4, %r2, 0xffffffff;", lambda a, b: np.full(32, a.max())),
    ],
)
def test_ptx_arithmetic_of_integers_is_numpys(body, expected):
    x = np.random.default_rng(1).integers(-(2**31), 2**31, 64).astype(np.int32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(run(body, x), expected(x[:32], x[32:]))


def test_ptx_branches_and_shared_memory():
    body = """
	mov.b32 %r6, global_smem;
	shl.b32 %r7, %r1, 2;
	add.s32 %r8, %r6, %r7;
	st.shared.b32 [%r8], %r2;
	bar.sync 0;
	xor.b32 %r9, %r7, 4;
	add.s32 %r10, %r6, %r9;
	ld.shared.b32 %r4, [%r10];
	setp.lt.u32 %p1, %r1, 16;
	@%p1 bra $L__done;
	mov.b32 %r4, 0f3F800000;
$L__done:
"""
    x = floats()
    swapped = x[:32].reshape(-1, 2)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(run(body, x)[:16], swapped[:16])
    assert (run(body, x)[16:] == 1).all()


def test_ptx_flushes_subnormals_where_the_instruction_says_so():
    x = np.full(64, 1e-40, np.float32)
    assert (run("add.f32 %r4, %r2, %r3;", x) > 0).all()
    assert (run("add.ftz.f32 %r4, %r2, %r3;", x) == 0).all()


def test_ptx_converts_to_integers_as_machines_do():
    x = np.resize(np.array([np.nan, np.inf, -np.inf, 2.7, -2.7, 3e9, -3e9, 0.5], np.float32), 64)
    got = run("cvt.rzi.s32.f32 %r4, %r2;", x).view(np.int32)
    assert got[:8].tolist() == [0, 2**31 - 1, -(2**31), 2, -2, 2**31 - 1, -(2**31), 0]


@pytest.mark.parametrize(
    "body, message",
    [
        ("tex.2d.v4.f32.f32 %r4, %r2;", "the instruction tex is not known"),
        ("add.rp.f32 %r4, %r2, %r3;", "add with .rp is not known"),
        ("ld.global.b32 %r4, [%rd4+65536];", "in no tensor of the launch"),
        ("wgmma.fence.sync.aligned;", "the instruction wgmma is not known"),
    ],
)
def test_ptx_refuses_by_name(body, message):
    with pytest.raises(PtxError, match=message):
        run(body, floats())


@pytest.mark.parametrize("kind, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_ptx_mma_multiplies_matrices(kind, dtype):
    draw = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(16, 16, generator=draw).to(dtype),
        torch.randn(16, 8, generator=draw).to(dtype),
    )
    lane = torch.arange(32)
    g, t = lane // 4, lane % 4
    words = []
    for row, column in ((g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)):
        words.append(torch.stack([a[row, column], a[row, column + 1]], 1))
    for row in (2 * t, 2 * t + 8):
        words.append(torch.stack([b[row, g], b[row + 1, g]], 1))
    x = torch.stack(words).view(torch.int32).reshape(-1).numpy()  # a register after the other
    loads = "".join(f"ld.global.b32 %r{10 + n}, [%rd4+{128 * n}];" for n in range(6))
    body = (
        loads + "mov.b32 %r20, 0f00000000; mma.sync.aligned.m16n8k16.row.col.f32."
        f"{kind}.{kind}.f32 {{%r21, %r22, %r4, %r23}}, {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, "
        "{%r20, %r20, %r20, %r20};"
    )
    got = torch.from_numpy(run(body, x).view(np.float32).copy())
    torch.testing.assert_close(got, (a.float() @ b.float())[g + 8, 2 * t])
