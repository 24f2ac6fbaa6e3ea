"""torch's MultiheadAttention on hetkern's attention."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from .. import ops
from ..impl import leave_to_torch
from .functional_attention import top_left_attention
from .modules import Options
from .recurrent_checks import check_dtype, check_tensor, named


class MultiheadAttention(Options, nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` on :func:`hetkern.attention`.

    ``out = W_o concat_h(attention(W_q query, W_k key, W_v value)) + b_o``.

    torch's constructor, parameters and state_dict. Without weights its memory is of a row; with
    ``need_weights=True``, which is torch's default, all weights are made: ``O(L S)`` a head. Nested
    tensors, as ``nn.TransformerEncoder`` makes of padded sequences, go to torch's own ``forward``
    with a warning.

    Args:
        embed_dim: of query and result.
        num_heads: divides ``embed_dim``.
        dropout: probability that a weight is dropped in training.
        bias: whether the projections have one.
        add_bias_kv: a learned key and value more in each sequence.
        add_zero_attn: a key and value of zeros more.
        kdim: width of the keys; None for ``embed_dim``.
        vdim: width of the values; None for ``embed_dim``.
        batch_first: ``(N, L, E)`` rather than ``(L, N, E)``.
        device: of the parameters.
        dtype: of the parameters.
        impl: as in :func:`hetkern.attention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
        )
        if not 0.0 <= dropout < 1.0:
            wanted = f"{named(self)}: dropout: wanted a probability in [0, 1)"
            raise ValueError(f"{wanted}, got {dropout}")
        self._set_options(impl=impl)

    @classmethod
    def why_not_from(cls, module: nn.Module) -> str | None:
        """Why a module of torch cannot become one of ours; None if it can."""
        return "hetkern has no dropout=1.0" if getattr(module, "dropout", 0.0) == 1.0 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of every head, projected; and its weights.

        Args:
            query: ``(L, N, E)``, ``(N, L, E)`` with ``batch_first``, or ``(L, E)``.
            key: likewise of S.
            value: likewise of S.
            key_padding_mask: ``(N, S)`` or ``(S)``: boolean, True = *ignore*, or added to the
                scores.
            need_weights: whether the weights are returned: ``(N, L, S)``, those after dropout.
            attn_mask: ``(L, S)`` or ``(N num_heads, L, S)``: boolean, True = *ignore*, or added.
            average_attn_weights: weights are the mean over heads, else ``(N, num_heads, L, S)``.
            is_causal: ``attn_mask`` is the causal mask (torch's rule, top-left): it is not read.

        Returns:
            ``(out, weights or None)``; a query that sees nothing gives the projection of 0.

        Raises:
            ValueError: a shape does not fit, or a mask is neither boolean nor floating.
            RuntimeError: a dtype does not fit, or ``is_causal`` without ``attn_mask``, as torch.
            NotImplementedError: nested tensors with a named ``impl`` or ``HETKERN_STRICT=1``.
        """
        if any(isinstance(t, Tensor) and t.is_nested for t in (query, key, value)):
            leave_to_torch(named(self), self.impl, "nested tensors")
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        self._check(query, key, value, key_padding_mask)
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value)
        added = k.shape[2] - key.shape[1]  # keys that no mask names
        if is_causal and not need_weights and added == 0:
            attn_mask = None
        else:
            is_causal = False
        mask, bias = self._masks(q, key_padding_mask, attn_mask, key.shape[1], added, need_weights)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT
            scale = self.head_dim**-0.5
            weights = ops.softmax(scores, scale=scale, mask=mask, bias=bias, impl=self.impl)
            weights = torch_functional.dropout(weights, dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            out = top_left_attention(
                q, k, v, mask, bias, is_causal, dropout_p=dropout, impl=self.impl
            )
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _check(self, query: Any, key: Any, value: Any, padding: Tensor | None) -> None:
        """What the products would broadcast, or say less plainly."""
        name, E = named(self), self.embed_dim
        layout = "(N, L, E)" if self.batch_first else "(L, N, E)"
        check_tensor(f"{name}: query", query)
        if query.dim() not in (2, 3):
            wanted = f"wanted shape {layout} or (L, E)"
            raise ValueError(f"{name}: query: {wanted}, got {tuple(query.shape)}")
        batched = query.dim() == 3
        at = 0 if self.batch_first else 1
        rows = key
        weight = self.in_proj_weight if self._qkv_same_embed_dim else self.q_proj_weight
        for argument, t, width in (
            ("query", query, E),
            ("key", key, E if self.kdim is None else self.kdim),
            ("value", value, E if self.vdim is None else self.vdim),
        ):
            check_tensor(f"{name}: {argument}", t)
            wanted = ""
            if t.dim() != query.dim():
                wanted = f"{query.dim()} dimensions as query"
            elif t.shape[-1] != width:
                wanted = f"width {width}"
            elif batched and t.shape[at] != query.shape[at]:
                wanted = f"{query.shape[at]} sequences as query"
            elif argument == "value" and t.shape[:-1] != rows.shape[:-1]:
                wanted = f"as many places as key {tuple(rows.shape)}"
            if wanted:
                raise ValueError(f"{name}: {argument}: wanted {wanted}, got {tuple(t.shape)}")
            check_dtype(RuntimeError, f"{name}: {argument}", t, weight.dtype)
        if padding is not None and padding.dim() != query.dim() - 1:
            wanted, got = "(N, S)" if batched else "(S)", tuple(padding.shape)
            raise ValueError(f"{name}: key_padding_mask: wanted shape {wanted}, got {got}")

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """(N, H, L or S, head_dim) of each, the added keys included."""
        linear = torch_functional.linear
        E, biases = self.embed_dim, self.in_proj_bias
        if self._qkv_same_embed_dim and query is key and key is value:
            three = linear(query, self.in_proj_weight, biases).chunk(3, -1)
        else:
            if self._qkv_same_embed_dim:
                weights = self.in_proj_weight.chunk(3)
            else:
                weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            each = (None, None, None) if biases is None else biases.chunk(3)
            three = tuple(map(linear, (query, key, value), weights, each))
        q, k, v = three
        if self.bias_k is not None and self.bias_v is not None:
            N = k.shape[0]
            k = torch.cat([k, self.bias_k.to(k.dtype).expand(N, 1, E)], 1)
            v = torch.cat([v, self.bias_v.to(v.dtype).expand(N, 1, E)], 1)
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(t.shape[0], 1, E)], 1) for t in (k, v))
        heads = (self.num_heads, self.head_dim)
        return tuple(t.unflatten(-1, heads).transpose(1, 2) for t in (q, k, v))

    def _masks(
        self,
        q: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        S: int,
        added: int,
        whole: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """``mask`` (True keeps) and ``bias``, as :func:`hetkern.attention` takes them."""
        N, H, L, _ = q.shape
        given = []
        for name, t, shapes in (
            ("key_padding_mask", padding, ((N, S),)),
            ("attn_mask", mask, ((L, S), (N * H, L, S))),
        ):
            if t is None:
                continue
            if type(t).__name__ == "CausalBias":
                made_by = "Transformer.generate_square_subsequent_mask makes one"
                wanted = f"a tensor of values ({made_by})"
                raise ValueError(f"MultiheadAttention: {name}: wanted {wanted}, got a CausalBias")
            if t.dtype != torch.bool and not t.is_floating_point():
                wanted = "a boolean or floating dtype"
                raise ValueError(f"MultiheadAttention: {name}: wanted {wanted}, got {t.dtype}")
            if tuple(t.shape) not in shapes:
                wanted = " or ".join(map(str, shapes))
                raise ValueError(
                    f"MultiheadAttention: {name}: wanted shape {wanted}, got {tuple(t.shape)}"
                )
            if name == "key_padding_mask":
                t = t[:, None, None]
            else:
                t = t.unflatten(0, (N, H)) if t.dim() == 3 else t[None, None]
            given.append(torch_functional.pad(t, (0, added)) if added else t)
        booleans = [~t for t in given if t.dtype == torch.bool]
        floats = [t.to(q.dtype) for t in given if t.dtype != torch.bool]
        if whole:  # all scores are there: a row of -inf has to be one that is masked
            booleans += [t > -torch.inf for t in floats]
            booleans = [functools.reduce(torch.logical_and, booleans)] if booleans else []
        elif len(booleans) == 2:  # each in its own shape, rather than both in one of N L S
            nothing = torch.zeros((), dtype=q.dtype, device=q.device)
            floats.append(torch.where(booleans.pop(), nothing, -torch.inf))
        return (
            booleans[0] if booleans else None,
            functools.reduce(torch.add, floats) if floats else None,
        )
