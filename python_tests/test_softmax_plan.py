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


def test_softmax_plan_uses_no_thread_that_has_too_little_to_do():
    assert plan(8, 64, threads=16)["tasks"] == 1
    assert plan(4096, 1000, threads=16)["tasks"] == 16


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
