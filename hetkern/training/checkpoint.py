"""Checkpoints: all that a run needs to go on as if it had never stopped.

RUN/checkpoints/step-00000500/
    model.safetensors    the weights, for anything that reads safetensors
    state.safetensors    the tensors of the rest: optimizer, random states, what an RNN carries
    state.json           the rest itself, its tensors by name
    manifest.json        step, format, and the SHA-256 of the files above

Of a sharded model (FSDP), ``shards/`` has a file a process in the place of model.safetensors, with
the optimizer's tensors in it: :mod:`hetkern.training.sharded`.

A checkpoint is written into a folder of another name, synced to the disk, and renamed: it is there
whole or not at all. No file is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from hetkern.training.config import UserError
from hetkern.training.packing import pack, unpack
from hetkern.training.sharded import (
    SHARDS,
    WEIGHTS,
    sha256_of,
    whole_tensors,
    with_moments,
    write_shards,
)
from hetkern.training.storage import sync_folder, write_atomically, write_synced
from hetkern.training.workers import Workers

FOLDER = "checkpoints"
MODEL = "model.safetensors"
STATE = "state.safetensors"
REST = "state.json"
MANIFEST = "manifest.json"
BEST = "best.json"
FORMAT, SHARDED = 1, 2  # numbers in the manifest


class BrokenCheckpoint(UserError):
    """A checkpoint that is truncated, changed, or of something else."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: optimizer steps made.
        model: the weights by name; empty where they are among the shards.
        state: everything else, as the trainer gave it.
        shards: to be written, what this process holds a part of: weights and optimizer's tensors.
        folder: of one that was read, where its shards lie; None if ``model`` has the weights.
    """

    step: int
    model: dict[str, Tensor]
    state: dict[str, Any]
    shards: dict[str, Tensor] | None = None
    folder: Path | None = None


def write_checkpoint(run: Path, checkpoint: Checkpoint, workers: Workers | None = None) -> None:
    """Write a checkpoint into its run; every process calls it.

    Raises:
        OSError: the disk is full, or the folder cannot be written; older checkpoints stay.
    """
    workers = workers if workers is not None else Workers()
    part = run / FOLDER / f".part-{_name(checkpoint.step)}"

    def begin() -> None:
        part.parent.mkdir(exist_ok=True)
        remove_parts(run)
        part.mkdir()

    try:
        workers.first_does(begin)
        shards = checkpoint.shards
        hashes = {} if shards is None else write_shards(part, shards, workers)
        workers.first_does(lambda: _finish(part, checkpoint, hashes))
    except BaseException:
        if workers.first:
            shutil.rmtree(part, ignore_errors=True)
        raise


def _finish(part: Path, checkpoint: Checkpoint, shards: Mapping[str, str]) -> None:
    """Write what is whole and the manifest, and give the folder its name."""
    tensors: dict[str, Tensor] = {}
    rest = pack(checkpoint.state, tensors, "state")
    files: dict[str, bytes] = {}
    if not shards:
        model = _separate(checkpoint.model)
        files[MODEL] = safetensors.torch.save(model, {"step": str(checkpoint.step)})
    files[STATE] = safetensors.torch.save(_separate(tensors))
    files[REST] = json.dumps(rest).encode()
    hashes = {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()}
    number = SHARDED if shards else FORMAT
    manifest = {"format": number, "step": checkpoint.step, "sha256": {**hashes, **shards}}
    files[MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    for name, contents in files.items():
        write_synced(part / name, contents)
    if shards:
        sync_folder(part / SHARDS)
    sync_folder(part)
    target = part.with_name(_name(checkpoint.step))
    if target.exists():  # of a run that resumed and came here again: the same contents
        shutil.rmtree(target)
    os.replace(part, target)
    sync_folder(part.parent)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, which safetensors refuses."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        if not whole or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def remove_parts(run: Path) -> None:
    """Remove what a run that was killed while it saved has left."""
    for part in (run / FOLDER).glob(".part-*"):
        shutil.rmtree(part, ignore_errors=True)


def saved_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, rising; nothing is read."""
    names = (path.name for path in (run / FOLDER).glob("step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names if name[5:].isdecimal())


def prune(run: Path, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints and the best."""
    best = best_of(run)
    for step in saved_steps(run)[:-keep]:
        if best is None or step != best[0]:
            shutil.rmtree(run / FOLDER / _name(step), ignore_errors=True)


def forget_later(run: Path, step: int, validated: Mapping[int, float]) -> None:
    """Remove what comes after ``step``, from which a run goes on.

    Args:
        run: the run's folder.
        step: of the checkpoint that was read.
        validated: the validation losses up to there, by step.
    """
    for later in saved_steps(run):
        if later > step:
            shutil.rmtree(run / FOLDER / _name(later))
    best = best_of(run)
    if best is None or best[0] <= step:
        return
    left = {s: validated[s] for s in saved_steps(run) if s in validated}
    if left:
        mark_best(run, *min(left.items(), key=lambda pair: pair[1]))
    else:
        (run / FOLDER / BEST).unlink()


def mark_best(run: Path, step: int, val_loss: float) -> None:
    """Say which checkpoint has the best validation loss so far."""
    contents = json.dumps({"step": step, "val_loss": val_loss}) + "\n"
    write_atomically(run / FOLDER / BEST, contents.encode())


def best_of(run: Path) -> tuple[int, float] | None:
    """The step of the best checkpoint and its validation loss; None before the first validation."""
    try:
        best = json.loads((run / FOLDER / BEST).read_bytes())
        return int(best["step"]), float(best["val_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_checkpoint(run: Path, which: str = "last") -> int:
    """The step of the checkpoint that ``which`` names: ``last``, ``best`` or a number.

    Raises:
        UserError: there is none.
    """
    steps = saved_steps(run)
    if not steps:
        raise UserError(f"{run} holds no trained model (there is no checkpoint in {run / FOLDER})")
    if which == "last":
        return steps[-1]
    if which == "best":
        best = best_of(run)
        return best[0] if best is not None and best[0] in steps else steps[-1]
    if which.isdecimal() and int(which) in steps:
        return int(which)
    known = ", ".join(map(str, steps))
    raise UserError(f"{run} has no checkpoint {which!r}; it has last, best, {known}")


def read_checkpoint(
    run: Path, step: int, weights_only: bool = False, workers: Workers | None = None
) -> Checkpoint:
    """A checkpoint, once its files are what was written.

    Args:
        run: the run's folder.
        step: which one.
        weights_only: leave the state empty.
        workers: of a sharded model, which all call this and read the shards later; None for one
            process, which gets the tensors whole.

    Raises:
        BrokenCheckpoint: a file is missing, truncated or changed; the message names it, and the
            checkpoint before.
    """
    folder = run / FOLDER / _name(step)
    try:
        manifest = _manifest(folder)
        if manifest["format"] == SHARDED:
            return _sharded(folder, step, manifest["sha256"], weights_only, workers)
        wanted = (MODEL,) if weights_only else (MODEL, STATE, REST)
        contents = {name: _checked(folder / name, manifest["sha256"][name]) for name in wanted}
        # In one order: safetensors has another in each process, and shards go out one by one.
        model = dict(sorted(safetensors.torch.load(contents[MODEL]).items()))
        return Checkpoint(step, model, {} if weights_only else _state(contents))
    except _Broken as error:
        raise BrokenCheckpoint(f"{error}{_before(run, step)}") from error
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        what = f"{folder} is no checkpoint of hetkern's{_before(run, step)}"
        raise BrokenCheckpoint(what) from error


def _state(contents: Mapping[str, bytes]) -> dict[str, Any]:
    return unpack(json.loads(contents[REST]), safetensors.torch.load(contents[STATE]))


def _sharded(
    folder: Path, step: int, hashes: Mapping[str, str], weights_only: bool, workers: Workers | None
) -> Checkpoint:
    """The checkpoint of a sharded model: each process checks a part of the files."""
    team = workers if workers is not None else Workers()
    names = sorted(name for name in hashes if name not in (STATE, REST))
    there = sorted(f"{SHARDS}/{path.name}" for path in (folder / SHARDS).glob("*.safetensors"))
    if not set(there) <= set(names):
        raise _Broken(f"{folder / (set(there) - set(names)).pop()} is of another checkpoint")

    def check() -> None:
        for name in names[team.rank :: team.size]:
            _check(folder / name, hashes[name])

    team.each(check)
    state: dict[str, Any] = {}
    if not weights_only:
        state = _state({name: _checked(folder / name, hashes[name]) for name in (STATE, REST)})
    if workers is not None:
        return Checkpoint(step, {}, state, folder=folder)
    tensors = whole_tensors(folder, WEIGHTS if weights_only else "")
    model = {n.removeprefix(WEIGHTS): t for n, t in tensors.items() if n.startswith(WEIGHTS)}
    if not weights_only:
        moments = {name: t for name, t in tensors.items() if not name.startswith(WEIGHTS)}
        state["optimizer"] = with_moments(state["optimizer"], moments)
    return Checkpoint(step, model, state)


def of_another_model(step: int, error: Exception) -> UserError:
    """What to say where the weights of a step do not fit: the first that does not."""
    lines = [line.strip() for line in str(error).splitlines()]
    what = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    return UserError(
        f"the checkpoint of step {step} is of another model than config.toml describes: "
        + what.rstrip(". ")
    )


class _Broken(Exception):
    """What is wrong with a file."""


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _Broken(f"{path} is missing") from None
    except ValueError:
        raise _Broken(f"{path} is truncated or changed") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, SHARDED):
        raise _Broken(f"{path} is of another format than this hetkern's ({FORMAT} or {SHARDED})")
    return manifest


def _checked(path: Path, sha256: str) -> bytes:
    """The contents of a file, once they are what was written."""
    _check(path, sha256)
    return path.read_bytes()


def _check(path: Path, sha256: str) -> None:
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        raise _Broken(f"{path} is missing") from None
    if found != sha256:
        raise _Broken(f"{path} is truncated or changed: its SHA-256 is another one")


def _before(run: Path, step: int) -> str:
    earlier = [s for s in saved_steps(run) if s < step]
    if not earlier:
        return "; there is no earlier checkpoint"
    return f"; the checkpoint before is step {earlier[-1]}: --checkpoint {earlier[-1]}"
