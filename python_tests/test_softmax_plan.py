"""The CPU's plan for a softmax is a pure function, and says what the kernels do."""

import pytest

import hetkern

native = hetkern.impl.native
pytestmark = pytest.mark.skipif(native is None, reason="hetkern._C is not built")


def plan(M, N, columns=False, dtype="float32", **machine):
    return native.softmax_plan(M, N, columns, dtype, dtype, **machine)


@pytest.mark.parametrize(
    "M, N, columns, path",
    [
        (4096, 1000, False, "whole_rows"),
        (1, 1 << 20, False, "split_rows"),
        (1, 1000, False, "whole_rows"),
        (64, 1000, True, "columns"),
    ],
)
def test_softmax_plan_takes_the_path_of_the_shape(M, N, columns, path):
    assert plan(M, N, columns, threads=4)["path"] == path


@pytest.mark.parametrize(
    "M, N, columns",
    [
        (8, 64, False),
        (1, 50257, False),  # 22 us on one thread
        (1, 250_000, False),
        (1024, 64, False),
        (8192, 2, False),
        (4, 50257, False),
        (32 * 1024, 5, True),
    ],
)
def test_softmax_plan_wakes_no_second_thread_for_less_than_100_us_of_work(M, N, columns):
    assert plan(M, N, columns, threads=16)["tasks"] == 1


def test_softmax_plan_uses_no_thread_that_has_too_little_to_do():
    assert plan(300, 1000, threads=16)["tasks"] == 9
    assert plan(4096, 1000, threads=16)["tasks"] == 16
    assert plan(1 << 16, 2, threads=16)["tasks"] == 16  # a row costs more than its elements


def test_softmax_plan_splits_no_row_that_one_thread_reads_in_100_us():
    for rows, columns, path in [(3, 200_000, "whole_rows"), (3, 300_000, "split_rows")]:
        chosen = plan(rows, columns, threads=4)
        assert (chosen["path"], chosen["tasks"]) == (path, 3 if path == "whole_rows" else 4)


@pytest.mark.parametrize("dtype, elements", [("float32", 65536), ("float64", 32768)])
def test_softmax_plan_keeps_a_row_that_scratch_memory_holds(dtype, elements):
    big = {"threads": 1, "l2_bytes": 1 << 30}
    assert plan(64, elements, dtype=dtype, **big)["keep"]
    assert not plan(64, elements + 1, dtype=dtype, **big)["keep"]


def test_softmax_plan_keeps_no_row_past_half_the_second_level_cache():
    assert not plan(64, 50257, threads=1, l2_bytes=1 << 18)["keep"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_plan_keeps_columns_that_scratch_memory_holds(dtype):
    big = {"threads": 1, "l2_bytes": 1 << 30, "dtype": dtype}
    assert plan(64, 4096, columns=True, **big)["keep"]
    assert not plan(64, 4097, columns=True, **big)["keep"]
