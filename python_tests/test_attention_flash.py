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


@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "window_size": (2, 0), "return_attn_probs": True}]
)
def test_packed_forms_are_the_others_with_their_gradients(options):
    qkv = normal(2, 5, 3, 2, 8).requires_grad_()
    q, k, v = qkv.unbind(2)
    wanted = flash_attn.flash_attn_func(q, k, v, **options)
    ends, flat = cumulated([5, 5]), qkv.flatten(0, 1)
    results = [
        flash_attn.flash_attn_qkvpacked_func(qkv, **options),
        flash_attn.flash_attn_kvpacked_func(q, qkv[:, :, 1:], **options),
        flash_attn.flash_attn_varlen_qkvpacked_func(flat, ends, 5, **options),
        flash_attn.flash_attn_varlen_kvpacked_func(
            flat[:, 0], flat[:, 1:], ends, ends, 5, 5, **options
        ),
    ]
    for result in results:
        out, right = (r[0] if isinstance(r, tuple) else r for r in (result, wanted))
        torch.testing.assert_close(out.view_as(right), right)
        gradients = (
            torch.autograd.grad(o.sin().sum(), qkv, retain_graph=True) for o in (out, right)
        )
        torch.testing.assert_close(*gradients)
    for got, theirs in (
        (flash_attn.flash_attn_qkvpacked_func, (normal(2, 5, 2, 2, 8),)),
        (flash_attn.flash_attn_varlen_kvpacked_func, (flat[:, 0], flat, ends, ends, 5, 5)),
    ):
        with pytest.raises(ValueError, match=r"kv: wanted [23] in dimension"):
            got(*theirs)
    with pytest.raises(ValueError, match=r"window_size: wanted \(left, right\), got \(3,\)"):
        flash_attn.flash_attn_func(q, k, v, window_size=(3,))


@pytest.mark.parametrize("places", [None, [2, 0]])
@pytest.mark.parametrize("lengths", [None, 3, [4, 1]], ids=["whole", "one number", "each its own"])
def test_a_cache_is_filled_and_read(lengths, places):
    cache_k, cache_v = normal(3, 8, 2, 4), normal(3, 8, 2, 4, seed=1)
    q, new = normal(2, 2, 4, 4, seed=2), normal(2, 2, 2, 4, seed=3)
    before = [8, 8] if lengths is None else [3, 3] if lengths == 3 else lengths
    given = torch.tensor(lengths) if isinstance(lengths, list) else lengths
    rows = places or [0, 1]
    more = {} if places is None else {"cache_batch_idx": torch.tensor(places)}
    k, v = (cache_k[:2], cache_v[:2]) if places is None else (cache_k, cache_v)
    written = {} if lengths is None else {"k": new, "v": 2 * new}
    out, lse = flash_attn.flash_attn_with_kvcache(
        q, k, v, cache_seqlens=given, causal=True, return_softmax_lse=True, **written, **more
    )
    for b, (row, n) in enumerate(zip(rows, before, strict=True)):
        if written:
            torch.testing.assert_close(cache_k[row, n : n + 2], new[b])
            torch.testing.assert_close(cache_v[row, n : n + 2], 2 * new[b])
            n += 2
        ours = (t[row, :n].transpose(0, 1)[None] for t in (cache_k, cache_v))
        wanted = hetkern.attention(q[b].transpose(0, 1)[None], *ours, causal=True, return_lse=True)
        torch.testing.assert_close((out[b].transpose(0, 1), lse[b]), (wanted[0][0], wanted[1][0]))


@pytest.mark.parametrize("name", ["rotary_cos", "rotary_sin", "cache_leftpad", "block_table"])
def test_what_a_cache_cannot_have_is_refused_by_name(name):
    q = normal(2, 1, 2, 8)
    call = flash_attn.flash_attn_with_kvcache
    with pytest.raises(NotImplementedError, match=name):
        call(q, q, q, **{name: torch.zeros(2, 1)})
    with pytest.raises(ValueError, match="wanted both or none"):
        call(q, q, q, q)
    with pytest.raises(ValueError, match="wanted room for 1 keys and 1 more, got 1"):
        call(q, q, q, q, q, cache_seqlens=1)
