"""The loop: it learns, gives the same bits, keeps its records and survives what goes wrong."""

import errno
import json
import math
import os
import resource
import signal

import pytest
import torch

from hetkern.models import GPT
from hetkern.training import (
    TrainConfig,
    UserError,
    load,
    read_metrics,
    report,
    sample,
    session,
    train,
)
from hetkern.training.checkpoint import write_checkpoint
from hetkern.training.lm import LanguageModel
from hetkern.training.optimizer import clip_gradients, learning_rate
from hetkern.training.stops import saved_step
from hetkern.training.storage import write_atomically
from hetkern.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 100


@pytest.fixture
def tiny(tmp_path):
    """A function that trains a model of a few hundred weights; keywords change its settings."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    runs = iter(range(100))

    def run(**changes):
        settings = {
            "data": str(text), "out": str(tmp_path / f"run{next(runs)}"), "kernels": "torch",
            "layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 4, "steps": 30,
            "warmup": 5, "eval_every": 10, "sample_length": 20, "threads": 1,
        }  # fmt: skip
        return train(TrainConfig(**(settings | changes)))

    return run


def weights_of(run):
    return (run / f"checkpoints/step-{saved_step(run):08d}/model.safetensors").read_bytes()


def test_training_learns_the_text(tiny):
    result = tiny(steps=200, learning_rate=1e-2, width=32)
    rows = read_metrics(result.run)
    assert rows[0].train_loss > 3.0
    assert result.val_loss < 1.0  # 44 different bytes in a row; a uniform guess is 5.5
    assert result.val_loss == rows[-1].val_loss
    assert result.val_bits_per_byte == pytest.approx(result.val_loss / math.log(2))


@pytest.mark.parametrize("how", [{}, {"kernels": "hetkern", "threads": 2}], ids=str)
def test_same_seed_gives_the_same_bits_and_another_seed_others(tiny, how):
    first, again = (tiny(seed=5, dropout=0.1, **how) for _ in range(2))
    other = tiny(seed=6, **how)
    weights = [weights_of(r.run) for r in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert first.sample == again.sample
    assert first.val_loss == again.val_loss != other.val_loss


def test_training_leaves_the_callers_random_state_and_threads_alone(tiny):
    torch.manual_seed(3)
    before = torch.random.get_rng_state(), torch.get_num_threads()
    tiny(steps=2, threads=1)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


@pytest.mark.parametrize("before", [False, True])
def test_a_step_takes_denormal_numbers_as_zeros_and_the_caller_has_them_back(
    tiny, monkeypatch, before
):
    """A step over gradients of 1e-40 costs ten times one over zeros."""
    flushed = []
    make_step = Trainer.make_step

    def watched(self, *arguments):
        flushed.append((torch.full((20,), 1e-40) * 1.0).count_nonzero().item() == 0)
        return make_step(self, *arguments)

    monkeypatch.setattr(Trainer, "make_step", watched)
    torch.set_flush_denormal(before)
    try:
        tiny(steps=2)
        assert ((torch.full((1,), 1e-40) * 1.0).item() == 0) == before
    finally:
        torch.set_flush_denormal(False)
    assert flushed == [True, True]


def test_metrics_rows_have_their_keys_and_val_loss_where_it_was_measured(tiny):
    result = tiny(log_every=5)
    lines = (result.run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert [row["val_loss"] is not None for row in rows] == [False, True] * 3
    for row in rows:
        assert set(row) == {
            "step", "epoch", "train_loss", "val_loss", "val_bits_per_byte", "accuracy",
            "learning_rate", "tokens_per_second",
        }  # fmt: skip
        assert row["train_loss"] > 0 and row["tokens_per_second"] > 0


def test_a_run_can_be_started_again_from_its_own_config(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tiny(steps=3, out=str(tmp_path / "named"))
    command = report.interrupted(1, result.run).split("; ")[-1]
    *_, file = command.removesuffix(" starts over").split()
    assert command.startswith("hetkern train --config ")
    again = train(TrainConfig.from_file(file))
    assert again.val_loss == result.val_loss
    assert again.run != result.run


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny, tmp_path):
    tiny(steps=1, out=str(tmp_path / "run"))
    with pytest.raises(UserError, match="run holds a run already; choose another --out"):
        tiny(steps=1, out=str(tmp_path / "run"))


def test_without_out_each_run_gets_a_fresh_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [tiny(steps=1, out=None).run.as_posix() for _ in range(2)]
    assert runs == ["runs/gpt-001", "runs/gpt-002"]


@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_load_gives_back_the_trained_model_and_its_tokenizer(tiny, tokens):
    result = tiny(tokens=tokens)
    model, tokenizer, labels = load(result.run)
    assert labels is None and not model.training
    assert sample(model, tokenizer, "\n", 20, 0.6, seed=1) == result.sample
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_load_of_no_run_or_a_broken_one_is_one_sentence(tiny, tmp_path):
    with pytest.raises(UserError, match="holds no trained model"):
        load(tmp_path)
    run = tiny(steps=1).run
    (run / "checkpoints/step-00000001/model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or changed: its SHA-256"):
        load(run)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0, float("inf"), float("nan")])
def test_gradients_are_clipped_as_torch_clips_them_and_small_ones_not_touched(size):
    ours = [torch.nn.Parameter(torch.ones(3, 5)), torch.nn.Parameter(torch.ones(2))]
    torchs = [torch.nn.Parameter(p.detach()) for p in ours]
    for p, q in zip(ours, torchs, strict=True):
        p.grad = torch.linspace(-size, size, p.numel()).view(p.shape)
        q.grad = p.grad.clone()
    versions = [p.grad._version for p in ours]
    clip_gradients(ours, 1.0)
    torch.nn.utils.clip_grad_norm_(torchs, 1.0)
    for p, q in zip(ours, torchs, strict=True):
        assert torch.equal(p.grad.view(torch.int32), q.grad.view(torch.int32))
    assert (versions == [p.grad._version for p in ours]) == (size == 0.1)


def test_learning_rate_rises_to_its_highest_and_falls_to_its_least():
    config = TrainConfig(steps=100, warmup=10, learning_rate=1.0, min_learning_rate=0.1)
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[54] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_a_write_that_the_system_cuts_short_keeps_the_previous_file(tmp_path):
    path = tmp_path / "weights"
    write_atomically(path, b"previous")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel refuses byte 1001
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"previous"
    assert os.listdir(tmp_path) == ["weights"]


def test_a_full_disk_stops_the_run_and_keeps_the_previous_checkpoint(tiny, tmp_path, monkeypatch):
    def full_from_step_20(run, checkpoint, workers):
        if checkpoint.step >= 20:
            monkeypatch.setattr(os, "fsync", no_space)
        write_checkpoint(run, checkpoint, workers)

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session, "write_checkpoint", full_from_step_20)
    run = tmp_path / "full"
    message = r"could not save step 20 in .*full: No space left on device; the weights of step 10"
    with pytest.raises(UserError, match=message):
        tiny(out=str(run))
    assert saved_step(run) == 10
    assert not list(run.glob("**/*part*"))
    assert load(run).model is not None


@pytest.mark.parametrize(
    ("function", "what"),
    [("write_row", "write the metrics of step"), ("mark_best", "write the validation")],
)
def test_a_disk_that_fills_up_elsewhere_says_so_too(tiny, tmp_path, monkeypatch, function, what):
    def no_space(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session, function, no_space)
    with pytest.raises(UserError, match=f"could not {what}.* in .*full: No space left on device; "):
        tiny(out=str(tmp_path / "full"))


def test_weights_are_saved_before_the_validation(tiny, tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(LanguageModel, "evaluate", fail)
    with pytest.raises(MemoryError):
        tiny(out=str(tmp_path / "run"))
    assert saved_step(tmp_path / "run") == 10


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_weights(
    tiny, tmp_path, monkeypatch
):
    steps = iter(range(1, 100))
    true_loss = GPT.loss

    def loss(self, tokens, targets, reduction="mean"):
        value = true_loss(self, tokens, targets, reduction)
        return value * float("nan") if self.training and next(steps) == 13 else value

    monkeypatch.setattr(GPT, "loss", loss)
    with pytest.raises(UserError, match=r"the loss is nan at step 13; the weights of step 10 are"):
        tiny(out=str(tmp_path / "run"))
    assert saved_step(tmp_path / "run") == 10


def test_ctrl_c_finishes_the_step_saves_and_says_what_to_do(tiny, tmp_path, monkeypatch):
    true_step = Trainer.make_step
    steps = iter(range(1, 100))

    def step(*arguments):
        if next(steps) == 7:
            signal.raise_signal(signal.SIGINT)
        return true_step(*arguments)

    monkeypatch.setattr(Trainer, "make_step", step)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 7; the weights are saved"):
        tiny(out=str(tmp_path / "run"))
    assert saved_step(tmp_path / "run") == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def ctrl_c():
    """Press it; SIGINT has Python's handler before, which a background job lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("step", [10, 30], ids=["a validation on the way", "the last one"])
