"""--compile: the losses of the plain run, and a checkpoint that it can read, on each model."""

import functools

import pytest
import torch

from hetkern.training import TrainConfig, read_metrics, resume, train, verify
from hetkern.training.config import ClassifyConfig

SHARED = {"layers": 1, "width": 16, "steps": 6, "warmup": 2, "threads": 1, "device": "cpu",
          "log_every": 1, "eval_every": 3, "compile": True}  # fmt: skip
LANGUAGE = {"context": 16, "batch_size": 4, "sample_length": 5}


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """A function that trains a model with and without compiling; returns both runs' folders."""

    def run(model, backend):
        true, calls = torch.compile, []

        def compile(*arguments, **options):
            calls.append(arguments)
            return true(*arguments, **options, backend=backend)

        monkeypatch.setattr(torch, "compile", compile)
        torch.compiler.reset()
        if model == "classifier":
            data = tmp_path / "rows.tsv"
            data.write_text(verify.LABELLED)
            make = functools.partial(ClassifyConfig, model="gru", min_freq=1, dropout=0.0)
            settings = SHARED | {"epochs": 0}
        else:
            data = tmp_path / "text.txt"
            data.write_text(verify.TEXT)
            make = functools.partial(TrainConfig, model=model)
            settings = SHARED | LANGUAGE
        runs = []
        for name, wanted in (("plain", False), ("compiled", True)):
            config = make(**settings | {"compile": wanted}, data=data, out=tmp_path / name)
            runs.append(train(config).run)
        assert len(calls) == 1
        return runs

    return run


def check(plain, compiled):
    for a, b in zip(read_metrics(plain), read_metrics(compiled), strict=True):
        assert b.train_loss == pytest.approx(a.train_loss, rel=1e-5)
        assert (b.val_loss or 0) == pytest.approx(a.val_loss or 0, rel=1e-5)
    assert resume(compiled, steps=7, compile=False).steps == 7


@pytest.mark.sample(3)
@pytest.mark.parametrize("model", ["gpt", "lstm", "classifier"])
def test_a_compiled_run_has_the_plain_runs_losses_and_resumes_without(compiled, model):
    check(*compiled(model, "aot_eager"))


@pytest.mark.proof
@pytest.mark.parametrize("model", ["gpt", "lstm", "classifier"])
def test_so_it_has_through_inductor(compiled, model):
    check(*compiled(model, "inductor"))
