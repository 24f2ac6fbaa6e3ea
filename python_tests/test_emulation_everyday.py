"""Kernels as others write them: what is right on a GPU runs, what is wrong there says so."""

import contextlib
import os
import signal
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from emulating import skip_unless_possible

from hetkern.testing.emulation import EmulationError, emulate_cuda
from hetkern.testing.emulation.rewriting import rewritten

SOURCE = Path(__file__).parent / "kernels" / "everyday.cu"
INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def go():
    """A launcher of the file by its name, plain or under a sanitizer."""
    skip_unless_possible()
    return lambda name, how=None: emulate_cuda(SOURCE, f"go_{name}", sanitize=how)


def ints(n, dtype=torch.int32):
    return torch.zeros(n, dtype=dtype)


def test_a_number_out_of_an_integers_range_saturates(go):
    x = torch.tensor([NAN, -1.0, 1e10, 1e20, 300.7, -INF, 5.9])
    i, u, long, c = (ints(7, t) for t in (torch.int32, torch.uint32, torch.int64, torch.uint8))
    go("casts")(x, i, u, long, c, 7)
    most = 2**31 - 1
    assert i.tolist() == [0, -1, most, most, 300, -most - 1, 5]
    assert u.tolist() == [0, 0, 2**32 - 1, 2**32 - 1, 300, 0, 5]
    assert long.tolist() == [-(2**63), -1, 10**10, 2**63 - 1, 300, -(2**63), 5]
    assert c.tolist() == [0, 0, 255, 255, 300 % 256, 0, 5]


def test_a_product_that_feeds_a_sum_is_rounded_once(go):
    x = torch.tensor([0.1, 0.1, 0.0])
    x[2] = -(x[0] * x[1])
    h = torch.tensor([0.1, 0.0]).half()
    h[1] = -(h[0] * h[0])
    y, g = torch.zeros(3), torch.zeros(5).half()
    go("fused")(x, y, h, g)
    lost = (x[0].double() ** 2 + x[2].double()).float().item()
    assert lost != 0
    assert y.tolist() == [lost, (x[2].double() - x[0].double() ** 2).float().item(), 0]
    lost = (h[0].double() ** 2 + h[1].double()).half().item()
    assert g.tolist() == [lost, lost, 0, lost, lost]


def test_products_are_not_fused_where_nvcc_is_told_not_to(go):
    x = torch.tensor([0.1, 0.1, 0.0])
    x[2] = -(x[0] * x[1])
    y, g = torch.zeros(3), torch.zeros(5).half()
    h = torch.tensor([0.1, 0.0]).half()
    h[1] = -(h[0] * h[0])
    emulate_cuda(SOURCE, "go_fused", flags=("-fmad=false",))(x, y, h, g)
    assert y[0] == 0 and not g.any()


def in_direction(exact, way):
    """A fraction as a float32, toward zero or up or down."""
    nearest = np.float32(float(exact))
    wrong = {"d": Fraction(float(nearest)) > exact, "u": Fraction(float(nearest)) < exact}
    wrong["z"] = wrong["d" if exact > 0 else "u"]
    return np.nextafter(nearest, np.float32(INF if way == "u" else -INF)) if wrong[way] else nearest


@pytest.mark.parametrize("how", [None, "thread"])
def test_functions_and_rounded_arithmetic_are_as_the_manual_says(go, how):
    x, y, s = torch.tensor([0.1, 0.5, 0.9, 0.9999]), torch.zeros(4, 16).double(), torch.special
    go("functions", how)(x, y, 4)
    a = x.double()
    wanted = [
        s.erfinv(a), s.erfinv(a), s.ndtri((1 + x).double() / 2), s.erfcx((30 * x).double()),
        a ** (-1 / 3), (a**2 + 4) ** -0.5, (a**2 + 5).sqrt(), (a**2 + 14).sqrt(),
    ]  # fmt: skip
    torch.testing.assert_close(y[:, :8], torch.stack(wanted, 1), rtol=1e-7, atol=0)
    torch.testing.assert_close(y[:, 7], wanted[7], rtol=1e-15, atol=0)
    for v, row in zip(x.tolist(), y[:, 8:].tolist(), strict=True):
        exact = Fraction(v)
        assert row[:2] == [1, 1 + 2**-23]
        assert row[2] == in_direction(exact * Fraction(float(np.float32(3.1))), "d")
        assert row[3] == in_direction(exact * exact + 1, "z")
        assert row[4] == in_direction(Fraction(1, 3), "u")
        assert row[5:7] == [2**31 - 128, 2**64] and row[7] < 0.1


def test_integer_words_are_as_the_manual_says(go):
    y = ints(15, torch.uint32)
    go("integers")(-7, 0x12345678, y)
    assert y.tolist() == [
        305419904, 3989547394, 152709945, 2300193592, 0x12345678, 2**32 - 7, 2**32 - 925,
        2**32 - 381, 4, 0x12345678, 0x12345671, 0x01000100, 286, 0x8899AAB8, 0x1235567F,
    ]  # fmt: skip


