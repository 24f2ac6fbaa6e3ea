"""The repaired Triton interpreter: its numbers, its checks, and one planted bug for each of these.

Triton interprets in a process of its own: without the plugin, this file runs itself and
test_triton_kernels.py and its sisters (language, values, compiled) in one.
"""

import importlib.util
import inspect
import os
import re
import subprocess
import sys

import pytest
import torch

import hetkern
from hetkern.testing import triton_interpreter
from hetkern.testing.triton_interpreter import KernelError, races_allowed, traffic

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

PLUGIN = "hetkern.testing.triton_interpreter"
interpreted = pytest.mark.skipif(
    not triton_interpreter.active(), reason=f"runs in a process of its own: pytest -p {PLUGIN}"
)
if triton_interpreter.active():
    import triton_kernels as kernels


def run(*command, **environment):
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=variables, timeout=600
    )


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- How it is started. --------------------------------------------------------------------------


@pytest.mark.skipif(triton_interpreter.active(), reason="this is that process")
def test_triton_interpreter_suite_passes_in_a_process_of_its_own():
    others = [
        __file__.replace("interpreter", name)
        for name in ("kernels", "language", "values", "compiled")
    ]
    done = run("-m", "pytest", "-q", "-p", PLUGIN, "--no-header", __file__, *others)
    counted = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and counted, done.stdout + done.stderr
    assert int(counted[1]) >= 147, f"fewer tests ran than there are:\n{done.stdout}"


def test_triton_interpreter_refuses_to_come_after_triton():
    late = run("-c", f"import triton, {PLUGIN} as t; t.activate()")
    assert late.returncode and "too late: triton was imported before" in late.stderr
    early = run("-c", f"import {PLUGIN} as t; t.activate(); import triton")
    assert early.returncode == 0, early.stderr


def test_triton_interpreter_runs_a_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch, triton, triton.language as tl\n"
        "@triton.jit\n"
        "def one(y):\n"
        "    tl.store(y, 1.0)\n"
        "y = torch.zeros(1)\n"
        "one[(1,)](y)\n"
        "print(y.item(), sys.argv[1:])\n"
    )
    done = run("-m", PLUGIN, str(script), "argument")
    assert done.stdout == "1.0 ['argument']\n", done.stderr


def test_triton_is_not_imported_before_a_kernel_is_called():
    done = run("-c", "import sys, hetkern, hetkern.testing; print('triton' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


# ---- Numbers. ------------------------------------------------------------------------------------


@interpreted
def test_triton_bfloat16_rounds_to_nearest_even_as_torch_does():
    bits = torch.arange(0, 1 << 16) * 0x8001 + 0x7FFF
    x = torch.cat([bits.int().view(torch.float32), torch.tensor([3.4e38, -3.4e38, 1e-40, 0.0])])
    x = torch.cat([x, torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])])[-(1 << 15) :]
    y = torch.empty(x.shape, dtype=torch.bfloat16)
    kernels.cast[(1,)](x, y, BLOCK=1 << 15)
    assert torch.equal(y.float().nan_to_num(7.0), x.bfloat16().float().nan_to_num(7.0))
    assert torch.equal(y.isnan(), x.isnan()) and y.isinf().any()


@interpreted
def test_triton_bfloat16_arithmetic_is_on_values_and_not_on_bits():
    x, y = normal(256).bfloat16(), normal(256, seed=1).bfloat16()
    sums, products = torch.empty_like(x), torch.empty_like(x)
    less = torch.empty(256, dtype=torch.bool)
    kernels.arithmetic[(1,)](x, y, sums, products, less, BLOCK=256)
    assert torch.equal(sums, x + y) and torch.equal(products, x * y) and torch.equal(less, x < y)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_triton_dot_of_16_bits_is_right(dtype):
    a, b, c = normal(32, 32).to(dtype), normal(32, 32, seed=1).to(dtype), torch.empty(32, 32)
    kernels.product[(1,)](a, b, c, N=32, PRECISION="ieee")
    torch.testing.assert_close(c, a.float() @ b.float())


@interpreted
def test_triton_max_drops_nan_and_fma_rounds_once():
    y = torch.zeros(1)
    kernels.largest[(1,)](torch.tensor([1.0, torch.nan, 3.0, -2.0]), y, BLOCK=4)
    assert y.item() == 3.0
    x, z = torch.full((4,), 1.0 + 2.0**-12), torch.full((4,), -1.0 - 2.0**-11)
    w = torch.empty(4)
    kernels.fused[(1,)](x, x, z, w, BLOCK=4)
    assert torch.equal(w, torch.full((4,), 2.0**-24)), "the product was rounded before the sum"


