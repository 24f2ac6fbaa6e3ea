"""Documents of a language model's data: JSON lines, byte pairs, their begins, shards on disk."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys

import pytest
import torch

from hetkern.training import UserError, shards
from hetkern.training.data import load_data
from hetkern.training.streams import Streams, evaluation_streams, is_among, stretch


def documents(count, seed=0):
    draw = random.Random(seed)
    return [
        "".join(draw.choice("abcdefgh é\n") for _ in range(draw.randrange(20, 200))) + f"#{number}"
        for number in range(count)
    ]


def as_json_lines(path, texts, key="text"):
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return str(path)


# ---- In memory. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["bytes", "characters", "bpe"])
@pytest.mark.parametrize("count", [4, 30])
def test_json_lines_are_documents_and_each_is_known_by_its_begin(tmp_path, tokens, count):
    if tokens == "bpe":
        pytest.importorskip("tokenizers")
    texts = documents(count)
    path = as_json_lines(tmp_path / "a.jsonl", [*texts, texts[0], "  "], "body")
    data = load_data(path, tokens, 8, text_column="body", vocabulary=270)
    assert (data.documents.files, data.documents.skipped) == (count, 2)
    assert data.documents.left_out == {"copies": 1, "empty": 1}
    found = []
    for part, begins in ((data.train, data.train_begins), (data.val, data.val_begins)):
        cuts = [*begins.tolist(), len(part)]
        pieces = [data.tokenizer.decode(part[a:b]) for a, b in itertools.pairwise(cuts)]
        found.append([piece.removesuffix("\n") for piece in pieces])
    train, val = found
    if count == 30:
        assert len(val) == 3 and sorted(train + val) == sorted(texts)
        assert train == [text for text in texts if text in train]
    else:  # the last tenth of all, joined
        assert train[:3] == texts[:3] and texts[3].startswith(train[3]) and val == []
    size = len(data.tokenizer.decode(data.val).encode())
    first = len(data.tokenizer.decode(data.val[:1]).encode())
    if tokens == "bytes" or count == 30:  # a character that the training part lacks has its size
        assert data.val_bytes == size - first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "fine"', r"a\.jsonl line 3 is not JSON"),
        (b'{"text": 5}', r"a\.jsonl line 3 is no JSON object with a text under 'text'"),
        (b"\xff", r"a\.jsonl line 3 is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, r"a\.jsonl line 3 is not JSON"),
    ],
)
def test_an_unreadable_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b"\n")
    for more in ({}, {"shards": str(tmp_path / "shards")}):
        with pytest.raises(UserError, match=message):
            load_data(str(path), "bytes", 8, **more)


def test_half_a_surrogate_is_no_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x\\ud800y"}\n' * 2 + '{"text": "' + "more " * 20 + '"}\n')
    data = load_data(str(path), "characters", 8)
    assert data.tokenizer.decode(data.train[:4]) == "x?y\n"


def test_near_duplicates_are_left_out_if_asked_for(tmp_path):
    pytest.importorskip("datasketch")
    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randrange(500)}" for _ in range(60)) for _ in range(12)]
    for number, text in enumerate(texts + [text + " more" for text in texts[:5]]):
        (tmp_path / f"{number:02}.txt").write_text(text)
    assert load_data(str(tmp_path), "bytes", 8).documents.files == 17
    near = load_data(str(tmp_path), "bytes", 8, duplicates="near").documents
    assert near.left_out == {"near-duplicates": 5}


def test_a_document_on_both_sides_is_refused(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text("the same text in every file\n" * 3)
    with pytest.raises(UserError, match="training and validation share 18 documents"):
        load_data(str(tmp_path), "bytes", 8, duplicates="none")


def test_the_n_gram_floor_is_that_of_the_validation_text(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 500)
    data = load_data(str(tmp_path / "a.txt"), "bytes", 8)
    assert 0 < data.n_gram_loss < 0.1


# ---- Shards. -------------------------------------------------------------------------------------


def corpus(tmp_path, kind):
    """The path of a corpus, and how many documents it holds."""
    texts = documents(60)
    if kind == "lines":
        return as_json_lines(tmp_path / "a.jsonl", [*texts, " ", texts[3]]), 60
    folder = tmp_path / "corpus"
    folder.mkdir()
    if kind == "few files":
        for number in range(3):
            (folder / f"{number}.txt").write_text("\n".join(documents(40, number)), "utf-8")
        (folder / "copy.txt").write_bytes((folder / "0.txt").read_bytes())
        (folder / "binary.txt").write_bytes(b"\0" * 40)
        return str(folder), 6
    for number, text in enumerate([*texts, texts[3]]):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return str(folder), 60


@pytest.mark.parametrize("tokens", ["bytes", "characters", "bpe"])
@pytest.mark.parametrize("kind", ["lines", "files", "few files"])
def test_shards_hold_each_document_once(tmp_path, monkeypatch, kind, tokens):
    if tokens == "bpe":
        pytest.importorskip("tokenizers")
    monkeypatch.setattr(shards, "SHARD", 1000)
    path, count = corpus(tmp_path, kind)
    seen = []
    data = load_data(
        path, tokens, 8, shards=str(tmp_path / "s"), vocabulary=270,
        watch=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["complete"] and len(manifest["train"]) > 2
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    assert data.documents.files == count
    assert data.documents.left_out["copies"] == (2 if kind == "few files" else 1)

    found = []
    for part, begins in ((data.train, data.train_begins), (data.val, data.val_begins)):
        cuts = [*begins.tolist(), len(part)]
        found.append([data.tokenizer.decode(part[a:b]) for a, b in itertools.pairwise(cuts)])
    train, val = found
    texts = documents(60)
    if kind == "few files":
        whole = ["\n".join(documents(40, number)) for number in range(3)]
        if tokens != "characters":  # 0 is a character that training lacks
            assert [a + b for a, b in zip(train, val, strict=True)] == whole
        assert all(0.08 < len(b) / len(a + b) < 0.2 for a, b in zip(train, val, strict=True))
    else:
        ends = "\n" if kind == "lines" else ""
        assert sorted(train + val) == sorted(text + ends for text in texts)
        assert 1 <= len(val) <= 20
    assert data.train_bytes == len("".join(train).encode()) - len(
        data.tokenizer.decode(data.train[:1]).encode()
    )
    # As an index that a step makes, and a slice across shards.
    whole = torch.cat([data.train[:700], data.train[700:]])
    at = torch.randint(len(whole), (5, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(data.train[at], whole[at].long())
    assert torch.equal(data.train[900:1100], whole[900:1100])


def test_a_finished_folder_is_not_read_again_and_another_corpus_is_refused(tmp_path, monkeypatch):
    path, _ = corpus(tmp_path, "lines")
    folder = str(tmp_path / "s")
    first = load_data(path, "bytes", 8, shards=folder)
    monkeypatch.setattr(shards, "pieces_of", None)
    again = load_data(path, "bytes", 8, shards=folder)
    assert torch.equal(first.train[:], again.train[:]) and first.documents == again.documents
    with pytest.raises(UserError, match="holds the tokens of other files"):
        load_data(path, "characters", 8, shards=folder)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="or of these as they were"):
        load_data(path, "bytes", 8, shards=folder)
    (tmp_path / "s" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        load_data(path, "bytes", 8, shards=folder)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["lines", "files", "few files"])
def test_a_stopped_preparation_goes_on_and_ends_in_the_same_bytes(tmp_path, monkeypatch, kind):
    """Stopped at every seventh write: of a shard, of its index, of a manifest."""
    monkeypatch.setattr(shards, "SHARD", 700)
    path, _ = corpus(tmp_path, kind)
    straight = tmp_path / "straight"
    load_data(path, "bytes", 8, shards=str(straight))
    expected = {p.name: p.read_bytes() for p in straight.iterdir()}
    real, writes = shards._write, 0

    def counted(*args):
        nonlocal writes
        writes += 1
        if writes % 7 == 0:
            raise Stopped
        real(*args)

    monkeypatch.setattr(shards, "_write", counted)
    folder, stops = tmp_path / "stopped", 0
    while stops < 50:
        try:
            load_data(path, "bytes", 8, shards=str(folder))
            break
        except Stopped:
            stops += 1
    assert 3 <= stops < 50
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == expected


def test_a_killed_preparation_goes_on(tmp_path):
    path, _ = corpus(tmp_path, "lines")
    code = f"""
