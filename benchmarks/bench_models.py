"""Training steps of whole models, on hetkern's kernels and on torch's: tokens/s and peak memory.

Both sides have the same weights, see the same batches and take turns step by step: forward, loss,
backward, clipping and the fused optimizer, as `hetkern train` has them: it takes denormal numbers
as zeros, which gradients of long texts are full of. The fastest step counts. Beside the speeds
stand what no kernel exceeds ("ratio at most": torch's step beside one of its products at the best
rate that it reaches here, clipping and the optimizer alone), the largest relative difference of the
losses over all steps, and what training steps add to the memory of a fresh process at its peak:
activations, gradients and the optimizer's state. `--compile` has torch.compile of the model on
torch's kernels as a third side, where torch can compile it (its recurrent kernels stay what they
are). `--only "lstm LM | 256"` takes the rows of the table that begin so, and replaces them in the
results. `--threads 1 --cpu-time` counts what the process computes, and not how long it waits, for a
machine that is busy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from harness import RESULTS, arguments, peak_mb, save, vendor
from torch import Tensor, nn

from hetkern.models import GPT, RNNLM, GPTShape, RNNClassifier, RNNShape, choose_kernels
from hetkern.models.recurrent import detached
from hetkern.ops.products import WIDENED
from hetkern.training.optimizer import clip_gradients

V = 65  # characters
WORDS, CLASSES = 20_000, 26
NAMES = "hetkern", "torch"
COMPILED = "torch.compile"
Batch = tuple[Tensor, ...]
Sides = dict[str, tuple[nn.Module, Callable[..., Tensor]]]
# (model, width, batch, context, precision) of language models.
LANGUAGE = [
    ("gpt", 128, 8, 256, "float32"), ("gpt", 128, 8, 256, "bf16"),
    ("lstm", 256, 32, 128, "float32"), ("gru", 256, 32, 128, "float32"),
    ("rnn", 256, 32, 128, "float32"), ("lstm", 128, 8, 128, "float32"),
    ("gru", 128, 8, 128, "float32"), ("lstm", 256, 32, 128, "bf16"),
    ("gru", 256, 32, 128, "bf16"),
]  # fmt: skip
# (cell, texts, shortest, longest) of classifiers.
TEXTS = [
    (cell, rows, *lengths)
    for rows, lengths in ((64, (4, 40)), (32, (20, 256)))  # glosses, reviews
    for cell in ("rnn", "gru", "lstm")
]


class Work(NamedTuple):
    """A model and its batches.

    Attributes:
        what: the columns that name it.
        make: both sides, from ``sizes``.
        sizes: of the model.
        batches: one a step.
        tokens: of each.
        precision: float32, or bf16 by autocast.
    """

    what: dict[str, str]
    make: Callable[..., Sides]
    sizes: tuple[Any, ...]
    batches: list[Batch]
    tokens: list[int]
    precision: str


def language_model(name: str, width: int, context: int, kernels: str) -> nn.Module:
    """A model of two layers, a Transformer of four."""
    chosen = choose_kernels(kernels)
    if name == "gpt":
        return GPT(GPTShape(V, context, 4, 4, width), chosen)
    return RNNLM(RNNShape(V, name, 2, width, context), chosen)


def language_loss(model: nn.Module) -> Callable[..., Tensor]:
    """The mean loss of a batch; an RNN's state goes on from one to the next."""
    if isinstance(model, GPT):
        return lambda tokens: model.loss(tokens[:, :-1], tokens[:, 1:])
    state: list[Any] = [None]

    def loss(tokens: Tensor) -> Tensor:
        found, after = model.loss(tokens[:, :-1], tokens[:, 1:], state[0])
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


def products_of(model: nn.Module) -> int:
    """Multiplications and additions of a token's forward products: those of the weights.

    Twice as many follow backward. Attention's scores and sums are left out, and so a classifier's
    last layer, once a text.
    """
    classifier = isinstance(model, RNNClassifier)
    return 2 * sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and not (classifier and not name.startswith("rnn."))
    )


def compare(sides: Sides, work: Work, clock: Callable[[], float]) -> dict[str, Any]:
    """Train all sides on the batches in turn; the first three steps warm up."""
    shared = [float("inf")]
    dtype = torch.bfloat16 if work.precision == "bf16" else torch.float32
    factors, product = torch.randn(2, 2048, 2048).to(dtype), float("inf")
    optimizers = {
        name: torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        for name, (model, _) in sides.items()
    }

    def step(name: str, batch: Batch) -> float:
        model, loss_of = sides[name]
        optimizers[name].zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bf16"):
            loss = loss_of(*batch)
        loss.backward()
        began = clock()
        clip_gradients(list(model.parameters()), 1.0)
        optimizers[name].step()
        shared[0] = min(shared[0], clock() - began)
        return loss.item()

    failed = ""
    if COMPILED in sides:
        try:
            step(COMPILED, work.batches[0])
        except Exception as error:  # whatever torch raises is the result
            del sides[COMPILED]
            failed = type(error).__name__
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for batch in work.batches:
        for name in sides:
            began = clock()
            losses[name].append(step(name, batch))
            seconds[name].append(clock() - began)
        began = clock()  # in turn, too: a processor's speed changes from second to second
        factors[0] @ factors[1]
        product = min(product, clock() - began)
    rates = {
        name: max(t / s for t, s in zip(work.tokens[3:], times[3:], strict=True))
        for name, times in seconds.items()
    }
    curves = zip(losses["hetkern"], losses["torch"], strict=True)
    row: dict[str, Any] = {f"{name} tokens/s": round(rate) for name, rate in rates.items()}
    row["torch ÷ hetkern"] = round(rates["hetkern"] / rates["torch"], 2)
    # Torch's best step beside what no kernel of ours shortens: products at torch's own best rate,
    # clipping and the optimizer.
    per_token = 3 * products_of(sides["torch"][0]) / (2 * 2048**3) * product
    least = per_token + shared[0] / max(work.tokens[3:])
    row["ratio at most"] = round(1 / (rates["torch"] * least), 2)
    if failed:
        row |= {f"{COMPILED} tokens/s": failed, "compiled ÷ hetkern": ""}
    elif COMPILED in rates:
        row["compiled ÷ hetkern"] = round(rates["hetkern"] / rates[COMPILED], 2)
    row["losses differ by"] = f"{max(abs(a - b) / b for a, b in curves):.1e}"
    return row


