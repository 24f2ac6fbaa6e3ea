"""The task of a Transformer language model: predict the next token of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hetkern.models import GPT, GPTShape, Kernels
from hetkern.training.config import RunConfig, TrainConfig
from hetkern.training.data import Data, RandomWindows, load_data
from hetkern.training.evaluate import evaluate, targets_within
from hetkern.training.generate import sample
from hetkern.training.preparing import preparing
from hetkern.training.task import Batch, Carried, Evaluation, Kind, LoadedRun, Watch
from hetkern.training.tokenizer import tokenizer_from_json
from hetkern.training.workers import Workers

VOCABULARY = "vocabulary.json"


class LanguageModel:
    """Next tokens in windows at random places of a text; a :class:`~hetkern.training.task.Task`."""

    unit = "token"
    steps_are = "sequence"

    def __init__(self, config: TrainConfig, data: Data) -> None:
        self.config = config
        self.data = data

    def describe(self) -> list[str]:
        """What is read, and what a validation covers and costs."""
        documents, data = self.data.documents, self.data
        files = f"{documents.files:,} file" + ("s" if documents.files != 1 else "")
        if documents.skipped:
            files += f" ({documents.skipped:,} binary, empty or copies left out)"
        train, val, tokens = len(data.train), len(data.val), self.config.tokens
        on = f"{train:,} {tokens} to train on, {val:,} to validate on"
        lines = [f"data    {documents.name}: {files}, {on}"]
        lines.append(f"floor   counting 5-grams loses {data.n_gram_loss:.4f} nats a token")
        targets = self.evaluation_targets()
        if targets < len(data.val) - 1:
            lines.append(
                f"validation: each predicts {targets:,} tokens, spread over the validation text "
                "(--eval-tokens 0 for all)"
            )
        return lines

    def facts(self) -> dict[str, Any]:
        """The counts of the data."""
        documents = self.data.documents
        return {
            "data": documents.name,
            "data_sha256": documents.sha256,
            "vocabulary_sha256": hashlib.sha256(self.files()[VOCABULARY]).hexdigest(),
            "files": documents.files,
            "files_left_out": documents.skipped,
            "left_out": dict(documents.left_out),
            "train_tokens": len(self.data.train),
            "val_tokens": len(self.data.val),
            "n_gram_loss": self.data.n_gram_loss,
        }

    def files(self) -> dict[str, bytes]:
        """The vocabulary."""
        return {VOCABULARY: self.data.tokenizer.to_json().encode()}

    def build_model(self, kernels: Kernels) -> nn.Module:
        """A fresh GPT."""
        return build_gpt(self.config, self.data.tokenizer.vocabulary, kernels)

    def order(self, rows: int, seed: int) -> RandomWindows:
        """Windows at random places; as many as cover the text once are an epoch."""
        return RandomWindows(self.data.train, self.config.context, rows, seed)

    def size(self) -> tuple[int, int]:
        """Windows side by side, and their tokens."""
        return max(1, len(self.data.train) // self.config.context), self.config.context

    def fetch(self, rows: Tensor) -> Batch:
        """Inputs and, one token on, targets: each ``(len(rows), context)`` int64."""
        windows = self.data.train[rows[:, None] + torch.arange(self.config.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def count(self, rows: Tensor) -> int:
        """A target for each place of each window."""
        return len(rows) * self.config.context

    def loss(self, model: nn.Module, batch: Batch, carried: Carried) -> tuple[Tensor, Carried]:
        """The sum over all targets; nothing is carried."""
        inputs, targets = batch
        return model.loss(inputs, targets, reduction="sum"), None  # type: ignore[operator]

    def evaluation_targets(self) -> int:
        """How many targets a validation while training has."""
        config = self.config
        return targets_within(len(self.data.val) - 1, config.context, config.eval_tokens)

    def evaluate(
        self, model: nn.Module, workers: Workers, batch_size: int, watch: Watch | None = None,
        split: str = "val", limit: int | None = None,
    ) -> Evaluation:  # fmt: skip
        """The loss over the text of a split."""
        assert isinstance(model, GPT)
        data = self.data
        tokens = data.val if split == "val" else data.train
        size = data.val_bytes if split == "val" else data.train_bytes
        limit = self.config.eval_tokens if limit is None else limit
        return evaluate(model, tokens[:], size, batch_size, limit, watch, workers)

    def floors(self) -> dict[str, float]:
        """Nats a token of 5-grams, counted in the training text."""
        return {"Kneser-Ney 5-grams, nats": self.data.n_gram_loss}

    def finish(self, model: nn.Module) -> str:
        """A text that the model writes."""
        config = self.config
        if not config.sample_length:
            return ""
        # A function of the library, where nothing else was asked for.
        prompt = config.prompt or ("\n" if config.data else "\ndef ")
        # Near enough to the likeliest to be read, after a minute of training.
        length, seed = config.sample_length, config.seed
        return sample(model, self.data.tokenizer, prompt, length, 0.6, seed=seed)


def build_gpt(config: TrainConfig, vocabulary: int, kernels: Kernels) -> GPT:
    """The model that ``config`` describes, its weights drawn from torch's generator."""
    shape = GPTShape(
        vocabulary=vocabulary,
        context=config.context,
        layers=config.layers,
        heads=config.heads,
        width=config.width,
        dropout=config.dropout,
        positions=config.positions,
        kv_heads=config.kv_heads,
        norm=config.norm,
        mlp=config.mlp,
        tied=config.tied,
        window=config.window,
    )
    return GPT(shape, kernels)


def _prepare(config: RunConfig) -> LanguageModel:
    assert isinstance(config, TrainConfig)
    from hetkern.training.recurrent_lm import RecurrentLanguageModel

    with preparing() as watch:
        data = load_data(
            config.data,
            config.tokens,
            config.context,
            text_column=config.text_column,
            duplicates=config.duplicates,
            vocabulary=config.vocabulary,
            shards=config.shards,
            watch=watch,
        )
    return (LanguageModel if config.model == "gpt" else RecurrentLanguageModel)(config, data)


def _restore(config: RunConfig, files: Mapping[str, bytes], kernels: Kernels) -> LoadedRun:
    assert isinstance(config, TrainConfig)
    from hetkern.training.recurrent_lm import build_rnn

    tokenizer = tokenizer_from_json(files[VOCABULARY].decode())
    build = build_gpt if config.model == "gpt" else build_rnn
    return LoadedRun(build(config, tokenizer.vocabulary, kernels), tokenizer)


KIND = Kind(_prepare, _restore, (VOCABULARY,))
