"""Models of transformers with ``attn_implementation="hetkern"`` against ``eager``."""

import copy
import warnings

import pytest
import torch

from hetkern.testing.devices import normal

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from hetkern.integrations import transformers as integration  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"sliding_window": 5}
CONFIGS = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", GROUPED | WINDOW),
    "gemma2": ("Gemma2Config", GROUPED | WINDOW | {"query_pre_attn_scalar": 8}),
    "gpt_oss": (
        "GptOssConfig",
        GROUPED | WINDOW | {"num_local_experts": 2, "num_experts_per_tok": 2},
    ),
    "qwen3": ("Qwen3Config", GROUPED),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 60, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    ),
}
OTHERS = {
    "bert": ("BertConfig", SMALL),
    "t5": (
        "T5Config",
        {
            "vocab_size": 60,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
            "relative_attention_num_buckets": 8,
        },
    ),
}
#: A stand-in whose softcap and window bite, since small random weights leave scores near 0.
CAP = {"gemma2": {"attn_logit_softcapping": 1.0}}


@pytest.fixture(autouse=True)
def registered():
    transformers.logging.set_verbosity_error()
    integration.register()


def build(kind, implementation, make="AutoModelForCausalLM", **more):
    """A model with weights that do not depend on the implementation."""
    name, options = (CONFIGS | OTHERS)[kind]
    config = getattr(transformers, name)(**options, **CAP.get(kind, {}), **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = getattr(transformers, make).from_config(
            copy.deepcopy(config), attn_implementation=implementation
        )
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            if p.dim() > 1:
                p.copy_(0.3 * normal(*p.shape, seed=i))
        for name, p in model.named_parameters():
            if name.endswith("sinks"):
                p.copy_(normal(*p.shape))
    return model.eval()


def pair(kind, make="AutoModelForCausalLM", **more):
    models = [build(kind, implementation, make, **more) for implementation in ("hetkern", "eager")]
    assert [m.config._attn_implementation for m in models] == ["hetkern", "eager"]
    return models


def tokens(B=3, L=14):
    return torch.randint(1, 60, (B, L), generator=torch.Generator().manual_seed(0))


def padding(side, B=3, L=14):
    """Sequences of different lengths, or None."""
    if side is None:
        return None
    lengths = torch.tensor([L, L - 5, L - 9])[:B]
    place = torch.arange(L)
    keep = place < lengths[:, None] if side == "right" else place >= L - lengths[:, None]
    return keep.long()


def compared(models, call, keep=None):
    """Logits and gradients of both, of what is no padding."""
    found = []
    for model in models:
        model.zero_grad()
        logits = call(model)
        logits = logits if keep is None else logits[keep.bool()]
        (logits * normal(*logits.shape, seed=3)).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((logits.detach(), gradients))
    (ours, our_gradients), (eager, gradients) = found
    assert our_gradients.keys() == gradients.keys()
    assert eager.std() > 0.01
    close(ours, eager)
    largest = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():  # that of a bias of keys is 0, and rounding
        close(our_gradients[name], gradient, 0.01 * largest)


def close(a, b, size=0.0):
    """Within float32 rounding of the largest element: both sum some hundred numbers in turn."""
    allowed = 200 * torch.finfo(torch.float32).eps * b.abs().max().clamp_min(size)
    assert (a - b).abs().max() <= allowed


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_and_gradients_are_those_of_eager(kind, side):
    keep = padding(side)
    compared(pair(kind), lambda model: model(tokens(), attention_mask=keep).logits, keep)


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_an_encoder_has_the_states_of_eager(side):
    keep = padding(side)
    models = pair("bert", "AutoModel")
    compared(models, lambda m: m(tokens(), attention_mask=keep).last_hidden_state, keep)


@pytest.mark.parametrize("side", [None, "right"])
def test_an_encoder_and_decoder_with_position_bias_are_those_of_eager(side):
    keep, models = padding(side), pair("t5", "AutoModelForSeq2SeqLM")

    def call(model):
        return model(tokens(), attention_mask=keep, decoder_input_ids=tokens(3, 9)).logits

    compared(models, call)
    biases = [n for n, p in models[0].named_parameters() if "relative_attention_bias" in n]
    assert biases and all(dict(models[0].named_parameters())[n].grad.ne(0).any() for n in biases)


def packed_masks(model, positions):
    """A model's masks of packed sequences, made by transformers' own functions."""
    from transformers import masking_utils as m

    states, config = torch.zeros(*positions.shape, 8), model.config
    return {
        "full_attention": m.create_causal_mask(config, states, None, None, positions),
        "sliding_attention": m.create_sliding_window_causal_mask(
            config, states, None, None, positions
        ),
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_sequences_are_those_of_eager(kind):
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1, 2, 3, 4]] * 3)

    def call(model):
        # GPT-OSS makes its masks without its positions: a sequence would see those before it.
        more = {"attention_mask": packed_masks(model, positions)} if kind == "gpt_oss" else {}
        return model(tokens(), position_ids=positions, use_cache=False, **more).logits

    compared(pair(kind), call)
    alone = build(kind, "hetkern")
    whole = call(alone)
    parts = [alone(tokens()[:, a:b]).logits for a, b in ((0, 7), (7, 9), (9, 14))]
    close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss"])
