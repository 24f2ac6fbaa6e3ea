"""Files on disk to text in memory, one byte for a byte.

A text is read piece by piece, from pipes too, into blocks of memory that come straight from the
operating system. Turning it into tokens gives them back one by one (:meth:`Text.drain`): text and
tokens never lie in memory both whole. It is not a map of the file: a file that another program
shortens while it is mapped takes the process down.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import mmap
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from hetkern.training.config import UserError
from hetkern.training.duplicates import NearDuplicates, normalised

PIECE = 1 << 18  # bytes read, decoded or encoded at a time
JSON_LINES = (".jsonl", ".ndjson")
_FEWEST_TO_HOLD_OUT = 10  # documents; of that many or more, one in so many is held out
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

    def keep(self, spans: list[tuple[int, int]]) -> list[int]:
        """Keep these spans alone, in order, a line end between them; returns where each begins."""
        at = 0
        begins: list[int] = []
        for begin, end in spans:
            if begins:
                at = self._write(at, b"\n")
            begins.append(at)
            for piece in self.pieces(begin, end):
                at = self._write(at, bytes(piece))
        self.truncate(at)
        return begins

    def _write(self, at: int, piece: bytes) -> int:
        """Overwrite bytes from ``at`` on; returns where they end."""
        done = 0
        while done < len(piece):
            within = (at + done) % PIECE
            part = piece[done : done + PIECE - within]
            self._blocks[(at + done) // PIECE][within : within + len(part)] = part
            done += len(part)
        return at + done

    def drain(self) -> Iterator[memoryview]:
        """All bytes in order; a block goes back to the system when the next one is asked for."""
        self._blocks.reverse()
        while self._blocks:
            block = self._blocks.pop()
            part = min(PIECE, self._length)
            self._length -= part
            yield memoryview(block)[:part]


class Documents(NamedTuple):
    """The documents that a run reads: files, or lines of a JSON-lines file.

    Attributes:
        name: what was read, in words.
        files: how many were taken.
        skipped: how many were left out as binary, empty or copies of an earlier one.
        sha256: a hash of all texts in order: two runs with the same one read the same data.
        left_out: how many for which reason.
    """

    name: str
    files: int
    skipped: int
    sha256: str
    left_out: Mapping[str, int] = MappingProxyType({})


class Corpus(NamedTuple):
    """The text of :class:`Documents`.

    Attributes:
        documents: where it comes from.
        main: the text to train on; with fewer than ten documents all of it, to be cut.
        held_out: a tenth of the documents; None with fewer than ten.
        main_begins: where each document of ``main`` begins, in bytes.
        held_out_begins: likewise.
    """

    documents: Documents
    main: Text
    held_out: Text | None
    main_begins: list[int]
    held_out_begins: list[int]


class Unreadable(Exception):
    """Why a file is no text; a folder leaves it out, alone it is an error."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_corpus(
    paths: list[Path],
    name: str,
    utf8: bool,
    folder: bool,
    text_column: str = "text",
    duplicates: str = "exact",
) -> Corpus:
    """Read the text files among ``paths``, a line end between them.

    Texts come in Unicode's normal form C; bytes that are no UTF-8 stay as they are. Of ten
    documents or more those with the smallest hashes, a tenth, are held out.

    Args:
        paths: in the order in which they count.
        name: what they are, in words.
        utf8: whether a file that is not UTF-8 is an error.
        folder: whether files that are no text are left out; alone, one is an error.
        text_column: which key of a JSON-lines file holds the text of a document.
        duplicates: "exact" copies are left out, or "near" ones as well, or "none".

    Raises:
        UserError: a file cannot be read, or is no text.
    """
    text = Text()
    spans: list[tuple[int, int]] = []
    digests: list[bytes] = []
    left_out: Counter[str] = Counter()
    seen: set[bytes] = set()
    near = NearDuplicates() if duplicates == "near" else None
    for document in _documents(paths, utf8, folder, text_column, left_out):
        joint = len(text)
        if joint:
            text.append(b"\n")
        begin = len(text)
        try:
            digest = _append(text, document.pieces)
            reason = "copies" if digest in seen and duplicates != "none" else None
            if reason is None and near is not None:
                whole = b"".join(text.pieces(begin)).decode("utf-8", "replace")
                reason = "near-duplicates" if near.seen(whole) else None
        except Unreadable as error:
            if not folder and document.alone:
                raise UserError(f"{document.path} {error}") from error
            reason = error.kind
        except OSError as error:
            raise UserError(f"cannot read {document.path}: {error.strerror}") from error
        if reason is None:
            seen.add(digest)
            digests.append(digest)
            spans.append((begin, len(text)))
        else:
            left_out[reason] += 1
            text.truncate(joint)
    sha256 = _sha256(text, spans)
    documents = Documents(name, len(spans), left_out.total(), sha256, dict(left_out))
    if len(spans) < _FEWEST_TO_HOLD_OUT:
        return Corpus(documents, text, None, [begin for begin, _ in spans], [])
    order = sorted(range(len(spans)), key=lambda i: (digests[i], i))
    chosen = set(order[: round(len(spans) / _FEWEST_TO_HOLD_OUT)])
    held_out = Text()
    begins: list[int] = []
    for i in sorted(chosen):
        if begins:
            held_out.append(b"\n")
        begins.append(len(held_out))
        for piece in text.pieces(*spans[i]):
            held_out.append(bytes(piece))
    _check_nothing_shared(digests, chosen, duplicates)
    kept = text.keep([span for i, span in enumerate(spans) if i not in chosen])
    return Corpus(documents, text, held_out, kept, begins)


