"""Inline PTX of other people's kernels runs in the emulation, or is refused by its name."""

from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing import assert_close_to_exact
from hetkern.testing.emulation import EmulationError, emulate_cuda

SOURCE = Path(__file__).parent / "kernels" / "inline_ptx.cu"


@pytest.fixture(scope="module")
def go():
    """A launcher of the file by its name, plain or under a sanitizer."""
    skip_unless_possible()
    return lambda name, how=None: emulate_cuda(SOURCE, f"go_{name}", sanitize=how)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("few", [False, True], ids=["m16n8k16", "m16n8k8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_warps_product_of_loaded_matrices_is_within_the_error_budget(go, dtype, few):
    a, b, y = normal(16, 16).to(dtype), normal(16, 8, seed=1).to(dtype), torch.zeros(16, 8)
    go(f"product_{str(dtype).removeprefix('torch.')}")(a, b, y, few)
    assert_close_to_exact(y, lambda t: a.to(t) @ b.to(t))


def test_matrices_are_loaded_cleanly_under_the_sanitizers(go):
    a, b = normal(16, 16).half(), normal(16, 8, seed=1).half()
    for how in ("address", "thread"):
        y = torch.zeros(16, 8)
        go("product_float16", how)(a, b, y, 0)
        assert_close_to_exact(y, lambda t: a.to(t) @ b.to(t))


def test_a_product_of_tf32_rounds_its_factors_as_cvt_does(go):
    a, b, y = normal(16, 8), normal(8, 8, seed=1), torch.zeros(16, 8)
    go("product_tf32")(a, b, y)

    def rounded(x):
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    assert not torch.equal(rounded(a), a)
    assert_close_to_exact(y, lambda t: rounded(a).to(t) @ rounded(b).to(t))


@pytest.mark.parametrize("few", [False, True], ids=["m16n8k32", "m16n8k16"])
def test_a_product_of_whole_numbers_is_exact(go, few):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (n, 32), generator=draw, dtype=torch.int8) for n in (16, 8))
    y = torch.zeros(16, 8, dtype=torch.int32)
    go("product_int8")(a, b, y, few)
    assert torch.equal(y.long(), a.long() @ b.long().T)


def nibbles(bits, signed):
    numbers = torch.stack([bits >> 4 * k & 15 for k in range(8)], -1).flatten(-2)
    return torch.where(numbers > 7, numbers - 16, numbers) if signed else numbers


def lane_pairs(groups, dtype):
    """The halves of registers a0 and a1, or b0 and b1, of Volta's four quad-pairs: [4, 8, 4]."""
    x = groups.to(torch.int32).contiguous().view(dtype)  # [32, 4]
    quads = x.view(2, 4, 4, 4)  # upper half of the warp, quad-pair, lane, element
    return quads.permute(1, 0, 2, 3).reshape(4, 8, 4)


