"""What a training run is told: one dataclass, filled from a TOML file and then from flags.

This file imports nothing but the standard library. The command reads its flags from here before it
loads torch, so that ``hetkern --help`` answers at once.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints


class UserError(ValueError):
    """Something that whoever started the run can mend; the message is one clear sentence."""


def _setting(default: Any, help: str, shown: str | None = None) -> Any:
    shown = shown if shown is not None else str(default)
    return field(default=default, metadata={"help": f"{help} (default: {shown})"})


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; every field is a flag of ``hetkern train`` and a key of its TOML file.

    The defaults train a small model on Python's own source in under two minutes on two cores.

    Raises:
        UserError: a value has the wrong type or lies out of range.
    """

    data: str | None = _setting(
        None, "Text file or folder to train on", shown="Python's standard library"
    )
    out: str | None = _setting(None, "Folder for the run's files", shown="a fresh one under runs/")
    model: str = _setting("gpt", "Kind of model: gpt")
    tokens: str = _setting("bytes", "What a token is: bytes or characters")
    kernels: str = _setting(
        "hetkern", "Kernels to run on: hetkern, torch, or one of hetkern's implementations by name"
    )
    layers: int = _setting(4, "Number of Transformer blocks")
    heads: int = _setting(4, "Attention heads a block; divides the width")
    width: int = _setting(128, "Size of the residual stream")
    positions: str = _setting("rotary", "How the model knows them: rotary or learned")
    context: int = _setting(128, "Longest stretch of text the model sees, in tokens")
    dropout: float = _setting(0.0, "Probability of dropping an activation while training")
    batch: int = _setting(8, "Sequences a step")
    steps: int = _setting(1500, "Optimizer steps")
    learning_rate: float = _setting(5e-3, "Highest learning rate, reached after the warm-up")
    min_learning_rate: float = _setting(0.0, "Learning rate at the end of the cosine")
    warmup: int = _setting(100, "Steps over which the learning rate rises to its highest")
    weight_decay: float = _setting(0.1, "AdamW's decay of weight matrices; 0 is Adam")
    clip: float = _setting(1.0, "Largest norm of the gradient; 0 does not clip")
    seed: int = _setting(1, "Same seed, same bits")
    eval_every: int = _setting(500, "Steps between validations; 0 validates at the end only")
    eval_tokens: int = _setting(
        500_000, "Most tokens a validation predicts, spread over its text; 0 for the whole text"
    )
    log_every: int = _setting(10, "Steps between rows of metrics.jsonl")
    device: str = _setting("cpu", "Where to train: cpu")
    threads: int = _setting(0, "CPU threads; 0 leaves the choice to torch")
    prompt: str | None = _setting(
        None, "What the sample at the end continues", shown="a new line; for the library def"
    )
    sample_length: int = _setting(400, "Tokens in the sample at the end; 0 for none")

    def __post_init__(self) -> None:
        """Check every value against its type, and those that have limits against them."""
        for name, kind in get_type_hints(type(self)).items():
            value = _converted(name, getattr(self, name), kind)
            object.__setattr__(self, name, value)
        _check_limits(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str = "settings") -> TrainConfig:
        """A config from ``values`` by name, the defaults for the rest.

        Raises:
            UserError: a name is no setting; the message carries the nearest one.
        """
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}"
                raise UserError(f"{source}: unknown key {key!r}; {hint}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **flags: Any) -> TrainConfig:
        """A config from the TOML file at ``path``; what is in ``flags`` goes before it.

        Raises:
            UserError: the file cannot be read, is not TOML, or a key in it is unknown.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the config {path}: {error.strerror}") from error
        except ValueError as error:  # not TOML, or not UTF-8
            raise UserError(f"{path} is not a TOML file: {error}") from error
        values = {key.replace("-", "_"): value for key, value in values.items()}
        return cls.from_values(values | flags, source=str(path))

    def to_toml(self) -> str:
        """The settings as TOML that ``from_file`` reads back; unset ones are left out.

        So is ``out``: a run from this file gets a folder of its own.
        """
        lines = []
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and f.name != "out":
                # JSON's strings, integers and finite floats are TOML's, but for the DEL character.
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{f.name} = {text}\n")
        return "".join(lines)


def _converted(name: str, value: Any, kind: Any) -> Any:
    """``value`` as the field's type, or an error that says what was wanted."""
    accepted = get_args(kind) or (kind,)
    if value is None and type(None) in accepted:
        return None
    if str in accepted and isinstance(value, os.PathLike):
        return os.fspath(value)
    if float in accepted and type(value) is int:
        return float(value)
    if type(value) in accepted:
        return value
    wanted = {int: "a whole number", float: "a number", str: "a string"}[accepted[0]]
    raise UserError(f"{name} must be {wanted}, got {value!r}")


def _check_limits(config: TrainConfig) -> None:
    if config.model != "gpt":
        raise UserError(f"model must be gpt, got {config.model!r}")
    if config.tokens not in ("bytes", "characters"):
        raise UserError(f"tokens must be bytes or characters, got {config.tokens!r}")
    at_least_one = ("layers", "heads", "width", "context", "batch", "steps", "log_every")
    at_least_zero = ("learning_rate", "min_learning_rate", "warmup", "weight_decay", "clip",
                     "seed", "eval_every", "eval_tokens", "threads", "sample_length")  # fmt: skip
    for names, least in ((at_least_one, 1), (at_least_zero, 0)):
        for name in names:
            value = getattr(config, name)
            if not value >= least:  # NaN fails too
                raise UserError(f"{name} must be at least {least}, got {value}")
            if value == float("inf"):
                raise UserError(f"{name} must be finite, got inf")
    if config.positions not in ("rotary", "learned"):
        raise UserError(f"positions must be rotary or learned, got {config.positions!r}")
    if not 0.0 <= config.dropout < 1.0:
        raise UserError(f"dropout must be in [0, 1), got {config.dropout}")
    if config.width % config.heads:
        raise UserError(f"width {config.width} must be a multiple of heads {config.heads}")
    if config.min_learning_rate > config.learning_rate:
        raise UserError(
            f"min_learning_rate {config.min_learning_rate} must not be above "
            f"learning_rate {config.learning_rate}"
        )
