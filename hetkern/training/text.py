"""Files on disk to text in memory, one byte for a byte.

A text is read piece by piece, from pipes too, into blocks of memory that come straight from the
operating system. Turning it into tokens gives them back one by one (:meth:`Text.drain`): text and
tokens never lie in memory both whole. It is not a map of the file: a file that another program
shortens while it is mapped takes the process down.
"""

from __future__ import annotations

import codecs
import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hetkern.training.config import UserError

PIECE = 1 << 18  # bytes read, decoded or encoded at a time
_LOOKED_AT = 8192  # bytes in which a zero byte makes a file binary
# In this order: UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Text:
    """Bytes of text that grow at their end and can be taken away from their front."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, piece: bytes) -> None:
        """Add ``piece`` at the end."""
        done = 0
        while done < len(piece):
            if self._length == len(self._blocks) * PIECE:
                # Private: the system joins neighbours, where it keeps a file for each shared one.
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                self._blocks.append(mmap.mmap(-1, PIECE, flags=flags))
            begin = self._length % PIECE
            part = piece[done : done + PIECE - begin]
            self._blocks[-1][begin : begin + len(part)] = part
            self._length += len(part)
            done += len(part)

    def truncate(self, length: int) -> None:
        """Forget what was appended after the first ``length`` bytes."""
        self._length = length
        del self._blocks[-(-length // PIECE) :]

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[memoryview]:
        """The bytes from ``begin`` to ``end`` in order, a block at a time."""
        end = self._length if end is None else end
        while begin < end:
            within = begin % PIECE
            part = min(PIECE - within, end - begin)
            yield memoryview(self._blocks[begin // PIECE])[within : within + part]
            begin += part

    def drain(self) -> Iterator[memoryview]:
        """All bytes in order; a block goes back to the system when the next one is asked for."""
        self._blocks.reverse()
        while self._blocks:
            block = self._blocks.pop()
            part = min(PIECE, self._length)
            self._length -= part
            yield memoryview(block)[:part]


class Documents(NamedTuple):
    """The files that a run reads.

    Attributes:
        name: what was read, in words.
        files: how many files were taken.
        skipped: how many were left out as binary, empty or copies of an earlier one.
        sha256: a hash of all texts in order: two runs with the same one read the same data.
    """

    name: str
    files: int
    skipped: int
    sha256: str


class Corpus(NamedTuple):
    """The text of :class:`Documents`.

    Attributes:
        documents: where it comes from.
        main: the text to train on; with fewer than ten files all of it, to be cut.
        held_out: every tenth file; None with fewer than ten.
    """

    documents: Documents
    main: Text
    held_out: Text | None


class _Unreadable(Exception):
    """Why a file is no text; a folder leaves it out, alone it is an error."""


def read_corpus(paths: list[Path], name: str, utf8: bool, folder: bool) -> Corpus:
    """Read the text files among ``paths``, a line end between them.

    Args:
        paths: in the order in which they count.
        name: what they are, in words.
        utf8: whether a file that is not UTF-8 is an error.
        folder: whether files that are no text are left out; alone, one is an error.

    Raises:
        UserError: a file cannot be read, or is no text.
    """
    main, held_out = Text(), Text()
    spans: list[tuple[Text, int, int]] = []
    seen: set[bytes] = set()
    for path in paths:
        text = held_out if len(spans) % 10 == 9 else main
        joint = len(text)
        if joint:
            text.append(b"\n")
        begin = len(text)
        try:
            digest = _append_file(text, path, utf8)
            wanted = digest not in seen
        except _Unreadable as error:
            if not folder:
                raise UserError(f"{path} {error}") from error
            wanted = False
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if wanted:
            seen.add(digest)
            spans.append((text, begin, len(text)))
        else:
            text.truncate(joint)
    documents = Documents(name, len(spans), len(paths) - len(spans), _sha256(spans))
    return Corpus(documents, main, held_out if len(held_out) else None)


def _append_file(text: Text, path: Path, utf8: bool) -> bytes:
    """Append the text of a file; returns a digest of it.

    Raises:
        _Unreadable: it is binary, blank, or not in the encoding that its mark says.
        UserError: it is not UTF-8 and has to be.
    """
    digest = hashlib.blake2b(digest_size=32)
    decoder = codecs.getincrementaldecoder("utf-8")()
    begin, blank = len(text), True
    for piece in _pieces(path):
        if len(text) - begin < _LOOKED_AT and b"\0" in piece[: _LOOKED_AT - len(text) + begin]:
            raise _Unreadable(
                "is binary: there is a zero byte near its beginning "
                "(UTF-16 text is read if it begins with a byte-order mark)"
            )
        if utf8:
            _check_utf8(decoder, piece, path)
        blank = blank and not piece.strip()
        digest.update(piece)
        text.append(piece)
    if utf8:
        _check_utf8(decoder, b"", path)
    if blank:
        raise _Unreadable("holds no text to train on")
    return digest.digest()


def _pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file; its byte-order mark is taken off, UTF-16 and UTF-32 become UTF-8."""
    with open(path, "rb") as file:
        piece = file.read(PIECE)
        mark, encoding = next((m for m in _MARKS if piece.startswith(m[0])), (b"", "utf-8"))
        piece = piece[len(mark) :]
        decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
        while piece:
            try:
                yield decoder.decode(piece).encode() if decoder else piece
                piece = file.read(PIECE)
                if decoder and not piece:
                    decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                raise _Unreadable(
                    f"begins with the mark of {encoding[:6].upper()} text and is none "
                    f"({error.reason}); save it as UTF-8"
                ) from error


def _check_utf8(decoder: codecs.IncrementalDecoder, piece: bytes, path: Path) -> None:
    try:
        decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not all UTF-8 ({error.reason}); --tokens bytes takes any text"
        ) from error


def _sha256(spans: list[tuple[Text, int, int]]) -> str:
    digest = hashlib.sha256()
    for text, begin, end in spans:
        digest.update((end - begin).to_bytes(8, "little"))
        for piece in text.pieces(begin, end):
            digest.update(piece)
    return digest.hexdigest()
