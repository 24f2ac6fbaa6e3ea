"""Resume: the end that a run would have had, bit for bit, wherever it was stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hetkern.training import TrainConfig, UserError, load, read_metrics, resume, session, train
from hetkern.training import checkpoint as checkpoint_module
from hetkern.training.checkpoint import best_of, find_checkpoint, read_checkpoint, saved_steps
from hetkern.training.packing import pack, unpack
from hetkern.training.run import Lock
from hetkern.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
TINY = {
    "kernels": "torch", "layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 4,
    "steps": 24, "warmup": 5, "eval_every": 8, "sample_length": 5, "threads": 1, "log_every": 3,
    "dropout": 0.1, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog.\n" * 100)
    return TINY | {"data": str(text), "out": str(tmp_path / "run")}


def contents(run):
    """All that must be the same of two runs that ended alike."""
    last = run / f"checkpoints/step-{saved_steps(run)[-1]:08d}"
    found = {file.name: file.read_bytes() for file in last.iterdir()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["rows"] = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]
    found["best"] = best_of(run)
    found["sample"] = (run / "sample.txt").read_bytes()
    return found


def stop_at(monkeypatch, step, press=lambda: signal.raise_signal(signal.SIGINT)):
    """Ctrl-C in the step of that number."""
    true_step = Trainer.make_step

    def make_step(self, *arguments):
        if self.step + 1 == step:
            press()
        return true_step(self, *arguments)

    monkeypatch.setattr(Trainer, "make_step", make_step)


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A function that trains until Ctrl-C in some step."""

    def run(settings, step):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, step)
            train(TrainConfig(**settings))
        signal.signal(signal.SIGINT, before)
        return Path(settings["out"])

    return run


