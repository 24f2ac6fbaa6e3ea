"""The CPU's plan for a sequence is a pure function, and says what the kernels do."""

import itertools

import pytest
from recurrent import CELLS

import hetkern

native = hetkern.impl.native
pytestmark = pytest.mark.skipif(native is None, reason="hetkern._C is not built")


def plan(cell, T, B, H, dtype="float32", **machine):
    return native.rnn_plan(cell, T, B, H, dtype, **{"threads": 2, "l2_bytes": 1 << 20, **machine})


@pytest.mark.parametrize(
    "cell, T, B, H, threads, path",
    [
        ("gru", 1000, 1, 64, 2, "one_task"),  # a step under 2 us: nobody waits
        ("gru", 1000, 1, 256, 2, "split_units"),
        ("tanh", 128, 32, 512, 2, "split_rows"),
        ("lstm", 128, 32, 512, 2, "split_units"),  # weights of 4 MiB: each task keeps half
        ("tanh", 300, 4, 128, 2, "split_rows"),
        ("gru", 1, 2, 8, 2, "one_task"),
        ("lstm", 128, 32, 512, 1, "one_task"),
    ],
)
def test_the_plan_takes_the_path_of_the_shape(cell, T, B, H, threads, path):
    assert plan(cell, T, B, H, threads=threads)["path"] == path


def test_rows_are_split_while_a_task_keeps_two_and_the_weights_or_four_where_units_are_few():
    lanes = {"base": 4, "avx2": 8, "avx512": 16}[native.isa()]
    for B, units, l2, path in [
        (8, 16, 1 << 24, "split_rows"),  # two for each task, and all weights in its cache
        (7, 16, 1 << 24, "split_units"),
        (8, 16, 1 << 10, "split_units"),
        (64, 16, 1 << 10, "split_units"),
        (64, 7, 1 << 10, "split_rows"),
        (15, 7, 1 << 10, "split_units"),
    ]:
        told = plan("gru", 100, B, units * lanes, threads=4, l2_bytes=l2)
        assert told["path"] == path, (B, units, l2)


def test_rows_that_end_at_different_steps_share_out_each_steps_units():
    assert plan("tanh", 128, 32, 512)["path"] == "split_rows"
    assert plan("tanh", 128, 32, 512, ragged=True)["path"] == "split_units"
    assert plan("tanh", 128, 32, 32, ragged=True)["path"] == "split_rows"  # a step is too short


def test_nothing_is_shared_out_that_one_core_does_in_some_30_us():
    for T in (1, 3):
        assert plan("tanh", T, 4, 128, threads=64)["tasks"] == 1
    assert plan("tanh", 16, 4, 128, threads=64)["tasks"] > 1


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_every_task_has_something_to_do(cell, backward):
    for B, H, threads in itertools.product((1, 2, 3, 8, 100), (1, 16, 40, 300), (1, 2, 7, 200)):
        told = plan(cell, 1000, B, H, threads=threads, backward=backward)
        assert 1 <= told["tasks"] <= min(threads, 64)
        assert (told["path"] == "one_task") == (told["tasks"] == 1)
        if told["path"] == "split_rows":
            assert told["tasks"] <= B
        if told["path"] == "split_units":
            assert told["tasks"] <= -(-H // 4)  # the narrowest vector's units
        assert told["unit_vectors"] in ((1, 2, 4) if backward or cell in ("tanh", "relu") else (1,))


def test_a_panel_takes_no_more_vectors_than_its_tasks_have_units():
    lanes = {"base": 4, "avx2": 8, "avx512": 16}[native.isa()]
    for units, wide in [(1, 1), (2, 2), (3, 1), (4, 4), (5, 1), (6, 2), (8, 4)]:
        assert plan("tanh", 1, 1, units * lanes)["unit_vectors"] == wide
    assert plan("tanh", 1000, 8, 32 * lanes, threads=16)["unit_vectors"] == 2


def test_the_product_of_bfloat16_is_a_fixed_choice_that_can_be_overruled():
    before = native.bf16_product()
    assert before in ("fma", "dot", "amx")
    try:
        assert native.set_bf16_product("fma") == "fma"
        assert native.rnn_plan("gru", 3, 3, 64, "bfloat16")["product"] == "fma"
        with pytest.raises(ValueError, match="set_bf16_product: wanted fma, dot or amx, got half"):
            native.set_bf16_product("half")
    finally:
        native.set_bf16_product(before)
