"""A small bidirectional Transformer text classifier.

x_0     = dropout(E[text])                                   E: (V, C), row 0 (padding) is 0
x_{l+1} = h + MLP(norm(h)),  h = x_l + Attention(norm(x_l))
logits  = W dropout(mean over the true tokens of norm(x_L)) + b

Shapes: B texts of up to T tokens, their true lengths beside them; C the width, Hq heads of
D = C / Hq. Every token sees every true token of its text, and no padding. Rotary positions: scores
depend on how far apart two tokens are.

Source: Devlin et al. (2019), "BERT", for the bidirectional encoder; Su et al. (2021) for rotary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetkern.models.kernels import Kernels, choose_kernels
from hetkern.models.rnn_classifier import PAD
from hetkern.models.rotary import Rotary


class _Block(nn.Module):
    """Attention, then the MLP, each normalised before and added to the residual stream."""

    def __init__(self, width: int, heads: int, dropout: float, kernels: Kernels) -> None:
        super().__init__()
        self.heads, self.dropout, self.kernels = heads, dropout, kernels
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, lengths: Tensor, rotary: Rotary) -> Tensor:
        """``x``: (B, T, C). Returns (B, T, C)."""
        B, T, C = x.shape
        p = self.dropout if self.training else 0.0
        heads = self.query_key_value(self.attention_norm(x)).view(B, T, -1, C // self.heads)
        q, k, v = rotary(heads, self.heads, self.heads)
        mixed = self.kernels.attention_of_lengths(q, k, v, lengths, p)
        x = x + F.dropout(self.project(mixed.transpose(1, 2).reshape(B, T, C)), p)
        wide = F.gelu(self.widen(self.mlp_norm(x)))
        return x + F.dropout(self.narrow(wide), p)


class TransformerClassifier(nn.Module):
    """Embedding, blocks, and a linear map of the mean over a text's tokens.

    Args:
        input_dim: V, the number of different tokens; token 0 is padding.
        hidden_dim: C, the width of the residual stream.
        output_dim: the number of classes.
        n_layers: blocks.
        heads: Hq; divides ``hidden_dim``.
        dropout: in training, of the embedding, of attention's weights, of each branch and of the
            mean.
        longest: the longest text, in tokens.
        kernels: whose kernels it runs on; hetkern's own if None.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 128,
        output_dim: int = 2,
        n_layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        *,
        longest: int = 512,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        if hidden_dim % heads:
            raise ValueError(f"hidden_dim {hidden_dim} is not a multiple of heads {heads}")
        self.kernels = kernels if kernels is not None else choose_kernels()
        self.dropout = dropout
        self.longest = longest
        self.embedding = nn.Embedding(input_dim, hidden_dim, padding_idx=PAD)
        self.rotary = Rotary(longest, hidden_dim // heads)
        self.blocks = nn.ModuleList(
            _Block(hidden_dim, heads, dropout, self.kernels) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the classes, as :meth:`RNNClassifier.forward`."""
        if text.shape[1] > self.longest:
            raise ValueError(
                f"TransformerClassifier: text must be at most {self.longest} long, "
                f"got {text.shape[1]}"
            )
        p = self.dropout if self.training else 0.0
        x = F.dropout(self.embedding(text), p)
        for block in self.blocks:
            x = block(x, lengths, self.rotary)
        true = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
        mean = torch.where(true[..., None], self.norm(x), 0.0).sum(1) / lengths[:, None]
        return self.output(F.dropout(mean, p))

    def loss(
        self, text: Tensor, lengths: Tensor, labels: Tensor, reduction: str = "mean"
    ) -> Tensor:
        """Cross-entropy of ``labels``, (B,), in nats: the mean, or ``"none"`` for one a text."""
        return self.kernels.cross_entropy(self(text, lengths), labels, reduction)

    def describe(self) -> str:
        """The sizes in words."""
        width = self.embedding.embedding_dim
        return f"{len(self.blocks)} layers of {width}, texts of up to {self.longest} tokens"

    def parameter_count(self) -> int:
        """The number of weights that are trained."""
        return sum(p.numel() for p in self.parameters())
