"""The recurrent language model: its state goes on, in training, in evaluation and in sampling."""

import math

import pytest
import torch

from hetkern.models import RNNLM, RNNShape, choose_kernels
from hetkern.training import TrainConfig, UserError, load, read_metrics, resume, sample, train
from hetkern.training.checkpoint import saved_steps
from hetkern.training.generate import generate
from hetkern.training.lm import KIND
from hetkern.training.recurrent_lm import evaluate_streams

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 100


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path):
    """A function that trains a model of a few hundred weights; keywords change its settings."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    runs = iter(range(100))

    def run(**changes):
        settings = {
            "data": str(text), "out": str(tmp_path / f"run{next(runs)}"), "kernels": "torch",
            "model": "lstm", "layers": 1, "width": 16, "context": 16, "batch_size": 4, "steps": 30,
            "warmup": 5, "eval_every": 10, "sample_length": 20, "threads": 1, "device": "cpu",
        }  # fmt: skip
        return train(TrainConfig(**(settings | changes)))

    return run


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru"])
def test_training_learns_the_text(tiny, model):
    result = tiny(
        model=model, kernels="hetkern", steps=250, learning_rate=2e-2, width=48, eval_every=0
    )
    assert result.val_loss < 1.0  # 44 different bytes in a row; a uniform guess is 5.5
    assert result.val_bits_per_byte == pytest.approx(result.val_loss / math.log(2))
    run = load(result.run)
    assert sample(run.model, run.tokenizer, "\n", 20, 0.6, seed=1) == result.sample


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru"])
def test_a_stopped_run_goes_on_with_its_state_to_the_same_bits(tiny, model):
    how = {
        "model": model, "kernels": "hetkern", "save_every": 7, "keep": 9, "dropout": 0.1,
        "variational_dropout": 0.1, "recurrent_dropout": 0.1, "accumulate": 2,
    }  # fmt: skip
    straight, stopped = tiny(**how), tiny(**how)
    assert 7 in saved_steps(stopped.run)
    again = resume(stopped.run, checkpoint="7")
    ours, theirs = (load(r.run).model.state_dict() for r in (straight, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.val_loss == straight.val_loss and again.sample == straight.sample
    curves = [[row.train_loss for row in read_metrics(r.run)] for r in (straight, again)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru"])
def test_the_loss_curves_of_both_kernels_agree(tiny, model):
    ours, torchs = (
        tiny(model=model, kernels=kernels, log_every=1, layers=2)
        for kernels in ("hetkern", "torch")
    )
    curves = [[row.train_loss for row in read_metrics(r.run)] for r in (ours, torchs)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_an_epochs_losses_are_that_of_its_streams_whole(tiny, tmp_path):
    """No step starts over: all stretches together lose what the model loses on the whole."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f'{{"text": "document {i * i} {"x" * i}"}}\n' for i in range(30)))
    config = TrainConfig(data=str(path), model="gru", context=7, width=12, layers=1)
    task = KIND.prepare(config)
    model = task.build_model(choose_kernels("torch")).eval()
    order = task.order(3, seed=1)
    assert order.steps_per_epoch > 10
    for _ in range(2):  # epochs
        carried, total, batches = None, 0.0, []
        for _ in range(order.steps_per_epoch):
            batches.append(task.fetch(order.draw()))
            with torch.no_grad():
                loss, carried = task.loss(model, batches[-1], carried)
            total += loss.item()
        inputs, targets, reset = (torch.cat(parts, 1) for parts in zip(*batches, strict=True))
        assert reset[:, 1:].any() and reset[:, 0].all()
        with torch.no_grad():
            whole, _ = model.loss(inputs, targets, None, reset, "sum")
            over, _ = model.loss(inputs, targets, None, None, "sum")
        assert total == pytest.approx(whole.item(), rel=1e-6)
        assert abs(total - over.item()) > 20 * abs(total - whole.item())


def language_model(cell="lstm", dtype=torch.float32, kernels="torch"):
    torch.manual_seed(0)
    return RNNLM(RNNShape(11, cell, width=12), choose_kernels(kernels)).to(dtype)


@pytest.mark.parametrize("tokens", [2, 60, 3000])
def test_an_evaluation_is_the_same_for_any_batch_size(tokens):
    text = torch.randint(11, (tokens,), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([0, 13, 40, 2000])
    model = language_model()
    watched = []
    results = [
        evaluate_streams(model, text, documents, tokens, 8, batch, watch=watched.append)
        for batch in (1, 5, 100)
    ]
    losses = [r.loss for r in results]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert all(r.targets == r.available == tokens - 1 for r in results)
    assert watched.count(tokens - 1) >= 3 and max(watched) == tokens - 1
    assert model.training
    limited = evaluate_streams(model, text, documents, tokens, 8, 5, limit=40)
    assert limited.targets <= max(40, min(tokens - 1, 40))


def test_an_evaluation_in_one_stream_is_the_loss_of_the_whole_text():
    text = torch.randint(11, (90,), generator=torch.Generator().manual_seed(0))
    model = language_model().eval()
    documents = torch.tensor([0, 13, 40])
    reset = torch.zeros(1, 89, dtype=torch.bool)
    reset[0, [0, 13, 40]] = True
    whole, _ = model.loss(text[None, :-1], text[None, 1:], reset=reset)
    found = evaluate_streams(model, text, documents, 90, 8, 4)
    assert found.loss == pytest.approx(whole.item(), rel=1e-6)
    other = evaluate_streams(model, text, documents[:1], 90, 8, 4)
    assert other.loss != found.loss


@pytest.mark.parametrize("kernels", ["torch", "hetkern"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_sampling_with_a_carried_state_draws_the_same_text(cell, kernels):
    model = language_model(cell, kernels=kernels)
    texts = [
        generate(model, torch.tensor([3, 5]), 60, 0.8, generator=torch.Generator().manual_seed(1),
                 cache=cache)
        for cache in (True, False)
    ]  # fmt: skip
    assert torch.equal(*texts) and len(texts[0]) == 62


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "lstm2"}, "model must be gpt, rnn, lstm or gru, got 'lstm2'"),
        ({"tokens": "words"}, "tokens words lose blanks and capitals: they are for train classify"),
        ({"recurrent_dropout": 1.0}, r"recurrent_dropout must be in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": 0.1, "kernels": "torch"}, "must be 0 with --kernels torch"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**changes)


def test_shards_and_byte_pairs_train_a_model(tiny, tmp_path):
    pytest.importorskip("tokenizers")
    result = tiny(tokens="bpe", vocabulary=280, shards=str(tmp_path / "shards"), steps=10)
    assert math.isfinite(result.val_loss) and load(result.run).tokenizer.vocabulary <= 280
    again = tiny(tokens="bpe", vocabulary=280, shards=str(tmp_path / "shards"), steps=10)
    assert again.val_loss == result.val_loss
    gpt = tiny(tokens="bpe", vocabulary=280, shards=str(tmp_path / "shards"), steps=2, model="gpt")
    assert math.isfinite(gpt.val_loss)
