"""Inputs that have broken kernels before: sizes, logits and targets, each with what it stands for.

Values are drawn in float32 and on the CPU, so that every dtype under test, float64 too, and every
device gets the same ones; they come on torch's default device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from hetkern.testing.devices import drawn_on_cpu

#: Row lengths and the regime each stands for.
LENGTHS = {
    1: "one column",
    2: "two columns",
    15: "below one AVX-512 vector",
    16: "one AVX-512 vector, two of AVX2",
    17: "one vector and a tail of one",
    63: "below a tile of 64",
    64: "one tile",
    65: "one tile and a tail of one",
    127: "odd, below two tiles",
    257: "several tiles and a tail of one",
    1000: "an ordinary row, not a multiple of a vector",
    4097: "past a page, and a tail of one",
    50257: "GPT-2's vocabulary, odd",
    128257: "Llama 3's vocabulary and one",
    262145: "past 2^18: the longest row, and one",
}


def flat(rows: int, columns: int, generator: Generator) -> Tensor:
    """All classes about equally likely: what random initial weights give."""
    return 0.1 * torch.randn(rows, columns, generator=generator)


def normal(rows: int, columns: int, generator: Generator) -> Tensor:
    """Logits of a trained model's body: a few classes carry the probability."""
    return 3.0 * torch.randn(rows, columns, generator=generator)


def confident(rows: int, columns: int, generator: Generator) -> Tensor:
    """One class a row has p = 0.999: losses near 0, where log sum exp loses its digits."""
    logits = torch.zeros(rows, columns)
    winner = torch.randint(columns, (rows, 1), generator=generator)
    margin = torch.tensor(999.0 * max(columns - 1, 1)).log()
    return logits.scatter(1, winner, float(margin))


def huge(rows: int, columns: int, generator: Generator) -> Tensor:
    """One logit of 3e4 a row: exp without the maximum subtracted overflows."""
    logits = torch.randn(rows, columns, generator=generator)
    return logits.scatter(1, torch.randint(columns, (rows, 1), generator=generator), 3e4)


def shifted(rows: int, columns: int, generator: Generator) -> Tensor:
    """Rows moved by +1e4 and -1e4 in turn: a float32 log-sum-exp has no digits left for them."""
    shift = torch.where(torch.arange(rows) % 2 == 0, 1e4, -1e4)[:, None]
    return torch.randn(rows, columns, generator=generator) + shift


def minus_inf(rows: int, columns: int, generator: Generator) -> Tensor:
    """A third of the entries is -inf, never a whole row."""
    logits = torch.randn(rows, columns, generator=generator)
    gone = torch.rand(rows, columns, generator=generator) < 1 / 3
    gone.scatter_(1, torch.randint(columns, (rows, 1), generator=generator), False)
    return logits.masked_fill(gone, -torch.inf)


def equal(rows: int, columns: int, generator: Generator) -> Tensor:
    """All equal: the first of equals is the argmax; y = 1/N."""
    return torch.full((rows, columns), 7.25)


def denormal(rows: int, columns: int, generator: Generator) -> Tensor:
    """Entries near 1e-40, below the smallest normal float32."""
    return 1e-40 * torch.randn(rows, columns, generator=generator)


def ascending(rows: int, columns: int, generator: Generator) -> Tensor:
    """The maximum comes last: an online softmax rescales at every step."""
    return normal(rows, columns, generator).sort(dim=1).values


def descending(rows: int, columns: int, generator: Generator) -> Tensor:
    """The maximum comes first."""
    return normal(rows, columns, generator).sort(dim=1, descending=True).values


def nan_row(rows: int, columns: int, generator: Generator) -> Tensor:
    """One row holds a NaN: NaN in that row and in no other."""
    return _spoil_last_row(rows, columns, generator, torch.nan)


def plus_inf(rows: int, columns: int, generator: Generator) -> Tensor:
    """One row holds +inf."""
    return _spoil_last_row(rows, columns, generator, torch.inf)


def minus_inf_row(rows: int, columns: int, generator: Generator) -> Tensor:
    """One row is all -inf: NaN, as torch."""
    logits = torch.randn(rows, columns, generator=generator)
    logits[-1:] = -torch.inf
    return logits


def _spoil_last_row(rows: int, columns: int, generator: Generator, value: float) -> Tensor:
    logits = torch.randn(rows, columns, generator=generator)
    column = torch.randint(columns, (1,), generator=generator)
    logits[-1:, column] = value
    return logits


#: Every kind of logits, by name.
LOGITS: dict[str, Callable[[int, int, Generator], Tensor]] = {
    make.__name__: make
    for make in (
        flat,
        normal,
        confident,
        huge,
        shifted,
        minus_inf,
        equal,
        denormal,
        ascending,
        descending,
        nan_row,
        plus_inf,
        minus_inf_row,
    )
}
#: The kinds whose softmax is finite.
FINITE_LOGITS = tuple(
    kind for kind in LOGITS if kind not in ("nan_row", "plus_inf", "minus_inf_row")
)
#: Ordinary, sharp, and those that add a little to a sum that the first ones have made large.
LOGITS_IN_SHORT = ("normal", "confident", "descending")


@drawn_on_cpu
def logits(kind: str, shape: Sequence[int], dim: int, generator: Generator) -> Tensor:
    """Float32 logits of ``shape`` whose rows along ``dim`` are of the given kind."""
    columns = shape[dim]
    others = [size for i, size in enumerate(shape) if i != dim % len(shape)]
    rows = int(torch.tensor(others).prod()) if others else 1
    if rows * columns == 0:
        return torch.zeros(*shape)
    return LOGITS[kind](rows, columns, generator).reshape(*others, columns).movedim(-1, dim)


@drawn_on_cpu
def targets(
    kind: str, logits: Tensor, dim: int, generator: Generator, ignore_index: int = -100
) -> Tensor:
    """Class indices for ``logits``, int64, of its shape without ``dim``.

    Args:
        kind: "random"; "confident" (the largest logit); "edges" (the first and the last class in
            turn); "ignored" (a third of the rows is ignored); "all_ignored".
        logits: what the targets belong to.
        dim: its class dimension.
        generator: where the random ones come from.
        ignore_index: what marks an ignored row.
    """
    classes = logits.shape[dim]
    likeliest = logits.argmax(dim)
    drawn = torch.randint(classes, likeliest.shape, generator=generator)
    if kind == "random":
        return drawn
    if kind == "confident":
        return likeliest
    if kind == "edges":
        turn = torch.arange(drawn.numel()).reshape(drawn.shape) % 2
        return turn * (classes - 1)
    if kind == "ignored":
        gone = torch.rand(drawn.shape, generator=generator) < 1 / 3
        return drawn.masked_fill(gone, ignore_index)
    if kind == "all_ignored":
        return torch.full_like(drawn, ignore_index)
    raise ValueError(f"targets: unknown kind {kind!r}")


@drawn_on_cpu
def probabilities(kind: str, logits: Tensor, dim: int, generator: Generator) -> Tensor:
    """Class probabilities, float32, of the shape of ``logits``: "dense" or "one_hot"."""
    if kind == "dense":
        return torch.randn(logits.shape, generator=generator).softmax(dim)
    if kind == "one_hot":
        winner = logits.argmax(dim, keepdim=True)
        return torch.zeros(logits.shape).scatter(dim, winner, 1.0)
    raise ValueError(f"probabilities: unknown kind {kind!r}")
