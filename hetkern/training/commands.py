"""What the commands do; :mod:`hetkern.cli` has their flags."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hetkern.training import launch
from hetkern.training import loop as loop_module
from hetkern.training.config import CONFIGS, UserError, config_from_file
from hetkern.training.run import config_of
from hetkern.training.stops import is_out_of_memory
from hetkern.training.workers import OtherProcessFailed

Changes = dict[str, Any]
_NO_ENDS = str.maketrans("\t\r\n", "   ")  # a text stays one cell of one line


def sentence(error: Exception) -> str | None:
    """What a user can do about an error, in one line; None where it is hetkern's own fault.

    Empty where another process says it.
    """
    if isinstance(error, OtherProcessFailed) or launch.lost_another(error):
        return ""
    if is_out_of_memory(error):
        return "out of memory; a smaller --batch-size (with a larger --accumulate) takes less"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):  # its own text begins with a number
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror}" if error.strerror else str(error)
    return None


def train(task: str, file: str | None, given: Changes, script: str) -> None:
    """``hetkern train``: a fresh run, here or in several processes."""
    if file is None:
        config = CONFIGS[task].from_values(given)
    else:
        config = config_from_file(file, task, **given)
    if launch.hand_over(config, script):
        return
    loop_module.train(config)


def resume(run: str, checkpoint: str, changes: Changes, script: str) -> None:
    """``hetkern resume``."""
    changes = _given(changes)
    if launch.hand_over(loop_module.resumed_config(Path(run), changes), script):
        return
    loop_module.resume(run, checkpoint, **changes)


def _given(changes: Changes) -> Changes:
    return {name: value for name, value in changes.items() if value is not None}


def evaluate(
    run: str, split: str, checkpoint: str, floors: bool, as_json: bool, changes: Changes,
    script: str,
) -> None:  # fmt: skip
    """``hetkern eval``: the whole split once, and what simple methods reach."""
    from hetkern.training.evaluation import evaluate_run

    if split not in ("val", "train"):
        raise UserError(f"--split must be val or train, got {split!r}")
    changes = _given(changes)
    config = config_of(Path(run), **changes)
    if launch.hand_over(config, script):
        return
    with launch.join(config) as workers:
        step, evaluation, reached = evaluate_run(
            Path(run), config, workers, split, checkpoint, floors and split == "val"
        )
    if not workers.first:
        return
    perplexity = math.exp(evaluation.loss) if evaluation.loss < 700 else math.inf
    values: dict[str, Any] = {
        "run": run, "step": step, "split": split, "targets": evaluation.targets,
        "loss": evaluation.loss, "perplexity": perplexity,
        "bits_per_byte": evaluation.bits_per_byte, "accuracy": evaluation.accuracy,
        **evaluation.metrics,
    }  # fmt: skip
    if as_json:
        print(json.dumps(values | {"floors": reached} | dict(evaluation.tables)))
        return
    print(f"{run}, step {step}, {split}: {evaluation.targets:,} targets, each once")
    names = {"loss": "nats", "bits_per_byte": "bits per byte", "macro_f1": "macro F1"}
    for name, value in list(values.items())[4:]:
        if value is not None:
            print(f"{names.get(name, name.replace('_', ' ')):<32}{value:.4f}")
    for name, value in reached.items():
        print(f"{'floor: ' + name:<32}{value:.4f}")


def sample(
    run: str, prompts: Sequence[str], length: int, how: tuple[float, int, float, float],
    seed: int, cache: bool, checkpoint: str, kernels: str | None,
) -> None:  # fmt: skip
    """``hetkern sample``: one text as it is written, several one after another."""
    from hetkern.training.generate import Draw, sample_many, sample_stream
    from hetkern.training.loading import load

    if "" in prompts:
        raise UserError(
            "an empty --prompt leaves nothing to go on from; a space or a line end does"
        )
    draw = Draw(*how)
    loaded = load(run, kernels, checkpoint)
    if loaded.labels is not None:
        raise UserError(f"{run} is a classifier and writes no text; hetkern predict {run} labels")
    model, tokenizer = loaded.model, loaded.tokenizer
    if len(prompts) == 1:
        for piece in sample_stream(model, tokenizer, prompts[0], length, draw, seed, cache):
            print(piece, end="", flush=True)
        print()
        return
    texts = sample_many(model, tokenizer, prompts, length, draw, seed, cache)
    print("\n---\n".join(texts))


def predict(
    run: str, texts: list[str], file: str | None, as_json: bool, batch_size: int, checkpoint: str,
    kernels: str | None,
) -> None:  # fmt: skip
    """``hetkern predict``: a label for each text."""
    from hetkern.training.loading import load
    from hetkern.training.task import kind_of

    kind = kind_of(config_of(Path(run)))
    if kind.predict is None:
        raise UserError(f"{run} is a language model and has no labels; hetkern sample {run} writes")
    loaded = load(run, kernels, checkpoint)
    assert loaded.labels is not None
    for batch in _batches(_texts(texts, file), batch_size):
        for text, probabilities in zip(batch, kind.predict(loaded, batch), strict=True):
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            label = loaded.labels[best]
            if as_json:
                every = dict(zip(loaded.labels, probabilities, strict=True))
                row = {"label": label, "probability": probabilities[best], "text": text}
                print(json.dumps(row | {"probabilities": every}, ensure_ascii=False))
            else:
                cells = label, f"{probabilities[best]:.4f}", text
                print("\t".join(cell.translate(_NO_ENDS) for cell in cells))


def _texts(texts: list[str], file: str | None) -> Iterator[str]:
    if bool(texts) == (file is not None):
        raise UserError("give texts, or a file with one a line (--input FILE), or - for the input")
    if file is not None:
        with open(file, encoding="utf-8") as lines:
            yield from _decoded(lines, file)
    elif texts == ["-"]:
        yield from _decoded(sys.stdin, "standard input")
    else:
        yield from texts


def _decoded(lines: Any, name: str) -> Iterator[str]:
    number = 1
    try:
        for line in lines:
            yield line.rstrip("\r\n")
            number += 1
    except UnicodeDecodeError as error:
        raise UserError(f"{name}, line {number} or after, is not UTF-8 ({error.reason})") from error


def _batches(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def plot(runs: Sequence[str], out: str | None) -> None:
    """``hetkern plot``."""
    from hetkern.training.plot import plot_runs

    for path in plot_runs([Path(run) for run in runs], Path(out) if out else None):
        print(path)


def verify(only: Sequence[str], device: str, script: str) -> bool:
    """``hetkern verify``: whether every check passed."""
    from hetkern.training.verify import run_checks

    return run_checks(only, device, script)


def profile(run: str, steps: int, changes: Changes) -> None:
    """``hetkern profile``."""
    from hetkern.training.profile import profile_run

    print(profile_run(Path(run), steps, _given(changes)))
