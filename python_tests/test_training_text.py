"""Reading: a byte of memory a byte, any encoding with a mark, the same tokens as ever."""

import codecs
import hashlib
import os
import subprocess
import sys
import threading
import unicodedata

import pytest
import torch

from hetkern.training import UserError
from hetkern.training import text as text_module
from hetkern.training.data import RandomWindows, load_data
from hetkern.training.text import Text

WORDS = "naïve café — “ja”, sagte der Bär 東京 😀\n"


def split_whole(texts, joint):
    """The split by its definition, on whole texts in memory."""
    if len(texts) >= 10:
        whole = [t if isinstance(t, bytes) else t.encode() for t in texts]
        digests = [hashlib.blake2b(t, digest_size=32).digest() for t in whole]
        held_out = sorted(range(len(texts)), key=digests.__getitem__)[: round(len(texts) / 10)]
        parts = [i for i in range(len(texts)) if i not in held_out], sorted(held_out)
        return tuple(joint.join(texts[i] for i in part) for part in parts)
    text = joint.join(texts)
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


@pytest.fixture
def small_pieces(monkeypatch):
    """Every boundary between pieces and blocks, in texts of a few hundred bytes."""
    monkeypatch.setattr(text_module, "PIECE", 7)


@pytest.mark.parametrize("files", [1, 9, 10, 23])
@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_splits_and_batches_are_those_of_the_whole_text(tmp_path, small_pieces, files, tokens):
    texts = [f"{i} " + WORDS[i % 7 :] * (1 + i % 3) for i in range(files)]
    if files == 1:
        texts = [WORDS * 9]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "99-copy.txt").write_text(texts[0], encoding="utf-8")
    data = load_data(str(tmp_path), tokens, context=8)

    if tokens == "bytes":
        train, val = (list(t) for t in split_whole([t.encode() for t in texts], b"\n"))
        val_bytes = len(val) - 1
    else:
        train_text, val_text = split_whole(texts, "\n")
        numbers = {c: 1 + i for i, c in enumerate(sorted(set(train_text)))}
        train, val = ([numbers.get(c, 0) for c in t] for t in (train_text, val_text))
        val_bytes = len(val_text[1:].encode())
    assert (data.train.tolist(), data.val.tolist()) == (train, val)
    assert data.val_bytes == val_bytes
    assert data.train.dtype == torch.uint8

    digest = hashlib.sha256()
    for text in map(str.encode, texts):
        digest.update(len(text).to_bytes(8, "little") + text)
    assert data.documents.sha256 == digest.hexdigest()

    wide = torch.tensor(train)
    narrow, whole = (RandomWindows(t, 8, 5, seed=3) for t in (data.train, wide))
    for _ in range(3):
        for ours, expected in zip(narrow.draw(), whole.draw(), strict=True):
            assert ours.dtype == torch.int64 and torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(256, torch.uint8), (257, torch.uint16), (65537, torch.int32)]
)
def test_tokens_have_the_smallest_dtype(tmp_path, vocabulary, dtype):
    # Ideographs: no normal form changes them.
    ranges = (0x4E00, 0xA000), (0x20000, 0x2A6D0), (0x30000, 0x31340)
    characters = [chr(c) for begin, end in ranges for c in range(begin, end)]
    text = "".join(characters[: vocabulary - 1]) + "一" * (vocabulary // 4)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    data = load_data(str(tmp_path / "text.txt"), "characters", context=8)
    assert (data.tokenizer.vocabulary, data.train.dtype) == (vocabulary, dtype)
    assert data.tokenizer.decode(torch.cat([data.train, data.val])) == text
    inputs, _ = RandomWindows(data.train, 8, 2, seed=1).draw()
    assert inputs.dtype == torch.int64


@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_a_text_takes_about_a_byte_of_memory_a_byte(tmp_path, tokens):
    code = f"""
from hetkern.training.data import load_data
def peak():  # getrusage's would begin with the one of the parent process
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
load_data({str(tmp_path / "small.txt")!r}, {tokens!r}, 8)
before = peak()
load_data({str(tmp_path / "large.txt")!r}, {tokens!r}, 8)
print((peak() - before) / {1 << 26})
"""
    (tmp_path / "small.txt").write_bytes(b"0123456789abcdef" * 100)
    with open(tmp_path / "large.txt", "wb") as file:  # one line
        for _ in range(64):
            file.write(b"0123456789abcdef" * (1 << 16))
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert 0.9 < float(done.stdout) < 1.6


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_a_byte_order_mark_says_how_to_read(tmp_path, small_pieces, encoding, tokens):
    mark = getattr(codecs, f"BOM_{encoding.replace('-', '_').upper().replace('UTF_', 'UTF')}")
    (tmp_path / "marked.txt").write_bytes(mark + (WORDS * 9).encode(encoding))
    (tmp_path / "plain.txt").write_text(WORDS * 9, encoding="utf-8")
    plain, marked = (load_data(str(tmp_path / f"{n}.txt"), tokens, 8) for n in ("plain", "marked"))
    assert torch.equal(plain.train, marked.train) and torch.equal(plain.val, marked.val)
    assert plain.documents.sha256 == marked.documents.sha256
    both = load_data(str(tmp_path), tokens, 8).documents  # in a folder it is a copy, and no binary
    assert (both.files, both.skipped) == (1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00\xd8", "begins with the mark of UTF-16 text and is none .*save it as UTF-8"),
        (b"\xff\xfea\x00b", "begins with the mark of UTF-16 text and is none .truncated data"),
        (b"\xff\xfe\0\0\xff\xff\xff\xff", "begins with the mark of UTF-32 text and is none"),
        ("plain words".encode("utf-16-le"), "is binary: .*UTF-16 text is read if it begins with"),
        (b"\xef\xbb\xbf \n", "holds no text to train on"),
    ],
)
def test_a_file_that_is_no_text_says_why_and_is_left_out_of_a_folder(tmp_path, content, message):
    path = tmp_path / "strange.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"strange\.txt {message}"):
        load_data(str(path), "bytes", context=8)
    (tmp_path / "words.txt").write_text("words " * 40)
    data = load_data(str(tmp_path), "bytes", context=8)
    assert (data.documents.files, data.documents.skipped) == (1, 1)
    assert data.tokenizer.decode(torch.cat([data.train, data.val])) == "words " * 40


