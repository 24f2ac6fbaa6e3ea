"""The plan of cross-entropy: a pure function of shape and machine, and what explain says."""

import pytest
import torch

import hetkern

native = pytest.importorskip("hetkern._C", reason="plans are shown by hetkern._C")


def plan(M, N, columns=False, threads=2):
    return native.cross_entropy_plan(M, N, columns, "float32", threads=threads)


@pytest.mark.parametrize(
    "shape, columns, path, tasks",
    [
        ((2048, 50257), False, "whole_rows", 2),
        ((2, 1 << 20), False, "whole_rows", 2),  # as many rows as threads
        ((1, 1 << 20), False, "split_rows", 2),
        ((1, 1 << 17), False, "whole_rows", 1),  # less than 100 us
        ((3, 1 << 17), False, "whole_rows", 2),
        ((8, 64), False, "whole_rows", 1),
        ((8 * 4096, 21), True, "columns", 2),
        ((3, 5), True, "columns", 1),
    ],
)
def test_cross_entropy_plan_takes_the_path_of_its_shape(shape, columns, path, tasks):
    assert plan(*shape, columns) == {"path": path, "tasks": tasks}


def test_cross_entropy_plan_splits_rows_only_where_threads_outnumber_them():
    for threads in (1, 2, 4, 64):
        for rows in (1, 2, 3, 4, 63, 64):
            chosen = plan(rows, 1 << 22, threads=threads)
            assert chosen["path"] == ("split_rows" if rows < threads else "whole_rows")
            assert chosen["tasks"] == threads


def test_cross_entropy_plan_wakes_no_thread_for_little_work():
    for rows in (1, 10, 100, 1000, 8000):
        assert plan(rows, 16, threads=64)["tasks"] == 1
    assert plan(1, 50257, threads=64)["tasks"] == plan(4, 50257, threads=64)["tasks"] == 1
    assert plan(5000, 21, columns=True, threads=64)["tasks"] == 1


@pytest.mark.parametrize(
    "shape, path",
    [((64, 1000), "whole_rows"), ((1000,), "whole_rows"), ((2, 21, 64, 64), "columns")],
)
def test_cross_entropy_explain_shows_the_plan_of_its_shape(shape, path):
    x = torch.zeros(shape)
    classes = x.shape[min(1, x.dim() - 1)]
    target = torch.zeros(x.select(min(1, x.dim() - 1), 0).shape, dtype=torch.long)
    call = hetkern.explain(hetkern.cross_entropy, x, target, impl="cpu")
    wanted = native.cross_entropy_plan(x.numel() // classes, classes, path == "columns", "float32")
    assert call.plan == {"isa": native.isa(), **wanted}
    assert call.plan["path"] == path
    with hetkern.record() as log:
        hetkern.cross_entropy(x, target)
    assert log[0].plan == call.plan
