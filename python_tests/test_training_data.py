"""Data: what is read, how it is split, and that the validation counts every token once."""

import math

import pytest
import torch

from hetkern.models import GPT, GPTShape, choose_kernels
from hetkern.training import TrainConfig, UserError, evaluate
from hetkern.training.data import Data, load_data, read_standard_library
from hetkern.training.evaluate import targets_within, windows
from hetkern.training.lm import LanguageModel
from hetkern.training.tokenizer import Bytes, Characters, tokenizer_from_json


def test_a_single_text_is_split_at_nine_tenths(tmp_path):
    text = "".join(chr(ord("a") + i % 26) for i in range(1005))
    path = tmp_path / "text.txt"
    path.write_text(text)
    data = load_data(str(path), "bytes", context=8)
    assert data.tokenizer.decode(data.train) == text[:904]
    assert data.tokenizer.decode(data.val) == text[904:]
    assert data.val_bytes == 100


def test_of_many_files_a_tenth_is_for_validation_by_what_is_in_them(tmp_path):
    texts = [f"<{i:02}>" for i in range(31)]
    for folder, names in (("a", texts), ("b", texts[::-1])):
        (tmp_path / folder).mkdir()
        for name, text in zip(names, texts, strict=True):
            (tmp_path / folder / name).write_text(text)
    one, other = (load_data(str(tmp_path / folder), "bytes", context=8) for folder in "ab")
    val = one.tokenizer.decode(one.val).split("\n")
    assert len(val) == 3
    assert one.tokenizer.decode(one.train).split("\n") == [t for t in texts if t not in val]
    assert sorted(other.tokenizer.decode(other.val).split("\n")) == sorted(val)  # whatever its name


def test_a_folder_is_read_in_order_without_hidden_binary_and_copied_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("second " * 20)
    (tmp_path / "a.txt").write_text("first " * 20)
    (tmp_path / "copy.txt").write_text("first " * 20)
    (tmp_path / "image.bin").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "secret.txt").write_text("secret")
    data = load_data(str(tmp_path), "bytes", context=8)
    text = torch.cat([data.train, data.val])
    assert data.tokenizer.decode(text) == "first " * 20 + "\n" + "second " * 20
    assert (data.documents.files, data.documents.skipped) == (2, 3)


def test_the_standard_library_is_there_and_the_same_each_time():
    first, again = read_standard_library(), read_standard_library()
    assert first.documents == again.documents
    texts = b"".join(first.main.drain()) + b"".join(first.held_out.drain())
    assert 1_000_000 < len(texts) <= 1_501_000
    assert b"class ABCMeta(type)" in texts


def test_missing_path_is_one_sentence(tmp_path):
    path = tmp_path / "none.txt"
    with pytest.raises(UserError, match=r"^there is no file or folder .*none\.txt to train on$"):
        load_data(str(path), "bytes", context=8)


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_empty_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=r"empty\.txt holds no text to train on$"):
        load_data(str(path), "bytes", context=8)


def test_empty_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no text to train on$"):
        load_data(str(tmp_path), "bytes", context=8)


def test_text_shorter_than_the_context_says_how_much_is_needed(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 40)
    with pytest.raises(UserError, match=r"short\.txt is shorter than the context: 36 .* 37 needed"):
        load_data(str(path), "bytes", context=36)
    assert len(load_data(str(path), "bytes", context=35).train) == 36


def test_characters_refuse_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 " * 50)
    with pytest.raises(UserError, match=r"latin\.txt is not all UTF-8 .*--tokens bytes"):
        load_data(str(path), "characters", context=8)
    assert len(load_data(str(path), "bytes", context=8).train) == 225


