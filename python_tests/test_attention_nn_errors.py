"""What torch's attention by our kernels refuses, and what it takes that is empty."""

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import nn

import hetkern
import hetkern.nn.functional as HF
from hetkern.testing.devices import normal

pytestmark = pytest.mark.any_level


# ---- scaled_dot_product_attention. ---------------------------------------------------------------


@pytest.mark.parametrize("lead", [(2, 0), (0, 3), (0,), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("mask", [None, (4, 5), "whole"])
def test_no_sequence_or_no_head_gives_torchs_shape(lead, mask):
    q, k, v = (torch.zeros(*lead, *rows) for rows in ((4, 3), (5, 3), (5, 2)))
    if mask is not None:
        mask = torch.ones(mask if mask != "whole" else (*lead, 4, 5)) > 0
    got = HF.scaled_dot_product_attention(q.requires_grad_(), k, v, mask)
    assert got.shape == torch_functional.scaled_dot_product_attention(q, k, v, mask).shape
    (gradient,) = torch.autograd.grad(got.sum(), q)
    assert gradient.shape == q.shape


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 4, 3, 8), (2, 2, 3, 8), None), r"query, key, value: wanted heads .*\(2, 2, 3, 8\)"),
        (((2, 4, 3, 8), (3, 4, 3, 8), None), r"query, key, value: wanted leading .*\(3, 4, 3, 8\)"),
        (((2, 4, 3, 8), (2, 4, 3, 8), (5, 4, 3, 3)), r"attn_mask: wanted leading .*\(5, 4, 3, 3\)"),
        (((4, 3, 8), (4, 3, 8), (2, 4, 3, 3)), r"attn_mask: wanted leading .*\(2, 4, 3, 3\)"),
    ],
)
def test_dimensions_that_do_not_broadcast_are_named(shapes, message):
    q, k = (torch.zeros(shape) for shape in shapes[:2])
    mask = None if shapes[2] is None else torch.ones(shapes[2]) > 0
    with pytest.raises(ValueError, match=rf"scaled_dot_product_attention: {message}"):
        HF.scaled_dot_product_attention(q, k, k, mask)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_by_name(layout):
    rows = [torch.zeros(2, 1, 4), torch.zeros(3, 1, 4)]
    q = torch.nested.nested_tensor(rows, layout=layout).transpose(1, 2)
    takes = r"wanted a dense tensor, got a nested one: hetkern\.attention_varlen takes its values"
    for call in (HF.scaled_dot_product_attention, hetkern.attention):
        with pytest.raises(NotImplementedError, match=f"attention: (q|query): {takes}"):
            call(q, q, q)
    if layout is torch.jagged:  # of a strided one torch's dispatcher speaks
        for name, call in (("softmax: x", HF.softmax), ("log_softmax: x", HF.log_softmax)):
            with pytest.raises(NotImplementedError, match=rf"{name}: wanted.*: its values\(\)"):
                call(q, -1)


# ---- MultiheadAttention. -------------------------------------------------------------------------

GOOD = {"query": (3, 2, 8), "key": (4, 2, 8), "value": (4, 2, 8)}  # (L or S, N, E)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"query": (8,)}, r"query: wanted shape \(L, N, E\) or \(L, E\), got \(8,\)"),
        ({"query": (1, 3, 2, 8)}, r"query: wanted shape .*got \(1, 3, 2, 8\)"),
        ({"query": (3, 8)}, r"key: wanted 2 dimensions as query, got \(4, 2, 8\)"),
        ({"value": (4, 8)}, r"value: wanted 3 dimensions as query, got \(4, 8\)"),
        ({"query": (3, 2, 9)}, r"query: wanted width 8, got \(3, 2, 9\)"),
        ({"key": (4, 2, 9)}, r"key: wanted width 8, got \(4, 2, 9\)"),
        ({"query": (3, 1, 8)}, r"key: wanted 1 sequences as query, got \(4, 2, 8\)"),
        ({"key": (4, 1, 8), "value": (4, 1, 8)}, r"key: wanted 2 sequences as query"),
        ({"value": (5, 2, 8)}, r"value: wanted as many places as key \(4, 2, 8\), got \(5, 2, 8\)"),
    ],
)
def test_a_module_names_what_does_not_fit_and_broadcasts_nothing(wrong, message, need_weights):
    given = {name: torch.zeros(shape) for name, shape in (GOOD | wrong).items()}
    for library in (hetkern.nn, nn):
        module = library.MultiheadAttention(8, 2)
        with pytest.raises((ValueError, RuntimeError, AssertionError)) as refusal:
            module(**given, need_weights=need_weights)
        if library is hetkern.nn:
            assert refusal.match(rf"hetkern\.nn\.MultiheadAttention: {message}")


def test_a_module_names_a_dtype_a_padding_and_what_is_no_tensor():
    module, x = hetkern.nn.MultiheadAttention(8, 2), normal(3, 8)
    with pytest.raises(RuntimeError, match=r"key: wanted torch\.float32, got torch\.float64"):
        module(x, x.double(), x)
    with pytest.raises(ValueError, match=r"key_padding_mask: wanted shape \(S\), got \(1, 3\)"):
        module(x, x, x, key_padding_mask=torch.ones(1, 3) > 0)
    with pytest.raises(TypeError, match=r"value: wanted a tensor, got NoneType"):
        module(x, x, None)


def test_a_module_that_drops_every_weight_is_refused_and_left():
    with pytest.raises(ValueError, match=r"MultiheadAttention: dropout: wanted .*got 1\.0"):
        hetkern.nn.MultiheadAttention(8, 2, dropout=1.0)
    report = hetkern.nn.convert(nn.Sequential(nn.MultiheadAttention(8, 2, dropout=1.0)))
    assert "hetkern has no dropout=1.0" in report.left["0"]
