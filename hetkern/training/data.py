"""Text on disk to token tensors for training and validation."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import AnyStr

import torch
from torch import Tensor

from hetkern.training.config import UserError
from hetkern.training.tokenizer import Bytes, Characters, Tokenizer

STANDARD_LIBRARY_LIMIT = 1_500_000  # bytes; a whole validation then takes a few seconds
_NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Documents:
    """The files that a run reads.

    Attributes:
        name: what was read, in words.
        texts: the contents, in the order of the paths; copies of an earlier file are left out.
        skipped: how many files were left out as binary, empty or copies.
    """

    name: str
    texts: list[bytes]
    skipped: int

    @property
    def sha256(self) -> str:
        """A hash of all texts in order: two runs with the same one read the same data."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(len(text).to_bytes(8, "little") + text)
        return digest.hexdigest()


@dataclass(frozen=True)
class Data:
    """Tokens to train and to validate on.

    Attributes:
        documents: where they come from.
        tokenizer: how they were made.
        train: ``(N,)`` int64.
        val: ``(N,)`` int64; all but the first are targets of the validation.
        val_bytes: bytes of text that the validation's targets stand for.
    """

    documents: Documents
    tokenizer: Tokenizer
    train: Tensor
    val: Tensor
    val_bytes: int


def load_data(path: str | None, tokens: str, context: int) -> Data:
    """Read, split and tokenise a text.

    Args:
        path: a text file, a folder of them, or None for Python's standard library.
        tokens: ``"bytes"``, or ``"characters"`` (UTF-8 files; the training part's vocabulary).
        context: the longest sequence; the training part must hold one and its last target.

    Raises:
        UserError: there is no such path, no text in it, or too little.
    """
    documents = read_standard_library() if path is None else read_documents(Path(path))
    tokenizer: Tokenizer
    if tokens == "bytes":
        train_bytes, val_text = split(documents.texts, b"\n")
        tokenizer = Bytes()
        train, val = tokenizer.encode_bytes(train_bytes), tokenizer.encode_bytes(val_text)
        val_bytes = len(val_text[1:])
    else:
        train_text, val_string = split(_decoded(documents), "\n")
        tokenizer = Characters.of_text(train_text)
        train, val = tokenizer.encode(train_text), tokenizer.encode(val_string)
        val_bytes = len(val_string[1:].encode())
    if len(train) <= context:
        raise UserError(
            f"{documents.name} is shorter than the context: {len(train)} {tokens} to train on, "
            f"{context + 1} needed; give more text or a smaller --context"
        )
    if len(val) < 2:
        raise UserError(
            f"{documents.name} leaves {len(val)} {tokens} for validation, 2 needed; give more text"
        )
    return Data(documents, tokenizer, train, val, val_bytes)


def split(texts: list[AnyStr], joint: AnyStr) -> tuple[AnyStr, AnyStr]:
    """The text to train on and the text to validate on; each text goes to one of them whole.

    With ten texts or more every tenth is for validation; with fewer, the last tenth of all of them
    joined.
    """
    if len(texts) >= 10:
        train = [text for i, text in enumerate(texts) if i % 10 != 9]
        return joint.join(train), joint.join(texts[9::10])
    text = joint.join(texts)
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def read_standard_library() -> Documents:
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
    documents = _read(within, f"Python {version}'s standard library")
    if not documents.texts:
        raise UserError(f"{root} holds no Python source to train on; give a text with --data")
    return documents


def read_documents(path: Path) -> Documents:
    """The text file at ``path``, or every one below it in the order of their paths.

    In a folder, hidden and binary files (a zero byte in the first 8 KiB) are left out.

    Raises:
        UserError: there is no such path, or no text in it.
    """
    if not path.exists():
        raise UserError(f"there is no file or folder {path} to train on")
    if path.is_dir():
        below = (p for p in path.rglob("*") if p.is_file())
        paths = sorted(p for p in below if not _is_hidden(p.relative_to(path)))
    else:
        paths = [path]
    documents = _read(paths, str(path))
    if not documents.texts:
        raise UserError(f"{path} holds no text to train on")
    return documents


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(paths: list[Path], name: str) -> Documents:
    texts: dict[bytes, None] = {}  # in order, copies dropped
    for path in paths:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if text.strip() and b"\0" not in text[:8192]:
            texts[text] = None
    return Documents(name, list(texts), skipped=len(paths) - len(texts))


def _decoded(documents: Documents) -> list[str]:
    try:
        return [text.decode("utf-8") for text in documents.texts]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{documents.name} is not all UTF-8 ({error.reason}); --tokens bytes takes any text"
        ) from error


class RandomWindows:
    """Endless batches of windows at random places of a text, drawn from a generator of its own."""

    def __init__(self, tokens: Tensor, context: int, batch: int, seed: int) -> None:
        """``tokens``: (N,) with N > context; the same seed draws the same windows."""
        self.tokens = tokens
        self.batch = batch
        self.offsets = torch.arange(context + 1)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Inputs and, one token on, targets: each (batch, context) int64."""
        last = len(self.tokens) - len(self.offsets)
        starts = torch.randint(last + 1, (self.batch, 1), generator=self.generator)
        windows = self.tokens[starts + self.offsets]
        return windows[:, :-1], windows[:, 1:]
