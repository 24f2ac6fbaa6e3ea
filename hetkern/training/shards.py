"""A corpus too large for memory: tokenised once, into files that are mapped.

manifest.json      what was read, the tokenizer, the shards, and how far it went; replaced at once
train-00000.bin …  token numbers one after the other, in the manifest's dtype
train-00000.idx …  where documents begin in the shard of that number, int64
val-00000.bin …    likewise, of the documents that are held out
digests.bin        a hash of each document that was taken, to know copies by after a stop

Work goes piece by piece in a fixed order. When a shard is full it is written, then the manifest
that names it: whatever is stopped or killed goes on from the last manifest, and ends in the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hetkern.training.config import UserError
from hetkern.training.mapped import Tokens
from hetkern.training.text import JSON_LINES, Unreadable, file_pieces, json_texts
from hetkern.training.tokenizer import (
    Bytes,
    Characters,
    Tokenizer,
    smallest_dtype,
    tokenizer_from_json,
)
from hetkern.training.words import BPE

MANIFEST, DIGESTS = "manifest.json", "digests.bin"
SHARD = 1 << 24  # tokens
_FORMAT = 1
_HELD_OUT = 10  # one document in so many; of a few large files, the last part of each
_FEW = 10  # files that are no JSON lines, below which each is cut
_LEARNT_FROM = 1 << 26  # characters that byte pairs are learnt from
_DTYPES = {torch.uint8: "u1", torch.uint16: "<u2", torch.int32: "<i4"}
Watch = Callable[[int, int], object]  # bytes done, bytes in all


class Sharded(NamedTuple):
    """A corpus on disk.

    Attributes:
        tokenizer: how its tokens were made.
        train: what is trained on.
        val: what is validated on.
        manifest: everything else.
    """

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    manifest: dict[str, Any]


def prepare(
    folder: Path,
    paths: list[Path],
    kind: str,
    *,
    text_column: str = "text",
    vocabulary: int = 4096,
    watch: Watch | None = None,
) -> Sharded:
    """Tokenise text files into ``folder``, or go on where an earlier call was stopped.

    Args:
        folder: is made; if it is complete, nothing is read but its manifest.
        paths: text files and JSON-lines files, in the order in which they count.
        kind: of the tokens: "bytes", "characters" or "bpe".
        text_column: which key of a JSON-lines file holds a document.
        vocabulary: of "bpe".
        watch: is told how many bytes of how many are done.

    Raises:
        UserError: ``folder`` holds another corpus, or a file cannot be read.
    """
    source = {
        "files": [_stamp(path) for path in paths],
        "kind": kind,
        "text_column": text_column,
        "vocabulary": vocabulary,
        "shard": SHARD,
    }
    manifest = _read_manifest(folder)
    if manifest is None:
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": _FORMAT,
            "source": source,
            "tokenizer": _learnt(paths, kind, text_column, vocabulary).to_json(),
            "train": [],
            "val": [],
            "done": {
                "file": 0,
                "pieces": 0,  # of that file
                "skipping": False,  # whether the document that has begun is a copy
                "bytes": {"train": 0, "val": 0},
            },
            "digests": 0,
            "left_out": {},
            "documents": {"train": 0, "val": 0},
            "complete": False,
        }
        _write(folder / MANIFEST, json.dumps(manifest).encode())
    elif manifest["source"] != source:
        raise UserError(
            f"{folder} holds the tokens of other files, or of these as they were, or other "
            "settings; give another folder, or delete it"
        )
    tokenizer = tokenizer_from_json(manifest["tokenizer"])
    if not manifest["complete"]:
        _Writer(folder, paths, manifest, tokenizer, watch).run()
    dtype = _dtype(tokenizer)
    train, val = (Tokens(folder, part, manifest[part], dtype) for part in ("train", "val"))
    return Sharded(tokenizer, train, val, manifest)


class _Piece(NamedTuple):
    """A part of a document, or one that is left out.

    Attributes:
        text: at most some 256 KiB.
        begins: a digest of what begins here: a document, or its part that is held out; b"" of what
            goes on.
        part: "train" or "val"; of a document that is left out the reason.
    """

    text: str
    begins: bytes
    part: str


class _Writer:
    """What is between two manifests."""

    def __init__(
        self,
        folder: Path,
        paths: list[Path],
        manifest: dict[str, Any],
        tokenizer: Tokenizer,
        watch: Watch | None,
    ) -> None:
        self.folder, self.paths, self.manifest = folder, paths, manifest
        self.tokenizer, self.watch = tokenizer, watch
        self.dtype = _dtype(tokenizer)
        self.tokens: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        self.begins: dict[str, list[int]] = {"train": [], "val": []}
        self.held = {"train": 0, "val": 0}
        self.fresh: list[bytes] = []
        seen = (folder / DIGESTS).read_bytes() if manifest["digests"] else b""
        self.seen = {seen[i : i + 16] for i in range(0, 16 * manifest["digests"], 16)}

    def run(self) -> None:
        """Every piece from where the manifest stands on."""
        few, done = _few(self.paths), self.manifest["done"]
        column = self.manifest["source"]["text_column"]
        sizes = [path.stat().st_size for path in self.paths]
        for number in range(done["file"], len(self.paths)):
            before = done["pieces"] if number == done["file"] else 0
            read = 0
            for count, piece in enumerate(pieces_of(self.paths[number], column, few), 1):
                read += len(piece.text)
                if count <= before:
                    continue
                self._take(piece)
                done["file"], done["pieces"] = number, count
                if max(self.held.values()) >= SHARD:
                    self._flush()
                if self.watch is not None:
                    self.watch(sum(sizes[:number]) + min(read, sizes[number]), sum(sizes))
            done["file"], done["pieces"] = number + 1, 0
            if self.watch is not None:
                self.watch(sum(sizes[: number + 1]), sum(sizes))
        self.manifest["complete"] = True
        self._flush()

    def _take(self, piece: _Piece) -> None:
        part, done = piece.part, self.manifest["done"]
        if part not in self.held:
            self._leave_out(part)
            return
        if piece.begins:
            done["skipping"] = piece.begins in self.seen
            if done["skipping"]:
                self._leave_out("copies")
            else:
                self.seen.add(piece.begins)
                self.fresh.append(piece.begins)
                self.manifest["documents"][part] += 1
                self.begins[part].append(self.held[part])
        if done["skipping"]:
            return
        tokens = self.tokenizer.encode(piece.text).numpy().astype(self.dtype)
        self.tokens[part].append(tokens)
        self.held[part] += len(tokens)
        done["bytes"][part] += len(piece.text.encode("utf-8", "surrogateescape"))

    def _leave_out(self, reason: str) -> None:
        left_out = self.manifest["left_out"]
        left_out[reason] = left_out.get(reason, 0) + 1

    def _flush(self) -> None:
        """Write what is held as a shard of each part, then the manifest that names it."""
        for part in ("train", "val"):
            if not self.held[part]:
                continue
            number = len(self.manifest[part])
            path = self.folder / f"{part}-{number:05}.bin"
            contents = np.concatenate(self.tokens[part]).tobytes()
            _write(path, contents)
            _write(path.with_suffix(".idx"), np.array(self.begins[part], "<i8").tobytes())
            sha256 = hashlib.sha256(contents).hexdigest()
            self.manifest[part].append({"tokens": self.held[part], "sha256": sha256})
            self.tokens[part], self.begins[part], self.held[part] = [], [], 0
        with open(self.folder / DIGESTS, "ab") as file:
            file.truncate(16 * self.manifest["digests"])
            file.write(b"".join(self.fresh))
            file.flush()
            os.fsync(file.fileno())
        self.manifest["digests"] += len(self.fresh)
        self.fresh = []
        _write(self.folder / MANIFEST, json.dumps(self.manifest).encode())


def pieces_of(path: Path, text_column: str, few: bool) -> Iterator[_Piece]:
    """The documents of a file in pieces that end at line ends, and on which side each is.

    Args:
        path: a file of JSON lines, each a document; or of text, a document or none.
        text_column: which key holds a line's text.
        few: whether a file's last tenth is held out, in place of every tenth file.
    """
    if path.suffix.lower() in JSON_LINES:
        for text in json_texts(path, text_column):
            yield _document(text) if text.strip() else _Piece("", b"", "empty")
        return
    try:
        digest = _file_digest(path)
    except Unreadable as error:
        yield _Piece("", b"", error.kind)
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not few:
        part, begins = "val" if _held_out(digest) else "train", digest
        for text in _whole_lines(file_pieces(path, False)):
            yield _Piece(text, begins, part)
            begins = b""
        return
    left = path.stat().st_size * (_HELD_OUT - 1) // _HELD_OUT  # bytes to train on
    part, begins = "train", digest
    for text in _whole_lines(file_pieces(path, False)):
        whole = text.encode("utf-8", "surrogateescape")
        if part == "train" and len(whole) >= left:
            cut = whole.find(b"\n", left) + 1 or len(whole)
            yield _Piece(whole[:cut].decode("utf-8", "surrogateescape"), begins, part)
            part, begins = "val", hashlib.blake2b(digest + b"val", digest_size=16).digest()
            text = whole[cut:].decode("utf-8", "surrogateescape")
        if text:
            yield _Piece(text, begins, part)
            begins = b""
        left -= len(whole)


def _few(paths: list[Path]) -> bool:
    return len(paths) < _FEW and not any(path.suffix.lower() in JSON_LINES for path in paths)


def _document(text: str) -> _Piece:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return _Piece(text + "\n", digest, "val" if _held_out(digest) else "train")


def _held_out(digest: bytes) -> bool:
    return int.from_bytes(digest[:8], "little") < (1 << 64) // _HELD_OUT


def _file_digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    blank = True
    for piece in file_pieces(path, False):
        blank = blank and not piece.strip()
        digest.update(piece)
    if blank:
        raise Unreadable("holds no text to train on", "empty")
    return digest.digest()


def _whole_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Text in pieces of some 256 KiB that end at line ends where there are any."""
    rest = b""
    for piece in pieces:
        rest += piece
        cut = rest.rfind(b"\n") + 1
        if cut:
            yield rest[:cut].decode("utf-8", "surrogateescape")
            rest = rest[cut:]
    if rest:
        yield rest.decode("utf-8", "surrogateescape")


def _learnt(paths: list[Path], kind: str, text_column: str, vocabulary: int) -> Tokenizer:
    """The tokenizer, its vocabulary from what is trained on alone."""
    if kind == "bytes":
        return Bytes()
    few = _few(paths)

    def texts(most: int | None) -> Iterator[str]:
        read = 0
        for path in paths:
            for piece in pieces_of(path, text_column, few):
                if piece.part == "train" and (most is None or read < most):
                    read += len(piece.text)
                    yield piece.text

    if kind == "characters":
        return Characters.of_texts(texts(None))
    return BPE.of_texts(texts(_LEARNT_FROM), vocabulary)


def _stamp(path: Path) -> list[Any]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _dtype(tokenizer: Tokenizer) -> str:
    return _DTYPES[smallest_dtype(tokenizer.vocabulary)]


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise UserError(f"{folder} was made by another version; delete it")
        return manifest
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/{MANIFEST} cannot be read: {error}; delete the folder"
        ) from error


def _write(path: Path, contents: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
