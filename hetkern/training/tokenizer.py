"""From text to token numbers and back: bytes, or the characters of the training text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """What the rest of the training layer asks of a tokenizer."""

    vocabulary: int

    def encode(self, text: str) -> Tensor:
        """Token numbers, ``(len,)`` int64."""

    def decode(self, tokens: Tensor) -> str:
        """The text of ``tokens``, ``(len,)``; what is no text shows as U+FFFD."""

    def to_json(self) -> str:
        """What ``tokenizer_from_json`` rebuilds it from."""


class Bytes:
    """UTF-8 bytes: 256 tokens, every text representable."""

    vocabulary = 256

    def encode(self, text: str) -> Tensor:
        """The UTF-8 bytes of ``text``."""
        return torch.tensor(bytearray(text.encode("utf-8", "surrogateescape"))).long()

    def decode(self, tokens: Tensor) -> str:
        """The text of ``tokens``; broken UTF-8 shows as U+FFFD."""
        return bytes(tokens.tolist()).decode("utf-8", "replace")

    def to_json(self) -> str:
        """The kind alone says everything."""
        return json.dumps({"kind": "bytes"})


class Characters:
    """The characters of a training text, in code-point order from token 1 on.

    Token 0 stands for any other character: one that only the validation text or a prompt has. It is
    never a training target, so a model gives it little probability, and each one costs validation
    loss. It decodes to U+FFFD.
    """

    UNKNOWN = "\N{REPLACEMENT CHARACTER}"

    def __init__(self, characters: str) -> None:
        """``characters``: each once, in the order of their tokens from 1 on."""
        self.characters = characters
        self.vocabulary = 1 + len(characters)
        self.dtype = smallest_dtype(self.vocabulary)
        tokens = torch.zeros(0x110000, dtype=torch.int32)  # torch assigns no uint16 by index
        tokens[_code_points(characters)] = torch.arange(1, self.vocabulary, dtype=torch.int32)
        self._token_of_code_point = tokens.to(self.dtype)

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> Characters:
        """The vocabulary of all ``texts``."""
        seen = torch.zeros(0x110000, dtype=torch.bool)
        for text in texts:
            seen[_code_points(text)] = True
        return cls("".join(map(chr, seen.nonzero()[:, 0].tolist())))

    def encode(self, text: str) -> Tensor:
        """One token a character; unknown ones become 0."""
        return self.encode_narrow(text).long()

    def encode_narrow(self, text: str) -> Tensor:
        """As :meth:`encode`, in ``self.dtype``: the smallest one that holds the vocabulary."""
        return self._token_of_code_point[_code_points(text)]

    def decode(self, tokens: Tensor) -> str:
        """One character a token."""
        symbols = self.UNKNOWN + self.characters
        return "".join(symbols[token] for token in tokens.tolist())

    def to_json(self) -> str:
        """The characters in order."""
        return json.dumps({"kind": "characters", "characters": self.characters})


def smallest_dtype(vocabulary: int) -> torch.dtype:
    """The dtype in which token numbers below ``vocabulary`` take the least memory."""
    if vocabulary <= 1 << 8:
        return torch.uint8
    return torch.uint16 if vocabulary <= 1 << 16 else torch.int32


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that ``to_json`` wrote."""
    from hetkern.training.words import BPE, Padded, Words

    state = json.loads(text)
    kind = state["kind"]
    if kind == "characters":
        return Characters(state["characters"])
    if kind == "words":
        return Words(state["words"])
    if kind == "bpe":
        return BPE.from_state(state["state"])
    return Padded(tokenizer_from_json(state["inner"])) if kind == "padded" else Bytes()


def _code_points(text: str) -> Tensor:
    codes = bytearray(text.encode("utf-32-le", "surrogatepass"))
    return torch.frombuffer(codes, dtype=torch.int32).long() if codes else torch.empty(0).long()
