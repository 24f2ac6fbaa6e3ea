"""The text of a corpus to token tensors, and where its documents begin in them."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hetkern.training.text import Corpus, Documents, Text
from hetkern.training.tokenizer import Bytes, Characters, Tokenizer, smallest_dtype
from hetkern.training.words import BPE


class Tokenised(NamedTuple):
    """The first fields of :class:`hetkern.training.data.Data`."""

    documents: Documents
    tokenizer: Tokenizer
    train: Tensor
    val: Tensor
    val_bytes: int
    train_bytes: int
    train_begins: Tensor
    val_begins: Tensor


def tokenised(corpus: Corpus, kind: str, vocabulary: int) -> Tokenised:
    """The tokens of a corpus: of what is trained on, and of what is held out.

    Args:
        corpus: is taken apart meanwhile, so that text and tokens are never in memory both whole.
        kind: "bytes", "characters" or "bpe".
        vocabulary: of "bpe".
    """
    if kind == "bytes":
        return _bytes(corpus)
    return _characters(corpus) if kind == "characters" else _bpe(corpus, vocabulary)


def first_size(tokenizer: Tokenizer, tokens: Any) -> int:
    """Bytes of text that the first token stands for."""
    if not len(tokens):
        return 0
    token = int(tokens[:1][0])
    if isinstance(tokenizer, BPE):
        return tokenizer.size_of(token)
    if isinstance(tokenizer, Characters):
        return len(tokenizer.decode(torch.tensor([token])).encode("utf-8", "surrogateescape"))
    return 1


def _bytes(corpus: Corpus) -> Tokenised:
    cut = len(corpus.main) * 9 // 10
    train = _joined(corpus.main)
    begins = _numbers(corpus.main_begins)
    if corpus.held_out is None:
        train, val = train[:cut], train[cut:]
        begins, val_begins = _cut(begins, cut)
    else:
        val = _joined(corpus.held_out)
        val_begins = _numbers(corpus.held_out_begins)
    sizes = max(0, len(val) - 1), max(0, len(train) - 1)
    return Tokenised(corpus.documents, Bytes(), train, val, *sizes, begins, val_begins)


def _numbers(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def _cut(begins: Tensor, at: int) -> tuple[Tensor, Tensor]:
    return begins[begins < at], begins[begins >= at] - at


def _joined(text: Text) -> Tensor:
    joined = np.empty(len(text), np.uint8)
    at = 0
    for piece in text.drain():
        joined[at : at + len(piece)] = piece
        at += len(piece)
    return torch.from_numpy(joined)


def _characters(corpus: Corpus) -> Tokenised:
    main, held_out = corpus.main, corpus.held_out
    count = _count_characters(main)
    if held_out is None:
        cut, val_text = count * 9 // 10, main
        end = _offset(main, cut)
    else:
        cut, val_text = 0, held_out
        end = len(main)
    val_bytes = len(val_text) - _offset(val_text, cut + 1)
    train_bytes = end - _offset(main, 1)
    begins = _in_characters(main, corpus.main_begins)
    tokenizer = Characters.of_texts(_decoded(main.pieces(0, end)))
    if held_out is None:
        tokens = _encoded(tokenizer, main, count)
        train, val = tokens[:cut], tokens[cut:]
        begins, val_begins = _cut(begins, cut)
    else:
        val_begins = _in_characters(held_out, corpus.held_out_begins)
        train = _encoded(tokenizer, main, count)
        val = _encoded(tokenizer, held_out, _count_characters(held_out))
    sizes = val_bytes, train_bytes
    return Tokenised(corpus.documents, tokenizer, train, val, *sizes, begins, val_begins)


def _in_characters(text: Text, begins: list[int]) -> Tensor:
    """Places in bytes as places in characters."""
    counted, before, characters = [], 0, 0
    waiting = iter(begins)
    place = next(waiting, None)
    for piece in text.pieces():
        starts = _begins_character(piece)
        total = np.cumsum(starts)
        while place is not None and place < before + len(piece):
            inside = place - before
            counted.append(characters + (int(total[inside - 1]) if inside else 0))
            place = next(waiting, None)
        before += len(piece)
        characters += int(total[-1])
    return _numbers(counted)


def _bpe(corpus: Corpus, vocabulary: int) -> Tokenised:
    main, held_out = corpus.main, corpus.held_out
    begins = corpus.main_begins
    if held_out is None:
        end = len(main) * 9 // 10
        end = next((end + i for i in range(4) if _is_boundary(main, end + i)), len(main))
        val_text, val_begins = main, [begin for begin in begins if begin >= end]
        val_first, begins = end, [begin for begin in begins if begin < end]
    else:
        end, val_text, val_begins, val_first = len(main), held_out, corpus.held_out_begins, 0
    tokenizer = BPE.of_texts(_documents(main, 0, end, begins), vocabulary)
    train, train_begins = _encoded_documents(tokenizer, main, 0, end, begins)
    val, begins_of_val = _encoded_documents(
        tokenizer, val_text, val_first, len(val_text), val_begins
    )
    sizes = (
        max(0, len(val_text) - val_first - first_size(tokenizer, val)),
        max(0, end - first_size(tokenizer, train)),
    )
    return Tokenised(corpus.documents, tokenizer, train, val, *sizes, train_begins, begins_of_val)


def _is_boundary(text: Text, at: int) -> bool:
    first = b"".join(text.pieces(at, at + 1)) if at < len(text) else b""
    return not first or first[0] & 0xC0 != 0x80


def _encoded_documents(
    tokenizer: BPE, text: Text, begin: int, end: int, begins: list[int]
) -> tuple[Tensor, Tensor]:
    """The tokens of a text from ``begin`` to ``end``, and where its documents begin in them."""
    dtype = smallest_dtype(tokenizer.vocabulary)
    known = set(begins)
    parts, at, places, offset = [], begin, [], 0
    for piece in _documents(text, begin, end, begins):
        if at in known:
            places.append(offset)
        tokens = tokenizer.encode(piece)
        parts.append(tokens.to(dtype))
        offset += len(tokens)
        at += len(piece.encode())
    joined = torch.cat(parts) if parts else torch.empty(0, dtype=dtype)
    return joined, _numbers(places)


def _documents(text: Text, begin: int, end: int, begins: list[int]) -> Iterator[str]:
    """The text in pieces that end where a document does, or else at a line end."""
    cuts = [b for b in begins if begin < b < end]
    for first, last in itertools.pairwise([begin, *cuts, end]):
        rest = b""
        for piece in text.pieces(first, last):
            rest += piece
            cut = rest.rfind(b"\n") + 1
            if cut and first + len(rest) < last:
                yield rest[:cut].decode()
                rest = rest[cut:]
        if rest:
            yield rest.decode()


def _encoded(tokenizer: Characters, text: Text, count: int) -> Tensor:
    tokens = torch.empty(count, dtype=tokenizer.dtype)
    at = 0
    for part in _decoded(text.drain()):
        tokens[at : at + len(part)] = tokenizer.encode_narrow(part)
        at += len(part)
    return tokens


def _decoded(pieces: Iterable[memoryview]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for piece in pieces:
        yield decoder.decode(piece)


def _begins_character(piece: memoryview) -> np.ndarray:
    """Which bytes of valid UTF-8 begin a character: all but the continuations 10xxxxxx."""
    return np.frombuffer(piece, np.uint8) & 0xC0 != 0x80


def _count_characters(text: Text) -> int:
    return sum(int(np.count_nonzero(_begins_character(piece))) for piece in text.pieces())


def _offset(text: Text, character: int) -> int:
    """Bytes of ``text`` before the character of that number; all of them if it is not there."""
    before = 0
    for piece in text.pieces():
        begins = _begins_character(piece)
        within = int(np.count_nonzero(begins))
        if character < within:
            return before + int(np.flatnonzero(begins)[character])
        character -= within
        before += len(piece)
    return before