def test_characters_name_the_file_of_a_folder_that_is_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 40)
    (tmp_path / "b.txt").write_bytes(b"cut off: \xc3")
    with pytest.raises(UserError, match=r"b\.txt is not all UTF-8 \(unexpected end of data\)"):
        load_data(str(tmp_path), "characters", context=8)


def test_a_pipe_is_read_like_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"words " * 40,))
    writer.start()
    data = load_data(str(pipe), "bytes", context=8)
    writer.join()
    assert data.tokenizer.decode(data.train) == "words " * 36


def test_line_ends_stay_as_they_are(tmp_path):
    (tmp_path / "dos.txt").write_bytes(b"line\r\n" * 40)
    data = load_data(str(tmp_path / "dos.txt"), "characters", context=8)
    assert data.tokenizer.characters == "\n\reiln"


def test_text_forgets_what_is_cut_off_and_drains_in_order(small_pieces):
    text = Text()
    for i in range(20):
        text.append(str(i).encode())
    text.truncate(9)
    text.append(b"-end")
    assert b"".join(text.pieces()) == b"012345678-end"
    assert b"".join(text.pieces(5, 12)) == b"5678-en"
    assert b"".join(text.drain()) == b"012345678-end" and len(text) == 0


def test_texts_come_in_normal_form_wherever_a_piece_ends(tmp_path, monkeypatch):
    text = "e\u0301a\u0308\u0323 \u1100\u1161\u11a8 か\u3099東o\u0302" * 20
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    expected = unicodedata.normalize("NFC", text)
    assert expected != text
    for piece in (1, 2, 3, 7, 1 << 18):
        monkeypatch.setattr(text_module, "PIECE", piece)
        data = load_data(str(tmp_path / "text.txt"), "characters", context=8)
        assert data.tokenizer.decode(torch.cat([data.train, data.val])) == expected
    # Bytes that are no text stay as they are.
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xc3e\xcc\x81\xe2\x82" * 30)
    data = load_data(str(tmp_path / "bytes.txt"), "bytes", context=8)
    tokens = torch.cat([data.train, data.val]).tolist()
    assert bytes(tokens) == b"\xff\xc3\xc3\xa9\xe2\x82" * 30
