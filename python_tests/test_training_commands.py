"""What the commands do with a run: measure, write, label, draw, profile; and what they refuse."""

import importlib.util
import io
import json
import sys

import pytest
import torch

from hetkern.models import GPT
from hetkern.ops import products
from hetkern.training import (
    TrainConfig,
    UserError,
    commands,
    evaluate,
    load,
    read_metrics,
    train,
    trainer,
)
from hetkern.training.config import CONFIGS, RunConfig
from hetkern.training.config.classify import ClassifyConfig
from hetkern.training.data import load_data
from hetkern.training.probe import probed
from hetkern.training.run import config_of
from hetkern.training.trainer import Trainer
from hetkern.training.workers import OtherProcessFailed

TINY = {
    "kernels": "hetkern", "layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 4,
    "steps": 6, "warmup": 2, "eval_every": 3, "sample_length": 5, "threads": 1, "log_every": 1,
    "device": "cpu",
}  # fmt: skip
NO_CHANGE = dict.fromkeys(["batch_size", "kernels", "device", "nproc"])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n" * 100)
    return str(path)


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "gpt"
    config = TrainConfig(**TINY | {"eval_tokens": 32, "data": text}, out=out, patience=5)
    return train(config).run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    rows = [f"{c}\t{a} {b} {c}ly {n}" for c in ("dark", "keen") for a in "xyz" for b in "uvw"
            for n in range(8)]  # fmt: skip
    (folder / "data.tsv").write_text("label\ttext\n" + "\n".join(rows) + "\n")
    config = ClassifyConfig(
        data=folder / "data.tsv", out=folder / "run", layers=1, width=16, epochs=3, min_freq=1,
        batch_size=16, threads=1, device="cpu", learning_rate=1e-2, model="gru",
    )  # fmt: skip
    return train(config).run


# ---- eval. ---------------------------------------------------------------------------------------


def test_eval_reads_the_whole_split_whatever_the_run_was_told(run, text, capsys):
    commands.evaluate(str(run), "val", "last", True, True, NO_CHANGE, "")
    shown = json.loads(capsys.readouterr().out)
    data = load_data(text, "bytes", 16)
    exact = evaluate(load(run).model, data.val, data.val_bytes, 4)
    assert shown["targets"] == exact.targets == len(data.val) - 1 > 32
    assert shown["loss"] == pytest.approx(exact.loss, rel=1e-6)
    assert shown["perplexity"] == pytest.approx(2.718281828459045**exact.loss, rel=1e-5)
    assert shown["bits_per_byte"] == pytest.approx(exact.bits_per_byte, rel=1e-6)
    [floor] = shown["floors"].values()
    assert 0 < floor < exact.loss  # the text repeats itself