def test_the_read_that_begins_a_loop_of_atomic_cas_is_no_race():
    """And no other read is: of what a lock guards, or of the result."""
    kernel = """namespace n {{ float add(float* p, float v) {{
      int* at = (int*)p; int old = {}, seen;
      do {{ seen = old; old = atomicCAS((int*)(at), seen, f(v)); }} while (seen != old);
      return *at; }}
    void lock(int* l) {{ int before = *other; while (atomicCAS(l, 0, 1)); int v = *l; }} }}"""
    for read in ("*at", "at[0]", "*(at)"):
        wanted = kernel.format("::hetkern::emulation::read_to_compare(at)")
        assert rewritten(kernel.format(read)) == wanted


@pytest.mark.parametrize("how", [None, "thread"])
def test_pairs_are_shuffled_and_added_atomically(go, how):
    h, b, f = torch.zeros(8).half(), torch.zeros(2).bfloat16(), torch.zeros(4)
    n = ints(1, torch.uint16)
    go("pairs", how)(h, b, f, n)
    assert h.tolist() == [496, 32, INF, 0, 1, 1, 32, 64] and b.tolist() == [64, 128]
    assert f.tolist() == [32, 64, 96, 128] and n.item() == 32


def test_fast_math_flushes_and_takes_the_intrinsics_where_it_is_asked_for():
    skip_unless_possible()
    x, y = torch.tensor([1e-40, 1e-30, 1e-12, 20.3]), torch.zeros(7)
    emulate_cuda(SOURCE.with_name("fast_math.cu"), flags=("-use_fast_math",))(x, y)
    v, log2 = x[3].numpy(), np.log2(x[3].numpy())
    powers = [v * np.float32(1.4426950216), np.float32(2.5) * log2]  # products are rounded
    wanted = [0, 0, *(np.float32(np.exp2(np.float64(p))) for p in powers)]
    wanted += [log2 * np.float32(0.30103), 0, v / np.float32(1.5e38)]
    assert y.tolist() == [float(w) for w in wanted]
    assert y[2] != np.float32(np.exp(np.float64(v))) and (x[1] * x[2]) > 0, "else nothing is tested"


def test_copies_of_a_pipeline_arrive_when_they_are_waited_for(go):
    x, y = torch.arange(128.0), torch.zeros(32)
    go("piped")(x, y, 1)
    x[-2:] = 0  # the zeros that the last lane asks for
    assert torch.equal(y, (x[::4] + x[3::4]).flip(0))
    go("piped")(x, y, 0)
    assert y.isnan().all()


def test_shuffles_by_width_take_from_earlier_groups(go):
    y = ints(64)
    go("widths")(y)
    assert y.tolist() == [*range(16), *range(16), *range(1, 32), 31]


