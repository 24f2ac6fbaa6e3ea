"""The classifier from texts to predictions: it learns, resumes, is judged once over the split."""

import json
import random

import pytest
import torch

from hetkern.models import choose_kernels
from hetkern.testing import assert_close_to_exact
from hetkern.training import ClassifyConfig, UserError, load, read_metrics, resume, train
from hetkern.training.checkpoint import saved_steps
from hetkern.training.classify import KIND, build_classifier, evaluate
from hetkern.training.predict import predict
from hetkern.training.texts import load_labelled

SAID = {"good": ["great", "fine", "lovely"], "bad": ["awful", "poor", "dull"]}


def reviews(count):
    """Texts of filler in which one word says the class, told by another where it is negated."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        negated = draw.random() < 0.5
        word = draw.choice(SAID[("good", "bad")[(number + negated) % 2]])
        said = ["not", word] if negated else [word]
        before, after = (
            [f"w{draw.randrange(20)}" for _ in range(draw.randrange(6))] for _ in range(2)
        )
        rows.append((" ".join([*before, *said, *after, f"n{number}"]), label))
    return rows


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "reviews.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in reviews(240)))
    return str(path)


@pytest.fixture
def tiny(tmp_path, data):
    """A function that trains a small classifier; keywords change its settings."""
    runs = iter(range(100))

    def run(**changes):
        settings = {
            "data": data, "out": str(tmp_path / f"run{next(runs)}"), "kernels": "torch",
            "epochs": 2, "width": 16, "layers": 1, "batch_size": 16, "threads": 1, "device": "cpu",
            "dropout": 0.2,
        }  # fmt: skip
        return train(ClassifyConfig(**(settings | changes)))

    return run


@pytest.mark.parametrize(
    ("model", "epochs", "rate"),
    [("rnn", 12, 3e-3), ("lstm", 5, 1e-2), ("gru", 5, 1e-2), ("transformer", 8, 5e-3)],
)
def test_every_model_learns_what_naive_bayes_cannot(tiny, tmp_path, model, epochs, rate):
    """Each word stands in both classes as often: counting is no use, order is."""
    path = tmp_path / "more.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in reviews(600)))
    result = tiny(
        data=str(path), model=model, kernels="hetkern", epochs=epochs, width=32,
        learning_rate=rate, dropout=0.1,
    )  # fmt: skip
    evaluation = json.loads((result.run / "evaluation.json").read_text())
    facts = json.loads((result.run / "data.json").read_text())
    assert facts["naive_bayes_accuracy"] <= 0.75 and facts["majority_accuracy"] == 0.5
    assert result.accuracy >= 0.9
    assert result.accuracy == evaluation["accuracy"]
    assert 0.9 <= evaluation["metrics"]["macro_f1"] <= 1
    rows = read_metrics(result.run)
    assert rows[-1].accuracy == result.accuracy and rows[-1].val_bits_per_byte is None
    assert rows[-1].epoch == epochs

    run = load(result.run)
    assert run.labels == ["bad", "good"]
    texts = ["w1 great w2", "w1 not great w2 w4", "w3 awful w1", "w3 not awful", ""]
    said = list(predict(run, texts, batch_size=2))
    assert [p.label for p in said[:4]] == ["good", "bad", "bad", "good"]
    for p in said:
        assert p.probability == max(p.probabilities.values()) == p.probabilities[p.label]
        assert sum(p.probabilities.values()) == pytest.approx(1)
    # Alone and among others, with its padding, a text is judged alike.
    for text, p in zip(texts, said, strict=True):
        [alone] = predict(run, [text])
        assert alone.probability == pytest.approx(p.probability, rel=1e-5)


@pytest.mark.parametrize("model", ["rnn", "gru", "transformer"])
def test_a_stopped_run_goes_on_to_the_same_bits(tiny, model):
    straight = tiny(model=model, kernels="hetkern", save_every=5)
    stopped = tiny(model=model, kernels="hetkern", save_every=5)
    earlier = saved_steps(stopped.run)[0]
    assert earlier < stopped.steps
    again = resume(stopped.run, checkpoint=str(earlier))
    ours, theirs = (load(r.run).model.state_dict() for r in (straight, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.val_loss == straight.val_loss and again.accuracy == straight.accuracy


def test_accumulated_batches_are_one_large_batch(tiny):
    one = tiny(batch_size=24, dropout=0.0, steps=6, epochs=0, kernels="torch")
    three = tiny(batch_size=8, accumulate=3, dropout=0.0, steps=6, epochs=0, kernels="torch")
    for a, b in zip(read_metrics(one.run), read_metrics(three.run), strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)
    assert one.val_loss == pytest.approx(three.val_loss, rel=1e-5)


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru"])
def test_the_loss_curves_of_both_kernels_agree(tiny, model):
    ours, torchs = (
        tiny(model=model, kernels=kernels, dropout=0.0, log_every=1, layers=2)
        for kernels in ("hetkern", "torch")
    )
    curves = [[row.train_loss for row in read_metrics(r.run)] for r in (ours, torchs)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_an_evaluation_is_the_same_for_any_batch_size(data):
    texts = load_labelled(data)
    torch.manual_seed(0)
    config = ClassifyConfig(data=data, width=16)
    model = build_classifier(config, texts.tokenizer.vocabulary, 2, choose_kernels("torch"))
    results = [evaluate(model, texts.train, 2, batch) for batch in (1, 7, 1000)]
    exact = evaluate(model.double(), texts.train, 2, 1)
    for loss, confusion in results:
        assert_close_to_exact(
            torch.tensor([loss]).float(), torch.tensor([exact[0]]), torch.tensor([results[0][0]])
        )
        assert torch.equal(confusion, exact[1])
    assert int(exact[1].sum()) == len(texts.train.labels) and model.training


def test_counts_of_all_that_was_dropped_are_printed_and_saved(tiny, tmp_path, capsys):
    rows = [*reviews(240), *reviews(3), ("", "bad"), ("w " * 300, "good")]
    path = tmp_path / "more.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in rows))
    result = tiny(data=str(path), epochs=1)
    shown = capsys.readouterr().out
    assert "245 texts read; 1 empty; 3 copies; 1 texts cut; 44 tokens cut off" in shown
    assert "naive Bayes" in shown and "2 classes" in shown
    counts = json.loads((result.run / "data.json").read_text())["counts"]
    assert counts["copies"] == 3 and counts["tokens cut off"] == 44
    assert counts["training texts"] + counts["validation texts"] == 241


@pytest.mark.parametrize("batch_size", [32, 512])
def test_a_step_of_more_texts_than_there_are_says_so(tiny, capsys, batch_size):
    tiny(steps=1, epochs=0, batch_size=batch_size)
    shown = capsys.readouterr().out
    assert ("a step takes 512 examples from 2" in shown) == (batch_size == 512)


def test_steps_alone_are_no_epochs():
    assert ClassifyConfig.from_values({}).epochs == 10
    assert ClassifyConfig.from_values({"steps": 5}).epochs == 0
    both = ClassifyConfig.from_values({"steps": 5, "epochs": 3})
    assert (both.steps, both.epochs) == (5, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "gpt"}, "model must be rnn, lstm, gru or transformer, got 'gpt'"),
        ({"tokens": "letters"}, "tokens must be words, bytes, characters or bpe"),
        ({"duplicates": "some"}, "duplicates must be exact, near or none"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"model": "transformer", "width": 6}, "width 6 must be a multiple of heads 4"),
        ({"min_freq": 0}, "min_freq must be at least 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(UserError, match=message):
        ClassifyConfig(**changes)


def test_settings_come_back_from_their_file(tmp_path):
    config = ClassifyConfig(model="transformer", min_freq=3)
    assert (config.dropout, ClassifyConfig().dropout) == (0.1, 0.5)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert ClassifyConfig.from_file(path) == config


def test_a_language_model_has_nothing_to_predict(tiny):
    run = load(tiny(epochs=1).run)._replace(labels=None)
    with pytest.raises(UserError, match="it has no labels to predict"):
        next(predict(run, ["text"]))


def test_broken_labels_are_one_sentence(data):
    task = KIND.prepare(ClassifyConfig(data=data))
    files = task.files() | {"labels.json": b"[1]"}
    with pytest.raises(UserError, match=r"labels\.json is no list of names"):
        KIND.restore(ClassifyConfig(data=data), files, choose_kernels("torch"))
