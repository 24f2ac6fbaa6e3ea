"""The settings of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .common import SMALLEST_BPE, RunConfig
from .settings import UserError, setting


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The settings of a run; every field is a flag of ``hetkern train`` and a key of its TOML file.

    The defaults train a small model on Python's own source in under two minutes on two cores.

    Raises:
        UserError: a value has the wrong type or lies out of range.
    """

    TASK: ClassVar[str] = "lm"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # nanoGPT's sizes and budget for a laptop (its README); the learning rate and rotary
        # positions, which two thousand steps learn from sooner, are ours.
        "nanogpt-cpu": {
            "tokens": "characters", "layers": 4, "heads": 4, "width": 128, "context": 64,
            "batch_size": 12, "steps": 2000, "learning_rate": 4e-3, "warmup": 100,
        },
        # The same blocks on twice the context: ten minutes of one core on a text of a megabyte.
        "gpt-characters": {
            "tokens": "characters", "layers": 4, "heads": 4, "width": 128, "context": 128,
            "batch_size": 16, "steps": 3000, "learning_rate": 4e-3, "warmup": 100, "dropout": 0.05,
        },
        # Two layers of 256 on a text of a megabyte.
        "lstm-characters": {
            "model": "lstm", "tokens": "characters", "layers": 2, "width": 256, "context": 64,
            "batch_size": 32, "steps": 1800, "learning_rate": 4e-3, "warmup": 50,
            "weight_decay": 0.01, "variational_dropout": 0.1,
        },
    }  # fmt: skip

    model: str = setting("gpt", "Kind of model: gpt, rnn (tanh), lstm or gru")
    text_column: str = setting("text", "Key of the text in a JSON-lines file")
    duplicates: str = setting(
        "exact", "Documents to leave out: exact copies, near ones too, or none"
    )
    shards: str | None = setting(
        None, "Folder for the tokens of a corpus too large for memory", shown="in memory"
    )
    tokens: str = setting("bytes", "What a token is: bytes, characters or bpe")
    vocabulary: int = setting(4096, f"Tokens of bpe, {SMALLEST_BPE} at least")
    layers: int = setting(2, "Number of Transformer blocks, or of recurrent layers")
    heads: int = setting(4, "Attention heads a block; divides the width")
    width: int = setting(128, "Size of the residual stream, or of a recurrent state")
    kv_heads: int = setting(0, "Heads of keys and values; divides heads; 0 for as many as heads")
    norm: str = setting("layer", "layer (LayerNorm) or rms (RMSNorm)")
    mlp: str = setting("gelu", "gelu or swiglu")
    tied: bool = setting(True, "Whether output and embedding share their weights")
    window: int = setting(0, "Tokens back that a token sees; 0 for its whole context")
    positions: str = setting("rotary", "How the model knows them: rotary or learned")
    context: int = setting(
        128, "Longest stretch of text the model sees, in tokens; a recurrent one learns from"
    )
    dropout: float = setting(0.0, "Probability of dropping an activation while training")
    variational_dropout: float = setting(
        0.0, "Of a recurrent model's layers' inputs and output, drawn once a stretch"
    )
    recurrent_dropout: float = setting(
        0.0, "Of a recurrent model's state, drawn once a stretch; not of torch's kernels"
    )
    eval_tokens: int = setting(
        500_000, "Most tokens a validation predicts, spread over its text; 0 for the whole text"
    )
    prompt: str | None = setting(
        None, "What the sample at the end continues", shown="a new line; for the library def"
    )
    sample_length: int = setting(400, "Tokens in the sample at the end; 0 for none")

    def check(self) -> None:
        """Refuse values that are out of range."""
        self.one_of("model", "gpt", "rnn", "lstm", "gru")
        if self.tokens == "words":
            raise UserError("tokens words lose blanks and capitals: they are for train classify")
        self.one_of("tokens", "bytes", "characters", "bpe")
        self.one_of("duplicates", "exact", "near", "none")
        self.at_least(1, "layers", "heads", "width", "context")
        self.at_least(SMALLEST_BPE if self.tokens == "bpe" else 1, "vocabulary")
        self.at_least(0, "eval_tokens", "sample_length", "kv_heads", "window")
        super().check()
        self.one_of("positions", "rotary", "learned")
        self.one_of("norm", "layer", "rms")
        self.one_of("mlp", "gelu", "swiglu")
        for name in ("dropout", "variational_dropout", "recurrent_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.recurrent_dropout and self.kernels == "torch":
            raise UserError("recurrent_dropout must be 0 with --kernels torch, which has none")
        if self.model == "gpt" and self.width % self.heads:
            raise UserError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise UserError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
