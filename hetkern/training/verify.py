"""``hetkern verify``: what this project promises of training, tried on the user's machine.

Gradients are judged by the error budget of :mod:`hetkern.testing`: against the same step in
float64, beside the error that the plain float32 step has. Bits are compared as bits.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hetkern.models import GPT
from hetkern.training import launch
from hetkern.training.checkpoint import read_checkpoint
from hetkern.training.config import RunConfig, TrainConfig, UserError
from hetkern.training.generate import Draw, generate_stream
from hetkern.training.loading import choose_kernels_or_explain, load
from hetkern.training.loop import prepared, resume, train
from hetkern.training.randomness import own_random_states
from hetkern.training.trainer import Trainer
from hetkern.training.workers import Workers

TEXT = "".join(f"{n} times {n} is {n * n}, and {n} plus {n} is {2 * n}.\n" for n in range(300))
PARALLEL = ("ddp", "fsdp")


class Check(NamedTuple):
    """What a check found.

    Attributes:
        passed: whether it is as promised.
        difference: the largest between two numbers that should agree.
        what: was compared, and how close it had to be.
    """

    passed: bool
    difference: float
    what: str


def run_checks(only: Sequence[str], device: str, script: str) -> bool:
    """Run the checks, print a line each; whether all passed.

    Raises:
        UserError: there is no check of such a name.
    """
    for name in only:
        if name not in CHECKS:
            raise UserError(f"there is no check {name!r}; there are: {', '.join(CHECKS)}")
    passed = True
    for name in only or CHECKS:
        with tempfile.TemporaryDirectory() as scratch:
            check = CHECKS[name](Path(scratch), device)
        passed = passed and check.passed
        verdict = "pass" if check.passed else "FAIL"
        print(f"{verdict}  {name:<13}{check.difference:.1e}  {check.what}", flush=True)
    return passed


def _config(folder: Path, device: str, **changes: Any) -> TrainConfig:
    text = folder / "text.txt"
    text.write_text(TEXT)
    settings: dict[str, Any] = {
        "data": str(text), "layers": 2, "heads": 2, "width": 32, "context": 32, "batch_size": 8,
        "steps": 12, "warmup": 2, "eval_every": 6, "log_every": 3, "sample_length": 0,
        "device": device, "clip": 0.0, "threads": 1,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


def check_resume(folder: Path, device: str) -> Check:
    """Twelve steps straight, and six and a resume."""
    config = _config(folder, device, dropout=0.1, keep=10)
    weights = []
    for name in ("straight", "halved"):
        with _silent():
            run = train(replace(config, out=str(folder / name))).run
            if name == "halved":
                resume(run, checkpoint="6")
        weights.append(read_checkpoint(run, 12))
    straight, halved = (checkpoint.model for checkpoint in weights)
    difference = max(_difference(straight[name], halved[name]) for name in straight)
    same = all(torch.equal(straight[name], halved[name]) for name in straight)
    random = [checkpoint.state["random"][0]["torch"] for checkpoint in weights]
    return Check(
        same and torch.equal(*random),
        difference,
        "weights and random state, 12 steps straight and 6 + 6: the same bits",
    )


def check_accumulation(folder: Path, device: str) -> Check:
    """A batch of eight, and four accumulated ones of two."""
    config = _config(folder, device)
    parts = _gradients(replace(config, batch_size=2, accumulate=4), _here(device))
    what = "gradients of a batch of 8 and of 4 accumulated ones of 2: within the error budget"
    return _judged(config, parts, device, what)


def check_processes(folder: Path, device: str) -> Check:
    """Two processes with four sequences each, and one with eight, by DDP and by FSDP."""
    config = _config(folder, device)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    where = device if device != "auto" or gpus >= 2 else "cpu"
    shared = replace(config, batch_size=2, accumulate=2, device=where)
    (folder / "config.toml").write_text(shared.to_toml())
    launch.run_processes(2, ["-m", "hetkern.training.verify", str(folder)])
    checks = []
    for parallel in PARALLEL:
        found = safetensors.torch.load_file(folder / f"{parallel}.safetensors")
        what = (
            "gradients of 2 processes (ddp, fsdp), 2 × 2 each, and of one: within the error budget"
        )
        checks.append(_judged(config, found, where, what))
    return max(checks, key=lambda check: (not check.passed, check.difference))


def check_cache(folder: Path, device: str) -> Check:
    """Text drawn with keys and values kept, and without."""
    config = _config(folder, device, out=str(folder / "run"))
    with _silent():
        run = train(config).run
    model = load(run).model.double()
    assert isinstance(model, GPT)
    prompt = torch.tensor(list(TEXT.encode()))[None, :5]
    drawn = []
    for cache in (True, False):
        generators = [torch.Generator().manual_seed(1)]
        stream = generate_stream(model, prompt, 80, Draw(1.0), generators, cache)
        drawn.append(torch.stack(list(stream)))
    whole = model(prompt.repeat(1, 3))
    state, pieces = model.start(1), []
    for token in prompt.repeat(1, 3)[0]:
        logits, state = model.extend(token.view(1, 1), state)
        pieces.append(logits)
    difference = _difference(torch.stack(pieces, 1), whole)
    same = torch.equal(*drawn)
    return Check(
        same, difference, "logits with and without the cache; the same 80 tokens drawn from them"
    )


def check_kernels(folder: Path, device: str) -> Check:
    """The step's gradients on hetkern's kernels, beside torch's."""
    config = _config(folder, device)
    found = _gradients(config, _here(device))
    what = "gradients on hetkern's kernels and in float64 on torch's: within the error budget"
    return _judged(replace(config, kernels="torch"), found, device, what)


