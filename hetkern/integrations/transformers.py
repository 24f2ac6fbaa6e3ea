"""``attn_implementation="hetkern"`` in transformers: :func:`register`, before a model is made.

transformers asks twice: for a mask, from a function of positions that says who sees whom, and for
attention with that mask. The first answer here is a :class:`Structure`, what such a function is
made of (causal, a window, padding, packed sequences, a cache that is filled in part), in memory of
a row; only a function that is made of other things becomes a mask of Lq times Lk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from . import packed_sequences


def register(name: str = "hetkern", impl: str = "auto") -> None:
    """Make ``attn_implementation=name`` a word that transformers' models know.

    Args:
        name: the word.
        impl: as in :func:`hetkern.attention`.

    Raises:
        ImportError: transformers is not installed, or too old to be asked.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "hetkern.integrations.transformers: wanted transformers 5 (pip install "
            f"'hetkern[transformers]'), got: {error}"
        ) from error

    def attend(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return attention_forward(module, *args, **{"impl": impl, **kwargs})

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, structure_of)


# ---- The mask. -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Structure:
    """Who sees whom, without a tensor of queries times keys.

    It passes through a model in a mask's place. What a model does to a mask beyond passing it on
    has no meaning here and raises.
    """

    shape: tuple[Any, ...]  #: of the mask that it stands for: (B, 1, Lq, Lk)
    causal: bool
    window: tuple[int, int] | None = None
    keys: Tensor | None = None  #: (B, Lk) boolean: no padding
    used: Tensor | None = None  #: one integer: keys from here on are a cache's empty places
    sequences: Tensor | None = None  #: (B, L): which packed sequence each token is of

    @property
    def ndim(self) -> int:
        """As a mask's."""
        return len(self.shape)

    def dim(self) -> int:
        """As a mask's."""
        return len(self.shape)

    def to(self, *args: Any, **kwargs: Any) -> Structure:
        """The same on another device; a dtype means nothing."""
        args = tuple(a for a in args if not isinstance(a, torch.dtype))
        kwargs.pop("dtype", None)
        names = ("keys", "used", "sequences")
        if not args and not kwargs:
            return self
        tensors = {n: t.to(*args, **kwargs) for n in names if (t := getattr(self, n)) is not None}
        return replace(self, **tensors)

    def __getattr__(self, name: str) -> Any:
        """Refuse by name."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(_READS.format(f".{name}"))

    def __getitem__(self, index: Any) -> Any:
        """Refuse by name."""
        raise NotImplementedError(_READS.format("[…]"))

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any) -> Any:
        """Refuse by name what torch is to compute with it: ``scores + mask``."""
        raise NotImplementedError(_READS.format(getattr(function, "__name__", function)))


_READS = (
    "hetkern in transformers: attention_mask: this model reads or changes its mask ({}), which is "
    "not made here; take attn_implementation='sdpa' or 'eager' for it"
)


def structure_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Any = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Any:
    """What transformers' mask functions call: a :class:`Structure`, or a mask if it has none.

    Arguments are those of ``transformers.masking_utils.sdpa_mask``.
    """
    from transformers import masking_utils

    if isinstance(attention_mask, Structure):  # made in advance
        return attention_mask
    if mask_function is None:
        mask_function = masking_utils.causal_mask_function
    found = _Found() if use_vmap else _taken_apart(mask_function)
    used: Any = q_offset + q_length - kv_offset if found is not None and found.causal else kv_length
    fits = isinstance(used, Tensor) or used <= kv_length
    if found is None or use_vmap or not fits:
        return _mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            use_vmap=use_vmap,
            device=device,
        )
    keys = masking_utils.prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if keys is not None:
        keys = keys[:, kv_offset + torch.arange(kv_length, device=keys.device)]
    if not isinstance(used, Tensor):
        used = None if used == kv_length else torch.tensor(used, device=device)
    left = found.left if found.left is not None else -1
    right = found.right if found.right is not None else -1
    if not found.causal and (left, right) != (-1, -1) and q_length != kv_length:
        left, right = left + kv_length - q_length, right - (kv_length - q_length)
    return Structure(
        (batch_size, 1, q_length, kv_length),
        found.causal,
        None if (left, right) == (-1, -1) else (left, right),
        keys,
        used,
        found.sequences,
    )


def _mask(**arguments: Any) -> Any:
    from transformers import masking_utils

    return masking_utils.sdpa_mask(
        **arguments, allow_is_causal_skip=False, allow_is_bidirectional_skip=False
    )


@dataclass
class _Found:
    """What a mask function is made of."""

    causal: bool = False
    left: int | None = None
    right: int | None = None
    sequences: Tensor | None = None


def _taken_apart(function: Callable[..., Any]) -> _Found | None:
    """The parts of a mask function; None if it has others than those that are known.

    transformers composes them from closures, whose variables are the only place that says it.
    """
    from transformers import masking_utils as m

    if function is m.causal_mask_function:
        return _Found(causal=True)
    if function is m.bidirectional_mask_function:
        return _Found()
    inside = dict(
        zip(
            function.__code__.co_freevars,
            [cell.cell_contents for cell in function.__closure__ or ()],
            strict=True,
        )
        if hasattr(function, "__code__")
        else ()
    )
    kind = getattr(function, "__qualname__", "").split(".")[0]
    if getattr(function, "__module__", "") != m.__name__:
        return None
    if kind == "sliding_window_overlay":
        return _Found(left=inside["sliding_window"] - 1)
    if kind == "sliding_window_bidirectional_overlay":
        return _Found(left=inside["sliding_window"], right=inside["sliding_window"])
    if kind == "packed_sequence_mask_function":
        return _Found(sequences=inside["packed_sequence_mask"])
    if kind == "remap_positions_for_packed_sequence":  # within a sequence it moves all by as much
        return _taken_apart(inside["mask_function"])
    if kind != "and_masks":
        return None
    both = _Found()
    for part in map(_taken_apart, inside["mask_functions"]):
        if part is None or (both.sequences is not None and part.sequences is not None):
            return None
        both.causal |= part.causal
        both.left = _nearer(both.left, part.left)
        both.right = _nearer(both.right, part.right)
        both.sequences = part.sequences if both.sequences is None else both.sequences
    return both


def _nearer(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else min(a, b)


# ---- Attention. ----------------------------------------------------------------------------------

#: What changes the result and is not honoured, where it is neither None nor False.
REFUSED = ("output_attentions", "head_mask", "layer_head_mask", "relative_position_bias")


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    impl: str = "auto",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a model's attention layer calls.

    Args:
        module: the layer.
        query: ``(B, Hq, Lq, D)``.
        key: ``(B, Hkv, Lk, D)``.
        value: ``(B, Hkv, Lk, Dv)``.
        attention_mask: a :class:`Structure`, which says all; a mask ``(B, Hq, Lq, Lk)``, boolean
            (True keeps) or added to the scores, which says all as well; padding ``(B, Lk)``; None.
        dropout: probability that a weight is dropped.
        scaling: factor on the scores.
        is_causal: without a mask or with padding; None for the module's own.
        sliding_window: likewise: how many keys a query sees, itself included.
        softcap: bound on the scores.
        s_aux: ``(Hq,)``, a sink.
        position_bias: added to the scores; has a gradient.
        cu_seq_lens_q: ``(N + 1)``: where each packed sequence begins in all rows as one, with the
            end, as ``DataCollatorWithFlattening`` makes it. It goes before what positions say.
        cu_seq_lens_k: the same of the keys.
        impl: see :func:`register`.
        kwargs: what changes nothing here; what would is refused by name.

    Returns:
        ``(B, Lq, Hq, Dv)``, and None for the weights, which are never there.

    Raises:
        NotImplementedError: weights or a head mask are asked for, packed sequences come with what
            they are not told apart in, or a model does to its mask what has no meaning here.
    """
    asked = [name for name in REFUSED if kwargs.get(name) is not None and kwargs[name] is not False]
    for name in asked or _collected():
        raise NotImplementedError(
            f"hetkern in transformers: {name}: not honoured, since the weights are never all "
            "there: take attn_implementation='eager'"
        )
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap, "dropout_p": dropout}
    options["impl"] = impl
    if s_aux is not None:
        options["sink"] = s_aux.to(query.dtype)
    bias = position_bias
    if isinstance(attention_mask, Structure):
        if tuple(attention_mask.shape[-2:]) != (query.shape[2], key.shape[2]):
            raise NotImplementedError(
                f"hetkern in transformers: attention_mask: wanted one of {query.shape[2]} queries "
                f"and {key.shape[2]} keys, got one of {tuple(attention_mask.shape[-2:])}"
            )
        known = attention_mask
    elif attention_mask is None or attention_mask.dim() == 2:
        known = _by_arguments(module, query, key, attention_mask, is_causal, sliding_window)
    else:
        known = None
        if attention_mask.dtype == torch.bool:
            options["mask"] = attention_mask
        else:
            bias = attention_mask if bias is None else bias + attention_mask
    if bias is not None:
        options["bias"] = bias.to(query.dtype)
    ends = (cu_seq_lens_q, cu_seq_lens_k)
    packed = cu_seq_lens_q is not None and cu_seq_lens_k is not None
    if packed and known is None:  # all pairs are there already
        same = packed_sequences.of_one_sequence(query, key, *ends)
        options["mask"] = options["mask"] & same if "mask" in options else same
    if known is not None:
        options |= {"causal": known.causal, "window": known.window}
        if packed and (known.keys is not None or known.used is not None):
            raise NotImplementedError(
                "hetkern in transformers: cu_seq_lens_q: not honoured beside padding or a cache "
                "that is filled in part"
            )
        if not packed and known.sequences is not None:
            sequences = known.sequences.expand(query.shape[0], query.shape[2])
            packed, ends = True, (packed_sequences.ends(sequences),) * 2
        if packed:
            return packed_sequences.attend(query, key, value, *ends, options), None
        if known.keys is not None:
            options["mask"] = known.keys[:, None, None]
        if known.used is not None:
            used = known.used.reshape(-1).expand(query.shape[0])
            out = ops.attention_decode(query, key, value, used, **options)
            return out.transpose(1, 2).contiguous(), None
    out = ops.attention(query, key, value, **options)
    return out.transpose(1, 2).contiguous(), None


def _collected() -> list[str]:
    """What a model that keeps its arguments to itself will look for among its layers' results.

    GPT-2 and others hand ``output_attentions`` to no layer: transformers' hooks read the weights.
    """
    try:
        from transformers.utils.output_capturing import _active_collector as collector
    except ImportError:  # another version: its models hand it on
        return []
    if torch.compiler.is_compiling() and not collector.compiling:  # a layer by itself
        return []
    collected = collector.get() or ()
    return ["output_attentions"] if any(name.endswith("attentions") for name in collected) else []


def _by_arguments(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    padding: Tensor | None,
    is_causal: bool | None,
    sliding_window: int | None,
) -> Structure:
    """What a layer says itself, where nobody made a mask."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if sliding_window is not None and not causal:
        raise NotImplementedError(
            "hetkern in transformers: sliding_window: wanted a mask with a window that is not "
            "causal: which side it has, nothing else says"
        )
    window = None if sliding_window is None else (sliding_window - 1, 0)
    keys = None if padding is None else padding.to(torch.bool)
    shape = (query.shape[0], 1, query.shape[2], key.shape[2])
    return Structure(shape, causal, window, keys)
