"""DTensor inputs: rows on several processors, which are two processes here that talk by gloo."""

import os
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import hetkern
from hetkern.testing.devices import normal

SHAPE, DIM = (4, 6, 3), 1
BIAS, MASK, SINK = normal(6, 1, seed=1), normal(4, 1, 3, seed=2) > -0.5, normal(4, 3, seed=3)
INDEX = torch.tensor([[-100] * 3, [0, 1, 2], [5, -100, 3], [4, 4, 0]])  # uneven over the processes
WEIGHT, PROBABILITIES = normal(6, seed=4).abs() + 0.1, normal(*SHAPE, seed=5).softmax(DIM)


def _softmax(x, bias, mask, sink):
    return hetkern.softmax(x, DIM, scale=0.5, bias=bias, mask=mask, sink=sink).square().sum()


#: A scalar of x and of further operands, which lie as x does.
CALLS = {
    "softmax": (_softmax, (BIAS, MASK, SINK)),
    "causal": (lambda x: hetkern.softmax(x, causal=True).square().sum(), ()),
    "log_softmax": (lambda x: hetkern.log_softmax(x, DIM, softcap=2.0).square().sum(), ()),
    "mean": (
        lambda x, t: hetkern.cross_entropy(x, t, z_loss=0.1, label_smoothing=0.1),
        (INDEX,),
    ),
    "sum": (lambda x, t: hetkern.cross_entropy(x, t, reduction="sum"), (INDEX,)),
    "rows": (
        lambda x, t: hetkern.cross_entropy(x, t, reduction="none").square().sum(),
        (INDEX,),
    ),
    "weights": (lambda x, t, w: hetkern.cross_entropy(x, t, w), (INDEX, WEIGHT)),
    "probabilities": (lambda x, t: hetkern.cross_entropy(x, t, scale=2.0), (PROBABILITIES,)),
    "statistics": (
        lambda x, t: hetkern.cross_entropy(x, t, return_stats=True)[1].entropy.sum(),
        (INDEX,),
    ),
}


def _beside(tensor, placement):
    """Where an operand lies if x lies there."""
    from torch.distributed.tensor import Replicate, Shard

    if placement.is_replicate() or tensor.shape not in (SHAPE, INDEX.shape):
        return Replicate()
    row = placement.dim if tensor.dim() == 3 else placement.dim - (placement.dim > DIM)
    return Replicate() if placement.dim == DIM else Shard(row)


def _check_placement(mesh, placement):
    from torch.distributed.tensor import distribute_tensor

    for name, (call, operands) in CALLS.items():
        x = normal(*SHAPE).requires_grad_()
        wanted = call(x, *operands)
        wanted.backward()
        laid = distribute_tensor(x.detach(), mesh, [placement]).requires_grad_()
        others = [distribute_tensor(t, mesh, [_beside(t, placement)]) for t in operands]
        if placement.is_shard(DIM) and "cross_entropy" in call.__code__.co_names:
            with pytest.raises(NotImplementedError, match=r"input: the classes \(dimension 1\)"):
                call(laid, *others)
            continue
        got = call(laid, *others)
        got.backward()
        torch.testing.assert_close(got.full_tensor(), wanted, msg=name)
        torch.testing.assert_close(laid.grad.full_tensor(), x.grad, msg=name)
        if not placement.is_shard(DIM) and name != "causal":
            assert laid.grad.placements == (placement,), name  # nothing was gathered


def _check_attention(mesh, placement):
    from torch.distributed.tensor import Replicate, distribute_tensor

    shape, slopes, sink = (2, 4, 3, 8), normal(4, seed=3).abs(), normal(4, seed=4)
    drawn = [normal(*shape, seed=s) for s in range(3)] + [normal(2, 1, 3, 3, seed=5), slopes, sink]
    heads = placement.is_shard(1)
    beside = [placement] * 3 + [Replicate() if heads else placement]
    beside += [type(placement)(0) if heads else Replicate()] * 2

    def call(q, k, v, bias, slopes, sink):
        out = hetkern.attention(q, k, v, causal=True, bias=bias, alibi_slopes=slopes, sink=sink)
        return out.square().sum()

    leaves = [t.clone().requires_grad_() for t in drawn]
    wanted = call(*leaves)
    wanted.backward()
    laid = [
        distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in zip(drawn, beside, strict=True)
    ]
    got = call(*laid)
    got.backward()
    torch.testing.assert_close(got.full_tensor(), wanted)
    for ours, alone in zip(laid, leaves, strict=True):
        torch.testing.assert_close(ours.grad.full_tensor(), alone.grad)
    if not placement.is_shard(2):
        assert laid[0].grad.placements == (placement,)  # nothing was gathered


def _process(rank, file, errors):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
        mesh = init_device_mesh("cpu", (2,))
        for placement in (Shard(0), Shard(2), Replicate(), Shard(DIM)):
            _check_placement(mesh, placement)
        for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
            _check_attention(mesh, placement)
    except BaseException:
        errors.put(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def test_rows_may_be_sharded_and_classes_of_a_loss_may_not(tmp_path):
    context = mp.get_context("spawn")
    errors = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, os.fspath(tmp_path / "store"), errors))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], errors.get(timeout=5)
