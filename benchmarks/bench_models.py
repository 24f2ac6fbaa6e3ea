"""Training steps of whole models, on hetkern's kernels and on torch's: tokens/s and peak memory.

Both sides have the same weights, see the same batches and take turns step by step: forward, loss,
backward, clipping and the fused optimizer. Beside the speeds stands the largest relative difference
of their losses over all steps, and what a step adds to the memory of the process at its peak.
"""

from __future__ import annotations

import statistics
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
Batch = tuple[Tensor, ...]
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
    sides: dict[str, tuple[nn.Module, Callable[..., Tensor]]],
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
    largest = max(range(len(batches)), key=tokens.__getitem__)
    memory = {name: peak_mb(lambda name=name: step(name, batches[largest])) for name in sides}
    row: dict[str, Any] = {f"{name} tokens/s": round(rate) for name, rate in rates.items()}
    row["torch ÷ hetkern"] = round(rates["hetkern"] / rates["torch"], 2)
    row |= {f"{name} peak MB": round(mb, 1) for name, mb in memory.items()}
    row["losses differ by"] = f"{max(abs(a - b) / b for a, b in curves):.1e}"
    return row


def main() -> None:
    """Each model on both kernels."""
    options = arguments(__doc__.splitlines()[0])
    steps = 4 if options.quick else 3 + 2 * options.repeats
    names = "hetkern", "torch"
    rows = []
    for name, context in LANGUAGE:
        generator = torch.Generator().manual_seed(0)
        if options.quick:
            context = 16
        batches = [
            (torch.randint(V, (BATCH, context + 1), generator=generator),) for _ in range(steps)
        ]
        sides = {}
        for kernels in names:
            torch.manual_seed(0)
            model = language_model(name, context, kernels, options.quick)
            sides[kernels] = model, language_loss(model)
        what = {"model": f"{name} LM", "batch": f"{BATCH}×{context}"}
        rows.append(what | compare(sides, batches, [BATCH * context] * steps))
        print(rows[-1], flush=True)
    for cell, texts, shortest, longest in TEXTS:
        generator = torch.Generator().manual_seed(0)
        width = 32 if options.quick else 256
        ragged = [ragged_batch(texts, shortest, longest, generator) for _ in range(steps)]
        sides = {}
        for kernels in names:
            torch.manual_seed(0)
            model = RNNClassifier(
                WORDS, width, CLASSES, dropout=0.0, cell=cell, kernels=choose_kernels(kernels)
            )
            sides[kernels] = model, model.loss
        what = {"model": f"{cell} classifier", "batch": f"{texts}×{shortest} to {longest}"}
        rows.append(what | compare(sides, ragged, [int(batch[1].sum()) for batch in ragged]))
        print(rows[-1], flush=True)
    save("models", rows, {}, options)


if __name__ == "__main__":
    main()