VARIANTS = [
    {}, {"optimizer": "sgd", "precision": "bf16", "schedule": "linear"},
    {"precision": "fp16", "accumulate": 3, "batch_size": 1},
    {"optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "kernels": "hetkern"},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_straight_equals_half_and_resume_bit_for_bit(settings, tmp_path, interrupted, changes):
    settings |= changes
    straight = train(TrainConfig(**settings | {"out": str(tmp_path / "straight")}))
    run = interrupted(settings, 12)
    assert saved_steps(run)[-1] == 12
    again = resume(run)
    assert contents(run) == contents(straight.run)
    assert (again.val_loss, again.sample) == (straight.val_loss, straight.sample)


@pytest.mark.parametrize("step", [1, 8, 9, 24], ids=lambda step: f"step {step}")
def test_resume_from_any_step_gives_the_straight_runs_rows(settings, tmp_path, interrupted, step):
    straight = train(TrainConfig(**settings | {"out": str(tmp_path / "straight")}))
    run = interrupted(settings, step)
    resume(run)
    assert contents(run) == contents(straight.run)


@pytest.mark.parametrize("name", ["evaluate", "write_row", "mark_best", "prune"])
def test_a_run_that_dies_behind_a_checkpoint_makes_up_for_what_is_missing(
    settings, tmp_path, monkeypatch, name
):
    """The save of step 16 is there; its validation or its row is not."""
    straight = train(TrainConfig(**settings | {"out": str(tmp_path / "straight")}))
    where = session.Session if name == "evaluate" else session
    name = "_evaluate" if name == "evaluate" else name
    true = getattr(where, name)

    def die(*arguments):
        if saved_steps(tmp_path / "run")[-1:] == [16]:
            raise MemoryError
        return true(*arguments)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(where, name, die)
        train(TrainConfig(**settings))
    resume(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(straight.run)


def test_random_kills_lose_no_more_than_the_steps_since_the_last_save():
    command = [sys.executable, ROOT / "benchmarks/resume_kills.py", "--points=3", "--steps=30"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 passed" in done.stdout


SHARED = [
    f"--processes=2 --forked --points=5 --model={model} --parallel={parallel}"
    for model in ("gpt", "lstm", "classifier")
    for parallel in ("ddp", "fsdp")
]


@pytest.mark.proof
@pytest.mark.parametrize("how", ["--processes=1", "--processes=2", *SHARED])
def test_twenty_random_kills(how):
    command = [sys.executable, ROOT / "benchmarks/resume_kills.py", *how.split()]
    done = subprocess.run(command, text=True, capture_output=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_random_state_comes_back(settings, tmp_path, interrupted):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run = interrupted(settings, 4)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after  # the caller's are put back
    states = read_checkpoint(run, 4).state["random"][0]
    random.seed(TINY.get("seed", 1))
    assert states["python"] == random.getstate()
    assert states["numpy"][0] == "MT19937" and len(states["numpy"][1]) == 624
    torch.manual_seed(1)
    assert not torch.equal(states["torch"], torch.get_rng_state())  # dropout has drawn from it


def test_packing_is_undone_by_unpacking():
    value = {
        "a": (1, [2.5, None, True, "x"]), 3: {"$odd": torch.arange(3)}, "nan": float("inf"),
        "t": [torch.ones(2), (torch.zeros(0),)],
    }  # fmt: skip
    tensors = {}
    packed = json.loads(json.dumps(pack(value, tensors)))
    again = unpack(packed, tensors)
    assert again["a"] == value["a"] and again["nan"] == value["nan"]
    assert again[3]["$odd"].equal(value[3]["$odd"]) and again["t"][1][0].shape == (0,)
    with pytest.raises(TypeError, match=r"cannot hold x\.y, a set"):
        pack({"x": {"y": {1}}}, {})


# ---- What is kept. -------------------------------------------------------------------------------


def test_the_last_checkpoints_and_the_best_are_kept(settings, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 5.0, 4.0, 3.5])
    true = session.Session._evaluate

    def evaluate(self):
        def fixed(*arguments, **options):
            return made(*arguments, **options).__class__(next(losses), 1.0, 1, 1)

        made = self.trainer.task.evaluate
        self.trainer.task.evaluate = fixed
        try:
            return true(self)
        finally:
            self.trainer.task.evaluate = made

    monkeypatch.setattr(session.Session, "_evaluate", evaluate)
    result = train(TrainConfig(**settings | {"eval_every": 4, "keep": 2}))
    assert saved_steps(result.run) == [8, 20, 24]
    assert (result.best_step, result.best_val_loss) == (8, 1.0)
    assert find_checkpoint(result.run, "best") == 8
    assert find_checkpoint(result.run, "20") == 20
    with pytest.raises(UserError, match="has no checkpoint '9'; it has last, best, 8, 20, 24"):
        load(result.run, checkpoint="9")


def test_a_resume_from_an_earlier_checkpoint_forgets_the_later_ones(
    settings, tmp_path, interrupted
):
    straight = train(TrainConfig(**settings | {"out": str(tmp_path / "straight"), "keep": 9})).run
    settings |= {"keep": 9}
    run = train(TrainConfig(**settings)).run
    assert best_of(run)[0] == 24
    (run / "checkpoints/step-00000024/model.safetensors").write_bytes(b"broken")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        stop_at(patch, 10)
        resume(run, checkpoint="8")
    signal.signal(signal.SIGINT, before)
    assert saved_steps(run) == [8, 10] and best_of(run)[0] == 8
    assert [row.step for row in read_metrics(run)] == [3, 6, 8, 9, 10]
    resume(run)
    assert contents(run) == contents(straight)


def test_early_stopping_ends_after_patience_validations_without_a_better_one(settings):
    result = train(TrainConfig(**settings | {"eval_every": 2, "patience": 2, "learning_rate": 0.0}))
    assert result.steps == 6  # the first is the best, two more are not better
    assert result.best_step == 2


def test_save_every_saves_between_validations(settings):
    run = train(TrainConfig(**settings | {"save_every": 5, "keep": 100})).run
    assert saved_steps(run) == [5, 8, 10, 15, 16, 20, 24]


# ---- What is refused. ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["truncated", "changed", "missing"])
def test_a_broken_checkpoint_is_refused_by_name_and_the_one_before_offered(settings, name, how):
    run = train(TrainConfig(**settings)).run
    file = run / "checkpoints/step-00000024" / name
    whole = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] if how == "truncated" else whole[:-1] + b"\x7e")
    said = "missing" if how == "missing" else "truncated or changed"
    before = r".*; the checkpoint before is step 16: --checkpoint 16$"
    with pytest.raises(UserError, match=rf"step-00000024/{name} is {said}" + before):
        resume(run, steps=30)
    assert resume(run, checkpoint="16", steps=30).steps == 30


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b'{"format": 7}', b'{"format": 1}'])
def test_a_foreign_manifest_is_refused(settings, manifest):
    run = train(TrainConfig(**settings | {"steps": 2})).run
    (run / "checkpoints/step-00000002/manifest.json").write_bytes(manifest)
    with pytest.raises(UserError, match=r"step-00000002.*there is no earlier checkpoint"):
        load(run)


