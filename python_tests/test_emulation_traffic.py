"""The traffic counter sees what a profiler would: one planted bug for each of its remarks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulating import skip_unless_possible

import hetkern
from hetkern.testing.emulation import EmulatedKernel, emulate_cuda
from hetkern.testing.traffic import command as traffic_command
from hetkern.testing.traffic import resources
from hetkern.testing.traffic.counting import traffic_library
from hetkern.testing.traffic.resources import occupancy, own_resources
from hetkern.testing.traffic.table import Launch, Traffic

SOURCE = Path(__file__).parent / "kernels" / "planted_traffic.cu"
COPY, TRANSPOSE, MATRICES, PEERS, PAIRS, THREES, ROWS, PACKS = range(8)
BYTES = 32 * 32 * 4


@pytest.fixture(scope="module")
def kernel() -> EmulatedKernel:
    skip_unless_possible()
    return emulate_cuda(SOURCE, traffic=True)


def counted(kernel: EmulatedKernel, which: int, bug: int) -> Traffic:
    x = torch.arange(1024.0).view(32, 32)
    y = torch.zeros(32, 32)
    traffic = kernel(which, bug, x, y, 32)
    assert torch.equal(y, x.t() if which == TRANSPOSE else x)
    assert traffic is not None
    return traffic


def test_a_vector_copy_moves_each_byte_once_in_whole_sectors(kernel):
    traffic = counted(kernel, COPY, 0)
    traffic.assert_within(read={"x": BYTES}, written={"y": BYTES}, width=16)
    assert [(r.memory, r.op, r.requests, r.lanes, r.cost) for r in traffic.rows] == [
        ("x", "load", 8, 256, 128),
        ("y", "store", 8, 256, 128),
    ]
    assert all(r.line.startswith("planted_traffic.cu:") for r in traffic.rows)


def test_a_padded_transpose_has_no_bank_conflicts(kernel):
    counted(kernel, TRANSPOSE, 0).assert_within(read={"x": BYTES}, written={"y": BYTES}, width=4)


def test_the_copy_engine_and_ldmatrix_count_as_what_they_are(kernel):
    traffic = counted(kernel, MATRICES, 0)
    assert traffic.read("x") == BYTES
    engine = next(r for r in traffic.rows if r.memory == "x")
    assert (engine.requests, engine.lanes, engine.width, engine.cost) == (32, 32, 128, 128)
    by_width = {r.width: r for r in traffic.rows if (r.memory, r.op) == ("shared", "load")}
    assert (by_width[16].requests, by_width[16].cost) == (8, 32), "four passes an ldmatrix"
    assert {(r.memory, r.op, r.width) for r in traffic.rows if r.memory == "shared"} <= {
        ("shared", "load", 16),
        ("shared", "load", 8),
        ("shared", "store", 8),
    }, "the bytes that the engine brings are no warp's request"


def test_rows_of_matrices_in_the_same_banks_take_eight_times_as_long(kernel):
    traffic = counted(kernel, MATRICES, 1)
    rows = {r.width: r for r in traffic.rows if (r.memory, r.op) == ("shared", "load")}
    assert (rows[16].requests, rows[16].cost) == (8, 256)
    with pytest.raises(AssertionError, match=r"shared: load: bank conflicts"):
        traffic.assert_within(read={"x": BYTES}, written={"y": BYTES})


@pytest.mark.parametrize(
    ("which", "bug", "report"),
    [
        (COPY, 1, r"x: load: uncoalesced"),
        (TRANSPOSE, 1, r"shared: load: bank conflicts"),
        (COPY, 2, rf"x: {2 * BYTES} bytes read, the budget is {BYTES}"),
    ],
    ids=["an uncoalesced load", "a bank conflict", "a tensor read twice"],
)
def test_a_planted_bug_exceeds_the_budget(kernel, which, bug, report):
    traffic = counted(kernel, which, bug)
    with pytest.raises(AssertionError, match=report):
        traffic.assert_within(read={"x": BYTES}, written={"y": BYTES})


def test_a_column_of_an_unpadded_tile_takes_a_pass_for_each_lane(kernel):
    row = next(
        r for r in counted(kernel, TRANSPOSE, 1).rows if (r.memory, r.op) == ("shared", "load")
    )
    assert (row.requests, row.cost, row.ideal) == (32, 32 * 32, 32)


@pytest.mark.parametrize(
    ("bug", "memory", "passes"), [(0, "shared of a peer", 1), (1, "shared", 8)]
)
def test_only_words_of_one_blocks_memory_meet_in_a_bank(kernel, bug, memory, passes):
    row = next(r for r in counted(kernel, PEERS, bug).rows if r.shared and r.op == "load")
    assert (row.memory, row.requests, row.cost) == (memory, 32, 32 * passes)
    assert row.remark == ("bank conflicts" if bug else "")


@pytest.mark.parametrize("bug", [0, 2], ids=["__nv_bfloat162", "__half2"])
def test_a_pair_of_16_bit_numbers_is_one_word_of_the_kernels_line(kernel, bug):
    traffic = counted(kernel, PAIRS, bug)
    traffic.assert_within(read={"x": BYTES}, written={"y": BYTES}, width=4)
    assert [(r.memory, r.op, r.requests, r.cost, r.ideal) for r in traffic.rows] == [
        ("x", "load", 32, 128, 128),
        ("y", "store", 32, 128, 128),
    ]
    assert all(r.line.startswith("planted_traffic.cu:") for r in traffic.rows)


def test_a_pair_that_the_kernel_takes_in_halves_is_two_requests(kernel):
    traffic = counted(kernel, PAIRS, 1)
    assert {(r.width, r.remark) for r in traffic.rows} == {(2, "uncoalesced")}


def test_fields_of_an_aligned_pack_are_one_access(kernel):
    packs = counted(kernel, PACKS, 0)
    packs.assert_exact(read={"x": BYTES}, written={"y": BYTES}, width=16)
    assert {r.requests for r in packs.rows} == {8}
    for apart in (1, 2):  # a plain pointer's elements; fields with a barrier between
        loads = [r for r in counted(kernel, PACKS, apart).rows if r.memory == "x"]
        assert {(r.width, r.remark) for r in loads} == {(4, "uncoalesced")}
        assert sum(r.requests for r in loads) == 32


def test_a_budget_is_a_bound_and_exact_is_the_equality(kernel):
    traffic = counted(kernel, COPY, 0)
    traffic.assert_exact(read={"x": BYTES}, written={"y": BYTES})
    traffic.assert_within(read={"x": BYTES + 1, "z": 4}, written={"y": 2 * BYTES})
    for read, told in (({"x": BYTES + 1}, BYTES + 1), ({"x": BYTES - 1}, BYTES - 1), ({}, 0)):
        with pytest.raises(AssertionError, match=f"x: {BYTES} bytes read, the budget is {told}"):
            traffic.assert_exact(read=read, written={"y": BYTES})
    with pytest.raises(AssertionError, match=f"x: {BYTES} bytes read, the budget is {BYTES - 1}"):
        traffic.assert_within(read={"x": BYTES - 1}, written={"y": BYTES})
    with pytest.raises(AssertionError, match=r"y: 4096 bytes written, the budget is 0"):
        traffic.assert_within(read={"x": BYTES}, written={})
    with pytest.raises(AssertionError, match=r"z: 0 bytes read, the budget is 4"):
        traffic.assert_exact(read={"x": BYTES, "z": 4}, written={"y": BYTES})


def test_three_floats_are_three_requests(kernel):
    traffic = counted(kernel, THREES, 0)
    (load,) = (r for r in traffic.rows if r.memory == "x" and r.requests > 1)
    assert (load.width, load.requests, load.remark) == (4, 33, "uncoalesced")
    assert traffic.read("x") == BYTES


@pytest.mark.parametrize(("bug", "passes"), [(0, 4), (1, 16)])
def test_lanes_meet_in_banks_by_their_numbers_in_whatever_order_they_come(kernel, bug, passes):
    rows = [r for r in counted(kernel, ROWS, bug).rows if r.shared]
    assert {(r.op, r.requests, r.cost) for r in rows} == {
        ("load", 8, 8 * passes),
        ("store", 8, 8 * passes),
    }


def test_a_tensor_may_be_read_and_written(kernel):
    x = torch.arange(1024.0).view(32, 32)
    wanted = x.t().clone()
    traffic = kernel(TRANSPOSE, 0, x, x, 32)
    assert torch.equal(x, wanted)
    assert (traffic.read("x"), traffic.written("x")) == (BYTES, BYTES)


def test_narrow_accesses_exceed_a_wanted_width(kernel):
    traffic = counted(kernel, TRANSPOSE, 0)
    with pytest.raises(AssertionError, match="4 bytes a lane, wanted 16"):
        traffic.assert_within(read={"x": BYTES}, written={"y": BYTES}, width=16)


def test_the_table_names_lines_tensors_and_the_time_of_the_bytes(kernel):
    text = str(counted(kernel, COPY, 1))
    assert "planted_traffic.cu:" in text and "<- uncoalesced" in text
    assert f"x: {BYTES} bytes read, 0 written" in text and "of an H100's memory" in text


def test_the_command_prints_the_table_with_registers_and_occupancy():
    words = ["1", "1", "x=float32:32x32", "y=float32:32x32", "32"]
    command = [sys.executable, "-m", "hetkern.testing.traffic", SOURCE, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<- bank conflicts" in done.stdout
    if "nvcc is not installed" not in done.stdout:
        assert re.search(r"transpose.*: \d+ registers, 0 bytes spilled, 4224 bytes", done.stdout)
        assert "64 of 64 warps" in done.stdout


@pytest.mark.skipif(traffic_library() is None, reason="libhetkern_traffic.so is not built")
@pytest.mark.parametrize(
    ("words", "kernels"),
    [
        (["softmax", "4x1024"], ["rows_kernel<ForwardRows<float, float, float>>",
                                 "rows_kernel<BackwardRows<float, float, float>>"]),
        (["cross_entropy", "4x1024", "--dtype", "bfloat16"],
         ["rows_kernel<LossRows<float, bf16, false>>", "reduce_kernel<float>",
          "gradient_kernel<float, bf16>"]),
        (["gru", "2x3x64"], ["step_kernel<GruCell<float>, float>",
                             "step_backward_kernel<GruCell<float>, float>"]),
    ],
    ids=["softmax", "cross_entropy", "gru"],
)  # fmt: skip
def test_the_command_tells_what_its_own_kernels_need(words, kernels):
    command = [sys.executable, "-m", "hetkern.testing.traffic", *words, "--backward"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    needs = r"\d+ registers, 0 bytes spilled, \d+ bytes shared, \d+ of 64 warps \(limited by .*\)"
    for kernel in kernels:
        assert re.search(rf"^sm_90a {re.escape(kernel)}: {needs}", out, re.M), out
    assert out.count("sm_90a") == len(kernels)


@pytest.mark.parametrize(
    "name", sorted({*traffic_command.OPERATIONS} - {*traffic_command.SEQUENCES})
)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 5)])
def test_the_command_calls_every_operation_on_every_shape(name, shape):
    steps = dict(traffic_command.run(name, shape, "float32", True, "reference", "cpu"))
    assert steps["backward"]["dx"].shape == shape


@pytest.mark.skipif(hetkern.impl.native is None, reason="hetkern._C is not built")
@pytest.mark.parametrize("name", traffic_command.SEQUENCES)
def test_the_command_calls_every_sequence(name):
    steps = dict(traffic_command.run(name, (3, 2, 5), "bfloat16", True, "cpu", "cpu"))
    backward = steps["backward"]
    assert backward["dgates"].shape == (3, 2, 5 if name == "rnn" else 20)
    assert backward["y"].shape == (3, 2, 5) and ("c0" in backward) == (name == "lstm")


def test_a_kernel_without_a_record_is_compiled_or_nvcc_named(monkeypatch):
    launch = Launch("rows_kernel<Unknown>", 1, 64, 0, 1)
    monkeypatch.setattr(resources, "compiled", lambda file, arch: f"{file.name}, {arch}")
    assert list(own_resources("softmax", (launch,))) == ["softmax.cu, sm_90a"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["softmax"], "softmax: wanted one shape, such as 64x1000, got nothing"),
        (["lstm", "4x8"], "lstm: wanted a shape TxBxH, such as 5x4x128, got 4x8"),
        (["softmax", "4x"], "softmax: wanted one shape, such as 64x1000, got 4x"),
        (
            ["sofmax", "4x4"],
            "one of softmax, log_softmax, cross_entropy, rnn, lstm, gru, got 'sofmax'",
        ),
        (["softmax", "4x4", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["missing.cu"], "wanted a .cu file, got missing.cu, which is none"),
        ([str(SOURCE), "1", "x=float33:4"], "argument 'x=float33:4': wanted DTYPE:SHAPE"),
        ([str(SOURCE), "1", "1"], "planted_traffic: wanted 5 arguments, got 2"),
        ([str(SOURCE), "--launcher", "none"], 'launcher: wanted one of its extern "C" functions'),
        ([str(SOURCE), "--impl", "triton"], "--impl and --backward: wanted an operation, got"),
    ],
)
def test_the_command_names_what_it_wanted_and_got(words, told, capsys):
    with pytest.raises(SystemExit, match="2"):
        traffic_command.main(words)
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "wanted"),
    [
        (32, 256, 0, "64 of 64 warps (limited by registers)"),
        (128, 256, 0, "16 of 64 warps (limited by registers)"),
        (32, 512, 100 << 10, "32 of 64 warps (limited by shared memory)"),
        (16, 1024, 0, "64 of 64 warps (limited by threads)"),
        (16, 32, 0, "32 of 64 warps (limited by blocks)"),
    ],
)
def test_occupancy_is_what_the_scarcest_resource_admits(registers, threads, shared, wanted):
    assert occupancy(registers, Launch("k", 1, threads, shared, 1)) == wanted
