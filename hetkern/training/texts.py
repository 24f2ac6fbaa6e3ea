"""Labelled texts to padded batches: cleaned, split, tokenised, and everything left out counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hetkern.training.config import UserError
from hetkern.training.duplicates import digest, near_duplicates, normalised
from hetkern.training.labelled import Labelled, Record, read_labelled
from hetkern.training.tokenizer import Bytes, Characters, Tokenizer
from hetkern.training.words import BPE, Padded, Words

KINDS = ("words", "bytes", "characters", "bpe")
_VALIDATED = 0.1  # the part of each class that is kept back


class Texts(NamedTuple):
    """Tokenised texts, one after the other.

    Attributes:
        tokens: (tokens of all,) int32.
        begins: (N + 1,) int64: text n is ``tokens[begins[n] : begins[n + 1]]``.
        labels: (N,) int64.
    """

    tokens: Tensor
    begins: Tensor
    labels: Tensor

    @property
    def lengths(self) -> Tensor:
        """(N,) int64, at least 1 each."""
        return self.begins.diff()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Texts (B, T) int64 padded with 0, their lengths (B,), their labels (B,)."""
        lengths = self.lengths[rows]
        at = self.begins[rows][:, None] + torch.arange(int(lengths.max()))
        true = at < self.begins[rows + 1][:, None]
        padded = torch.where(true, self.tokens[at.clamp_max(len(self.tokens) - 1)].long(), 0)
        return padded, lengths, self.labels[rows]


@dataclass(frozen=True)
class LabelledData:
    """Labelled texts to train and to validate on.

    Attributes:
        name: what was read, in words.
        tokenizer: token 0 is padding.
        labels: the classes' names in the order of their numbers.
        train: nine tenths of each class.
        val: a tenth of each class, chosen by hashes of the texts.
        counts: how many texts were read, kept, left out for which reason, cut.
        sha256: a hash of what is trained and validated on.
    """

    name: str
    tokenizer: Tokenizer
    labels: list[str]
    train: Texts
    val: Texts
    counts: dict[str, int]
    sha256: str


def load_labelled(
    data: str | None = None,
    tokens: str = "words",
    *,
    text_column: str = "text",
    label_column: str = "label",
    min_freq: int = 2,
    vocabulary: int = 4096,
    longest: int = 256,
    duplicates: str = "exact",
) -> LabelledData:
    """Read labelled texts, clean, split and tokenise them.

    Args:
        data: as for :func:`read_labelled`, and so are the columns.
        tokens: "words", "bytes", "characters" or "bpe".
        text_column: see there.
        label_column: see there.
        min_freq: how often the training part must have a word.
        vocabulary: tokens of "bpe".
        longest: tokens after which a text is cut.
        duplicates: which texts are left out: "exact" ones, "near" ones as well, or "none".

    Raises:
        UserError: the data cannot be read, has one class only, or a part of it is empty.
    """
    read = read_labelled(data, text_column, label_column)
    records, counts = _cleaned(read, duplicates)
    labels = sorted({record.label for record in records})
    if len(labels) < 2:
        one = f"one class only, {labels[0]!r}" if labels else "no class"
        raise UserError(f"{read.name} has {one}; a classifier needs two or more")
    train_records, val_records = split(records)
    for part, of in (("training", train_records), ("validation", val_records)):
        if not of:
            raise UserError(f"{read.name} leaves no text for {part}; give more texts")
    check_nothing_shared(train_records, val_records)
    tokenizer = make_tokenizer(tokens, (r.text for r in train_records), min_freq, vocabulary)
    number_of = {label: number for number, label in enumerate(labels)}
    train, val = (
        _encoded(part, tokenizer, number_of, longest, counts)
        for part in (train_records, val_records)
    )
    counts |= {"training texts": len(train.labels), "validation texts": len(val.labels)}
    sha256 = hashlib.sha256()
    for texts in (train, val):
        for tensor in texts:
            sha256.update(tensor.numpy().tobytes())
    return LabelledData(read.name, tokenizer, labels, train, val, dict(counts), sha256.hexdigest())


def make_tokenizer(
    kind: str, texts: Iterable[str], min_freq: int = 1, vocabulary: int = 4096
) -> Tokenizer:
    """A tokenizer with token 0 for padding, its vocabulary from ``texts`` alone."""
    if kind == "words":
        return Words.of_texts(texts, min_freq)
    if kind == "bpe":
        return BPE.of_texts(texts, vocabulary)
    if kind not in KINDS:
        raise UserError(f"tokens must be one of {', '.join(KINDS)}, got {kind!r}")
    return Padded(Bytes() if kind == "bytes" else Characters.of_texts(texts))


# ---- Cleaning and splitting. ---------------------------------------------------------------------


