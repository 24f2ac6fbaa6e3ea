"""Labelled texts: every kind of file, what is unreadable, what is left out, how they are split."""

import json
import random
import re

import pytest
import torch

from hetkern.training import UserError
from hetkern.training import labelled as labelled_module
from hetkern.training.duplicates import NearDuplicates, shingles
from hetkern.training.labelled import WORDNET_CLASSES, Record, read_labelled
from hetkern.training.texts import (
    LengthBuckets,
    by_length,
    check_nothing_shared,
    load_labelled,
    split,
)
from hetkern.training.tokenizer import tokenizer_from_json
from hetkern.training.words import Words

ROWS = [("a fine day", "good"), ('it "rained", again', "bad"), ("naïve\u0301 joy", "good")]
NOUNS = """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived to have its own existence
02084442 05 n 01 dog 0 001 @ 02083346 n 0000 | a member of the genus Canis; "the dog barked"
07555863 13 n 02 food 0 solid_food 0 001 @ 00021265 n 0000 | any solid substance | used as food
15113229 28 n 01 period 0 000 | an amount of time
"""


def written(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows))
    elif path.suffix == ".csv":
        quoted = ('"' + t.replace('"', '""') + '"' for t, _ in rows)
        lines = [f"{c},{t}\n" for t, (_, c) in zip(quoted, rows, strict=True)]
        path.write_text("label,text\n" + "".join(lines), encoding="utf-8")
    elif path.suffix == ".tsv":
        path.write_text("text\tlabel\n" + "".join(f"{t}\t{c}\n" for t, c in rows), "utf-8")
    else:
        for number, (text, label) in enumerate(rows):
            (path / label).mkdir(parents=True, exist_ok=True)
            (path / label / f"{number}.txt").write_text(text, encoding="utf-8")
    return str(path)


