"""Text on disk to token tensors for training and validation."""

from __future__ import annotations

import codecs
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetkern.training.config import UserError
from hetkern.training.text import Corpus, Documents, Text, read_corpus
from hetkern.training.tokenizer import Bytes, Characters, Tokenizer

STANDARD_LIBRARY_LIMIT = 1_500_000  # bytes; a whole validation then takes a few seconds
_NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Data:
    """Tokens to train and to validate on.

    Attributes:
        documents: where they come from.
        tokenizer: how they were made.
        train: ``(N,)``, in the smallest dtype that holds the vocabulary: uint8 up to 256 tokens,
            then uint16, then int32. What a batch takes is widened to int64.
        val: ``(N,)``, likewise; all but the first are targets of the validation.
        val_bytes: bytes of text that the validation's targets stand for.
        train_bytes: bytes of text that ``train[1:]`` stands for.
    """

    documents: Documents
    tokenizer: Tokenizer
    train: Tensor
    val: Tensor
    val_bytes: int
    train_bytes: int


def load_data(path: str | None, tokens: str, context: int) -> Data:
    """Read, split and tokenise a text.

    With ten files or more every tenth is for validation; with fewer, the last tenth of all of them
    joined.

    Args:
        path: a text file, a folder of them, or None for Python's standard library.
        tokens: ``"bytes"``, or ``"characters"`` (UTF-8 files; the training part's vocabulary).
        context: the longest sequence; the training part must hold one and its last target.

    Raises:
        UserError: there is no such path, no text in it, or too little.
    """
    utf8 = tokens == "characters"
    corpus = read_standard_library(utf8) if path is None else read_documents(Path(path), utf8)
    data = _characters(corpus) if utf8 else _bytes(corpus)
    name = data.documents.name
    if len(data.train) <= context:
        raise UserError(
            f"{name} is shorter than the context: {len(data.train)} {tokens} to train on, "
            f"{context + 1} needed; give more text or a smaller --context"
        )
    if len(data.val) < 2:
        raise UserError(
            f"{name} leaves {len(data.val)} {tokens} for validation, 2 needed; give more text"
        )
    return data


def read_standard_library(utf8: bool = False) -> Corpus:
    """Python's own source without its tests, modules before packages, up to a size limit."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in root.rglob("*.py") if not _NOT_LIBRARY & set(p.relative_to(root).parts)]
    paths.sort(key=lambda p: (len(p.parts), p.as_posix()))
    within, total = [], 0
    for path in paths:
        total += path.stat().st_size
        if total > STANDARD_LIBRARY_LIMIT:
            break
        within.append(path)
    version = sysconfig.get_python_version()
    corpus = read_corpus(within, f"Python {version}'s standard library", utf8, folder=True)
    if not corpus.documents.files:
        raise UserError(f"{root} holds no Python source to train on; give a text with --data")
    return corpus


def read_documents(path: Path, utf8: bool = False) -> Corpus:
    """The text file at ``path``, or every one below it in the order of their paths.

    In a folder, hidden and binary files (a zero byte in the first 8 KiB) are left out. UTF-16 and
    UTF-32 are known by their byte-order marks, and become UTF-8.

    Raises:
        UserError: there is no such path, or no text in it.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path} to train on")
    if not path.is_dir():
        return read_corpus([path], str(path), utf8, folder=False)
    below = (p for p in path.rglob("*") if p.is_file())
    paths = sorted(p for p in below if not _is_hidden(p.relative_to(path)))
    corpus = read_corpus(paths, str(path), utf8, folder=True)
    if not corpus.documents.files:
        raise UserError(f"{path} holds no text to train on")
    return corpus


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _bytes(corpus: Corpus) -> Data:
    cut = len(corpus.main) * 9 // 10
    train = _joined(corpus.main)
    if corpus.held_out is None:
        train, val = train[:cut], train[cut:]
    else:
        val = _joined(corpus.held_out)
    return Data(corpus.documents, Bytes(), train, val, max(0, len(val) - 1), max(0, len(train) - 1))


def _joined(text: Text) -> Tensor:
    joined = np.empty(len(text), np.uint8)
    at = 0
    for piece in text.drain():
        joined[at : at + len(piece)] = piece
        at += len(piece)
    return torch.from_numpy(joined)


def _characters(corpus: Corpus) -> Data:
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
    tokenizer = Characters.of_texts(_decoded(main.pieces(0, end)))
    if held_out is None:
        tokens = _encoded(tokenizer, main, count)
        train, val = tokens[:cut], tokens[cut:]
    else:
        train = _encoded(tokenizer, main, count)
        val = _encoded(tokenizer, held_out, _count_characters(held_out))
    return Data(corpus.documents, tokenizer, train, val, val_bytes, train_bytes)


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


class RandomWindows:
    """Endless batches of windows at random places of a text, drawn from a generator of its own."""

    def __init__(self, tokens: Tensor, context: int, batch: int, seed: int) -> None:
        """``tokens``: (N,) with N > context; the same seed draws the same windows."""
        self.batch = batch
        self.places = len(tokens) - context
        self.steps_per_epoch = max(1, len(tokens) // (batch * context))
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        """Where the windows of a step begin: (batch,) int64."""
        return torch.randint(self.places, (self.batch,), generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        self.generator.set_state(state["generator"])
