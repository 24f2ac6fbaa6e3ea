"""Text out of a trained language model, token by token.

A model with a longest sequence (a Transformer's context) sees the end of the text: where the text
outgrows it, the first half of what it saw is forgotten at once and the rest read again, so that
keys and values can be kept for all steps between. Which tokens it sees is the same with ``cache``
and without, and so is the text, up to the rounding of logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hetkern.models.stepping import stepping
from hetkern.training.config import UserError
from hetkern.training.tokenizer import Tokenizer


@dataclass(frozen=True)
class Draw:
    """How the next token is drawn from the logits.

    Attributes:
        temperature: below 1 keeps to what is likely; 0 takes the likeliest.
        top_k: draw from the ``top_k`` likeliest only; 0 from all.
        top_p: draw from the likeliest that together reach this probability; 1 from all.
        repetition_penalty: above 1, the logits of tokens that were there are divided by it, or
            multiplied where they are negative (Keskar et al., 2019, "CTRL").
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, value in (("temperature", self.temperature), ("top_k", self.top_k)):
            if not value >= 0:
                raise UserError(f"generate: {name} must be at least 0, got {value}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"generate: top_p must be in (0, 1], got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(
                f"generate: repetition_penalty must be above 0, got {self.repetition_penalty}"
            )

    def draw(self, logits: Tensor, seen: Tensor, generator: torch.Generator | None) -> Tensor:
        """One token, ``(1,)``, from float64 logits ``(V,)`` after the tokens ``seen``."""
        if self.repetition_penalty != 1:
            there = seen.unique()
            logits = logits.clone()
            old = logits[there]
            penalty = self.repetition_penalty
            logits[there] = torch.where(old > 0, old / penalty, old * penalty)
        if self.temperature == 0:
            return logits.argmax(keepdim=True)
        candidates = torch.arange(len(logits))
        if 0 < self.top_k < len(logits):
            logits, candidates = logits.topk(self.top_k)
        # The maximum goes first: a tiny temperature must not overflow.
        weights = ((logits - logits.max()) / self.temperature).softmax(-1)
        if self.top_p < 1:
            weights, order = weights.sort(descending=True, stable=True)
            kept = weights.cumsum(0) - weights < self.top_p  # what comes before is not enough yet
            weights, candidates = weights[kept], candidates[order[kept]]
        return candidates[torch.multinomial(weights, 1, generator=generator)]


def generate_stream(
    model: nn.Module,
    tokens: Tensor,
    length: int,
    how: Draw,
    generators: Sequence[torch.Generator | None],
    cache: bool = True,
) -> Iterator[Tensor]:
    """Continue the rows of ``tokens`` (B, T), giving the next token of each, ``(B,)``, in turn.

    Args:
        model: a language model; put back in training mode in the end if it was in it.
        tokens: int64, at least one a row.
        length: how many to add.
        how: the tokens are drawn.
        generators: a CPU generator for each row, so that no row's text depends on the others.
        cache: keep keys and values, or read all that is seen again for each token.
    """
    if tokens.shape[1] == 0:
        raise UserError("generate: tokens must hold at least one, got none")
    if not length >= 0:
        raise UserError(f"generate: length must be at least 0, got {length}")
    steps = stepping(model)
    device = next(model.parameters()).device
    rows, longest = len(tokens), steps.longest
    begin = 0 if longest is None else max(0, tokens.shape[1] - longest)
    state, held = steps.start(rows), begin  # the state holds tokens begin to held - 1
    was_training = model.training
    model.eval()
    try:
        for _ in range(length):
            if longest is not None and tokens.shape[1] - begin > longest:
                begin = tokens.shape[1] - max(1, longest // 2)
                state, held = steps.start(rows), begin
            if not cache:
                state, held = steps.start(rows), begin
            logits, state = steps.extend(tokens[:, held:].to(device), state)
            held = tokens.shape[1]
            wide = logits.detach().cpu().double()
            drawn = [
                how.draw(row, seen, generator)
                for row, seen, generator in zip(wide, tokens, generators, strict=True)
            ]
            tokens = torch.cat([tokens, torch.stack(drawn)], 1)
            yield tokens[:, -1]
    finally:
        model.train(was_training)


def generate(
    model: nn.Module,
    tokens: Tensor,
    length: int,
    temperature: float = 0.8,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    *,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    cache: bool = True,
) -> Tensor:
    """Continue ``tokens`` by ``length`` more, each drawn from softmax(logits / temperature).

    Args:
        model: a language model.
        tokens: (T,) int64, at least one.
        length: how many to add.
        temperature: below 1 keeps to what is likely; 0 takes the likeliest.
        top_k: draw from the ``top_k`` likeliest only; 0 from all.
        generator: a CPU generator; the same state draws the same text.
        top_p: draw from the likeliest that together reach this probability.
        repetition_penalty: above 1, tokens that were there become less likely.
        cache: keep keys and values from token to token; the text is the same.

    Returns:
        (T + length,) int64, on the CPU.

    Raises:
        UserError: no token to start from, or a number out of range.
    """
    how = Draw(temperature, top_k, top_p, repetition_penalty)
    added = list(generate_stream(model, tokens[None], length, how, [generator], cache))
    return torch.cat([tokens, *added])


def sample(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str = "\n",
    length: int = 400,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 1,
    **options: float,
) -> str:
    """The prompt and its continuation as text; arguments as in :func:`generate`.

    Raises:
        UserError: the prompt is empty, or a number is out of range.
    """
    how = Draw(temperature, top_k, **options)  # type: ignore[arg-type]
    return sample_many(model, tokenizer, [prompt], length, how, seed)[0]


def sample_many(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    length: int,
    how: Draw,
    seed: int,
    cache: bool = True,
) -> list[str]:
    """The prompts and their continuations; those of as many tokens go through the model together.

    Prompt ``i`` draws from seed ``seed + i``: its text is the same alone and among others.
    """
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    texts = [""] * len(prompts)
    for size in sorted({len(tokens) for tokens in encoded}):
        numbers = [i for i, tokens in enumerate(encoded) if len(tokens) == size]
        generators = [torch.Generator().manual_seed(seed + i) for i in numbers]
        rows = torch.stack([encoded[i] for i in numbers])
        added = list(generate_stream(model, rows, length, how, generators, cache))
        whole = torch.cat([rows, torch.stack(added, 1)], 1) if added else rows
        for i, row in zip(numbers, whole, strict=True):
            texts[i] = tokenizer.decode(row)
    return texts


def sample_stream(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    length: int,
    how: Draw,
    seed: int,
    cache: bool = True,
) -> Iterator[str]:
    """The pieces of text that :func:`sample` joins, the prompt first, as they come."""
    tokens = tokenizer.encode(prompt)
    generator = torch.Generator().manual_seed(seed)
    shown, waiting = "", 0
    stream = generate_stream(model, tokens[None], length, how, [generator], cache)
    for new in stream:
        tokens = torch.cat([tokens, new])
        text = tokenizer.decode(tokens)
        waiting += 1
        # The bytes of a character may come one by one.
        if text.startswith(shown) and (
            not text.endswith("\N{REPLACEMENT CHARACTER}") or waiting > 3
        ):
            yield text[len(shown) :]
            shown, waiting = text, 0
    text = tokenizer.decode(tokens)
    if text != shown:
        yield text[len(shown) :] if text.startswith(shown) else "\n" + text