def _cleaned(read: Labelled, duplicates: str) -> tuple[list[Record], Counter[str]]:
    if duplicates not in ("exact", "near", "none"):
        raise UserError(f"duplicates must be exact, near or none, got {duplicates!r}")
    counts = Counter({"texts read": len(read.records) + read.left_out["empty"]}) + read.left_out
    records = [record._replace(text=normalised(record.text)) for record in read.records]
    if duplicates != "none":
        records = _without_copies(records, counts)
    if duplicates == "near":
        flags = list(near_duplicates(record.text for record in records))
        counts["near-duplicates"] = sum(flags)
        records = [r for r, near in zip(records, flags, strict=True) if not near]
    return records, counts


def _without_copies(records: list[Record], counts: Counter[str]) -> list[Record]:
    label_of: dict[bytes, str] = {}
    kept = []
    for record in records:
        key = digest(record.text)
        if key not in label_of:
            label_of[key] = record.label
            kept.append(record)
        elif label_of[key] == record.label:
            counts["copies"] += 1
        else:
            counts["copies with another label"] += 1
    return kept


def split(records: list[Record], part: float = _VALIDATED) -> tuple[list[Record], list[Record]]:
    """Training and validation texts: of each class, those with the smallest hashes are kept back.

    So the order of the texts decides nothing, and more texts move few from one side to the other.
    Of a class with two texts or groups one is kept back, of a class with one none. What shares a
    group, or is the same text, stays together.
    """
    groups: dict[str, dict[bytes, list[bytes]]] = {}
    keys = []
    for record in records:
        own = digest(record.text)
        key = own if record.group is None else digest(record.group)
        keys.append(key)
        groups.setdefault(record.label, {}).setdefault(key, []).append(own)
    held_out: set[bytes] = set()
    for of_label in groups.values():
        order = sorted(of_label, key=lambda key: hashlib.blake2b(b"".join(of_label[key])).digest())
        held_out.update(order[: max(round(part * len(order)), min(1, len(order) - 1))])
    train: list[Record] = []
    val: list[Record] = []
    for key, record in zip(keys, records, strict=True):
        (val if key in held_out else train).append(record)
    return train, val


def check_nothing_shared(train: list[Record], val: list[Record]) -> None:
    """Raise UserError if a text, or a group of them, is on both sides."""
    for name, of in (("text", lambda r: digest(r.text)), ("group", lambda r: r.group)):
        seen = {of(record) for record in train} - {None}
        for record in val:
            if of(record) in seen:
                shown = record.group if name == "group" else record.text[:60]
                raise UserError(f"training and validation share a {name}: {shown!r}")


def _encoded(
    records: list[Record],
    tokenizer: Tokenizer,
    number_of: dict[str, int],
    longest: int,
    counts: Counter[str],
) -> Texts:
    pieces, labels = [], []
    for record in records:
        tokens = tokenizer.encode(record.text)
        if not len(tokens):
            counts["texts without a token"] += 1
            continue
        if len(tokens) > longest:
            counts["texts cut"] += 1
            counts["tokens cut off"] += len(tokens) - longest
        pieces.append(tokens[:longest].int())
        labels.append(number_of[record.label])
    if not pieces:
        raise UserError("a part of the data has no token; give more texts")
    lengths = torch.tensor([0] + [len(piece) for piece in pieces])
    return Texts(torch.cat(pieces), lengths.cumsum(0), torch.tensor(labels))


# ---- Batches. ------------------------------------------------------------------------------------


class LengthBuckets:
    """Batches of texts of nearly one length, in a seeded order that can be taken up anywhere.

    Each epoch shuffles the texts, sorts each stretch of ``pool`` batches by length, and shuffles
    the batches. Its order depends on the seed and the number of the epoch alone, so the two
    numbers of ``state_dict`` say everything. Every batch is full: the few texts that are left of
    an epoch's shuffle wait for the next one's, and of less than a batch some come twice.
    """

    def __init__(self, lengths: Tensor, rows: int, seed: int, pool: int = 50) -> None:
        """``lengths``: (N,) of the texts; ``rows`` of them a batch."""
        self._lengths = lengths.numpy()
        self._rows, self._seed, self._pool = rows, seed, pool
        self.steps_per_epoch = max(1, len(self._lengths) // rows)
        self._drawn = 0  # batches
        self._order: tuple[int, list[Tensor]] | None = None

    def order(self, epoch: int) -> list[Tensor]:
        """The rows of each batch of an epoch."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._lengths))
        order = np.resize(order, self.steps_per_epoch * self._rows)
        batches = []
        for begin in range(0, len(order), self._rows * self._pool):
            part = order[begin : begin + self._rows * self._pool]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += part.reshape(-1, self._rows).tolist()
        return [torch.tensor(batches[i]) for i in random.permutation(len(batches))]

    def draw(self) -> Tensor:
        """The rows of the next batch; after an epoch's last one comes the next epoch's first."""
        epoch, position = divmod(self._drawn, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.order(epoch)
        self._drawn += 1
        return self._order[1][position]

    def state_dict(self) -> dict[str, Any]:
        """Where it is, for :meth:`load_state_dict`."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        self._drawn = state["drawn"]


def by_length(texts: Texts, batch: int) -> Iterator[Tensor]:
    """Every row once, in batches of nearly one length."""
    yield from texts.lengths.argsort(stable=True).split(batch)