def test_tiles_reduce_and_scan(go):
    y, n = torch.zeros(64), ints(64)
    go("groups")(y, n)
    assert y.tolist() == [float(sum(range(t // 16 * 16, t // 16 * 16 + 16))) for t in range(64)]
    assert n.tolist() == [t % 8 + 1 + 100 * (t // 32) for t in range(64)]


@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_a_value_of_a_lane_that_takes_no_part_may_be_taken_and_not_used(go, how):
    x, y = torch.ones(32), torch.zeros(1)
    go("part", how)(x, y, 20, 0)
    assert y.item() == 20
    for which in (1, 2):  # NaN alone would not show in a maximum
        with pytest.raises(EmulationError, match="depend on a value that a shuffle takes"):
            go("part", how)(x, y, 20, which)


def test_shared_memory_that_nobody_wrote_shows_though_it_is_no_nan(go):
    y = ints(64)
    go("unwritten", "address")(y, 0)
    assert y.tolist() == [5] * 32 + [1] * 32
    with pytest.raises(EmulationError, match="depend on shared memory that nobody has") as caught:
        go("unwritten", "address")(y, 1)
    assert "the first of them at y[32], and y has 64 elements (64) [unwritten]" in str(caught.value)


def test_a_kernels_own_memory_is_new_where_shared_memory_is_filled_otherwise(go):
    y = ints(4)
    go("numbered", "address")(y)
    assert y.tolist() == [0, 1, 2, 3]


def test_lanes_that_store_one_value_to_one_place_are_no_race(go):
    y = ints(64)
    go("one_place", "thread")(y, 0)
    assert y.tolist() == [5] * 64
    for which, second in (1, 7), (2, 63), (3, 32):
        said = (
            rf"shared memory: write of 4 bytes by block \(0, 0, 0\) thread {second} at .*cu:\d+, "
        )
        with pytest.raises(EmulationError, match=said + "and write of 4 bytes by"):
            go("one_place", "thread")(y, which)


def test_what_a_thread_stored_before_it_returned_is_there_after_the_barrier(go):
    y = ints(32)
    go("returned", "thread")(y, 0)
    assert y.tolist() == [5] * 32
    with pytest.raises(EmulationError, match="data race in shared memory: "):
        go("returned", "thread")(y, 1)


@pytest.mark.parametrize("how", [0, 1, 2], ids=["volatile", "atomicAdd", "acquire"])
def test_blocks_that_wait_for_one_another_take_turns(go, how):
    a, b = torch.zeros(96), torch.zeros(96)
    go("meet")(a, b, ints(1, torch.uint32), 3, how)
    assert b.view(3, 32)[:, 0].tolist() == [1, 2, 0]


def test_a_wait_for_what_never_comes_ends(go):
    with pytest.raises(EmulationError, match=r"deadlock in meet: block \(0, 0, 0\)"):
        go("meet")(torch.zeros(64), torch.zeros(64), ints(1, torch.uint32), 2, 3)


def test_ctrl_c_ends_a_call(go):
    kernel = go("meet")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job may ignore it
    pressed = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    pressed.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1000):
                with contextlib.suppress(EmulationError):
                    kernel(torch.zeros(64), torch.zeros(64), ints(1, torch.uint32), 2, 3)
    finally:
        pressed.join()
        signal.signal(signal.SIGINT, before)


def test_the_grids_barrier_wants_a_cooperative_launch(go):
    a, b = torch.zeros(320), torch.zeros(320)
    go("whole_grid")(a, b, 10, 1)
    assert torch.equal(b, torch.arange(319.0, -1, -1))
    with pytest.raises(EmulationError, match=r"not cooperative: .*everyday\.cu:"):
        go("whole_grid")(a, b, 10, 0)
    with pytest.raises(EmulationError, match="room for 512 of this grid"):
        go("whole_grid")(torch.zeros(600 * 32), torch.zeros(600 * 32), 600, 1)


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (0, r"an integer division by zero"),
        (1, r"a load through a null pointer"),
        (2, r"assertion `y\[0\] > 0' failed"),
        (3, r"a store at y\[1099511627776\], and y has 2 elements"),
    ],
    ids=["a division by zero", "a null pointer", "an assertion", "far outside"],
)
def test_a_crash_ends_the_call_and_not_python(go, which, said):
    with pytest.raises(EmulationError, match=said) as caught:
        go("fault")(None, ints(2), which)
    assert "fault, block (0, 0, 0) thread 3" in str(caught.value)
    assert "everyday.cu:" in str(caught.value)


def test_a_crash_in_a_launcher_ends_the_call(go):
    with pytest.raises(EmulationError, match=r"a store through a null pointer, at .*everyday\.cu"):
        go("host_fault")(None)


def test_more_threads_than_the_launch_bounds_are_refused(go):
    go("bounded")(torch.zeros(32), 32)
    with pytest.raises(EmulationError, match=r"33 threads a block, and .* allow 32.*bounded"):
        go("bounded")(torch.zeros(64), 33)


@pytest.mark.parametrize("by", [129, 320, -1, 1 << 20, 1 << 32, -(1 << 32)])
def test_what_is_outside_of_one_tensor_is_found_inside_another(go, by):
    x, y = torch.zeros(256), torch.zeros(128)
    with pytest.raises(EmulationError, match=r"x\[-?\d+\], and x has 256 elements") as caught:
        go("shifted", "address")(x, y, by)
    assert "everyday.cu:" in str(caught.value) and "block (0, 0, 0) thread" in str(caught.value)


@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_views_of_one_packed_tensor_are_tensors(go, how):
    q, k = torch.arange(4 * 64.0).view(4, 64).chunk(2, dim=-1)
    y = torch.zeros(4, 32)
    go("packed", how)(q, k, y, 64, 0)
    assert torch.equal(y, q * k)


def test_a_view_ends_where_the_next_one_begins(go):
    q, k = torch.ones(4, 64).chunk(2, dim=-1)
    with pytest.raises(EmulationError, match=r"q\[32\], and q has 128 elements"):
        go("packed", "address")(q, k, torch.zeros(4, 32), 64, 1)


@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_tensors_that_share_elements_share_memory(go, how):
    x = torch.arange(300.0)
    go("shifted", how)(x, x[1:129], 150)
    assert x[1:129].tolist() == [*range(150, 278)]
    assert x[0] == 0


@pytest.mark.parametrize("how", [None, "address"])
def test_what_a_kernel_prints_is_shown(go, how, capfd):
    go("told", how)(7)
    assert capfd.readouterr().out == "heard 7\n"


@pytest.mark.parametrize("how", [None, "address", "thread"])
def test_parts_of_shared_memory_are_arrays_of_their_own(go, how):
    kernel = go("reversed", how)
    x, y, bytes = torch.arange(33.0), torch.zeros(2, 33), 4 + 33 * 4 + 8 + 33 * 4 + 33
    kernel(x, y, 33, 0, bytes)
    assert torch.equal(y, (x.flip(0) + 3).expand(2, 33))
    with pytest.raises(
        EmulationError, match=r"takes 309 bytes of shared memory so far, its .* 300"
    ):
        kernel(x, y, 33, 0, 300)
    for over in (1, 40):  # into what lies behind, and beyond it
        if how == "address":
            with pytest.raises(
                EmulationError, match=r"out of bounds .* store of 4 bytes of shared"
            ):
                kernel(x, y, 33, over, bytes)
