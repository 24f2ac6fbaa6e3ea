"""Text on disk to token tensors for training and validation."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetkern.training.config import UserError
from hetkern.training.encoding import first_size, tokenised
from hetkern.training.ngrams import KneserNey
from hetkern.training.shards import Tokens, Watch, prepare
from hetkern.training.text import Corpus, Documents, read_corpus
from hetkern.training.tokenizer import Tokenizer

KINDS = ("bytes", "characters", "bpe")
_FLOOR_READS = 2_000_000  # validation tokens that the n-gram floor reads at most
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
        train_begins: sorted int64: where a document begins in ``train``.
        val_begins: likewise in ``val``.
    """

    documents: Documents
    tokenizer: Tokenizer
    train: Tensor | Tokens
    val: Tensor
    val_bytes: int
    train_bytes: int
    train_begins: Tensor
    val_begins: Tensor

    @functools.cached_property
    def n_gram_loss(self) -> float:
        """Nats a token of the validation text, under the n-gram floor of the training text."""
        return KneserNey(self.train, self.tokenizer.vocabulary).loss(self.val[:_FLOOR_READS])


def load_data(
    path: str | None,
    tokens: str,
    context: int,
    *,
    text_column: str = "text",
    duplicates: str = "exact",
    vocabulary: int = 4096,
    shards: str | None = None,
    watch: Watch | None = None,
) -> Data:
    """Read, split and tokenise a text.

    Of ten documents (files, or lines of a JSON-lines file) or more, a tenth is for validation,
    chosen by hashes of what is in them; of fewer, the last tenth of all of them joined.

    Args:
        path: a text file, a JSON-lines file, a folder of them, or None for Python's standard
            library.
        tokens: ``"bytes"``, ``"characters"`` (UTF-8 files; the training part's vocabulary) or
            ``"bpe"`` (likewise).
        context: the longest sequence; the training part must hold one and its last target.
        text_column: which key of a JSON-lines file holds a document's text.
        duplicates: which documents are left out: copies ("exact"), "near" ones as well, or "none".
        vocabulary: tokens of "bpe".
        shards: a folder for the tokens of a corpus too large for memory: they are made there once,
            and mapped; None keeps them in memory.
        watch: is told how many bytes of how many became shards.

    Raises:
        UserError: there is no such path, no text in it, or too little.
    """
    if tokens not in KINDS:
        raise UserError(f"tokens must be one of {', '.join(KINDS)}, got {tokens!r}")
    if shards is not None:
        data = _from_shards(path, Path(shards), tokens, text_column, duplicates, vocabulary, watch)
    else:
        how = tokens != "bytes", text_column, duplicates
        corpus = read_standard_library(*how) if path is None else read_documents(Path(path), *how)
        data = Data(*tokenised(corpus, tokens, vocabulary))
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


def _from_shards(
    path: str | None,
    folder: Path,
    tokens: str,
    text_column: str,
    duplicates: str,
    vocabulary: int,
    watch: Watch | None,
) -> Data:
    if duplicates != "exact":
        raise UserError(f"--shards leaves out exact copies and no others, got {duplicates!r}")
    name, paths = _standard_library() if path is None else (path, _paths(Path(path)))
    made = prepare(
        folder, paths, tokens, text_column=text_column, vocabulary=vocabulary, watch=watch
    )
    manifest = made.manifest
    sha256 = hashlib.sha256()
    for shard in (*manifest["train"], *manifest["val"]):
        sha256.update(bytes.fromhex(shard["sha256"]))
    taken = sum(manifest["documents"].values())
    left_out = manifest["left_out"]
    documents = Documents(name, taken, sum(left_out.values()), sha256.hexdigest(), left_out)
    sizes = manifest["done"]["bytes"]
    val = made.val[:]
    return Data(
        documents,
        made.tokenizer,
        made.train,
        val,
        max(0, sizes["val"] - first_size(made.tokenizer, val)),
        max(0, sizes["train"] - first_size(made.tokenizer, made.train)),
        made.train.begins,
        made.val.begins,
    )


def read_standard_library(
    utf8: bool = False, text_column: str = "text", duplicates: str = "exact"
) -> Corpus:
    """Python's own source without its tests, modules before packages, up to a size limit."""
    name, within = _standard_library()
    corpus = read_corpus(within, name, utf8, True, text_column, duplicates)
    if not corpus.documents.files:
        raise UserError("there is no Python source to train on; give a text with --data")
    return corpus


def _standard_library() -> tuple[str, list[Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in root.rglob("*.py") if not _NOT_LIBRARY & set(p.relative_to(root).parts)]
    paths.sort(key=lambda p: (len(p.parts), p.as_posix()))
    within, total = [], 0
    for path in paths:
        total += path.stat().st_size
        if total > STANDARD_LIBRARY_LIMIT:
            break
        within.append(path)
    return f"Python {sysconfig.get_python_version()}'s standard library", within


def read_documents(
    path: Path, utf8: bool = False, text_column: str = "text", duplicates: str = "exact"
) -> Corpus:
    """The text file at ``path``, or every one below it in the order of their paths.

    In a folder, hidden and binary files (a zero byte in the first 8 KiB) are left out. UTF-16 and
    UTF-32 are known by their byte-order marks, and become UTF-8.

    Raises:
        UserError: there is no such path, or no text in it.
    """
    paths = _paths(path)
    corpus = read_corpus(paths, str(path), utf8, path.is_dir(), text_column, duplicates)
    if not corpus.documents.files:
        raise UserError(f"{path} holds no text to train on")
    return corpus


def _paths(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"there is no file or folder {path} to train on")
    if not path.is_dir():
        return [path]
    below = (p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in below if not _is_hidden(p.relative_to(path)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


class RandomWindows:
    """Endless batches of windows at random places of a text, drawn from a generator of its own."""

    def __init__(self, tokens: Tensor | Tokens, context: int, batch: int, seed: int) -> None:
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