def many(count=200, classes=4, seed=0):
    """Texts of words that say their class, and some that say nothing."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % classes
        words = [f"w{draw.randrange(50)}" for _ in range(draw.randrange(1, 20))]
        rows.append((" ".join([f"c{label}", *words, f"n{number}"]), f"class{label}"))
    return rows


# ---- Reading. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv", "rows.jsonl", "folder"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
    read = read_labelled(written(tmp_path / name, ROWS))
    assert sorted(read.records) == sorted(Record(t, c) for t, c in ROWS)
    assert not read.left_out


def test_columns_have_names_or_numbers(tmp_path):
    path = tmp_path / "reviews.tsv"
    path.write_text("stars\tid\treview\n5\tx1\tgood\n1\tx2\tbad\n")
    by_name = read_labelled(str(path), "review", "stars").records
    assert by_name == [Record("good", "5"), Record("bad", "1")]
    path.write_text("5\tx1\tgood\n1\tx2\tbad\n")
    assert read_labelled(str(path), "3", "1").records == by_name
    lines = tmp_path / "reviews.jsonl"
    lines.write_text('{"review": "good", "stars": 5}\n\n{"stars": true, "review": "bad"}\n')
    records = read_labelled(str(lines), "review", "stars").records
    assert records == [Record("good", "5"), Record("bad", "True")]


def test_a_text_with_a_separator_in_it_is_not_cut_in_silence(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("good,fine\nbad,dull, and slow\n")
    with pytest.raises(UserError, match=r"line 2 has 3 columns, 2 wanted; .* in quotes"):
        read_labelled(str(path), "2", "1")
    path.write_text('label,text,\ngood,"fine, and fast",\nbad,dull\nbad,slow,,,\n')
    assert [r.text for r in read_labelled(str(path)).records] == ["fine, and fast", "dull", "slow"]


def test_one_column_is_no_text_and_label_of_it(tmp_path):
    for name, content in (("a.tsv", "text\tlabel\nx\ty\n"), ("a.jsonl", '{"text": "x"}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="'text' cannot be both the text and its label"):
            read_labelled(str(tmp_path / name), "text", "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"text\tlabel\nfine\tgood\nbroken\n", r"a\.tsv line 3 has 1 columns, 2 wanted"),
        ("a.tsv", b"text\tlabel\nfine\t\n", r"a\.tsv line 2 has no label"),
        ("a.csv", b"label,text\ngood,x\ngood,x, and y\n", r"line 3 has 3 columns, 2 wanted"),
        ("a.tsv", b"label\ttext\ngood\tfine\tfast\n", r"line 2 has 3 columns, 2 wanted"),
        ("a.csv", b"text,label,text\nfine,good,x\n", r"first line names 'text' more than once"),
        ("a.tsv", b"text\tlabel\nfine\tgood\ncaf\xe9\tbad\n", r"a\.tsv line 3 is not UTF-8"),
        ("a.tsv", b"words\tclass\nfine\tgood\n", r"has no column 'text'; its first line names wor"),
        ("a.csv", b'text,label\n"fine,good\n', r"a\.csv line 2 cannot be read: unexpected end"),
        ("a.csv", b'text,label\n"a\nb",good\n"c"d,bad\n', r"a\.csv line 4 cannot be read: "),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": }\n', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl line 1 is not JSON"),
        ("a.jsonl", b'["a", 1]\n', r"line 1 is no JSON object with 'text' and 'label'"),
        ("a.jsonl", b'{"text": "a"}\n', r"line 1 has no key 'label'; its keys are 'text'"),
        ("a.jsonl", b'{"text": 3, "label": 1}\n', r"line 1: 'text' must be a string, got 3"),
        ("a.jsonl", b'{"text": "a", "label": null}\n', r"'label' must be a string or a number, go"),
        ("a.tsv", b"text\tlabel\n", r"a\.tsv holds no labelled text to train on"),
        ("a.xml", b"<a/>", r"a\.xml is no \.tsv, \.csv or \.jsonl file"),
        ("data.noun", NOUNS.encode() + b"00 02 n | x\n", r"data\.noun line 6 is no noun of WordNe"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_labelled(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_folders_leave_out_and_count_what_is_no_text_of_a_class(tmp_path):
    written(tmp_path, ROWS)
    (tmp_path / "readme.txt").write_text("about the data")
    (tmp_path / "good" / ".cache").write_text("x")
    (tmp_path / "bad" / "empty.txt").write_text(" \n")
    read = read_labelled(str(tmp_path))
    assert len(read.records) == 3
    assert dict(read.left_out) == {
        "hidden files": 1, "files outside the classes' folders": 1, "empty": 1,
    }  # fmt: skip
    (tmp_path / "bad" / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt line 2 is not UTF-8"):
        read_labelled(str(tmp_path))
    with pytest.raises(UserError, match="holds no text in a folder a class"):
        read_labelled(str(tmp_path / "good"))


def test_wordnets_glosses_come_with_their_lexicographer_classes(tmp_path, monkeypatch):
    path = tmp_path / "data.noun"
    path.write_text(NOUNS)
    expected = [
        Record("that which is perceived to have its own existence", "Tops"),
        Record('a member of the genus Canis; "the dog barked"', "animal"),
        Record("any solid substance | used as food", "food"),
        Record("an amount of time", "time"),
    ]
    assert read_labelled(str(path)).records == expected
    assert len(WORDNET_CLASSES) == 26
    monkeypatch.setattr(labelled_module, "WORDNET", path)  # where Debian's package has it
    assert read_labelled(None).records == read_labelled("wordnet").records == expected


def test_with_nothing_installed_there_are_functions_of_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr(labelled_module, "WORDNET", tmp_path / "none")
    with pytest.raises(UserError, match="Debian's package wordnet-base has it"):
        read_labelled("wordnet")
    data = load_labelled(None)
    assert {"asyncio", "email", "xml"} <= set(data.labels)
    assert data.counts["training texts"] > 3000 and data.counts["copies"] > 100
    # Split by file: the two parts are functions of different ones.
    records = read_labelled("stdlib").records
    train, val = split(records)
    assert not {r.group for r in train} & {r.group for r in val}
    assert {r.label for r in train} == {r.label for r in val} == set(data.labels)


# ---- Cleaning. -----------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    rows = many(40)
    extra = [
        ("  ", "class0"),  # empty
        (rows[0][0].replace(" ", "  "), "class0"),  # a copy, but for blanks
        (rows[0][0], "class1"),
        ("cafe\u0301 au lait", "class0"),
        ("caf\u00e9 au lait", "class0"),  # the same in Unicode's normal form
    ]
    data = load_labelled(written(tmp_path / "a.jsonl", rows + extra), longest=5)
    longer = [len(text.split()) - 5 for text, _ in rows if len(text.split()) > 5]
    assert data.counts == {
        "texts read": 45, "empty": 1, "copies": 2, "copies with another label": 1,
        "texts cut": len(longer), "tokens cut off": sum(longer),
        "training texts": 37, "validation texts": 4,
    }  # fmt: skip
    assert max(data.train.lengths.max(), data.val.lengths.max()) == 5
    kept = load_labelled(written(tmp_path / "b.jsonl", rows + extra), duplicates="none")
    assert kept.counts["training texts"] + kept.counts["validation texts"] == 44


def test_near_duplicates_are_left_out_and_others_are_not(tmp_path):
    pytest.importorskip("datasketch")
    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randrange(1000)}" for _ in range(60)) for _ in range(30)]
    near = [text.replace(" ", " X ", 1) for text in texts[:10]]  # two of sixty shingles differ
    far = [" ".join(text.split()[:30] + ["y"] * 30) for text in texts[:10]]
    rows = [(text, f"class{i % 2}") for i, text in enumerate(texts + near + far)]
    data = load_labelled(written(tmp_path / "a.tsv", rows), duplicates="near")
    assert data.counts["near-duplicates"] == 10
    assert data.counts["training texts"] + data.counts["validation texts"] == 40
    assert shingles("a b") == {"a b"} and shingles("A b, c d") == {"a b c", "b c d"}
    index = NearDuplicates(similar=0.5)
    assert [index.seen(t) for t in ("a b c d e", "a b c d f", "a b x", "!!", "!!")] == [
        False, True, False, False, True,
    ]  # fmt: skip


def test_near_duplicates_without_datasketch_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    with pytest.raises(UserError, match=re.escape("pip install 'hetkern[data]'")):
        load_labelled(written(tmp_path / "a.tsv", many(40)), duplicates="near")


# ---- Splitting. ----------------------------------------------------------------------------------


def test_the_split_depends_on_the_texts_and_not_on_their_order():
    records = [Record(text, label) for text, label in many(400)]
    train, val = split(records)
    assert (len(train), len(val)) == (360, 40)
    assert sorted(split(records[::-1])[1]) == sorted(val)
    assert all(sum(r.label == f"class{c}" for r in val) == 10 for c in range(4))
    # A tenth more of texts moves few of the old ones.
    more = [Record(text, label) for text, label in many(440, seed=1)[400:]]
    moved = set(split(records + more)[1]) ^ set(val)
    assert sum(r in set(records) for r in moved) < 10


def test_groups_stay_together_and_small_classes_keep_a_text_to_train_on():
    records = [Record(f"t{i}", "ab"[i % 2], f"{'ab'[i % 2]}{i % 6}") for i in range(60)]
    train, val = split(records)
    assert len(val) == 20 and not {r.group for r in train} & {r.group for r in val}
    small = [Record(f"t{i}", label) for i, label in enumerate("abbccc")]
    train, val = split(small)
    assert sorted(r.label for r in val) == ["b", "c"]
    with pytest.raises(UserError, match="training and validation share a text: ' t1'"):
        check_nothing_shared(small, [Record(" t1", "z")])
    with pytest.raises(UserError, match="training and validation share a group: 'a0'"):
        check_nothing_shared(records, [Record("other", "a", "a0")])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), ("b", "x")], "has one class only, 'x'; a classifier needs two or more"),
        ([("a", "x"), ("b", "y")], "leaves no text for validation; give more texts"),
        ([("", "x"), (" ", "y")], "holds no labelled text to train on"),
    ],
)
def test_too_little_data_is_one_sentence(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load_labelled(written(tmp_path / "a.jsonl", rows))


# ---- Tokens and batches. -------------------------------------------------------------------------


def test_words_are_lower_cased_and_come_from_the_training_part_alone(tmp_path):
    words = Words.of_texts(["Don't stop, DON", "stop it"], min_freq=2)
    assert words.words == ["don", "stop"]
    assert words.encode("Stop! don").tolist() == [3, 1, 2]
    assert words.decode(torch.tensor([3, 1, 2, 0])) == "stop <unk> don <pad>"
    data = load_labelled(written(tmp_path / "a.tsv", many(400)), min_freq=1)
    # n0 … n399 each stand in one text: the validation's are unknown.
    assert sum(f"n{i}" in data.tokenizer.words for i in range(400)) == 360
    assert int((data.val.tokens == 1).sum()) == 40 and not (data.train.tokens < 2).any()


@pytest.mark.parametrize("tokens", ["bytes", "characters", "bpe"])
def test_other_tokens_leave_0_for_padding_and_come_back(tmp_path, tokens):
    if tokens == "bpe":
        pytest.importorskip("tokenizers")
    rows = [(text + " é <pad>\0", label) for text, label in many(60)]
    data = load_labelled(written(tmp_path / "a.jsonl", rows), tokens, vocabulary=300)
    again = tokenizer_from_json(data.tokenizer.to_json())
    assert again.vocabulary == data.tokenizer.vocabulary
    assert int(data.train.tokens.max()) < again.vocabulary
    text, _, _ = data.train.batch(torch.tensor([5]))
    assert data.tokenizer.decode(text[0]) in {text for text, _ in rows}
    for part in (data.train, data.val):
        assert (part.tokens > (1 if tokens == "bpe" else 0)).all()
    text = "not seen: <unk><pad> <pad>"
    if tokens != "characters":
        assert again.decode(again.encode(text)) == text
    assert torch.equal(again.encode(text), data.tokenizer.encode(text))
    with pytest.raises(UserError, match="tokens must be one of words, bytes, characters, bpe"):
        load_labelled(written(tmp_path / "a.jsonl", rows), "letters")


def test_bpe_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(UserError, match=re.escape("pip install 'hetkern[data]'")):
        load_labelled(written(tmp_path / "a.tsv", many(40)), "bpe")


def test_batches_pad_to_their_longest_text(tmp_path):
    rows = many(100)
    data = load_labelled(written(tmp_path / "a.tsv", rows), min_freq=1)
    label_of = {text: label for text, label in rows}
    for rows in by_length(data.train, 7):
        text, lengths, labels = data.train.batch(rows)
        assert text.shape == (len(rows), lengths.max())
        for row in range(len(rows)):
            assert (text[row, lengths[row] :] == 0).all() and (text[row, : lengths[row]] > 0).all()
            words = data.tokenizer.decode(text[row, : lengths[row]])
            assert label_of[words] == data.labels[labels[row]]
    seen = torch.cat(list(by_length(data.train, 7)))
    assert torch.equal(seen.sort().values, torch.arange(len(data.train.labels)))


@pytest.mark.parametrize(("texts", "rows"), [(1000, 8), (1003, 8), (5, 8), (16, 4)])
def test_an_epoch_has_each_text_once_in_batches_of_one_length(texts, rows):
    lengths = torch.randint(1, 200, (texts,), generator=torch.Generator().manual_seed(0))
    order = LengthBuckets(lengths, rows, seed=3)
    epochs = [[order.draw() for _ in range(order.steps_per_epoch)] for _ in range(2)]
    for epoch in epochs:
        drawn = torch.cat(epoch)
        assert all(len(batch) == rows for batch in epoch)
        if texts >= rows:
            assert len(drawn.unique()) == len(drawn) > texts - rows
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    if texts >= 1000:
        padded = sum(len(b) * int(lengths[b].max()) for b in epochs[0])
        assert padded < 1.1 * sum(int(lengths[b].sum()) for b in epochs[0])
        means = torch.tensor([lengths[b].double().mean() for b in epochs[0]])
        assert (means.diff() < 0).sum() > len(means) // 4  # and not from short to long


def test_an_order_goes_on_anywhere_and_another_seed_has_another():
    lengths = torch.arange(1, 101)
    whole = LengthBuckets(lengths, 8, seed=3)
    batches = [whole.draw() for _ in range(40)]
    for at in (0, 5, 12, 13, 30):
        first = LengthBuckets(lengths, 8, seed=3)
        for _ in range(at):
            first.draw()
        again = LengthBuckets(lengths, 8, seed=3)
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert all(torch.equal(again.draw(), batches[i]) for i in range(at, 40))
    assert not torch.equal(LengthBuckets(lengths, 8, seed=4).draw(), batches[0])
