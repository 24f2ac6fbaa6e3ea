"""The task of a recurrent language model: the state goes on from step to step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hetkern.models import RNNLM, Kernels, RNNShape
from hetkern.models.recurrent import detached
from hetkern.training.config import TrainConfig
from hetkern.training.lm import LanguageModel
from hetkern.training.streams import Streams, evaluation_streams, is_among, stretch
from hetkern.training.task import Batch, Carried, Evaluation, Watch
from hetkern.training.workers import Workers


class RecurrentLanguageModel(LanguageModel):
    """Next tokens of a text in parallel streams, the gradient cut every ``context`` tokens."""

    steps_are = "stream"

    def build_model(self, kernels: Kernels) -> nn.Module:
        """A fresh RNN, LSTM or GRU."""
        return build_rnn(self.config, self.data.tokenizer.vocabulary, kernels)

    def order(self, rows: int, seed: int) -> Streams:  # type: ignore[override]
        """Every row reads on where it was; an epoch is the text once."""
        return Streams(len(self.data.train), self.config.context, rows, seed)

    def fetch(self, rows: Tensor) -> Batch:
        """Inputs and, one token on, targets, int64, and where the state starts anew, boolean."""
        data = self.data
        return stretch(data.train, data.train_begins, rows, self.config.context)

    def loss(self, model: nn.Module, batch: Batch, carried: Carried) -> tuple[Tensor, Carried]:
        """The sum over all targets, and the state behind them."""
        inputs, targets, reset = batch
        loss, state = model.loss(inputs, targets, carried, reset, reduction="sum")  # type: ignore[operator]
        return loss, detached(state)

    def evaluation_targets(self) -> int:
        """How many targets a validation while training has."""
        targets, config = len(self.data.val) - 1, self.config
        begins, length = evaluation_streams(targets, config.context, config.eval_tokens)
        return int((targets - begins).clamp_max(length).sum())

    def evaluate(
        self, model: nn.Module, workers: Workers, batch_size: int, watch: Watch | None = None,
        split: str = "val", limit: int | None = None,
    ) -> Evaluation:  # fmt: skip
        """The loss over the text of a split, its state carried along streams of the text's own."""
        data = self.data
        if split == "val":
            tokens, begins, size = data.val, data.val_begins, data.val_bytes
        else:
            tokens, begins, size = data.train[:], data.train_begins, data.train_bytes
        limit = self.config.eval_tokens if limit is None else limit
        return evaluate_streams(
            model, tokens, begins, size, self.config.context, batch_size, limit, watch, workers
        )


def evaluate_streams(
    model: nn.Module,
    tokens: Tensor,
    documents: Tensor,
    text_bytes: int,
    context: int,
    batch: int,
    limit: int = 0,
    watch: Watch | None = None,
    workers: Workers | None = None,
) -> Evaluation:
    """Mean loss over a text, each token predicted from its stream so far.

    The streams are those of :func:`evaluation_streams`, whatever the batch size. Losses are added
    in float64.

    Args:
        model: is put back in training mode if it was in it.
        tokens: (N,) of any integer dtype, N at least 2.
        documents: sorted, where documents begin: the state starts anew there.
        text_bytes: bytes of text that ``tokens[1:]`` stand for.
        context: tokens at a time.
        batch: streams at a time.
        limit: most targets; 0 for all.
        watch: is told how many targets are done.
        workers: the processes that share the streams; None for this one alone.
    """
    workers = workers if workers is not None else Workers()
    device = next(model.parameters()).device
    targets = len(tokens) - 1
    begins, length = evaluation_streams(targets, context, limit)
    was_training = model.training
    model.eval()
    total, done = 0.0, 0
    try:
        with torch.no_grad():
            for streams in begins.split(batch):
                [(mine, counts)] = workers.share([streams])
                state = None
                for first in range(0, length, context):
                    width = min(context, length - first)
                    places = mine[:, None] + first + torch.arange(width + 1)
                    window = tokens[places.clamp_max(targets)].long().to(device)
                    reset = is_among(documents, places[:, :-1]).to(device)
                    losses, state = model.loss(  # type: ignore[operator]
                        window[:, :-1], window[:, 1:], state, reset, reduction="none"
                    )
                    there = (places[:, :-1] < targets).flatten().to(device)
                    if counts:
                        total += losses.double()[there].sum().item()
                    done += int((targets - streams - first).clamp(0, width).sum())
                    if watch is not None:
                        watch(done)
    finally:
        model.train(was_training)
    loss = workers.total(total)[0] / done
    return Evaluation(loss, loss * targets / math.log(2.0) / text_bytes, done, targets)


def build_rnn(config: TrainConfig, vocabulary: int, kernels: Kernels) -> RNNLM:
    """The model that ``config`` describes, its weights drawn from torch's generator."""
    shape = RNNShape(
        vocabulary=vocabulary,
        cell=config.model,
        layers=config.layers,
        width=config.width,
        context=config.context,
        dropout=config.dropout,
        variational_dropout=config.variational_dropout,
        recurrent_dropout=config.recurrent_dropout,
        tied=config.tied,
    )
    return RNNLM(shape, kernels)
