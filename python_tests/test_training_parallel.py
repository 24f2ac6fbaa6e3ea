"""Large batches in parts and in processes; what `hetkern verify` finds, and that it can fail."""

import os
import signal
import time

import pytest
import torch
from test_training_cli import TINY, hetkern, start

from hetkern.models import choose_kernels
from hetkern.testing import assert_close_to_exact
from hetkern.training import (
    TrainConfig,
    UserError,
    launch,
    read_metrics,
    resume,
    train,
    verify,
)  # fmt: skip
from hetkern.training.data import load_data
from hetkern.training.lm import LanguageModel
from hetkern.training.trainer import Trainer
from hetkern.training.workers import Workers


class Ragged(LanguageModel):
    """Windows of which each counts another number of targets."""

    def lengths(self, rows):
        return rows % self.config.context + 1

    def count(self, rows):
        return int(self.lengths(rows).sum())

    def fetch(self, rows):
        inputs, targets = super().fetch(rows)
        places = torch.arange(self.config.context)
        return inputs, targets.masked_fill(places >= self.lengths(rows)[:, None], -100)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(verify.TEXT)
    return path


def gradients(text, double=False, **changes):
    settings = {"layers": 1, "heads": 2, "width": 16, "context": 24, "clip": 0.0} | changes
    config = TrainConfig(data=str(text), **settings)
    torch.manual_seed(0)
    task = Ragged(config, load_data(config.data, "bytes", config.context))
    trainer = Trainer(task, config, choose_kernels("hetkern"), Workers())
    if double:
        trainer.model.double()
    loss, count, _ = trainer.make_step()
    return loss, count, [p.grad for p in trainer.model.parameters()]


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_accumulated_batches_weigh_their_tokens_as_one_large_batch_does(text, parts):
    """The mean of the batches' means would be off by percents."""
    loss, count, plain = gradients(text, batch_size=12)
    exact_loss, _, exact = gradients(text, batch_size=12, double=True)
    again, same, found = gradients(text, batch_size=12 // parts, accumulate=parts)
    assert count == same != 12 * 24
    assert again == pytest.approx(exact_loss, rel=1e-6) == loss
    for got, right, like in zip(found, exact, plain, strict=True):
        assert_close_to_exact(got.flatten(), right.flatten(), like.flatten())


def test_verify_passes_here_check_by_check(tmp_path, capsys):
    assert verify.run_checks([], "cpu", "")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["pass", name] for name in verify.CHECKS]
    assert "0.0e+00" in lines[0]  # a resume is exact


def test_verify_finds_accumulation_that_is_off_by_a_thousandth(tmp_path, capsys, monkeypatch):
    true = Trainer._backward

    def backward(self, number, part, rows, count):
        return true(self, number, part, rows, count * 1.001)

    true_gradients = verify._gradients

    def wrong(config, *arguments, **options):
        with monkeypatch.context() as patch:
            if config.accumulate > 1:
                patch.setattr(Trainer, "_backward", backward)
            return true_gradients(config, *arguments, **options)

    monkeypatch.setattr(verify, "_gradients", wrong)
    assert not verify.run_checks(["accumulation"], "cpu", "")
    assert capsys.readouterr().out.startswith("FAIL  accumulation ")


def test_verify_finds_a_resume_that_forgets_the_random_state(capsys, monkeypatch):
    monkeypatch.setattr("hetkern.training.trainer.set_random_states", lambda states: None)
    assert not verify.run_checks(["resume"], "cpu", "")
    assert capsys.readouterr().out.startswith("FAIL  resume ")


def test_verify_knows_its_checks():
    with pytest.raises(UserError, match="no check 'speed'; there are: resume, accumulation"):
        verify.run_checks(["speed"], "cpu", "")


def test_two_processes_train_evaluate_save_and_resume(tmp_path, text, capfd):
    """From Python, which runs the command with --nproc, to a resume in one process."""
    flags = [flag for flag in TINY if not flag.startswith(("--batch", "--threads"))]
    values = dict(flag.removeprefix("--").split("=") for flag in flags)
    settings = {k.replace("-", "_"): int(v) if v.isdecimal() else v for k, v in values.items()}
    settings |= {"data": text, "eval_every": 2, "device": "cpu", "batch_size": 2}
    one = train(TrainConfig(**settings, out=tmp_path / "one"))
    capfd.readouterr()
    shared = settings | {"batch_size": 1, "nproc": 2}
    two = train(TrainConfig(**shared, out=tmp_path / "two"))
    out = capfd.readouterr().out
    assert "1 sequences × 2 processes (ddp)" in out
    assert out.count("validation ") == 3  # one process speaks
    assert (two.steps, two.sample) == (one.steps, one.sample)
    rows = [read_metrics(run) for run in (one.run, tmp_path / "two")]
    assert len(rows[0]) == len(rows[1])
    for a, b in zip(*rows, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)
        assert a.val_loss == pytest.approx(b.val_loss, rel=1e-5)
    result = resume(tmp_path / "two", steps=6, nproc=1, device="cpu")
    assert result.steps == 6
    kept = TrainConfig.from_file(tmp_path / "two/config.toml")
    assert (kept.nproc, kept.batch_size, kept.accumulate) == (1, 1, 2)
    with pytest.raises(UserError, match=r"which 4 processes cannot share evenly; .*--nproc 1"):
        resume(tmp_path / "two", steps=8, nproc=4)


@pytest.mark.proof
@pytest.mark.parametrize("how", ["Ctrl-C", "a process is killed"])
def test_two_processes_that_are_stopped_leave_a_checkpoint_and_one_line(tmp_path, text, how):
    flags = [flag for flag in TINY if not flag.startswith(("--steps", "--threads"))]
    process = start(
        "train", "--data", text, "--out", "run", "--nproc=2", "--steps=1000000", "--save-every=20",
        "--device=cpu", "--log-every=1", *flags, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        os.kill(int((tmp_path / "run/.lock").read_text()), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert err.count("\n") == 1, err
    if how == "Ctrl-C":
        assert process.returncode == 130
        assert err.startswith("hetkern: stopped after step ") and "hetkern resume run" in err
    else:
        assert process.returncode == 2
        assert "process 0 was killed by SIGKILL" in err
    steps = [int(path.name[5:]) for path in tmp_path.glob("run/checkpoints/step-*")]
    status, out, err = hetkern(
        "resume", "run", "--steps", max(steps) + 1, "--device", "cpu", cwd=tmp_path
    )
    assert status == 0, err
    assert f"resumed after step {max(steps)}" in out


def test_an_error_in_several_processes_is_said_once(tmp_path, text):
    status, out, err = hetkern("train", "--data", "none", "--nproc=2", cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err == "hetkern: there is no file or folder none to train on\n"


def test_a_process_for_each_gpu_needs_one():
    with pytest.raises(UserError, match="--nproc gpu: torch finds no GPU here"):
        launch.processes_wanted(TrainConfig(nproc="gpu"))
