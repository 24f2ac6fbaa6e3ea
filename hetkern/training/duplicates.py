"""Texts that are there twice: the same but for blanks, or nearly the same.

Near-duplicates are found by datasketch's MinHash index and then judged by the exact Jaccard
similarity of their shingles, so that what is left out never depends on a hash's chance alone.

Source: Broder (1997), "On the resemblance and containment of documents"; Lee et al. (2022),
"Deduplicating Training Data Makes Language Models Better".
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

from hetkern.training.config import UserError

SIMILAR = 0.8  # Jaccard similarity from which on two texts are near-duplicates
_SHINGLE = 3  # words
_WORDS = re.compile(r"\w+")


def normalised(text: str) -> str:
    """Unicode's normal form C: one spelling for what looks the same.

    Lone surrogates, which JSON can spell and no encoding can, become question marks.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())


def digest(text: str) -> bytes:
    """A hash of a text, the same for two that differ in blanks alone."""
    joined = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).digest()


def shingles(text: str) -> set[str]:
    """Runs of three words, lower-cased; of a text with fewer, all of it."""
    words = _WORDS.findall(text.lower())
    if len(words) < _SHINGLE:
        return {" ".join(words) or text.strip()}
    return {" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}


class NearDuplicates:
    """Remembers texts, and knows one that nearly equals an earlier one."""

    def __init__(self, similar: float = SIMILAR) -> None:
        """``similar``: the Jaccard similarity from which on two texts are near-duplicates.

        Raises:
            UserError: datasketch is not installed.
        """
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise UserError(
                "near-duplicates need the library datasketch: pip install 'hetkern[data]'"
            ) from error
        self._similar = similar
        self._min_hash = MinHash
        # At its own threshold the index finds two in five; 0.2 above it, 98 in a hundred.
        self._index = MinHashLSH(threshold=max(0.1, similar - 0.2), num_perm=128)
        self._texts: list[str] = []

    def seen(self, text: str) -> bool:
        """Whether an earlier text nearly equals this one; if none does, remember it."""
        own = shingles(text)
        sketch = self._min_hash(num_perm=128, seed=1)
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in own])
        for number in self._index.query(sketch):
            other = shingles(self._texts[number])
            if len(own & other) >= self._similar * len(own | other):
                return True
        self._index.insert(len(self._texts), sketch)
        self._texts.append(text)
        return False


def near_duplicates(texts: Iterable[str], similar: float = SIMILAR) -> Iterator[bool]:
    """For each text, whether an earlier one that was kept nearly equals it."""
    index = NearDuplicates(similar)
    return (index.seen(text) for text in texts)