def test_ctrl_c_in_a_validation_stops_it_at_once(tiny, tmp_path, monkeypatch, ctrl_c, step):
    true_loss, batches = GPT.loss, []

    def loss(self, *arguments, **options):
        if not self.training:
            batches.append(1)
            if len(batches) == (2 if step == 10 else 18):  # 8 batches a validation
                ctrl_c()
        return true_loss(self, *arguments, **options)

    monkeypatch.setattr(GPT, "loss", loss)
    with pytest.raises(KeyboardInterrupt, match=rf"stopped after step {step}; the weights"):
        tiny(out=str(tmp_path / "run"))
    assert len(batches) == (2 if step == 10 else 18)  # not one more
    assert saved_step(tmp_path / "run") == step
    last = read_metrics(tmp_path / "run")[-1]
    assert (last.step, last.val_loss) == (step, None) and last.train_loss > 0


def test_ctrl_c_in_the_sample_says_where_the_weights_are(tiny, tmp_path, monkeypatch, ctrl_c):
    monkeypatch.setattr(LanguageModel, "finish", lambda *arguments: ctrl_c())
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 30; the weights are saved"):
        tiny(out=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("step", "message"),
    [(7, "stopped; nothing was saved yet in "), (17, "at once; the weights of step 10 are saved")],
)
def test_a_second_ctrl_c_says_what_is_saved(tiny, tmp_path, monkeypatch, ctrl_c, step, message):
    true_step = Trainer.make_step
    steps = iter(range(1, 100))

    def pressed_twice(*arguments):
        if next(steps) == step:
            ctrl_c()
            ctrl_c()
        return true_step(*arguments)

    monkeypatch.setattr(Trainer, "make_step", pressed_twice)
    with pytest.raises(KeyboardInterrupt, match=message):
        tiny(out=str(tmp_path / "run"))


