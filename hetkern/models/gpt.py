"""A GPT-style Transformer language model.

x_0     = E[tokens]  (+ P, learned positions)               E: (V, C), P: (context, C)
x_{l+1} = h + MLP(norm(h)),  h = x_l + Attention(norm(x_l))
logits  = norm(x_L) E^T                                     W instead of E where it is not tied

Shapes: B sequences of T tokens from a vocabulary of V; C the width, Hq heads of D = C / Hq for
queries, Hkv of them for keys and values.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners": pre-norm,
GELU, learned positions, the embedding shared with the output, weights drawn from N(0, 0.02²) and
those that write into the residual stream from N(0, (0.02 / √(2 layers))²). Rotary positions: Su et
al. (2021), "RoFormer". RMSNorm: Zhang & Sennrich (2019); SwiGLU: Shazeer (2020), "GLU Variants";
heads that share keys: Ainslie et al. (2023), "GQA"; a window: Beltagy et al. (2020), "Longformer".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from hetkern.models.kernels import Kernels
from hetkern.models.rotary import Rotary


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
        kv_heads: Hkv, heads of keys and values; divides ``heads``; 0 for as many.
        norm: ``"layer"`` or ``"rms"``.
        mlp: ``"gelu"``, four times as wide inside, or ``"swiglu"``, 8/3 times, as many weights.
        tied: whether the output's weights are the embedding's.
        window: how many tokens back a token sees, itself among them; 0 for all.
    """

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int
    dropout: float = 0.0
    positions: str = "rotary"
    kv_heads: int = 0
    norm: str = "layer"
    mlp: str = "gelu"
    tied: bool = True
    window: int = 0

    def __post_init__(self) -> None:
        """Refuse a width that the heads cannot share, and unknown words."""
        known = {
            "positions": ("rotary", "learned"), "norm": ("layer", "rms"), "mlp": ("gelu", "swiglu"),
        }  # fmt: skip
        for name, words in known.items():
            if getattr(self, name) not in words:
                wanted = " or ".join(words)
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Cache:
    """The keys and values of the tokens so far, a pair a block: (B, Hkv, context, D) each."""

    def __init__(self, shape: GPTShape, rows: int, like: Tensor) -> None:
        self.length = 0  # tokens held
        D = shape.width // shape.heads
        size = (2, shape.layers, rows, shape.kv_heads or shape.heads, shape.context, D)
        self.keys, self.values = torch.empty(size, dtype=like.dtype, device=like.device)

    def put(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Hold the keys and values of new tokens too; returns those of all."""
        end = self.length + k.shape[2]
        self.keys[block, :, :, self.length : end] = k
        self.values[block, :, :, self.length : end] = v
        return self.keys[block, :, :, :end], self.values[block, :, :, :end]


class Attention(nn.Module):
    """Causal self-attention: softmax(q k^T / √D) v, the keys no later than the query."""

    def __init__(self, shape: GPTShape, kernels: Kernels, block: int) -> None:
        super().__init__()
        self.block = block
        self.heads = shape.heads
        self.kv_heads = shape.kv_heads or shape.heads
        self.window = shape.window
        self.dropout = shape.dropout
        self.kernels = kernels
        D = shape.width // shape.heads
        self.rotary = Rotary(shape.context, D) if shape.positions == "rotary" else None
        self.query_key_value = nn.Linear(shape.width, (self.heads + 2 * self.kv_heads) * D)
        self.project = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``x``: (B, T, C), after the tokens that ``cache`` holds. Returns (B, T, C)."""
        B, T, C = x.shape
        # One product for all three; q, k, v are (B, Hq or Hkv, T, D).
        heads = self.query_key_value(x).view(B, T, -1, C // self.heads)
        if self.rotary is None:
            sizes = [self.heads, self.kv_heads, self.kv_heads]
            q, k, v = heads.transpose(1, 2).split(sizes, 1)
        else:
            begin = cache.length if cache is not None else 0
            q, k, v = self.rotary(heads, self.heads, self.kv_heads, begin)
        if cache is not None:
            k, v = cache.put(self.block, k, v)
        dropout = self.dropout if self.training else 0.0
        mixed = self.kernels.attention(q, k, v, self.window, dropout)
        mixed = mixed.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.project(mixed), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers with a GELU between, or a product with one that a SiLU gates."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.gated = shape.mlp == "swiglu"
        inside = 8 * shape.width // 3 if self.gated else 4 * shape.width
        self.widen = nn.Linear(shape.width, 2 * inside if self.gated else inside)
        self.project = nn.Linear(inside, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """``x``: (B, T, C). Returns (B, T, C)."""
        inside = self.widen(x)
        if self.gated:
            gate, inside = inside.chunk(2, -1)
            inside = F.silu(gate) * inside
        else:
            inside = F.gelu(inside)
        return F.dropout(self.project(inside), self.dropout, self.training)


def _norm(shape: GPTShape) -> nn.Module:
    return nn.LayerNorm(shape.width) if shape.norm == "layer" else nn.RMSNorm(shape.width, eps=1e-5)


class Block(nn.Module):
    """Attention, then the MLP, each normalised before and added to the residual stream."""

    def __init__(self, shape: GPTShape, kernels: Kernels, block: int) -> None:
        super().__init__()
        self.attention_norm = _norm(shape)
        self.attention = Attention(shape, kernels, block)
        self.mlp_norm = _norm(shape)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``x``: (B, T, C), after the tokens that ``cache`` holds. Returns (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """The model: embeddings, blocks, and logits, through the embedding again where it is tied."""

    recompute = False  # in training, keep only what lies between the blocks

    def __init__(self, shape: GPTShape, kernels: Kernels) -> None:
        """Draw the weights from torch's generator: seed it first for the same ones again."""
        super().__init__()
        self.shape = shape
        self.kernels = kernels
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        learned = shape.positions == "learned"
        self.position_embedding = nn.Embedding(shape.context, shape.width) if learned else None
        blocks = (Block(shape, kernels, number) for number in range(shape.layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = _norm(shape)
        self.output = None if shape.tied else nn.Linear(shape.width, shape.vocabulary, bias=False)
        self._draw_weights()

    def _draw_weights(self) -> None:
        residual_std = 0.02 / math.sqrt(2 * self.shape.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = residual_std if name.endswith("project") else 0.02
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    @property
    def longest(self) -> int:
        """The longest sequence."""
        return self.shape.context

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the token after each one.

        Args:
            tokens: (B, T) int64, T at most ``shape.context``, the tokens in the cache among them.
            cache: keys and values of the tokens before, to be held with those of these.

        Returns:
            (B, T, V) in the weights' dtype.

        Raises:
            ValueError: T is longer than the context.
        """
        x = self._last_block(tokens, cache)
        return self._logits(x)

    def _last_block(self, tokens: Tensor, cache: Cache | None) -> Tensor:
        begin = cache.length if cache is not None else 0
        end = begin + tokens.shape[1]
        if end > self.shape.context:
            raise ValueError(f"GPT: tokens must be at most {self.shape.context} long, got {end}")
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(begin, end, device=tokens.device))
        x = F.dropout(x, self.shape.dropout, self.training)
        for block in self.blocks:
            if self.recompute and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def _logits(self, x: Tensor) -> Tensor:
        if self.output is not None:
            return self.output(x)
        return F.linear(x, self.token_embedding.weight)

    def start(self, rows: int) -> Cache:
        """The state before the first token of ``rows`` sequences."""
        return Cache(self.shape, rows, self.token_embedding.weight.detach())

    @torch.no_grad()
    def extend(self, tokens: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """The logits (B, V) after the last of ``tokens`` (B, T), which follow those in ``state``.

        The state is changed and returned. Nothing is differentiated.
        """
        return self._logits(self._last_block(tokens, state)[:, -1]), state

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