@interpreted
def test_triton_autotune_runs_its_first_configuration():
    x, y = normal(100), torch.zeros(100)
    with traffic():
        kernels.tuned[lambda meta: (-(-100 // meta["BLOCK"]),)](x, y, 100)
    assert torch.equal(y, 2 * x)


# ---- Memory. -------------------------------------------------------------------------------------

AT = r"^triton_kernels\.py:\d+: "  #: the line in a message


@interpreted
def test_triton_out_of_bounds_load_is_named():
    room = torch.zeros(400)  # nothing of the launch lies right behind x
    x, y = room[:100].copy_(normal(100)), room[300:]
    kernels.double[(2,)](x, y, 100, BLOCK=64)
    message = r"out-of-bounds load: 28 of 64 lanes, .* 0 bytes past the end of 'x' \(400 bytes\), "
    message = AT + message
    with pytest.raises(KernelError, match=message + r"kernel unmasked_tail, program \(1, 0, 0\)"):
        kernels.unmasked_tail[(2,)](x, y, 100, BLOCK=64)


@interpreted
def test_triton_out_of_bounds_store_is_named():
    buffer = torch.zeros(200)
    with pytest.raises(
        KernelError, match=AT + r"out-of-bounds store: 1 of 64 .*4 bytes before 'y'"
    ):
        kernels.store_before[(1,)](normal(64), buffer[100:164], 64, BLOCK=64)


@interpreted
def test_triton_load_between_the_rows_of_a_view_is_named():
    x, y = normal(3, 64)[:, :50], torch.zeros(3)
    kernels.read_rows[(3,)](x, y, 64, 50, BLOCK=64)
    torch.testing.assert_close(y, x.sum(1))
    with pytest.raises(KernelError, match=AT + r"out-of-bounds load: .*between the rows of 'x'"):
        kernels.read_rows[(3,)](x, y, 64, 60, BLOCK=64)


@interpreted
def test_triton_misaligned_load_is_named():
    kernels.read_at_byte[(1,)](normal(8), torch.zeros(1), BYTE=4)
    with pytest.raises(KernelError, match=AT + r"misaligned load: 4 bytes at byte 2 of 'x'"):
        kernels.read_at_byte[(1,)](normal(8), torch.zeros(1), BYTE=2)


@interpreted
def test_triton_false_hint_of_alignment_is_named():
    kernels.false_hint[(1,)](normal(64), torch.zeros(16), 32, BLOCK=16)
    with pytest.raises(KernelError, match=r"multiple_of\(16\) of 17 is false"):
        kernels.false_hint[(1,)](normal(64), torch.zeros(16), 17, BLOCK=16)


@interpreted
def test_triton_race_between_programs_is_named():
    x = normal(128, 64)
    y = torch.zeros(64)
    kernels.column_sums[(4,)](x, y, 128, 64, BM=32, BN=64)
    torch.testing.assert_close(y, x.sum(0))
    message = (
        AT + r"race on 'y': a program loads what another program stored, .*program \(1, 0, 0\)"
    )
    with pytest.raises(KernelError, match=message):
        kernels.racing_column_sums[(4,)](x, torch.zeros(64), 128, 64, BM=32, BN=64)
    with races_allowed():
        kernels.racing_column_sums[(4,)](x, torch.zeros(64), 128, 64, BM=32, BN=64)


@interpreted
def test_triton_race_of_two_stores_is_named():
    kernels.everyone_writes[(1,)](torch.zeros(8), BLOCK=8)
    with pytest.raises(
        KernelError, match=AT + r"race on 'y': a program stores what another program st"
    ):
        kernels.everyone_writes[(2,)](torch.zeros(8), BLOCK=8)


@interpreted
def test_triton_race_of_an_atomic_with_a_plain_store_is_named():
    with pytest.raises(KernelError, match=AT + r"race on 'y': a program updates atomically what"):
        kernels.half_atomic[(2,)](torch.zeros(1))


@interpreted
def test_triton_race_of_two_lanes_is_named():
    with pytest.raises(KernelError, match=AT + r"race on 'y': a program stores two values to one"):
        kernels.lanes_collide[(1,)](torch.zeros(8), BLOCK=16)


# ---- What it refuses. ----------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(
    "kernel, dtype, message",
    [
        ("assembly", torch.float32, r"inline assembly is not interpreted"),
        ("product_of_all", torch.bfloat16, r"reduction of bfloat16: cast to float32 first"),
    ],
)
def test_triton_interpreter_refuses_by_name(kernel, dtype, message):
    x, y = torch.zeros(16).to(dtype), torch.zeros(16).to(dtype)
    with pytest.raises(NotImplementedError, match=message):
        getattr(kernels, kernel)[(1,)](x, y, BLOCK=16)


@interpreted
def test_triton_interpreter_refuses_a_warp_count_that_no_gpu_takes():
    with pytest.raises(KernelError, match="num_warps: wanted a power of two, got 3"):
        kernels.double[(1,)](normal(16), torch.zeros(16), 16, BLOCK=16, num_warps=3)


# ---- Traffic. ------------------------------------------------------------------------------------


def moved(counted):
    """Bytes read and written, by argument."""
    return {t: (counted.read(t), counted.written(t)) for t in {r.memory for r in counted.rows}}


def three_sizes(kept, looped):
    return [("kept", shape) for shape in kept] + [("looped", shape) for shape in looped]


def plan_of(family, shape, dtype):
    return importlib.import_module(f"hetkern.triton.{family}").plan(*shape, dtype)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "path, shape",
    three_sizes([(7, 65), (3, 1000), (2, 16384)], [(2, 16385), (1, 20000), (1, 70000)]),
)
def test_triton_softmax_moves_what_its_header_says(path, shape, dtype):
    assert plan_of("softmax", shape, dtype)["path"] == path
    sweeps = 1 if path == "kept" else 2
    x = normal(*shape).to(dtype).requires_grad_()
    with traffic() as counted:
        y = hetkern.softmax(x, impl="triton")
    assert moved(counted) == {"x": (sweeps * x.nbytes, 0), "y": (0, x.nbytes)}
    counted.assert_within(read={"x": sweeps * x.nbytes}, written={"y": x.nbytes})
    with traffic() as counted:
        torch.autograd.grad(y, x, torch.ones_like(y).contiguous())
    read = (sweeps * x.nbytes, 0)
    assert moved(counted) == {"dy": read, "y": read, "dx": (0, x.nbytes)}


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "path, shape", three_sizes([(7, 65), (3, 1000), (4, 2048)], [(3, 2049), (2, 5000), (1, 50257)])
)
def test_triton_cross_entropy_reads_its_logits_once_each_way(path, shape, dtype):
    tiles = plan_of("cross_entropy", shape, dtype)
    assert tiles["path"] == path
    x, target = normal(*shape).to(dtype).requires_grad_(), torch.arange(shape[0])
    one_each = shape[0] * x.element_size()  # the target's logit
    with traffic() as counted:
        loss = hetkern.cross_entropy(x, target, impl="triton")
    assert moved(counted)["x"] == (x.nbytes + one_each, 0)
    with traffic() as counted:
        torch.autograd.grad(loss, x)
    blocks = -(-shape[1] // tiles["block"])  # a program each, which all need that logit
    assert moved(counted)["x"] == (x.nbytes + blocks * one_each, 0)
    assert moved(counted)["dx"] == (0, x.nbytes)


@interpreted
def test_triton_traffic_sees_a_tensor_that_is_read_twice():
    x, y = normal(100), torch.zeros(100)
    with traffic() as counted:
        kernels.read_twice[(1,)](x, y, 100, BLOCK=128)
    assert moved(counted) == {"x": (800, 0), "y": (0, 400)}
    with pytest.raises(AssertionError, match="x: 800 bytes read, the budget is 400"):
        counted.assert_within(read={"x": 400}, written={"y": 400})


@interpreted
def test_triton_traffic_is_a_table_with_the_kernels_lines():
    x, y = normal(100), torch.zeros(100)
    with traffic() as counted:
        kernels.double[(2,)](x, y, 100, BLOCK=64)
    lines = inspect.getsource(kernels).splitlines()
    for row in counted.rows:
        file, number = row.line.split(":")
        assert (row.kernel, file) == ("double", "triton_kernels.py")
        assert f"tl.{row.op}({row.memory} " in lines[int(number) - 1]
    assert [(r.memory, r.op, r.requests, r.lanes, r.bytes) for r in counted.rows] == [
        ("x", "load", 2, 100, 400),
        ("y", "store", 2, 100, 400),
    ]
    assert [(r.width, r.cost, r.remark) for r in counted.rows] == 2 * [(None, None, "")]
    text = str(counted)
    assert re.search(r"^triton_kernels.py:\d+ +x +load +2 +- +50\.0 +- +-$", text, re.M), text
    assert "800 bytes in all" in text and "of an H100's memory" in text
    with pytest.raises(AssertionError, match="unknown bytes a lane, wanted 16"):
        counted.assert_within(read={"x": 400}, written={"y": 400}, width=16)


@pytest.mark.skipif(triton_interpreter.active(), reason="this is that process")
def test_the_traffic_command_counts_and_compiles_a_triton_operation():
    words = ["softmax", "4x128", "--impl", "triton", "--dtype", "bfloat16", "--backward"]
    done = run("-m", "hetkern.testing.traffic", *words)
    assert done.returncode == 0, done.stderr
    for direction, read, kernel in (("forward", "x", "forward"), ("backward", "dy", "backward")):
        assert f"softmax (4, 128) bfloat16, {direction}, in Triton" in done.stdout
        assert f"{read}: 1024 bytes read, 0 written" in done.stdout
        needs = rf"sm_90 softmax_{kernel}_kernel: \d+ registers, 0 stores spilled, \d+ bytes"
        assert re.search(needs, done.stdout), done.stdout
    assert "of 64 warps (limited by" in done.stdout and "of an H100's memory" in done.stdout
