"""torch's scaled_dot_product_attention and MultiheadAttention."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import hetkern
import hetkern.nn.functional as HF
from hetkern.impl import Fallback
from hetkern.testing.devices import normal

pytestmark = pytest.mark.any_level

F64 = torch.float64


def random(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=F64)


def both(*args, **options):
    """Our function's result and gradients, and torch's."""
    found = []
    for function in (
        HF.scaled_dot_product_attention,
        torch_functional.scaled_dot_product_attention,
    ):
        leaves = [
            t.clone().requires_grad_() if t is not None and t.is_floating_point() else t
            for t in args
        ]
        out = function(*leaves, **options)
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        found.append((out, *torch.autograd.grad((out * random(*out.shape, seed=9)).sum(), wanted)))
    return found


# ---- scaled_dot_product_attention. ---------------------------------------------------------------


def test_the_signature_begins_as_torchs_documents_it():
    ours = inspect.signature(HF.scaled_dot_product_attention).parameters
    names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    assert list(ours)[: len(names)] == names
    q = random(1, 2, 3, 4)
    assert HF.scaled_dot_product_attention(q, q, q, None, 0.0, True).shape == q.shape


SHAPES = {
    "two dimensions": ((3, 4), (5, 4), (5, 2)),
    "three": ((2, 3, 4), (2, 5, 4), (2, 5, 2)),
    "four": ((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 2)),
    "five": ((2, 3, 2, 3, 4), (2, 3, 2, 5, 4), (2, 3, 2, 5, 2)),
    "a batch that broadcasts": ((2, 2, 3, 4), (1, 2, 5, 4), (2, 2, 5, 2)),
    "heads that broadcast": ((2, 4, 3, 4), (2, 1, 5, 4), (2, 1, 5, 2)),
    "one query for all heads": ((2, 1, 3, 4), (2, 3, 5, 4), (2, 3, 5, 2)),
    "values that broadcast": ((2, 3, 3, 4), (2, 3, 5, 4), (2, 1, 5, 2)),
    "more queries": ((2, 2, 7, 4), (2, 2, 5, 4), (2, 2, 5, 2)),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_it_is_torchs_for_any_leading_dimensions(impl, shapes, causal):
    q, k, v = (random(*s, seed=i) for i, s in enumerate(shapes))
    ours, torchs = both(q, k, v, is_causal=causal, scale=0.7)
    torch.testing.assert_close(ours, torchs)


MASKS = [(5,), (3, 5), (3, 1), (1, 5), (2, 3, 5), (1, 2, 3, 5), (4, 1, 1, 5), (4, 2, 3, 5)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["boolean", "floating"])
@pytest.mark.parametrize("shape", MASKS, ids=str)
def test_a_mask_is_torchs_and_has_its_gradient(impl, shape, kind, causal):
    q, k, v = random(4, 2, 3, 4), random(4, 2, 5, 4, seed=1), random(4, 2, 5, 4, seed=2)
    mask = random(*shape, seed=3)
    if kind == "boolean":
        mask = mask > -0.8
    if len(shape) < 2:  # torch wants two dimensions
        triangle = torch.ones(3, 5, dtype=torch.bool).tril()
        wide = mask
        if causal:
            wide = mask & triangle if kind == "boolean" else mask.masked_fill(~triangle, -torch.inf)
        wanted = torch_functional.scaled_dot_product_attention(q, k, v, wide.expand(3, 5))
        got = HF.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        torch.testing.assert_close(got, wanted)
        return
    if causal:  # torch refuses the two in some of its kernels: one mask of both
        triangle = torch.ones(3, 5, dtype=torch.bool).tril()
        joined = (
            mask & triangle
            if kind == "boolean"
            else mask + torch.zeros(3, 5).masked_fill(~triangle, -torch.inf)
        )
        wanted = torch_functional.scaled_dot_product_attention(q, k, v, joined)
        got = HF.scaled_dot_product_attention(q, k, v, mask, is_causal=True)
        torch.testing.assert_close(got, wanted)
        return
    ours, torchs = both(q, k, v, mask)
    torch.testing.assert_close(ours, torchs)


def test_a_mask_of_five_dimensions_is_torchs(impl):
    q, k = random(2, 3, 2, 4, 8), random(2, 3, 2, 5, 8, seed=1)
    for shape in ((2, 3, 1, 4, 5), (1, 3, 2, 4, 5), (1, 1, 2, 1, 5), (3, 1, 4, 5)):
        mask = random(*shape, seed=2) > -0.7
        got = HF.scaled_dot_product_attention(q, k, k, mask)
        wanted = torch_functional.scaled_dot_product_attention(q, k, k, mask)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("heads", [(4, 2), (6, 1), (3, 3)])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_grouped_heads_are_torchs(impl, heads, lead):
    q, k, v = (random(*lead, h, 5, 4, seed=s) for s, h in enumerate((heads[0], heads[1], heads[1])))
    ours, torchs = both(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, torchs)


def test_an_emptied_row_is_zero_and_a_float32_mask_goes_with_16_bits(impl):
    q = normal(1, 2, 3, 8)
    mask = torch.tensor([[True] * 3, [False] * 3, [True, False, True]])
    out = HF.scaled_dot_product_attention(q, q, q, mask)
    assert (out[:, :, 1] == 0).all() and out[:, :, 0].ne(0).any()
    half = HF.scaled_dot_product_attention(*[q.bfloat16()] * 3, torch.zeros(3, 3))
    assert half.dtype == torch.bfloat16
    capped = HF.scaled_dot_product_attention(q, q, q, softcap=2.0, sink=torch.zeros(2))
    torch.testing.assert_close(capped, hetkern.attention(q, q, q, softcap=2.0, sink=torch.zeros(2)))


def test_what_does_not_fit_is_refused_by_name():
    q = torch.zeros(2, 3, 4)
    for args, message in (
        ((q[0, 0], q, q), r"query: wanted shape .*got \(4,\)"),
        ((q, q, q, torch.ones(3, 3).long()), r"attn_mask: wanted .*got torch\.int64"),
        ((q, q, q, torch.ones(3, 4) > 0), r"mask: wanted .*got"),
        ((q, q[..., :3], q), r"k: wanted .*got"),
    ):
        with pytest.raises(ValueError, match=message):
            HF.scaled_dot_product_attention(*args)


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (5, 5)])
@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
def test_a_causal_bias_of_torch_is_its_triangle(impl, make, sizes):
    """Its elements are memory that nobody wrote, of a shape that may broadcast."""
    L, S = sizes
    if make is causal_lower_right and L > S:
        pytest.skip("torch warns that such a bias gives NaN")
    q, k, v = (random(1, 2, rows, 4, seed=s) for s, rows in enumerate((L, S, S)))
    triangle = make(L, S)
    ours = HF.scaled_dot_product_attention(q, k, v, triangle, impl=impl.name)
    written_out = triangle._materialize()
    wanted = torch_functional.scaled_dot_product_attention(q, k, v, written_out)
    torch.testing.assert_close(ours, wanted)


def test_a_causal_bias_is_refused_where_it_is_none():
    q, square = random(1, 1, 4, 4), causal_upper_left(4, 4)
    with pytest.raises(ValueError, match="is_causal: wanted False beside a CausalBias"):
        HF.scaled_dot_product_attention(q, q, q, square, is_causal=True)
    with pytest.raises(ValueError, match=r"wanted a CausalBias of \(4, 4\), got one of \(3, 4\)"):
        HF.scaled_dot_product_attention(q, q, q, causal_lower_right(3, 4))
    for call in (
        lambda: hetkern.attention(q, q, q, bias=square),
        lambda: hetkern.attention(q, q, q, mask=square),
        lambda: hetkern.softmax(q, bias=square),
        lambda: hetkern.nn.MultiheadAttention(4, 1)(*[q[0].float()] * 3, attn_mask=square),
    ):
        with pytest.raises(ValueError, match=r"wanted a tensor of values.*got a CausalBias"):
            call()


# ---- MultiheadAttention. -------------------------------------------------------------------------

BUILDS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "added": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 6, "vdim": 5, "batch_first": True},
}
E, H, L, S, N = 8, 2, 5, 7, 3


def modules(**options):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, dtype=F64, **options)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ours = copy.deepcopy(theirs)
    assert hetkern.nn.convert(ours).converted == {"": "hetkern.nn.MultiheadAttention"}
    return ours, theirs


def inputs(module, batched=True):
    shapes = [(n, N, width) for n, width in ((L, E), (S, module.kdim), (S, module.vdim))]
    drawn = [random(*s, seed=i) for i, s in enumerate(shapes)]
    if not batched:
        return [t[:, 0] for t in drawn]
    return [t.transpose(0, 1) if module.batch_first else t for t in drawn]


def compared(module, given, **options):
    leaves = [t.clone().requires_grad_() for t in given]
    out, weights = module(*leaves, **options)
    loss = (out * random(*out.shape, seed=7)).sum()
    if weights is not None:
        loss = loss + (weights * random(*weights.shape, seed=8)).sum()
    found = torch.autograd.grad(loss, [*leaves, *module.parameters()])
    return out, weights, found


PADDING = torch.arange(S) >= torch.tensor([7, 4, 2])[:, None]
MASK = random(L, S, seed=4) > 1.0
MASK[:, :2] = False  # every query sees a key: torch's weights would be NaN
CALLS = {
    "plain": {},
    "padding": {"key_padding_mask": PADDING},
    "mask": {"attn_mask": MASK},
    "both": {"key_padding_mask": PADDING, "attn_mask": MASK},
    "floats": {"key_padding_mask": random(N, S, seed=5), "attn_mask": random(L, S, seed=6)},
    "mask of heads": {"attn_mask": random(N * H, L, S, seed=6)},
    "padding beside floats": {"key_padding_mask": PADDING, "attn_mask": random(L, S, seed=6)},
    "floats beside a mask": {"key_padding_mask": random(N, S, seed=5), "attn_mask": MASK},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_module_is_torchs_with_its_gradients(impl, build, call, need_weights):
    ours, theirs = modules(**build)
    call = dict(call)
    if need_weights:
        call["average_attn_weights"] = "bias" in build
    given = inputs(theirs)
    got, wanted = (compared(m, given, need_weights=need_weights, **call) for m in (ours, theirs))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("build", [BUILDS["plain"], BUILDS["batch first"]], ids=["plain", "first"])
def test_a_module_takes_one_sequence_and_the_causal_hint(impl, build, need_weights):
    ours, theirs = modules(**build)
    given = inputs(theirs, batched=False)
    options = {"need_weights": need_weights}
    got, wanted = (
        compared(m, given, key_padding_mask=PADDING[1], **options) for m in (ours, theirs)
    )
    torch.testing.assert_close(got, wanted)
    triangle = torch.ones(L, S, dtype=torch.bool).triu(1)
    for padding in (None, PADDING):
        call = {"attn_mask": triangle, "is_causal": True, "key_padding_mask": padding, **options}
        got, wanted = (compared(m, inputs(theirs), **call) for m in (ours, theirs))
        torch.testing.assert_close(got, wanted)
    with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
        ours(*given, is_causal=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", ["boolean", "floating"])
def test_a_sequence_padded_throughout_is_the_projection_of_0(impl, kind, need_weights, training):
    ours, _ = modules()
    ours.train(training)
    padding = PADDING.clone()
    padding[1] = True
    if kind == "floating":
        padding = torch.zeros(N, S, dtype=F64).masked_fill(padding, -torch.inf)
    q, k, v = (t.requires_grad_() for t in inputs(ours))
    out, _ = ours(q, k, v, key_padding_mask=padding, need_weights=need_weights)
    torch.testing.assert_close(out[:, 1], ours.out_proj.bias.expand(L, E))
    gradients = torch.autograd.grad(out.square().sum(), [q, k, v, *ours.parameters()])
    assert all(g.isfinite().all() for g in (out, *gradients))


def test_weights_are_those_after_dropout_and_give_the_output(impl):
    ours, _ = modules(dropout=0.5)
    torch.manual_seed(0)
    out, weights = ours(*inputs(ours), average_attn_weights=False)
    assert (weights == 0).any() and weights.sum(-1).sub(1).abs().max() > 0.1
    v = inputs(ours)[2] @ ours.in_proj_weight[2 * E :].T + ours.in_proj_bias[2 * E :]
    heads = weights @ v.transpose(0, 1).unflatten(-1, (H, E // H)).transpose(1, 2)
    torch.testing.assert_close(out.transpose(0, 1), ours.out_proj(heads.transpose(1, 2).flatten(2)))
    ours.eval()
    assert torch.equal(ours(*inputs(ours))[0], ours(*inputs(ours))[0])


def test_self_attention_of_one_tensor_compiles_and_needs_no_weights(impl):
    torch._dynamo.reset()
    ours, theirs = modules(batch_first=True)
    x = random(N, L, E)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    got, weights = compiled(x, x, x, need_weights=False)
    torch.testing.assert_close(got, theirs(x, x, x)[0])
    assert weights is None


def test_constructor_state_and_pickle_are_torchs():
    torch.manual_seed(0)
    ours = hetkern.nn.MultiheadAttention(E, H, 0.1, impl="reference")
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, 0.1)
    assert isinstance(ours, nn.MultiheadAttention) and "impl='reference'" in repr(ours)
    for (a, x), (b, y) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert a == b and torch.equal(x, y)
    again = pickle.loads(pickle.dumps(ours))
    assert type(again) is hetkern.nn.MultiheadAttention and again.impl == "reference"
    hetkern.nn.convert(again, to="torch")
    assert type(again) is nn.MultiheadAttention


def test_a_converted_transformer_layer_trains_as_before(impl):
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True, dtype=F64)
    ours = copy.deepcopy(theirs)
    assert "self_attn" in hetkern.nn.convert(ours).converted
    x, padding = random(N, S, E), PADDING
    results = []
    for layer in (ours, theirs):
        out = layer(x, src_key_padding_mask=padding)[~padding]
        results.append((out, *torch.autograd.grad(out.square().sum(), [*layer.parameters()])))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "name, mask, message",
    [
        ("attn_mask", torch.ones(L, S).long(), r"attn_mask: wanted a boolean or floating dtype"),
        ("attn_mask", torch.ones(L, S + 1) > 0, r"attn_mask: wanted shape .*got \(5, 8\)"),
        (
            "key_padding_mask",
            torch.ones(N, S + 1) > 0,
            r"key_padding_mask: wanted shape .*got \(3, 8\)",
        ),
    ],
)
def test_a_module_refuses_by_name(name, mask, message):
    ours, _ = modules()
    with pytest.raises(ValueError, match=message):
        ours(*inputs(ours), **{name: mask})


# ---- Nested tensors. -----------------------------------------------------------------------------


def test_nested_tensors_go_to_torchs_forward(monkeypatch):
    monkeypatch.setattr("hetkern.impl._warned", set())
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    hidden = torch.tensor([[False] * 3, [False, False, True]])
    x = normal(2, 3, 8)
    with torch.no_grad():
        wanted = encoder.eval()(x, src_key_padding_mask=hidden)
        hetkern.nn.convert(encoder)
        attention = encoder.layers[0].self_attn
        attention.register_forward_hook(lambda *_: None)  # now the layer calls self_attn
        with pytest.warns(Fallback, match="runs torch's own code: nested tensors"):
            found = encoder(x, src_key_padding_mask=hidden)
        torch.testing.assert_close(found, wanted)
    rows = torch.nested.nested_tensor([x[0], x[1, :2]])
    with torch.no_grad():
        found = attention(rows, rows, rows)[0].unbind()
        for row, alone in zip(found, (x[:1], x[1:, :2]), strict=True):
            torch.testing.assert_close(row, attention(alone, alone, alone)[0][0])
    refused = "impl: 'cpu' cannot run here: nested tensors"
    with hetkern.use("cpu"), pytest.raises(NotImplementedError, match=refused):
        attention(rows, rows, rows)
    attention.impl = "cpu"
    with pytest.raises(NotImplementedError, match=refused):
        attention(rows, rows, rows)


def test_hetkern_strict_leaves_no_nested_tensors_to_torch(monkeypatch):
    monkeypatch.setenv("HETKERN_STRICT", "1")
    rows = torch.nested.nested_tensor([normal(3, 8), normal(2, 8)])
    attention = hetkern.nn.MultiheadAttention(8, 2, batch_first=True)
    with pytest.raises(NotImplementedError, match="nothing but torch's own code can run here"):
        attention(rows, rows, rows)