def _check_nothing_shared(digests: list[bytes], held_out: set[int], duplicates: str) -> None:
    """Training and validation share no document."""
    ours = {digests[i] for i in held_out}
    shared = sum(digest in ours for i, digest in enumerate(digests) if i not in held_out)
    if shared:
        raise UserError(
            f"training and validation share {shared} documents, since --duplicates is {duplicates}"
        )


class _Document(NamedTuple):
    path: Path
    pieces: Iterator[bytes]
    alone: bool  # a file of its own


def _documents(
    paths: list[Path], utf8: bool, folder: bool, text_column: str, left_out: Counter[str]
) -> Iterator[_Document]:
    for path in paths:
        if path.suffix.lower() in JSON_LINES:
            for line in json_texts(path, text_column):
                yield _Document(path, iter([line.encode("utf-8", "replace")]), False)
        else:
            yield _Document(path, file_pieces(path, utf8), True)


def json_texts(path: Path, text_column: str) -> Iterator[str]:
    """The texts of a JSON-lines file, each a document; one that cannot be read is named."""
    number = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line.decode("utf-8-sig"))
                if not isinstance(row, dict) or not isinstance(row.get(text_column), str):
                    raise UserError(
                        f"{path} line {number} is no JSON object with a text under {text_column!r} "
                        "(--text-column)"
                    )
                yield normalised(row[text_column])
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} line {number} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _append(text: Text, pieces: Iterator[bytes]) -> bytes:
    """Append a document; returns a digest of it.

    Raises:
        Unreadable: it is binary, blank, or not in the encoding that its mark says.
        UserError: it is not UTF-8 and has to be.
    """
    digest = hashlib.blake2b(digest_size=32)
    blank = True
    for piece in pieces:
        blank = blank and not piece.strip()
        digest.update(piece)
        text.append(piece)
    if blank:
        raise Unreadable("holds no text to train on", "empty")
    return digest.digest()


def file_pieces(path: Path, utf8: bool) -> Iterator[bytes]:
    """The bytes of a text file in Unicode's normal form C, whatever UTF its mark says.

    Raises:
        Unreadable: it is binary, or not in the encoding that its mark says.
        UserError: it is not UTF-8 and has to be.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    normalise = _Normaliser()
    for piece in _pieces(path):
        if read < _LOOKED_AT and b"\0" in piece[: _LOOKED_AT - read]:
            raise Unreadable(
                "is binary: there is a zero byte near its beginning "
                "(UTF-16 text is read if it begins with a byte-order mark)",
                "binary",
            )
        read += len(piece)
        if utf8:
            _check_utf8(decoder, piece, path)
        yield normalise.feed(piece)
    if utf8:
        _check_utf8(decoder, b"", path)
    yield normalise.feed(b"", last=True)


class _Normaliser:
    """Pieces of UTF-8 to pieces in normal form C, cut where nothing composes across the cut.

    No character of ASCII, no ideograph, kana or Hangul syllable joins the one before it. Bytes that
    are no UTF-8 pass as they are.
    """

    _CUT = re.compile("[\0-\x7f\u3001-\u3098\u4e00-\u9fff\uac00-\ud7a3]")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._waiting: list[str] = []

    def feed(self, piece: bytes, last: bool = False) -> bytes:
        """What is finished once ``piece`` has come; the rest waits for what may join it."""
        text = self._decoder.decode(piece, last)
        cut = len(text) if last else self._last_cut(text)
        if cut is None:
            self._waiting.append(text)
            return b""
        whole = "".join([*self._waiting, text[:cut]])
        self._waiting = [text[cut:]]
        if not unicodedata.is_normalized("NFC", whole):
            whole = unicodedata.normalize("NFC", whole)
        return whole.encode("utf-8", "surrogateescape")

    def _last_cut(self, text: str) -> int | None:
        for at in range(len(text) - 1, -1, -1):
            if self._CUT.match(text, at):
                return at
        return None


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
                raise Unreadable(
                    f"begins with the mark of {encoding[:6].upper()} text and is none "
                    f"({error.reason}); save it as UTF-8",
                    "in another encoding than their mark says",
                ) from error


def _check_utf8(decoder: codecs.IncrementalDecoder, piece: bytes, path: Path) -> None:
    try:
        decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not all UTF-8 ({error.reason}); --tokens bytes takes any text"
        ) from error


def _sha256(text: Text, spans: list[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for begin, end in spans:
        digest.update((end - begin).to_bytes(8, "little"))
        for piece in text.pieces(begin, end):
            digest.update(piece)
    return digest.hexdigest()