@pytest.mark.parametrize("plain_loops", [False, True])
def test_a_precision_that_this_processor_lacks_is_said(
    plain_loops, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(products, "WIDENED", frozenset([torch.bfloat16] if plain_loops else []))
    config = TINY | {"data": text, "steps": 1, "warmup": 0, "precision": "bf16"}
    train(TrainConfig(**config, out=tmp_path / "run"))
    assert ("bf16 in plain loops" in capsys.readouterr().out) == plain_loops


def test_eval_in_words_and_of_the_training_split(run, capsys):
    commands.evaluate(str(run), "train", "3", True, False, NO_CHANGE | {"batch_size": 7}, "")
    out = capsys.readouterr().out
    assert "step 3, train: " in out and "perplexity" in out and "floor" not in out
    with pytest.raises(UserError, match="--split must be val or train, got 'test'"):
        commands.evaluate(str(run), "test", "last", True, False, NO_CHANGE, "")


def test_eval_of_a_classifier_has_accuracy_and_its_floors(classifier, capsys):
    commands.evaluate(str(classifier), "val", "best", True, True, NO_CHANGE, "")
    shown = json.loads(capsys.readouterr().out)
    assert shown["accuracy"] > 0.9
    assert len(shown["floors"]) >= 2
    assert sum(map(sum, shown["confusion"])) == shown["targets"]
    commands.evaluate(str(classifier), "val", "best", True, False, NO_CHANGE, "")
    table = capsys.readouterr().out.splitlines()[1:]
    assert all(" " in line[:-6] and line[-7] == " " for line in table), table


# ---- sample, predict. ----------------------------------------------------------------------------


def test_sample_streams_one_text_and_joins_several(run, capsys):
    commands.sample(str(run), ["the"], 20, (0.8, 0, 0.9, 1.1), 1, True, "last", None)
    alone = capsys.readouterr().out
    commands.sample(str(run), ["the", "fox "], 20, (0.8, 0, 0.9, 1.1), 1, False, "last", "torch")
    several = capsys.readouterr().out
    assert alone.startswith("the") and several.startswith(alone.removesuffix("\n") + "\n---\nfox ")


def test_a_text_of_several_lines_is_one_row_of_a_prediction(classifier, capsys):
    texts = ["two\nlines", "a\ttab", "\r\n"]
    commands.predict(str(classifier), texts, None, False, 64, "last", None)
    rows = [line.split("\t") for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [row[2] for row in rows] == ["two lines", "a tab", "  "]
    commands.predict(str(classifier), texts, None, True, 64, "last", None)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == texts


def test_an_empty_prompt_is_refused_in_the_commands_words(run):
    with pytest.raises(UserError, match="an empty --prompt leaves nothing to go on from"):
        commands.sample(str(run), ["a", ""], 5, (0.8, 0, 0.9, 1.1), 1, True, "last", None)


def test_predict_labels_arguments_lines_and_files_alike(classifier, tmp_path, capsys, monkeypatch):
    texts = ["x v darkly 3", "z u\tkeenly 1"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts)))
    outputs = []
    for arguments in ((texts, None), (["-"], None), ([], str(tmp_path / "texts.txt"))):
        commands.predict(str(classifier), *arguments, False, 1, "last", None)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]
    rows = [line.split("\t") for line in outputs[0].splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("dark", texts[0]), ("keen", "z u keenly 1")]
    commands.predict(str(classifier), texts, None, True, 64, "best", None)
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["label"] == "dark" and first["text"] == texts[0]
    assert sum(first["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert first["probability"] == max(first["probabilities"].values())


def test_each_kind_of_run_names_the_others_command(run, classifier, tmp_path):
    with pytest.raises(UserError, match="language model and has no labels; hetkern sample"):
        commands.predict(str(run), ["x"], None, False, 1, "last", None)
    with pytest.raises(UserError, match="is a classifier and writes no text; hetkern predict"):
        commands.sample(str(classifier), ["x"], 3, (1, 0, 1, 1), 1, True, "last", None)
    for texts, file in (([], None), (["x"], "file")):
        with pytest.raises(UserError, match="give texts, or a file"):
            commands.predict(str(classifier), texts, file, False, 1, "last", None)
    (tmp_path / "latin.txt").write_bytes(b"a\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt, line 1 or after, is not UTF-8"):
        commands.predict(str(classifier), [], str(tmp_path / "latin.txt"), False, 1, "last", None)


# ---- plot, profile, TensorBoard. -----------------------------------------------------------------


def test_plot_draws_curves_and_a_confusion_matrix(run, classifier, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    commands.plot([str(run), str(classifier)], str(tmp_path / "curves.png"))
    paths = capsys.readouterr().out.split()
    assert paths == [str(tmp_path / "curves.png"), str(classifier / "confusion.png")]
    for path in paths:
        picture = imread(path)
        assert (
            picture.shape[0] > 200 and len({tuple(p) for p in picture[::7, ::7].reshape(-1, 4)}) > 5
        )
    with pytest.raises(UserError, match=r"holds no run \(metrics\.jsonl is missing\)"):
        commands.plot([str(tmp_path)], None)
    with pytest.raises(UserError, match=r"--out must name a \.png file"):
        commands.plot([str(run)], str(tmp_path / "curves.svg"))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{oops\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is no row of metrics"):
        commands.plot([str(tmp_path)], None)


def test_profile_has_ops_by_implementation_and_leaves_the_run_alone(run, capsys):
    before = (run / "metrics.jsonl").read_bytes(), sorted((run / "checkpoints").iterdir())
    commands.profile(str(run), 2, {"kernels": None, "device": None})
    table = capsys.readouterr().out
    for name in ("hetkern::attention_backward ", "hetkern::cross_entropy "):
        [line] = [line for line in table.splitlines() if line.startswith(name)]
        assert line.split()[1] == "cpu" and line.split()[-1] == "1"  # call a step
    assert "aten::addmm" in table
    names = {
        e.get("name") for e in json.loads((run / "profile/trace.json").read_text())["traceEvents"]
    }
    assert "hetkern::attention [cpu]" in names
    assert before == ((run / "metrics.jsonl").read_bytes(), sorted((run / "checkpoints").iterdir()))


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="no tensorboard here")
def test_tensorboard_events_are_the_rows(text, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(**TINY | {"data": text}, out=tmp_path / "run", tensorboard=True)
    rows = read_metrics(train(config).run)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    losses = {e.step: e.value for e in events.Scalars("loss/train")}
    assert losses == pytest.approx({row.step: row.train_loss for row in rows}, rel=1e-6)
    assert [e.step for e in events.Scalars("loss/validation")] == [3, 6]


# ---- The run's folder. ---------------------------------------------------------------------------


def test_the_environment_says_which_implementation_each_op_took(run):
    facts = json.loads((run / "environment.json").read_text())
    assert facts["torch"] == torch.__version__ and facts["device"] == "cpu"
    ops = {row["op"]: row for row in facts["plan"]}
    assert {"hetkern.attention", "hetkern.cross_entropy"} <= ops.keys()
    assert ops["hetkern.attention"]["impl"] == "cpu" and ops["hetkern.attention"]["plan"]
    assert ops["hetkern.attention"]["calls"] == TINY["layers"]


def test_a_loss_that_is_no_number_leaves_its_batch(text, tmp_path, monkeypatch):
    import safetensors.torch

    true_loss = GPT.loss
    monkeypatch.setattr(GPT, "loss", lambda self, *a, **k: true_loss(self, *a, **k) * float("inf"))
    with pytest.raises(UserError, match=r"the loss is inf at step 1; nothing was saved yet, the "):
        train(TrainConfig(**TINY | {"data": text}, out=tmp_path / "run"))
    batch = safetensors.torch.load_file(tmp_path / "run/batch-of-step-1.safetensors")
    assert batch["rows"].shape == (4,) and batch["batch.0"].shape == (4, 16)
    assert torch.equal(batch["batch.0"][:, 1:], batch["batch.1"][:, :-1])


@pytest.mark.parametrize("before", [0, 3])
def test_a_validation_that_is_no_number_ends_the_run(text, tmp_path, monkeypatch, before):
    """The training loss of a step is that of the weights before it."""
    rate = trainer.learning_rate
    far = lambda step, *rest: 1e30 if step == before + 1 else rate(step, *rest)  # noqa: E731
    monkeypatch.setattr(trainer, "learning_rate", far)
    said = "the checkpoint before is step 3" if before else "nothing else was saved"
    config = TrainConfig(**TINY | {"data": text, "steps": before + 1}, out=tmp_path / "run", clip=0)
    with pytest.raises(UserError, match=rf"loss is nan after step {before + 1}; {said}\. A lower"):
        train(config)
    with pytest.raises(UserError, match="logits are no numbers"):
        commands.sample(str(tmp_path / "run"), ["a"], 3, (0, 0, 1, 1), 1, True, "last", None)


def test_out_of_memory_names_a_batch_to_try(text, tmp_path, monkeypatch):
    def loss(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GPT, "loss", loss)
    settings = TINY | {"data": text, "batch_size": 6, "accumulate": 2}
    with pytest.raises(UserError, match="with --batch-size 6; try --batch-size 3 --accumulate 4"):
        train(TrainConfig(**settings, out=tmp_path / "run"))


def test_epochs_count_passes_and_say_a_line_each(text, tmp_path, capsys):
    config = TrainConfig(**TINY | {"data": text, "epochs": 2, "batch_size": 32}, out=tmp_path / "r")
    result = train(config)
    per_epoch = -(-len(load_data(text, "bytes", 16).train) // (32 * 16)) - 1
    assert result.steps in (2 * per_epoch, 2 * per_epoch + 2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert "loss " in lines[0] and "perplexity " in lines[0]
    assert [row.epoch for row in read_metrics(result.run) if row.val_loss] == [1.0, 2.0]


# ---- A batch size to find, and memory that is too small. -----------------------------------------


class FakeClock:
    """Steps that take as long as their size says."""

    def __init__(self, monkeypatch, seconds):
        self.now = 0.0
        monkeypatch.setattr("hetkern.training.probe.time.perf_counter", lambda: self.now)

        def make_step(trainer):
            self.now += seconds(trainer.rows)
            return 1.0, trainer.rows, False

        monkeypatch.setattr(Trainer, "make_step", make_step)


def probe(config, text):
    from hetkern.models import choose_kernels
    from hetkern.training.task import kind_of
    from hetkern.training.workers import Workers

    said = []
    config = TrainConfig(**TINY | {"data": text, "batch_size": config})
    task = kind_of(config).prepare(config)
    found = probed(config, task, choose_kernels("torch"), Workers(), said.append)
    return found.batch_size, said


def test_auto_takes_the_batch_with_the_most_tokens_a_second(text, monkeypatch):
    FakeClock(monkeypatch, lambda rows: 1.0 if rows <= 16 else rows / 16)
    size, [said] = probe("auto", text)
    assert size == 16
    assert said.startswith(
        "batch   16 sequences, probed (tokens/s at 1: 1; 2: 2; 4: 4; 8: 8; 16: 16;"
    )


def test_auto_ends_where_memory_does(text, monkeypatch):
    def seconds(rows):
        if rows > 8:
            raise torch.OutOfMemoryError
        return 1.0

    FakeClock(monkeypatch, seconds)
    size, [said] = probe("auto", text)
    assert size == 8 and said.endswith("8: 8; 16: out of memory)")
    FakeClock(monkeypatch, lambda rows: seconds(99))
    with pytest.raises(UserError, match="not even a batch of one fits"):
        probe("auto", text)


def test_auto_is_kept_as_a_number(text, tmp_path):
    result = train(TrainConfig(**TINY | {"data": text, "batch_size": "auto", "steps": 1},
                               out=tmp_path / "run"))  # fmt: skip
    assert isinstance(config_of(result.run).batch_size, int)


# ---- Which errors are a user's. ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("said"), "said"),
        (PermissionError(13, "Permission denied", "x"), "x: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("lost"), "lost"),
        (torch.OutOfMemoryError("CUDA"), "out of memory; a smaller --batch-size"),
        (MemoryError(), "out of memory; a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "out of memory; a"),
        (OtherProcessFailed("it"), ""),
    ],
)
def test_errors_that_a_user_can_mend_are_one_line(error, line):
    shown = commands.sentence(error)
    assert shown.startswith(line) and "\n" not in shown and (line or not shown)


def test_errors_of_hetkerns_own_keep_their_traceback():
    assert commands.sentence(RuntimeError("a bug")) is None
    assert commands.sentence(KeyError("x")) is None


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_presets_hold_settings_that_exist(config: type[RunConfig]):
    for name in config.PRESETS:
        assert config.from_values({"preset": name}).preset == name
    with pytest.raises(UserError, match="there is no preset 'none'"):
        config.from_values({"preset": "none"})


def test_flags_and_old_names_win_over_a_preset():
    config = TrainConfig.from_values({"preset": "nanogpt-cpu", "batch": "3", "steps": 5})
    assert config.batch == config.batch_size == 3  # its former name
    with pytest.raises(AttributeError, match="'TrainConfig' object has no attribute 'batches'"):
        config.batches  # noqa: B018
    assert (config.batch_size, config.steps, config.context) == (3, 5, 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": "many"}, "batch_size must be a whole number or auto, got 'many'"),
        ({"nproc": "all"}, "nproc must be a whole number or gpu, got 'all'"),
        ({"compile": 1}, "compile must be true or false, got 1"),
        ({"precision": "fp8"}, "precision must be float32, bf16 or fp16, got 'fp8'"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
    ],
)
def test_bad_settings_are_named_with_what_was_wanted(values, message):
    with pytest.raises(UserError, match=f"^{message}"):
        TrainConfig(**values)