@pytest.mark.parametrize("which", range(6), ids=["s4", "fp8", "u8", "volta", "volta row", "f16"])
def test_fragments_lie_in_the_lanes_as_the_isa_says(go, which):
    """Its tables are named "Matrix Fragments for mma.m…"; all sums are exact here."""
    draw = torch.Generator().manual_seed(which)
    small = [torch.randint(-3, 4, (32, 24), generator=draw).float() for _ in range(2)]
    types = {1: (torch.float8_e4m3fn, torch.float8_e5m2)}.get(which, (torch.float16,) * 2)
    if which in (0, 2):
        given = torch.randint(-(2**31), 2**31, (32, 6), generator=draw).int()
    else:
        width = 4 // types[0].itemsize
        a = small[0][:, : 4 * width].to(types[0]).contiguous().view(torch.int32)
        b = small[1][:, : 2 * width].to(types[1]).contiguous().view(torch.int32)
        given = torch.cat([a, b], 1)
    y = torch.zeros(32, 8, dtype=torch.int32)
    go("fragments")(given.view(torch.uint32), y.view(torch.uint32), which)

    lane = torch.arange(32)
    group, member = lane // 4, lane % 4
    if which in (3, 4):
        a = lane_pairs(given[:, :2], torch.float16).float()  # [m, k]
        b = lane_pairs(given[:, 4:], torch.float16).float()  # [n, k], or halves of [k, n] in rows
        product = torch.zeros(4, 8, 8)
        for q in range(4):
            left = b[q] if which == 3 else torch.cat([b[q, :4].T, b[q, 4:].T])
            product[q] = a[q] @ left.T
        for at in range(32):
            quad, upper = at % 16 // 4, at // 16 * 4
            got = y[at].view(torch.float32) if which == 3 else y[at, :4].view(torch.float16).float()
            for i in range(8):
                row, column = at % 4 + upper, i
                if which == 3:
                    row, column = (at & 1) + (i & 2) + upper, (i & 4) + (at & 2) + (i & 1)
                assert got[i] == product[quad, row, column], (at, i)
        return
    packed = {0: 8, 1: 4, 2: 4, 5: 2}[which]
    rows, depth = (8, 16) if which == 2 else (16, 8 * packed)
    a, b = torch.zeros(rows, depth), torch.zeros(8, depth)
    if which == 0:
        of_a, of_b = nibbles(given[:, :4], True), nibbles(given[:, 4:], False)
    elif which == 2:
        of_a, of_b = (
            given[:, :1].contiguous().view(torch.uint8),
            given[:, 4:5].contiguous().view(torch.int8),
        )
    else:
        of_a, of_b = (
            g.contiguous().view(t) for g, t in zip((given[:, :4], given[:, 4:]), types, strict=True)
        )
    for i in range(of_a.shape[1]):
        register, place = i // packed, i % packed
        row = group + 8 * (register % 2)
        a[row, member * packed + place + register // 2 * 4 * packed] = of_a[:, i].float()
    for i in range(of_b.shape[1]):
        b[group, member * packed + i % packed + i // packed * 4 * packed] = of_b[:, i].float()
    product = a @ b.T
    sums = y[:, : 2 if which in (2, 5) else 4].contiguous()
    sums = sums.view(
        {0: torch.int32, 1: torch.float32, 2: torch.int32, 5: torch.float16}[which]
    ).float()
    for i in range(rows // 4):
        assert torch.equal(sums[:, i], product[group + i // 2 * 8, member * 2 + i % 2])


def test_elementwise_instructions_predicates_and_special_registers(go):
    x, y = torch.tensor([-2.0, 0.1, 3.0, -0.3]), torch.zeros(4)
    a = torch.tensor([0x12345678, 0xFFFF0000, 0x0F0F0F0F, 0xDEADBEEF], dtype=torch.uint32)
    b = torch.zeros(4, 4, dtype=torch.uint32)
    go("elementwise")(x, y, a, b, 4)
    exact = x.double() ** 2 + 1
    assert torch.equal(y, torch.where(x < 0, -exact, exact).float())
    for t, got in enumerate(b.tolist()):
        p, q, r = (int(a[(t + k) % 4]) for k in range(3))
        low, high = p.to_bytes(4, "little"), q.to_bytes(4, "little")
        assert got == [
            p & q | p & r | q & r,
            int.from_bytes(bytes([low[1], low[3], high[1], high[3]]), "little"),
            p >> 5 & 511,
            (p * q + t) % 2**32,
        ]


@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_a_copy_is_there_once_it_was_waited_for(go, how):
    x, y = normal(32, 4), torch.zeros(32, 4)
    go("copied", how)(x, y, 0)
    assert torch.equal(y, x.flip(0))


def test_a_copy_that_is_read_before_its_wait_is_not_there(go):
    x = normal(32, 4)
    for pending, there in (1, 2), (2, 0):
        y = torch.zeros(32, 4)
        go("copied")(x, y, pending)
        assert torch.equal(y[:, :there], x.flip(0)[:, :there])
        assert y[:, there:].isnan().all(), "what is still on its way reads as NaN"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('asm volatile("tcgen05.alloc.sync [%0], 32;" :: "r"(1));', "tcgen05.alloc.sync [%0], 32"),
        ('asm("add.rz.f32 %0, %0, %0;" : "+f"(*y));', "add.rz.f32 %0, %0, %0"),
        ('asm("mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {};" ::);', "mma.sync"),
        ('asm("bar.sync 1, 64;");', "bar.sync 1, 64"),
        ('asm goto("bra %l0;" :::: away); away:;', "asm goto"),
    ],
)  # fmt: skip
def test_an_instruction_that_is_not_known_is_refused_by_name_and_line(tmp_path, text, named):
    skip_unless_possible()
    file = tmp_path / "kernel.cu"
    file.write_text(
        '#include "cuda/device/launch.cuh"\n#include "theirs.cuh"\n'
        'extern "C" void go(float* y, void* stream) { HETKERN_LAUNCH(k, 1, 32, 0, stream, y); }\n'
    )
    (tmp_path / "theirs.cuh").write_text(f"\n__global__ void k(float* y) {{\n  {text}\n}}\n")
    with pytest.raises(EmulationError) as caught:
        emulate_cuda(file)
    assert f"theirs.cuh:3: the emulation refuses asm: it does not know {named}" in str(caught.value)