def language_sides(name: str, width: int, context: int) -> Sides:
    """Both sides of a language model."""
    return {
        kernels: (model, language_loss(model))
        for kernels in NAMES
        for model in [seeded(lambda k=kernels: language_model(name, width, context, k))]
    }


def classifier_sides(cell: str, quick: bool) -> Sides:
    """Both sides of a classifier."""
    width = 32 if quick else 256

    def made(kernels: str) -> RNNClassifier:
        chosen = choose_kernels(kernels)
        return RNNClassifier(WORDS, width, CLASSES, dropout=0.0, cell=cell, kernels=chosen)

    models = {kernels: seeded(lambda k=kernels: made(k)) for kernels in NAMES}
    return {kernels: (model, model.loss) for kernels, model in models.items()}


def compiled(model: Any, language: bool) -> Any:
    """The same model, its loss through torch.compile."""
    model.loss = torch.compile(model.loss, dynamic=None if language else True)
    return model, language_loss(model) if language else lambda *batch: model.loss(*batch)


def seeded(make: Callable[[], Any]) -> Any:
    """The same weights each time."""
    torch.manual_seed(0)
    return make()


def peak_of(task: tuple[Any, ...]) -> float:
    """What two steps add to this process's memory at its peak, in MB; a process of its own."""
    make, sizes, kernels, batch, threads = task
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    model, loss_of = make(*sizes)[kernels]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def steps() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(*batch).backward()
            optimizer.step()

    return peak_mb(steps)


def works(quick: bool, steps: int) -> Iterator[Work]:
    """All that is measured."""
    generator = torch.Generator().manual_seed(0)
    for name, width, batch, context, precision in LANGUAGE:
        if quick:
            width, context = 32, 16
        size = (batch, context + 1)
        whole: list[Batch] = [(torch.randint(V, size, generator=generator),) for _ in range(steps)]
        what = {"model": f"{name} LM", "width": str(width), "batch": f"{batch}×{context}"}
        what["precision"] = precision
        sizes = name, width, context
        yield Work(what, language_sides, sizes, whole, [batch * context] * steps, precision)
    for cell, texts, shortest, longest in TEXTS:
        ragged = [ragged_batch(texts, shortest, longest, generator) for _ in range(steps)]
        what = {"model": f"{cell} classifier", "width": "32" if quick else "256"}
        what |= {"batch": f"{texts}×{shortest} to {longest}", "precision": "float32"}
        counts = [int(batch[1].sum()) for batch in ragged]
        yield Work(what, classifier_sides, (cell, quick), ragged, counts, "float32")


def main() -> None:
    """Each model on both kernels."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="")
    parser.add_argument("--cpu-time", action="store_true")
    more, sys.argv[1:] = parser.parse_known_args()
    torch.set_flush_denormal(True)  # before torch starts the threads, which take it over
    options = arguments(__doc__.splitlines()[0])
    if more.cpu_time and options.threads != 1:
        raise SystemExit("--cpu-time counts one thread's: --threads 1")
    clock = time.process_time if more.cpu_time else time.perf_counter
    steps = 4 if options.quick else 3 + 2 * options.repeats
    rows = []
    for work in works(options.quick, steps):
        if not " | ".join(work.what.values()).startswith(more.only):
            continue
        if (
            work.what["model"] == "lstm LM"
            and work.what["precision"] == "bf16"
            and torch.bfloat16 in WIDENED
        ):
            print("no LSTM in autocast: torch 2.13 raises on a processor without AVX-512")
            continue
        sides = work.make(*work.sizes)
        if options.compile:
            language = work.make is language_sides
            sides[COMPILED] = compiled(work.make(*work.sizes)["torch"][0], language)
        row = work.what | compare(sides, work, clock)
        largest = work.batches[max(range(steps), key=work.tokens.__getitem__)]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for kernels in NAMES:
                task = work.make, work.sizes, kernels, largest, options.threads
                row[f"{kernels} peak MB"] = round(pool.apply(peak_of, (task,)), 1)
        rows.append(row)
        print(row, flush=True)
    timed = {"clock": "CPU time of the thread" if more.cpu_time else "wall time"}
    save("models", merged(rows, more.only, options), timed, options)


def merged(
    rows: list[dict[str, Any]], only: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All rows, those that were measured anew in the place of the former ones."""
    file = options.out or RESULTS / f"models-{vendor()}.json"
    if not only or not file.exists():
        return rows
    former = json.loads(file.read_text())["rows"]
    new = {_name(row): row for row in rows}
    kept = [new.pop(_name(row), row) for row in former]
    return kept + list(new.values())


def _name(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[key] for key in ("model", "width", "batch", "precision"))


if __name__ == "__main__":
    main()