CHECKS: dict[str, Callable[[Path, str], Check]] = {
    "resume": check_resume,
    "accumulation": check_accumulation,
    "processes": check_processes,
    "cache": check_cache,
    "kernels": check_kernels,
}


def _judged(config: TrainConfig, found: dict[str, Tensor], device: str, what: str) -> Check:
    """``found`` against the gradients of ``config``'s step in float64, beside float32's error."""
    from hetkern.testing import assert_close_to_exact

    workers = _here(device)
    plain = _gradients(config, workers)
    exact = _gradients(replace(config, kernels="torch"), workers, double=True)
    difference = max(_difference(found[name], exact[name]) for name in exact)
    try:
        for name, value in found.items():
            flat = [x[name].flatten() for x in (exact, plain)]
            assert_close_to_exact(value.flatten(), *flat, name=name)
    except AssertionError as error:
        return Check(False, difference, f"{what}: {str(error).splitlines()[0]}")
    return Check(True, difference, what)


def _gradients(config: RunConfig, workers: Workers, double: bool = False) -> dict[str, Tensor]:
    """The gradients of a first step, on the CPU."""
    with own_random_states(config.seed):
        kernels = choose_kernels_or_explain(config.kernels, workers.device)
        trainer = Trainer(prepared(config, workers), config, kernels, workers)
        if double:
            trainer.model.double()
        trainer.make_step()
    gradients = {}
    for name, parameter in trainer.model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        gradients[name] = whole.detach().cpu()
    return gradients


def _here(device: str) -> Workers:
    return Workers(device=launch.device_of(device))


def _difference(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


class _silent:
    """Standard output goes nowhere."""

    def __enter__(self) -> None:
        self._stdout = sys.stdout
        sys.stdout = open(os.devnull, "w")

    def __exit__(self, *error: object) -> None:
        sys.stdout.close()
        sys.stdout = self._stdout


def main(folder: str) -> None:
    """One of several processes: leave the gradients of a step of each kind in the folder."""
    config = TrainConfig.from_file(Path(folder) / "config.toml")
    with launch.join(config) as workers:
        for parallel in PARALLEL:
            gradients = _gradients(replace(config, parallel=parallel), workers)
            if workers.first:
                safetensors.torch.save_file(gradients, Path(folder) / f"{parallel}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
