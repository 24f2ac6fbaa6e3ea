"""What cannot fit into memory is refused before it is allocated, with a size to try."""

import time

import pytest
import torch

from hetkern.models import choose_kernels
from hetkern.training import TrainConfig, UserError, memory, train, verify
from hetkern.training.commands import evaluate
from hetkern.training.config import ClassifyConfig
from hetkern.training.task import kind_of
from hetkern.training.workers import Workers

TINY = {"layers": 1, "width": 16, "steps": 2, "threads": 1, "device": "cpu"}
LM = TINY | {"context": 16, "batch_size": 4, "sample_length": 0}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(verify.TEXT)
    return str(path)


@pytest.fixture
def room(monkeypatch):
    """A function that leaves so many bytes; nothing is allocated in vain."""
    return lambda size: monkeypatch.setattr(memory, "available", lambda device: size)


@pytest.mark.parametrize("model", ["gpt", "lstm"])
def test_a_batch_that_cannot_fit_is_refused_with_one_to_try(text, tmp_path, room, model):
    settings = LM | {"model": model, "data": text}
    room(20_000_000)
    message = r"^--batch-size 40000 takes at least 46.1 MB of memory, .*: try --batch-size (\d+)$"
    with pytest.raises(UserError, match=message) as refused:
        train(TrainConfig(**settings | {"batch_size": 40_000, "out": str(tmp_path / "large")}))
    assert not (tmp_path / "large").exists()
    size = int(str(refused.value).split()[-1])
    train(TrainConfig(**settings | {"batch_size": size, "out": str(tmp_path / "run")}))


def test_a_batch_of_texts_too(tmp_path, room):
    data = tmp_path / "rows.tsv"
    data.write_text(verify.LABELLED)
    room(20_000_000)
    config = ClassifyConfig(
        **TINY, data=str(data), min_freq=1, batch_size=999_999, out=str(tmp_path / "run")
    )
    with pytest.raises(UserError, match=r"^--batch-size 999999 takes .*: try --batch-size \d+$"):
        train(config)


def test_a_model_and_many_accumulated_batches_are_refused_by_name(text, room):
    room(20_000_000)
    with pytest.raises(
        UserError, match=r"a model of 12,860,416 parameters takes 205.8 MB .*--width or fewer"
    ):
        train(TrainConfig(**LM | {"width": 1024, "data": text}))
    with pytest.raises(UserError, match=r"^--accumulate 9999999 takes at least 320.0 MB to number"):
        train(TrainConfig(**LM | {"accumulate": 9_999_999, "data": text}))


def test_an_evaluations_batch_is_no_larger_than_the_data(text, tmp_path, room):
    run = train(TrainConfig(**LM, data=text, out=str(tmp_path / "run"))).run
    how = (str(run), "val", "last", False, False, {"batch_size": 10**9}, "")
    evaluate(*how)
    room(1000)
    with pytest.raises(UserError, match=r"^--batch-size 1000000000 takes at least .*: try --batch"):
        evaluate(*how)


def test_what_is_counted_is_less_than_what_a_step_takes(text):
    """So that nothing is refused that would have fitted: a step's own allocations are more."""
    config = TrainConfig(**LM | {"batch_size": 64, "data": text, "width": 64})
    task, kernels = kind_of(config).prepare(config), choose_kernels("hetkern")
    model = task.build_model(kernels)
    batch = task.fetch(task.order(64, 1).draw())
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task.loss(model, batch, None)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {s.data_ptr(): s.nbytes() for s in kept if s.data_ptr() not in weights}
    _, tokens = task.size()
    assert 64 * tokens * (8 + config.layers * config.width * 4) < sum(sizes.values())


def test_the_check_draws_nothing_and_takes_no_time(text):
    config = TrainConfig(data=text, context=16)
    task = kind_of(config).prepare(config)
    kernels = choose_kernels("hetkern")
    before = torch.random.get_rng_state()
    began = time.process_time()
    memory.check_step(task, config, kernels, Workers())
    assert time.process_time() - began < 1.0
    assert torch.random.get_rng_state().equal(before)


def test_here_there_is_memory():
    assert (memory.available(torch.device("cpu")) or 1e9) > 1e6