def test_a_checkpoint_of_another_model_is_refused(settings, tmp_path):
    small = train(TrainConfig(**settings)).run
    large = train(TrainConfig(**settings | {"width": 32, "out": str(tmp_path / "large")})).run
    shutil.rmtree(small / "checkpoints")
    shutil.copytree(large / "checkpoints", small / "checkpoints")
    for use in (load, lambda run: resume(run, steps=30)):
        with pytest.raises(UserError, match=r"checkpoint of step 24 is of another.*size mismatch"):
            use(small)


@pytest.mark.parametrize(
    ("dropout", "carried", "message"),
    [
        (0.1, None, "2 processes, and its dropout belongs to each: resume it with --nproc 2"),
        (0.0, torch.zeros(1), "2 processes, and what it carries from step to step belongs to"),
        (0.0, None, None),
    ],
)
def test_another_number_of_processes_is_refused_where_it_matters(
    settings, monkeypatch, dropout, carried, message
):
    run = train(TrainConfig(**settings | {"dropout": dropout})).run
    true = Trainer.restore

    def restore(self, checkpoint):
        state = checkpoint.state
        state["processes"] = 2
        state["random"] *= 2
        state["carried"] = [[carried]] * 2
        return true(self, checkpoint)

    monkeypatch.setattr(Trainer, "restore", restore)
    if message is None:
        assert resume(run, steps=25).steps == 25
    else:
        with pytest.raises(UserError, match=message):
            resume(run, steps=25)


def test_a_run_in_use_is_refused(settings, tmp_path):
    run = train(TrainConfig(**settings)).run
    lock = Lock(run)
    with pytest.raises(UserError, match=rf"run is in use by another process.*{os.getpid()}"):
        resume(run, steps=30)
    lock.release()
    assert resume(run, steps=30).steps == 30


def test_data_that_has_changed_is_refused(settings):
    run = train(TrainConfig(**settings)).run
    with open(settings["data"], "a") as text:
        text.write("more\n")
    with pytest.raises(UserError, match="has changed since this run began"):
        resume(run, steps=30)


def test_a_finished_run_says_how_to_go_on(settings):
    run = train(TrainConfig(**settings)).run
    with pytest.raises(UserError, match=r"run is finished.*--steps N"):
        resume(run)
    rows = len(read_metrics(run))
    assert resume(run, steps=30).steps == 30
    assert len(read_metrics(run)) == rows + 2
    assert TrainConfig.from_file(run / "config.toml").steps == 30


def test_a_run_of_epochs_goes_on_by_steps_and_one_of_steps_by_epochs(settings):
    result = train(TrainConfig(**settings | {"epochs": 1, "batch_size": 99}))
    assert result.steps == 2
    assert resume(result.run, steps=5).steps == 5
    assert resume(result.run, epochs=3).steps == 6
    with pytest.raises(UserError, match=r"is finished: it has made 6 steps of 4; .*--epochs N"):
        resume(result.run, epochs=2)


def test_what_a_killed_save_leaves_is_removed(settings):
    run = train(TrainConfig(**settings)).run
    part = run / "checkpoints/.part-step-00000030"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    resume(run, steps=26)
    assert not part.exists()
    assert checkpoint_module.saved_steps(run)[-1] == 26
