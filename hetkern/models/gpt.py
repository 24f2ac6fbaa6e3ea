"""A GPT-style Transformer language model.

x_0     = E[tokens]  (+ P, learned positions)               E: (V, C), P: (context, C)
x_{l+1} = h + MLP(norm(h)),  h = x_l + Attention(norm(x_l))
logits  = norm(x_L) E^T

Shapes: B sequences of T tokens from a vocabulary of V; C the width, Hq heads of D = C / Hq.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners": pre-norm,
GELU, learned positions, the embedding shared with the output, weights drawn from N(0, 0.02²) and
those that write into the residual stream from N(0, (0.02 / √(2 layers))²). Rotary positions: Su et
al. (2021), "RoFormer".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetkern.models.kernels import Kernels


@dataclass(frozen=True)
class GPTShape:
    """The sizes of a GPT.

    Attributes:
        vocabulary: V, the number of different tokens.
        context: the longest sequence, in tokens.
        layers: the number of blocks.
        heads: Hq; divides ``width``.
        width: C, the size of the residual stream.
        dropout: probability that a weight of attention or an element of a branch is dropped.
        positions: ``"rotary"``, or ``"learned"`` as GPT-2 has them.
    """

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int
    dropout: float = 0.0
    positions: str = "rotary"

    def __post_init__(self) -> None:
        """Refuse a width that the heads cannot share, and unknown positions."""
        if self.positions not in ("rotary", "learned"):
            raise ValueError(f"positions must be rotary or learned, got {self.positions!r}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Rotary(nn.Module):
    """Turns pair i of a head's features at position t by the angle t · 10000^(-2i / D).

    So q k^T depends on how far apart two tokens are. The last feature of an odd D stays.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, D: int) -> None:
        super().__init__()
        self.pairs = D // 2
        rates = 10000.0 ** (-torch.arange(self.pairs) * 2 / D)
        angles = torch.outer(torch.arange(context).float(), rates)
        rest = torch.zeros(context, D % 2)
        cos = torch.cat([angles.cos(), angles.cos(), rest + 1], -1)
        sin = torch.cat([-angles.sin(), angles.sin(), rest], -1)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: (…, T, D), of positions 0 to T - 1. Returns the same shape."""
        T = x.shape[-2]
        first, second, rest = x.tensor_split((self.pairs, 2 * self.pairs), -1)
        return x * self.cos[:T] + torch.cat([second, first, rest], -1) * self.sin[:T]


class Attention(nn.Module):
    """Causal self-attention: softmax(q k^T / √D) v, the keys no later than the query."""

    def __init__(self, shape: GPTShape, kernels: Kernels) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.kernels = kernels
        rotary = shape.positions == "rotary"
        self.rotary = Rotary(shape.context, shape.width // shape.heads) if rotary else None
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.project = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: (B, T, C). Returns (B, T, C)."""
        B, T, C = x.shape
        D = C // self.heads
        # One product for all three, then heads before time: q, k, v are (B, Hq, T, D).
        q_k_v = self.query_key_value(x).view(B, T, 3, self.heads, D).permute(2, 0, 3, 1, 4)
        q, k, v = q_k_v if self.rotary is None else (*self.rotary(q_k_v[:2]), q_k_v[2])
        scores = q @ k.transpose(-2, -1)  # (B, Hq, T, T)
        weights = self.kernels.softmax_causal(scores, 1.0 / math.sqrt(D))
        weights = F.dropout(weights, self.dropout, self.training)
        mixed = (weights @ v).transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.project(mixed), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.widen = nn.Linear(shape.width, 4 * shape.width)
        self.project = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: (B, T, C). Returns (B, T, C)."""
        return F.dropout(self.project(F.gelu(self.widen(x))), self.dropout, self.training)


class Block(nn.Module):
    """Attention, then the MLP, each normalised before and added to the residual stream."""

    def __init__(self, shape: GPTShape, kernels: Kernels) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape, kernels)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: (B, T, C). Returns (B, T, C)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """The model: embeddings, blocks, and logits through the embedding again."""

    def __init__(self, shape: GPTShape, kernels: Kernels) -> None:
        """Draw the weights from torch's generator: seed it first for the same ones again."""
        super().__init__()
        self.shape = shape
        self.kernels = kernels
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        learned = shape.positions == "learned"
        self.position_embedding = nn.Embedding(shape.context, shape.width) if learned else None
        self.blocks = nn.ModuleList(Block(shape, kernels) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self._draw_weights()

    def _draw_weights(self) -> None:
        residual_std = 0.02 / math.sqrt(2 * self.shape.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = residual_std if name.endswith("project") else 0.02
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each one.

        Args:
            tokens: (B, T) int64, T at most ``shape.context``.

        Returns:
            (B, T, V) in the weights' dtype.

        Raises:
            ValueError: T is longer than the context.
        """
        T = tokens.shape[1]
        if T > self.shape.context:
            raise ValueError(f"GPT: tokens must be at most {self.shape.context} long, got {T}")
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(T, device=tokens.device))
        x = F.dropout(x, self.shape.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token_embedding.weight)

    def describe(self) -> str:
        """The sizes in words."""
        shape = self.shape
        return (
            f"{shape.layers} layers of {shape.width}, {shape.heads} heads, context {shape.context}"
        )

    def parameter_count(self) -> int:
        """The number of weights that are trained."""
        return sum(p.numel() for p in self.parameters())

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy of ``targets`` under the model, in nats.

        Args:
            tokens: (B, T) int64.
            targets: (B, T) int64, the token that follows each.
            reduction: ``"mean"``, ``"sum"``, or ``"none"`` for one loss a target, (B·T,).
        """
        logits = self(tokens)
        return self.kernels.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction)