import os, signal
from hetkern.training import shards
from hetkern.training.data import load_data
shards.SHARD = 1000
def watch(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
load_data({path!r}, "bytes", 8, shards={str(tmp_path / "s")!r}, watch=watch)
"""
    killed = subprocess.run([sys.executable, "-c", code])
    assert killed.returncode == -signal.SIGKILL
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["train"] and not manifest["complete"]
    with pytest.raises(UserError, match="other settings"):  # another size of shard
        load_data(path, "bytes", 8, shards=str(tmp_path / "s"))
    again = subprocess.run([sys.executable, "-c", code.replace("watch=watch", "watch=None")])
    assert again.returncode == 0
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["complete"]


# ---- Streams. ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "context", "rows"), [(1000, 7, 4), (101, 10, 1), (30, 8, 5)])
def test_each_row_reads_on_where_it_was(tokens, context, rows):
    text = torch.arange(tokens)
    order = Streams(tokens, context, rows, seed=1)
    for _ in range(3):  # epochs
        read = []
        for step in range(order.steps_per_epoch):
            inputs, targets, reset = stretch(text, torch.empty(0).long(), order.draw(), context)
            assert torch.equal(targets, inputs + 1)
            assert reset[:, 0].all() == (step == 0) and not reset[:, 1:].any()
            read.append(inputs)
        whole = torch.cat(read, 1)
        assert torch.equal(whole, whole[:, :1] + torch.arange(whole.shape[1]))
        assert whole.max() < tokens - 1
        if tokens > rows * context:
            assert len(whole.unique()) == whole.numel() > tokens - 1 - rows * context


def test_streams_go_on_anywhere():
    whole = Streams(1000, 7, 4, seed=1)
    rows = [whole.draw() for _ in range(80)]
    for at in (0, 1, 34, 35, 36, 71):
        again = Streams(1000, 7, 4, seed=1)
        again.load_state_dict({"drawn": at})
        assert all(torch.equal(again.draw(), rows[i]) for i in range(at, 80))


def test_a_state_starts_anew_where_a_document_begins():
    begins = torch.tensor([0, 5, 6, 19])
    _, _, reset = stretch(torch.arange(40), begins, torch.tensor([-1, 4, 17]), 4)
    assert reset.tolist() == [
        [True, False, False, False], [False, True, True, False], [False, False, True, False],
    ]  # fmt: skip
    assert is_among(begins, torch.tensor([[5, 7], [19, 30]])).tolist() == [
        [True, False],
        [True, False],
    ]


@pytest.mark.parametrize("targets", [1, 9, 200, 5000, 99_999])
def test_an_evaluations_streams_cover_the_text_once(targets):
    begins, length = evaluation_streams(targets, 8)
    ends = torch.tensor([min(b + length, targets) for b in begins.tolist()])
    assert begins[0] == 0 and torch.equal(ends[:-1], begins[1:]) and ends[-1] == targets
    few, short = evaluation_streams(targets, 8, limit=100)
    assert torch.equal(few, begins)
    assert short == length or len(few) * short <= 100
