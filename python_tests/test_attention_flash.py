"""flash-attention's functions, by its signatures and in its layout."""

import inspect
import itertools

import pytest
import torch

import hetkern
from hetkern.integrations import flash_attn
from hetkern.testing.cases.attention import cumulated
from hetkern.testing.devices import normal

pytestmark = pytest.mark.any_level


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True, "window_size": (2, 0)},
        {"softcap": 2.0, "softmax_scale": 0.5, "alibi_slopes": torch.tensor([0.5, 0.25])},
    ],
)
def test_flash_attentions_functions_are_attention_with_heads_inside(impl, options):
    q, k, v = normal(2, 3, 2, 8), normal(2, 5, 1, 8, seed=1), normal(2, 5, 1, 8, seed=2)
    names = {"window_size": "window", "softmax_scale": "scale"}
    ours = {names.get(name, name): value for name, value in options.items()}
    out, lse, nothing = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True, **options)
    wanted = hetkern.attention(*(t.transpose(1, 2) for t in (q, k, v)), return_lse=True, **ours)
    torch.testing.assert_close((out.transpose(1, 2), lse), wanted)
    assert (
        nothing is None
        and (out.is_contiguous() or impl.name == "reference")
        and flash_attn.flash_attn_func(q, k, v).shape == q.shape
    )
    ends_q, ends_k = cumulated([3, 3]), cumulated([5, 5])
    flat = flash_attn.flash_attn_varlen_func(
        q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), ends_q, ends_k, 3, 5, **options
    )
    torch.testing.assert_close(flat, out.flatten(0, 1))


def test_flash_attentions_functions_take_their_arguments_in_order():
    q = normal(2, 3, 2, 8)
    got = flash_attn.flash_attn_func(q, q, q, 0.0, 0.5, True, (1, 1), 2.0, None, True, False)
    wanted = hetkern.attention(
        *[q.transpose(1, 2)] * 3, scale=0.5, causal=True, window=(1, 1), softcap=2.0
    )
    torch.testing.assert_close(got, wanted.transpose(1, 2))
    names = itertools.islice(inspect.signature(flash_attn.flash_attn_varlen_func).parameters, 8)
    assert list(names)[3:] == [
        "cu_seqlens_q",
        "cu_seqlens_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "dropout_p",
    ]
    with pytest.raises(NotImplementedError, match="block_table"):
        flash_attn.flash_attn_varlen_func(
            q[0], q[0], q[0], cumulated([3]), cumulated([3]), 3, 3, block_table=torch.zeros(1, 1)
        )