def test_sequences_told_apart_by_their_lengths_are_each_alone(kind):
    """What a collator for flash-attention hands in, with a cache, where positions say nothing."""
    model, text, ends = build(kind, "hetkern"), tokens(1), torch.tensor([0, 7, 9, 14])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1, 2, 3, 4]])
    lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 7, "max_length_k": 7}
    parts = [model(text[:, a:b]).logits for a, b in ((0, 7), (7, 9), (9, 14))]
    for cache in (False, True):
        close(
            model(text, position_ids=positions, use_cache=cache, **lengths).logits,
            torch.cat(parts, 1),
        )


def test_lengths_of_sequences_beside_padding_are_refused_by_name():
    q, ends = normal(1, 2, 4, 8), torch.tensor([0, 3, 4])
    with pytest.raises(NotImplementedError, match="hetkern in transformers: cu_seq_lens_q"):
        integration.attention_forward(
            torch.nn.Module(),
            q,
            q,
            q,
            torch.ones(1, 4).long(),
            cu_seq_lens_q=ends,
            cu_seq_lens_k=ends,
        )


@pytest.mark.parametrize("added", [False, True])
def test_a_mask_of_pairs_and_lengths_of_sequences_both_hold(added):
    q, ends = normal(2, 2, 4, 8), torch.tensor([0, 3, 3, 4, 6, 8])
    mask = torch.ones(2, 1, 4, 4).tril().bool()
    given = torch.zeros(2, 1, 4, 4).masked_fill(~mask, -torch.inf) if added else mask
    number = torch.tensor([[0, 0, 0, 1], [2, 2, 3, 3]])
    same = number[:, None, :, None] == number[:, None, None, :]
    found, _ = integration.attention_forward(
        torch.nn.Module(), q, q, q, given, cu_seq_lens_q=ends, cu_seq_lens_k=ends
    )
    wanted, _ = integration.attention_forward(torch.nn.Module(), q, q, q, mask & same)
    close(found, wanted)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", [*CONFIGS, "t5"])
