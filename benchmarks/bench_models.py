"""Training steps of whole models, on hetkern's kernels and on torch's: tokens/s and peak memory.

Both sides have the same weights, see the same batches and take turns step by step: forward, loss,
backward, clipping and the fused optimizer. Beside the speeds stands the largest relative difference
of their losses over all steps, and what training steps add to the memory of a fresh process at its
peak: activations, gradients and the optimizer's state. `--only lstm` takes the models so named.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import arguments, peak_mb, save
from torch import Tensor, nn

from hetkern.models import GPT, RNNLM, GPTShape, RNNClassifier, RNNShape, choose_kernels
from hetkern.models.recurrent import detached

V, BATCH = 65, 32  # characters
WORDS, CLASSES = 20_000, 26
NAMES = "hetkern", "torch"
Batch = tuple[Tensor, ...]
Sides = dict[str, tuple[nn.Module, Callable[..., Tensor]]]
# (model, context) of language models; (cell, texts, shortest, longest) of classifiers.
LANGUAGE = [("gpt", 256), ("lstm", 128), ("gru", 128), ("rnn", 128)]
TEXTS = [
    (cell, rows, *lengths)
    for rows, lengths in ((64, (4, 40)), (32, (20, 256)))  # glosses, reviews
    for cell in ("rnn", "gru", "lstm")
]


def language_model(name: str, context: int, kernels: str, quick: bool) -> nn.Module:
    """A model of two megabytes or so."""
    width = 32 if quick else 256
    chosen = choose_kernels(kernels)
    if name == "gpt":
        return GPT(GPTShape(V, context, 4, 4, width // 2), chosen)
    return RNNLM(RNNShape(V, name, 2, width, context), chosen)


def language_loss(model: nn.Module) -> Callable[..., Tensor]:
    """The mean loss of a batch; an RNN's state goes on from one to the next."""
    if isinstance(model, GPT):
        return lambda tokens: model.loss(tokens[:, :-1], tokens[:, 1:])
    state: list[Any] = [None]

    def loss(tokens: Tensor) -> Tensor:
        found, after = model.loss(tokens[:, :-1], tokens[:, 1:], state[0])  # type: ignore[operator]
        state[0] = detached(after)
        return found

    return loss


def ragged_batch(rows: int, shortest: int, longest: int, generator: torch.Generator) -> Batch:
    """Texts of nearly one length, as the loader gives them: lengths differ by a third."""
    most = int(torch.randint(shortest * 3 // 2, longest + 1, (), generator=generator))
    lengths = torch.randint(most * 2 // 3, most + 1, (rows,), generator=generator)
    text = torch.randint(1, WORDS, (rows, int(lengths.max())), generator=generator)
    text = torch.where(torch.arange(text.shape[1]) < lengths[:, None], text, 0)
    return text, lengths, torch.randint(CLASSES, (rows,), generator=generator)


def compare(
    sides: Sides,
    batches: list[Batch],
    tokens: list[int],
) -> dict[str, Any]:
    """Train all sides on the batches in turn; the first three steps warm up."""
    optimizers = {
        name: torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        for name, (model, _) in sides.items()
    }

    def step(name: str, batch: Batch) -> float:
        model, loss_of = sides[name]
        optimizers[name].zero_grad()
        loss = loss_of(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[name].step()
        return loss.item()

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for batch in batches:
        for name in sides:
            began = time.perf_counter()
            losses[name].append(step(name, batch))
            seconds[name].append(time.perf_counter() - began)
    rates = {
        name: statistics.median(t / s for t, s in zip(tokens[3:], times[3:], strict=True))
        for name, times in seconds.items()
    }
    curves = zip(losses["hetkern"], losses["torch"], strict=True)
    row: dict[str, Any] = {f"{name} tokens/s": round(rate) for name, rate in rates.items()}
    row["torch ÷ hetkern"] = round(rates["hetkern"] / rates["torch"], 2)
    row["losses differ by"] = f"{max(abs(a - b) / b for a, b in curves):.1e}"
    return row


def language_sides(name: str, context: int, quick: bool) -> Sides:
    """Both sides of a language model."""
    return {
        kernels: (model, language_loss(model))
        for kernels in NAMES
        for model in [seeded(lambda k=kernels: language_model(name, context, k, quick))]
    }


def classifier_sides(cell: str, quick: bool) -> Sides:
    """Both sides of a classifier."""
    width = 32 if quick else 256

    def made(kernels: str) -> RNNClassifier:
        chosen = choose_kernels(kernels)
        return RNNClassifier(WORDS, width, CLASSES, dropout=0.0, cell=cell, kernels=chosen)

    models = {kernels: seeded(lambda k=kernels: made(k)) for kernels in NAMES}
    return {kernels: (model, model.loss) for kernels, model in models.items()}


def seeded(make: Callable[[], Any]) -> Any:
    """The same weights each time."""
    torch.manual_seed(0)
    return make()


def peak_of(task: tuple[Any, ...]) -> float:
    """What two steps add to this process's memory at its peak, in MB; a process of its own."""
    make, sizes, kernels, batch, threads = task
    torch.set_num_threads(threads)
    model, loss_of = make(*sizes)[kernels]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def steps() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(*batch).backward()
            optimizer.step()

    return peak_mb(steps)


def main() -> None:
    """Each model on both kernels."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    only, sys.argv[1:] = parser.parse_known_args()
    options = arguments(__doc__.splitlines()[0])
    steps = 4 if options.quick else 3 + 2 * options.repeats
    works: list[tuple[dict[str, str], Any, tuple[Any, ...], list[Batch], list[int]]] = []
    generator = torch.Generator().manual_seed(0)
    for name, full in LANGUAGE:
        context = 16 if options.quick else full
        whole: list[Batch] = [
            (torch.randint(V, (BATCH, context + 1), generator=generator),) for _ in range(steps)
        ]
        what = {"model": f"{name} LM", "batch": f"{BATCH}×{context}"}
        sizes = name, context, options.quick
        works.append((what, language_sides, sizes, whole, [BATCH * context] * steps))
    for cell, texts, shortest, longest in TEXTS:
        ragged = [ragged_batch(texts, shortest, longest, generator) for _ in range(steps)]
        what = {"model": f"{cell} classifier", "batch": f"{texts}×{shortest} to {longest}"}
        counts = [int(batch[1].sum()) for batch in ragged]
        works.append((what, classifier_sides, (cell, options.quick), ragged, counts))
    rows = []
    for what, make, sizes, batches, tokens in works:
        if only.only not in what["model"]:
            continue
        row = what | compare(make(*sizes), batches, tokens)
        largest = batches[max(range(steps), key=tokens.__getitem__)]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for kernels in NAMES:
                task = make, sizes, kernels, largest, options.threads
                row[f"{kernels} peak MB"] = round(pool.apply(peak_of, (task,)), 1)
        rows.append(row)
        print(row, flush=True)
    save("models", rows, {}, options)


if __name__ == "__main__":
    main()