def test_a_bounded_validation_is_announced_and_says_what_it_covers(tiny, capsys):
    result = tiny(eval_tokens=100)
    shown = capsys.readouterr().out
    assert "each predicts 96 tokens, spread over the validation text" in shown
    assert "bits per byte (96 of 449 targets)" in shown
    assert result.val_targets == 96
    assert tiny(eval_tokens=0).val_targets == tiny().val_targets == 449  # small texts stay whole


def test_a_validation_that_outweighs_the_training_is_announced(tiny, capsys):
    tiny(steps=2, eval_every=1)
    assert "validation: 2 times 449 tokens, where training reads 128" in capsys.readouterr().out
    tiny()
    assert "validation: " not in capsys.readouterr().out


def test_hetkern_and_torch_loss_curves_agree_to_rounding_over_50_steps(tiny):
    curves = {
        kernels: [
            row.train_loss
            for row in read_metrics(tiny(kernels=kernels, steps=50, log_every=1, layers=2).run)
        ]
        for kernels in ("hetkern", "reference", "torch")
    }
    assert len(curves["torch"]) == 50
    assert curves["torch"][-1] < curves["torch"][0] - 1.0
    assert curves["hetkern"] == pytest.approx(curves["torch"], rel=1e-5)
    assert curves["reference"] == pytest.approx(curves["torch"], rel=1e-5)