def test_characters_come_from_the_training_text_and_others_are_unknown(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc" * 300 + "é" * 100, encoding="utf-8")  # é is in the last tenth alone
    data = load_data(str(path), "characters", context=8)
    assert data.tokenizer.vocabulary == 4
    assert data.val.tolist() == [0] * 100
    assert data.tokenizer.decode(data.val) == "\N{REPLACEMENT CHARACTER}" * 100
    assert data.val_bytes == 2 * 99


@pytest.mark.parametrize("tokenizer", [Bytes(), Characters("\n abcä€😀")])
def test_tokenizers_round_trip_text_and_json(tokenizer):
    text = "abc ä€😀\n"
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.decode(tokenizer.encode(text)) == text
    assert again.vocabulary == tokenizer.vocabulary


def test_batches_are_windows_of_the_text_and_reach_both_ends():
    begins = torch.zeros(1, dtype=torch.long)
    data = Data(None, Bytes(), torch.arange(12), torch.arange(2), 1, 11, begins, begins)
    task = LanguageModel(TrainConfig(context=8), data)
    inputs, targets = task.fetch(task.order(64, seed=0).draw())
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs - inputs[:, :1], torch.arange(8).expand(64, 8))
    assert inputs[:, 0].unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("length", [2, 7, 8, 9, 16, 17, 100])
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_validation_windows_hold_every_target_exactly_once(length, batch):
    tokens = torch.arange(length)
    seen = []
    for inputs, targets in windows(tokens, 8, batch):
        assert torch.equal(inputs + 1, targets)
        assert inputs.shape[0] <= batch and inputs.shape[1] <= 8
        seen += targets.flatten().tolist()
    assert seen == list(range(1, length))


@pytest.mark.parametrize("limit", [1, 8, 40, 95, 96, 97, 98, 1000])
def test_a_limit_takes_whole_windows_at_even_distances(limit):
    tokens = torch.arange(99).to(torch.uint8)  # 98 targets: 12 windows of 8, and 2
    seen = [row[0].item() for rows, _ in windows(tokens, 8, 3, limit) for row in rows]
    chosen = max(1, limit // 8)
    if chosen < 12:
        assert seen == [i * 12 // chosen * 8 for i in range(chosen)]
        assert targets_within(98, 8, limit) == 8 * chosen
    else:
        assert seen == [*range(0, 96, 8), 96]
        assert targets_within(98, 8, limit) == 98


def test_a_limited_validation_is_the_mean_over_its_windows():
    torch.manual_seed(0)
    model = GPT(GPTShape(256, 8, 1, 2, 16), choose_kernels("torch"))
    tokens = torch.randint(256, (99,)).to(torch.uint8)
    evaluation = evaluate(model, tokens, text_bytes=196, batch=3, limit=40)
    rows = torch.stack([tokens[i * 12 // 5 * 8 :][:9] for i in range(5)]).long()
    expected = model.loss(rows[:, :-1], rows[:, 1:]).item()
    assert evaluation.loss == pytest.approx(expected, rel=1e-6)
    assert (evaluation.targets, evaluation.available) == (40, 98)
    # Two bytes a token in the whole text.
    assert evaluation.bits_per_byte == pytest.approx(expected / math.log(2) / 2, rel=1e-6)


def test_validation_loss_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model = GPT(GPTShape(256, 8, 1, 2, 16), choose_kernels("torch"))
    tokens = torch.randint(256, (211,))
    losses = [evaluate(model, tokens, 210, batch).loss for batch in (1, 4, 26, 100)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    # Token by token: the mean over targets and not over windows (the last window is short).
    each = [
        model.loss(tokens[None, a : min(a + 8, 210)], tokens[None, a + 1 : min(a + 9, 211)], "none")
        for a in range(0, 210, 8)
    ]
    assert losses[0] == pytest.approx(torch.cat(each).double().mean().item(), rel=1e-6)


def test_bits_per_byte_of_a_uniform_model_are_eight():
    model = GPT(GPTShape(256, 8, 1, 1, 8), choose_kernels("torch"))
    torch.nn.init.zeros_(model.token_embedding.weight)  # every logit 0
    evaluation = evaluate(model, torch.randint(256, (100,)), 99, batch=4)
    assert evaluation.bits_per_byte == pytest.approx(8.0, rel=1e-6)
    assert evaluation.targets == 99
