"""Tokens for texts with labels: words, byte pairs, and a place for padding.

Token 0 is padding and token 1 stands for whatever the training part does not have.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hetkern.training.config import UserError
from hetkern.training.config.common import SMALLEST_BPE
from hetkern.training.tokenizer import Tokenizer

PAD, UNKNOWN = "<pad>", "<unk>"
_PIECES = re.compile(r"\w+|[^\w\s]")


class Words:
    """Lower-cased words, and punctuation mark by mark; blanks are not kept."""

    def __init__(self, words: list[str]) -> None:
        """``words``: in the order of their tokens from 2 on."""
        self.words = words
        self.vocabulary = 2 + len(words)
        self._token_of = {word: 2 + i for i, word in enumerate(words)}

    @classmethod
    def of_texts(cls, texts: Iterable[str], min_freq: int = 1) -> Words:
        """The words that ``texts`` have at least ``min_freq`` times, the most frequent first."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(cls.pieces(text))
        often = [word for word, count in counts.items() if count >= min_freq]
        return cls(sorted(often, key=lambda word: (-counts[word], word)))

    @staticmethod
    def pieces(text: str) -> list[str]:
        """The words and marks of ``text``."""
        return _PIECES.findall(text.lower())

    def encode(self, text: str) -> Tensor:
        """One token a word or mark; a word that is not in the vocabulary becomes 1."""
        get = self._token_of.get
        return torch.tensor([get(word, 1) for word in self.pieces(text)], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """The words with a blank between."""
        names = [PAD, UNKNOWN, *self.words]
        return " ".join(names[token] for token in tokens.tolist())

    def to_json(self) -> str:
        """The words in order."""
        return json.dumps({"kind": "words", "words": self.words})


class BPE:
    """Byte pairs: runs of bytes, the most frequent joined first; every text is representable.

    Source: Sennrich et al. (2016), on bytes as in Radford et al. (2019); the library tokenizers.
    """

    def __init__(self, trained: Any) -> None:
        """``trained``: a ``tokenizers.Tokenizer``."""
        self._trained = trained
        self.vocabulary = trained.get_vocab_size()

    @classmethod
    def of_texts(cls, texts: Iterable[str], vocabulary: int = 4096) -> BPE:
        """Learn so many tokens, 258 at least: padding, unknown, the bytes, then pairs.

        Raises:
            UserError: the library tokenizers is not installed.
        """
        library = _tokenizers()
        trained = library.Tokenizer(library.models.BPE())
        trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=max(SMALLEST_BPE, vocabulary),
            special_tokens=[PAD, UNKNOWN],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        trained.train_from_iterator(map(_clean, texts), trainer)
        return cls(trained)

    @classmethod
    def from_state(cls, state: str) -> BPE:
        """What :meth:`to_json` described."""
        return cls(_tokenizers().Tokenizer.from_str(state))

    def encode(self, text: str) -> Tensor:
        """The tokens of ``text``; a text that looks like padding is text all the same."""
        ids = []
        # The library knows its special tokens in any text: they are cut in two.
        for part in re.split(f"(?<=<)(?={PAD[1:]}|{UNKNOWN[1:]})", _clean(text)):
            ids += self._trained.encode(part, add_special_tokens=False).ids
        return torch.tensor(ids, dtype=torch.int64)

    def size_of(self, token: int) -> int:
        """Bytes of text that a token stands for."""
        return len(self._trained.id_to_token(token))  # one character a byte

    def decode(self, tokens: Tensor) -> str:
        """The text of ``tokens``; broken UTF-8 shows as U+FFFD."""
        return self._trained.decode(tokens.tolist())

    def to_json(self) -> str:
        """The library's own description."""
        return json.dumps({"kind": "bpe", "state": self._trained.to_str()})


class Padded:
    """Bytes or characters with token 0 for padding: what was token n is n + 1."""

    def __init__(self, inner: Tokenizer) -> None:
        """``inner``: whose tokens these are."""
        self.inner = inner
        self.vocabulary = inner.vocabulary + 1

    def encode(self, text: str) -> Tensor:
        """The tokens of ``text``, none of them 0."""
        return self.inner.encode(text) + 1

    def decode(self, tokens: Tensor) -> str:
        """The text without its padding."""
        return self.inner.decode(tokens[tokens > 0] - 1)

    def to_json(self) -> str:
        """What is inside."""
        return json.dumps({"kind": "padded", "inner": self.inner.to_json()})


def _clean(text: str) -> str:
    """Lone surrogates, which are no text, become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "--tokens bpe needs the library tokenizers: pip install 'hetkern[data]'"
        ) from error
    return tokenizers
