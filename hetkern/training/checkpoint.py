"""A run's folder: what lies in it, how it is written, how a trained model comes back.

config.toml          the settings, readable by ``hetkern train --config``
vocabulary.json      what the tokens are
model.safetensors    the weights after the last save; its metadata holds the step
metrics.jsonl        one row a line, see :mod:`hetkern.training.metrics`
summary.json         what was trained, on which data, and how well; written at the end
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from hetkern.models import GPT, GPTShape, Kernels, choose_kernels
from hetkern.training.config import TrainConfig, UserError
from hetkern.training.metrics import METRICS
from hetkern.training.tokenizer import Tokenizer, tokenizer_from_json

CONFIG = "config.toml"
VOCABULARY = "vocabulary.json"
WEIGHTS = "model.safetensors"


class LoadedRun(NamedTuple):
    """What :func:`load` returns.

    Attributes:
        model: in evaluation mode, on the CPU.
        tokenizer: encodes the model's prompts and decodes its tokens.
        labels: None for a language model.
    """

    model: GPT
    tokenizer: Tokenizer
    labels: None = None


def create_run(config: TrainConfig, tokenizer: Tokenizer) -> Path:
    """Make the run's folder and write what is known before training.

    Raises:
        UserError: ``config.out`` holds a run already, or the folder cannot be made or written.
    """
    run = Path("runs", config.model) if config.out is None else Path(config.out)
    try:
        if config.out is None:
            run = _fresh_folder(run.parent, run.name)
        elif (run / CONFIG).exists():
            raise UserError(f"{run} holds a run already; choose another --out")
        else:
            run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {run}: {error.strerror}") from error
    try:
        write_atomically(run / VOCABULARY, tokenizer.to_json().encode())
        write_atomically(run / CONFIG, config.to_toml().encode("utf-8", "replace"))
        (run / METRICS).touch()
    except OSError as error:
        raise UserError(f"cannot write in the folder {run}: {error.strerror}") from error
    return run


def _fresh_folder(parent: Path, name: str) -> Path:
    number = 1
    while True:
        run = parent / f"{name}-{number:03d}"
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            if not os.path.lexists(run):  # the parent is there, and is no folder
                raise
        number += 1


def build_model(config: TrainConfig, vocabulary: int, kernels: Kernels) -> GPT:
    """The model that ``config`` describes, its weights drawn from torch's generator."""
    shape = GPTShape(
        vocabulary=vocabulary,
        context=config.context,
        layers=config.layers,
        heads=config.heads,
        width=config.width,
        dropout=config.dropout,
        positions=config.positions,
    )
    return GPT(shape, kernels)


def choose_kernels_or_explain(name: str) -> Kernels:
    """:func:`choose_kernels`, its refusal turned into a UserError."""
    try:
        return choose_kernels(name)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--kernels {name} cannot run here: {error}") from error


def save_weights(run: Path, model: nn.Module, step: int) -> None:
    """Write the weights after ``step``; if that fails the previous ones stay as they were.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    contents = safetensors.torch.save(tensors, metadata={"step": str(step)})
    write_atomically(run / WEIGHTS, contents)


def write_atomically(path: Path, contents: bytes) -> None:
    """Write a file so that ``path`` holds the old contents or the new ones, and never a part."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def saved_step(run: str | os.PathLike[str]) -> int:
    """The step after which the run's weights were saved."""
    # safetensors itself opens no path that is not UTF-8; its header is JSON behind its length.
    with open(Path(run) / WEIGHTS, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(header["__metadata__"]["step"])


def load(run: str | os.PathLike[str], kernels: str | None = None) -> LoadedRun:
    """The trained model of a run and its tokenizer.

    Args:
        run: the run's folder.
        kernels: which kernels it shall run on; None for those it was trained with.

    Raises:
        UserError: the folder holds no run, or a broken one.
    """
    run = Path(run)
    if not (run / WEIGHTS).is_file():
        raise UserError(f"{run} holds no trained model ({WEIGHTS} is missing)")
    config = TrainConfig.from_file(run / CONFIG)
    try:
        tokenizer = tokenizer_from_json((run / VOCABULARY).read_text(encoding="utf-8"))
        weights = safetensors.torch.load((run / WEIGHTS).read_bytes())
        chosen = choose_kernels_or_explain(kernels or config.kernels)
        model = build_model(config, tokenizer.vocabulary, chosen)
        model.load_state_dict(weights)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{run} holds a broken run: {error}") from error
    return LoadedRun(model.eval(), tokenizer)