def test_generation_is_that_of_eager_token_for_token(kind, cache):
    make = "AutoModelForSeq2SeqLM" if kind == "t5" else "AutoModelForCausalLM"
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generated = [
        model.generate(
            tokens(),
            attention_mask=padding("left" if kind != "t5" else "right"),
            cache_implementation=cache,
            disable_compile=True,
            **options,
        )
        for model in pair(kind, make)
    ]
    assert torch.equal(*generated)
    assert len(generated[0].unique()) > 3


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_prompt_in_pieces_has_the_logits_of_the_whole(kind):
    model = build(kind, "hetkern")
    whole, cache = model(tokens()).logits, None
    pieces = []
    for piece in tokens().split([6, 5, 1, 2], 1):
        result = model(piece, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        pieces.append(result.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("kind", [*CONFIGS, "bert"])
def test_no_mask_of_queries_times_keys_is_made(kind, side, monkeypatch):
    def refuse(**arguments):
        raise AssertionError("a mask of Lq times Lk")

    monkeypatch.setattr(integration, "_mask", refuse)
    L, largest = 61, [0]
    model = build(kind, "hetkern", "AutoModel")

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        """The largest tensor with dimensions of queries and of keys."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(t, torch.Tensor) and list(t.shape).count(L) > 1:
                    largest[0] = max(largest[0], t.untyped_storage().nbytes() // t.element_size())
            return result

    with Watch():
        model(tokens(2, L), attention_mask=padding(side, 2, L))
    assert largest[0] < L * L
    if side is None:
        model(tokens(1, 14), position_ids=torch.arange(14)[None] % 7, use_cache=False)


def test_a_mask_function_of_other_parts_becomes_a_mask():
    from transformers import masking_utils

    config = build("llama", "hetkern").config
    for more in (
        {"and_mask_function": lambda b, h, i, j: j % 2 == 0},
        {"or_mask_function": lambda b, h, i, j: i == j + 1},
    ):
        mask = masking_utils.create_causal_mask(config, torch.zeros(2, 6, 8), None, None, **more)
        config_eager = copy.deepcopy(config)
        config_eager._attn_implementation = "sdpa"
        wanted = masking_utils.create_causal_mask(
            config_eager, torch.zeros(2, 6, 8), None, None, **more
        )
        assert torch.equal(mask, wanted)
    q = normal(2, 4, 6, 8)
    out, weights = integration.attention_forward(torch.nn.Module(), q, q, q, mask)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, q, q, mask)
    torch.testing.assert_close(out, wanted.transpose(1, 2))
    assert weights is None


def test_a_custom_mask_of_floats_is_added():
    model, eager = pair("llama")
    mask = torch.zeros(3, 1, 14, 14).masked_fill(torch.rand(3, 1, 14, 14) < 0.3, -10.0)
    logits = [m(tokens(), attention_mask=mask).logits for m in (model, eager)]
    close(*logits)


def test_training_drops_weights_and_differs_from_step_to_step():
    model = build("llama", "hetkern", attention_dropout=0.5).train()
    torch.manual_seed(0)
    first, second = model(tokens()).logits, model(tokens()).logits
    torch.manual_seed(0)
    again = model(tokens()).logits
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_a_model_in_16_bits_runs_and_is_near_its_float32_self():
    model = build("gemma2", "hetkern")
    wanted = model(tokens()).logits
    got = copy.deepcopy(model).bfloat16()(tokens()).logits
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_model_compiles_with_its_gradients():
    torch._dynamo.reset()
    model, keep = build("mistral", "hetkern"), padding("left")
    wanted = model(tokens(), attention_mask=keep).logits
    compiled = torch.compile(model, backend="aot_eager")
    got = compiled(tokens(), attention_mask=keep).logits
    torch.testing.assert_close(got, wanted)
    got.square().sum().backward()


def test_gradient_checkpointing_passes_a_structure_on():
    models = [build("mistral", "hetkern").train() for _ in range(2)]
    models[1].gradient_checkpointing_enable()
    keep = padding("left")
    compared(models, lambda m: m(tokens(), attention_mask=keep).logits, keep)


def test_what_is_not_honoured_is_refused_by_name():
    q = normal(1, 2, 3, 8)
    for name, value in (("output_attentions", True), ("head_mask", torch.ones(2))):
        with pytest.raises(NotImplementedError, match=rf"hetkern in transformers: {name}"):
            integration.attention_forward(torch.nn.Module(), q, q, q, None, **{name: value})
    with pytest.raises(NotImplementedError, match="sliding_window"):
        integration.attention_forward(
            torch.nn.Module(), q, q, q, None, is_causal=False, sliding_window=2
        )
    structure = integration.structure_of(1, 3, 3)
    for touch in (lambda: structure[:, :, :, :2], lambda: structure.float(), lambda: structure.T):
        with pytest.raises(NotImplementedError, match="reads or changes its mask"):
            touch()
    with pytest.raises(NotImplementedError, match=r"wanted one of 3 queries and 2 keys"):
        integration.attention_forward(torch.nn.Module(), q, q[:, :, :2], q[:, :, :2], structure)
    for touch in (lambda: q + structure, lambda: q.masked_fill(structure, 0.0)):
        with pytest.raises(NotImplementedError, match=r"changes its mask \((add|masked_f)"):
            touch()


@pytest.mark.parametrize("kind", [*CONFIGS, "t5"])
def test_attention_weights_as_an_output_are_refused_by_name(kind):
    model = build(kind, "hetkern", "AutoModel")
    more = {"decoder_input_ids": tokens(3, 9)} if kind == "t5" else {}
    with pytest.raises(NotImplementedError, match="hetkern in transformers: output_attentions"):
        model(tokens(), output_attentions=True, **more)
    model(tokens(), output_hidden_states=True, **more)  # which are all there
