"""The settings of a text classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .common import SMALLEST_BPE, RunConfig
from .settings import UserError, setting


@dataclass(frozen=True)
class ClassifyConfig(RunConfig):
    """The settings of a run; each field is a flag of ``hetkern train classify`` and a TOML key.

    Raises:
        UserError: a value has the wrong type or lies out of range.
    """

    TASK: ClassVar[str] = "classify"

    data: str | None = setting(
        None,
        "Labelled .tsv, .csv or .jsonl file, a folder with a folder a class, wordnet, or stdlib",
        shown="WordNet's nouns where Debian's wordnet-base is installed, else functions of "
        "Python's standard library",
    )
    model: str = setting("rnn", "Kind of model: rnn (tanh), lstm, gru or transformer")
    text_column: str = setting("text", "Column or key of the text; without a header 1, 2 …")
    label_column: str = setting("label", "Column or key of the label; without a header 1, 2 …")
    tokens: str = setting("words", "What a token is: words, bytes, characters or bpe")
    min_freq: int = setting(2, "How often a word must stand in the training part to be known")
    vocabulary: int = setting(4096, f"Tokens of bpe, {SMALLEST_BPE} at least")
    longest: int = setting(256, "Tokens after which a text is cut")
    duplicates: str = setting("exact", "Texts to leave out: exact copies, near ones too, or none")
    layers: int = setting(2, "Layers of the recurrence, or Transformer blocks")
    width: int = setting(256, "Size of the embedding and of the state of each direction")
    heads: int = setting(4, "Attention heads a block; divides the width")
    bidirectional: bool = setting(True, "Whether the recurrence also reads from the end")
    dropout: float | None = setting(
        None, "Probability of dropping an activation while training", shown="0.5; transformer 0.1"
    )
    batch_size: int | str = setting(64, "Texts a step and process; auto tries what is fastest")
    epochs: int = setting(10, "Passes over the training texts; 0 counts steps")
    steps: int = setting(1500, "Optimizer steps, in place of epochs")
    optimizer: str = setting("adam", "adamw, adam (no decay) or sgd (with momentum)")
    learning_rate: float = setting(1e-3, "Highest learning rate, reached after the warm-up")
    schedule: str = setting("constant", "After the warm-up: cosine, linear or constant")
    warmup: int = setting(0, "Steps over which the learning rate rises to its highest")
    beta2: float = setting(0.999, "Adam's decay of squared gradients")

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str = "settings") -> Self:
        """As :meth:`Settings.from_values`; whoever gives steps alone does not mean ten epochs."""
        if "steps" in values and "epochs" not in values:
            values = {**values, "epochs": 0}
        return super().from_values(values, source)

    def check(self) -> None:
        """Refuse values that are out of range."""
        self.one_of("model", "rnn", "lstm", "gru", "transformer")
        self.one_of("tokens", "words", "bytes", "characters", "bpe")
        self.one_of("duplicates", "exact", "near", "none")
        self.at_least(1, "layers", "width", "heads", "longest", "min_freq")
        self.at_least(SMALLEST_BPE if self.tokens == "bpe" else 1, "vocabulary")
        if self.dropout is None:
            chosen = 0.1 if self.model == "transformer" else 0.5
            object.__setattr__(self, "dropout", chosen)
        super().check()
        if not 0.0 <= self.chosen_dropout() < 1.0:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.model == "transformer" and self.width % self.heads:
            raise UserError(f"width {self.width} must be a multiple of heads {self.heads}")

    def chosen_dropout(self) -> float:
        """The dropout; once a config is made it has one."""
        assert self.dropout is not None
        return self.dropout
