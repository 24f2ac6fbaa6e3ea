"""What one loop needs to know of what it trains: a language model, a classifier, anything.

A task reads its data, builds its model, says which rows a step takes, and turns rows into a loss
and a split into an evaluation. The loop knows optimizers, processes, checkpoints and clocks, and
nothing of text. What must hold, so that the loop can resume exactly, accumulate and share out:

* **An order gives rows, not data.** ``order.draw()`` returns the numbers of the rows of one step
  over *all* processes and accumulated batches, and is the only thing with a position; its
  ``state_dict`` goes into every checkpoint. It draws from a generator of its own. The loop cuts the
  rows into consecutive parts, process by process and then batch by batch, and asks for their data
  with ``fetch``, which has no state. ``count`` says how many tokens (or examples) rows stand for,
  before anything is computed: the loss of a step is the sum over all parts divided by their count.
* **A loss is a sum**, in nats, over what ``count`` counts. What must go from one step to the next
  (the state of an RNN) is returned beside it, detached, and comes back with the next rows at the
  same place of the batch; the loop keeps it and saves it.
* **An evaluation covers its split once** and is the same for any batch size and number of
  processes: each process takes a part of the rows (:meth:`Workers.share`), ``Workers.total`` adds
  up in float64. Every process makes the same number of forward passes, since a sharded model needs
  all of them each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from hetkern.models import Kernels
from hetkern.training.config import RunConfig
from hetkern.training.tokenizer import Tokenizer
from hetkern.training.workers import Workers

Carried = Any  # None, or tensors in tuples, lists and dictionaries
Batch = tuple[Tensor, ...]
Watch = Callable[[int], object]  # is told how many tokens or examples are done


@dataclass(frozen=True)
class Evaluation:
    """What a model loses on a split.

    Attributes:
        loss: nats a token (or an example).
        bits_per_byte: the same, per byte of text, in bits: comparable between tokenizers; None of a
            classifier.
        targets: how many tokens (examples) were predicted.
        available: how many the split holds; more than ``targets`` where a limit was set.
        accuracy: of a classifier, the part of the examples whose likeliest label is theirs.
        metrics: other numbers by name, such as ``macro_f1``, or a floor to compare with.
        tables: other results by name that JSON can hold, such as ``confusion``.
    """

    loss: float
    bits_per_byte: float | None
    targets: int
    available: int
    accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)


class Order(Protocol):
    """In which order training takes the rows of the data; endless."""

    steps_per_epoch: int  # at least 1

    def draw(self) -> Tensor:
        """The rows of one step over all processes: int64, one entry a row of the batch."""

    def state_dict(self) -> dict[str, Any]:
        """The position: tensors, numbers, strings, lists and dictionaries of them."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""


class Task(Protocol):
    """A kind of training, its data read."""

    unit: str  # what a loss is counted in: "token" or "example"
    steps_are: str  # what a row is: "sequence", "example"

    @property
    def config(self) -> RunConfig:
        """The settings."""

    def describe(self) -> list[str]:
        """Lines about the data, and about what a validation covers, for the top of the output."""

    def facts(self) -> dict[str, Any]:
        """What JSON can hold of the data: name, ``data_sha256``, counts of all kept and dropped."""

    def files(self) -> dict[str, bytes]:
        """What ``restore`` needs beside config and weights, by file name in the run's folder."""

    def build_model(self, kernels: Kernels) -> nn.Module:
        """A fresh model, its weights drawn from torch's generator."""

    def order(self, rows: int, seed: int) -> Order:
        """The order of training, ``rows`` rows a step."""

    def size(self) -> tuple[int, int]:
        """How many rows hold the training data once, and how many tokens a row has (a mean)."""

    def fetch(self, rows: Tensor) -> Batch:
        """The data of training rows, on the CPU."""

    def count(self, rows: Tensor) -> int:
        """How many tokens or examples the loss of these rows is a sum over."""

    def loss(self, model: nn.Module, batch: Batch, carried: Carried) -> tuple[Tensor, Carried]:
        """The sum of the losses in nats, and what goes to the next step (None for nothing)."""

    def evaluate(
        self, model: nn.Module, workers: Workers, batch_size: int, watch: Watch | None = None,
        split: str = "val", limit: int | None = None,
    ) -> Evaluation:  # fmt: skip
        """The loss over a split; ``limit`` None takes the config's, 0 the whole split.

        The model comes back in the mode in which it was.
        """

    def evaluation_targets(self) -> int:
        """How many targets a validation while training has."""

    def floors(self) -> dict[str, float]:
        """What simple methods reach on the validation split, by name: nats a token, or accuracy.

        It may take some seconds: `hetkern eval` asks for it.
        """

    def finish(self, model: nn.Module) -> str:
        """What the run shows at its end, such as a sample of text; "" for nothing."""


class LoadedRun(NamedTuple):
    """What :func:`hetkern.load` returns.

    Attributes:
        model: in evaluation mode, on the CPU.
        tokenizer: encodes the model's input and decodes its tokens.
        labels: the names of a classifier's classes; None of a language model.
    """

    model: nn.Module
    tokenizer: Tokenizer
    labels: list[str] | None = None


class Kind(NamedTuple):
    """How a task comes to be."""

    prepare: Callable[[RunConfig], Task]  # reads the data
    restore: Callable[[RunConfig, Mapping[str, bytes], Kernels], LoadedRun]  # weights not loaded
    files: Iterable[str]  # the names that Task.files gives
    # Of a classifier: the probabilities of each text's labels, in the order of LoadedRun.labels.
    predict: Callable[[LoadedRun, Sequence[str]], list[list[float]]] | None = None


def kind_of(config: RunConfig) -> Kind:
    """The task of a config. A new one has its line here and in ``config.CONFIGS``."""
    from hetkern.training import classify, lm

    kinds = {"lm": lm.KIND, "classify": classify.KIND}
    return kinds[config.TASK]
