"""Text out of a trained model."""

from __future__ import annotations

import torch
from torch import Tensor

from hetkern.models import GPT
from hetkern.training.config import UserError
from hetkern.training.tokenizer import Tokenizer


def generate(
    model: GPT,
    tokens: Tensor,
    length: int,
    temperature: float = 0.8,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue ``tokens`` by ``length`` more, each drawn from softmax(logits / temperature).

    Args:
        model: sees at most its context's last tokens.
        tokens: (T,) int64, at least one.
        length: how many to add.
        temperature: below 1 keeps to what is likely; 0 takes the likeliest.
        top_k: draw from the ``top_k`` likeliest only; 0 from all.
        generator: a CPU generator; the same state draws the same text.

    Returns:
        (T + length,) int64, on the CPU.

    Raises:
        UserError: no token to start from, or a negative number.
    """
    if len(tokens) == 0:
        raise UserError("generate: tokens must hold at least one, got none")
    for name, value in (("length", length), ("temperature", temperature), ("top_k", top_k)):
        if not value >= 0:
            raise UserError(f"generate: {name} must be at least 0, got {value}")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for _ in range(length):
            visible = tokens[-model.shape.context :].to(device)
            logits = model(visible[None])[0, -1].cpu().double()
            chosen = _draw(logits, temperature, top_k, generator)
            tokens = torch.cat([tokens, chosen])
    model.train(was_training)
    return tokens


def _draw(
    logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None
) -> Tensor:
    if temperature == 0:
        return logits.argmax(keepdim=True)
    if 0 < top_k < len(logits):
        logits, candidates = logits.topk(top_k)
    else:
        candidates = torch.arange(len(logits))
    # The maximum goes first: a tiny temperature must not overflow.
    weights = ((logits - logits.max()) / temperature).softmax(-1)
    return candidates[torch.multinomial(weights, 1, generator=generator)]


def sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "\n",
    length: int = 400,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 1,
) -> str:
    """The prompt and its continuation as text; arguments as in :func:`generate`.

    Raises:
        UserError: the prompt is empty, or a number is negative.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = tokenizer.encode(prompt)
    return tokenizer.decode(generate(model, tokens, length, temperature, top_k, generator))
