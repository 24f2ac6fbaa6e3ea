"""Checkpoints of a sharded model: a file a process, read by any number of them, bit for bit."""

import json
import os
import shutil
import socket
import sys

import pytest
import torch
import torch.distributed as dist
from forked_command import hetkern, hetkern_in_processes
from safetensors import safe_open
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from hetkern.training import UserError, load, read_metrics
from hetkern.training.checkpoint import (
    Checkpoint,
    best_of,
    read_checkpoint,
    saved_steps,
    write_checkpoint,
)
from hetkern.training.workers import OtherProcessFailed, Workers

FLAGS = [
    "--layers=1", "--heads=2", "--width=16", "--context=16", "--batch-size=2", "--accumulate=3",
    "--steps=8", "--eval-every=4", "--save-every=2", "--warmup=2", "--sample-length=5",
    "--threads=1", "--log-every=1", "--device=cpu", "--parallel=fsdp",
]  # fmt: skip
SHARD = "shards/shard-0000{}-model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of eight steps in two processes, which kept all its checkpoints."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 100)
    flags = [*FLAGS, "--keep=9"]
    ends = hetkern_in_processes(2, "train", "--data=text.txt", *flags, "--out=run", cwd=folder)
    assert [end[0] for end in ends] == [0, 0], ends
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it in which the last step was not reached."""
    shutil.copy(trained / "text.txt", tmp_path)
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000008")
    (tmp_path / "run/summary.json").unlink()
    return tmp_path / "run"


def contents(run, step):
    """All of a checkpoint: files, and of shards the tensors and where they begin.

    The order of a shard's metadata is another one in each process.
    """
    folder = run / f"checkpoints/step-{step:08d}"
    found = {name: (folder / name).read_bytes() for name in ("state.safetensors", "state.json")}
    for file in sorted((folder / "shards").iterdir()):
        with safe_open(file, framework="pt") as shard:
            found[file.name] = {name: shard.get_tensor(name).tolist() for name in shard.keys()}
            found[f"places of {file.name}"] = json.loads(shard.metadata()["DCP_SHARDING_INFO"])
    return found


def test_each_process_writes_a_file_of_its_own(trained):
    folder = trained / "run/checkpoints/step-00000008"
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    assert files == [
        "manifest.json", SHARD.format(1), SHARD.format(2), "state.json", "state.safetensors",
    ]  # fmt: skip
    sizes = [(folder / SHARD.format(n)).stat().st_size for n in (1, 2)]
    weights = sum(p.numel() * 4 for p in load(trained / "run").model.parameters())
    assert max(sizes) < 2 * weights < sum(sizes)  # with moments: three times the weights


def test_straight_equals_half_and_resume_bit_for_bit(trained, run):
    ends = hetkern_in_processes(2, "resume", "run", cwd=run.parent)
    assert [end[0] for end in ends] == [0, 0], ends
    assert "resumed after step 6" in ends[0][1]
    assert contents(run, 8) == contents(trained / "run", 8)
    rows = [read_metrics(r) for r in (run, trained / "run")]
    assert [[row.train_loss, row.val_loss] for row in rows[0]] == [
        [row.train_loss, row.val_loss] for row in rows[1]
    ]
    assert (run / "sample.txt").read_bytes() == (trained / "run/sample.txt").read_bytes()
    assert best_of(run) == best_of(trained / "run")


def test_one_process_reads_evaluates_and_samples(trained):
    """And finds the loss that two found while they trained."""
    wanted = [row.val_loss for row in read_metrics(trained / "run") if row.val_loss is not None]
    for step, loss in zip((4, 8), wanted, strict=True):
        status, out, err = hetkern(
            "eval", "run", "--nproc=1", "--json", f"--checkpoint={step}", "--no-floors", cwd=trained
        )
        assert status == 0, err
        assert json.loads(out)["loss"] == pytest.approx(loss, rel=1e-6)
    status, out, err = hetkern("sample", "run", "--length=5", cwd=trained)
    assert (status, err) == (0, "") and len(out) == 7


@pytest.mark.parametrize("processes", [1, 3])
def test_another_number_of_processes_goes_on(trained, run, processes):
    """Which accumulates more batches, or fewer: six of two sequences make a step."""
    ends = hetkern_in_processes(processes, "resume", "run", "--steps=7", cwd=run.parent)
    assert {end[0] for end in ends} == {0}, ends
    row = read_metrics(run)[6]
    assert row.train_loss == pytest.approx(read_metrics(trained / "run")[6].train_loss, rel=1e-5)
    shards = list((run / "checkpoints/step-00000007").glob("shards/*"))
    assert len(shards) == (0 if processes == 1 else processes)


@pytest.mark.parametrize("how", ["truncated", "missing", "another's"])
def test_a_broken_shard_is_refused_by_name_and_the_one_before_offered(run, how):
    file = run / "checkpoints/step-00000006" / SHARD.format(2)
    said = f"{SHARD.format(2)} is {how} or changed"
    if how == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif how == "missing":
        file.unlink()
        said = f"{SHARD.format(2)} is missing"
    else:
        shutil.copy(file, file.parents[1] / SHARD.format(3))
        said = f"{SHARD.format(3)} is of another checkpoint"
    with pytest.raises(UserError, match=rf"{said}.*; the checkpoint before is step 4: --ch"):
        load(run)
    assert load(run, checkpoint="4")
    if how == "truncated":  # the process that checks it says so
        ends = hetkern_in_processes(2, "resume", "run", cwd=run.parent)
        assert [end[0] for end in ends] == [2, 2], ends
        assert said in ends[1][2] and ends[1][2].count("\n") == 1 and ends[0][2] == ""
        assert saved_steps(run) == [2, 4, 6]


def test_shards_of_another_model_are_refused(run):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("width = 16", "width = 32"))
    ends = hetkern_in_processes(2, "resume", "run", cwd=run.parent)
    assert [end[0] for end in ends] == [2, 2], ends
    assert "checkpoint of step 6 is of another model than config.toml describes" in ends[0][2]


def test_a_process_that_cannot_write_fails_them_all_and_leaves_what_was(tmp_path):
    """The disk of the second is full; nothing of the new checkpoint stays, the old one is read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    children = [os.fork() or _write_twice(rank, address, tmp_path) for rank in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert saved_steps(tmp_path) == [1] and not list(tmp_path.glob("checkpoints/.*"))
    found = read_checkpoint(tmp_path, 1)
    assert found.model["x"].equal(torch.arange(10.0).view(5, 2))
    assert found.state["optimizer"]["state"][0]["y"].equal(torch.ones(5, 2))


def _write_twice(rank, address, folder):
    status = 1
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
        mesh = init_device_mesh("cpu", (2,))
        x = distribute_tensor(torch.arange(10.0).view(5, 2), mesh, [Shard(0)])
        y = distribute_tensor(torch.ones(5, 2), mesh, [Shard(0)])
        shards = {"model.x": x, "optimizer.0.y": y}
        state = {"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}}
        workers = Workers(rank, 2)
        write_checkpoint(folder, Checkpoint(1, {}, state, shards), workers)
        if rank == 1:

            def full(*arguments, **options):
                raise OSError(28, "No space left on device")

            torch.distributed.checkpoint.filesystem._write_files_from_queue = full
        try:
            write_checkpoint(folder, Checkpoint(2, {}, state, shards), workers)
        except OSError as error:
            status = 0 if error.errno == 28 else 2
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_fails_in_every_process_if_it_fails_in_one(monkeypatch, rank):
    def gather(results, mine):
        results[:] = [(True, "other"), (True, "other")]
        results[rank] = mine
        results[1] = mine if rank == 1 else (False, None)

    monkeypatch.setattr(dist, "all_gather_object", gather)

    def fail():
        raise KeyError("mine")

    workers = Workers(rank, 2)
    if rank == 1:
        with pytest.raises(KeyError, match="mine"):
            workers.each(fail)
        assert workers.each(lambda: "I") == ["other", "I"]
    else:
        with pytest.raises(OtherProcessFailed):
            workers.each(lambda: "I")
