"""Sampling: greedy, top-k, temperature, and the context's edge."""

import pytest
import torch

from hetkern.models import GPT, GPTShape, choose_kernels
from hetkern.training import generate, sample
from hetkern.training.generate import Draw, sample_many, sample_stream
from hetkern.training.tokenizer import Bytes, Characters


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(GPTShape(11, 6, 1, 2, 8), choose_kernels("torch"))
    with torch.no_grad():
        model.token_embedding.weight.mul_(50)  # logits far enough apart to tell tokens apart
    return model.eval()


def test_generate_keeps_the_prompt_and_runs_past_the_context(model):
    out = generate(model, torch.tensor([1, 2, 3]), 20)
    assert out.shape == (23,)
    assert out[:3].tolist() == [1, 2, 3]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-6}])
def test_temperature_0_and_top_1_take_the_likeliest_token(model, options):
    tokens = torch.tensor([4])
    for seen in (
        1,
        2,
        3,
        4,
        5,
        6,
        3,
        4,
        5,
        6,
        3,
    ):  # of a context of 6, half is kept when it is full
        likeliest = model(tokens[None, -seen:])[0, -1].argmax(keepdim=True)
        tokens = torch.cat([tokens, likeliest])
    assert generate(model, torch.tensor([4]), 11, **options).equal(tokens)


def test_top_k_draws_the_k_likeliest_in_proportion(model):
    likeliest = model(torch.tensor([[4]]))[0, -1].softmax(-1)
    top = likeliest.topk(3)
    generator = torch.Generator().manual_seed(0)
    drawn = [generate(model, torch.tensor([4]), 1, 1.0, 3, generator)[1].item() for _ in range(500)]
    counts = torch.tensor([drawn.count(i) for i in top.indices.tolist()]) / 500
    assert counts.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(counts, top.values / top.values.sum(), atol=0.08, rtol=0)


def test_the_same_generator_state_draws_the_same_text(model):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return generate(model, torch.tensor([4]), 30, 5.0, generator=generator)

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7}, {"repetition_penalty": 2.0, "top_k": 5}])
@pytest.mark.parametrize(
    "changes",
    [{}, {"positions": "learned"}, {"kv_heads": 1, "window": 3, "mlp": "swiglu"}],
    ids=str,
)
def test_cached_and_uncached_draw_the_same_text(changes, options):
    torch.manual_seed(0)
    model = GPT(GPTShape(11, 6, 2, 2, 8, **changes), choose_kernels("hetkern")).double()
    texts = [
        generate(model, torch.tensor([4, 1]), 40, 2.0, generator=generator, cache=cache, **options)
        for cache in (True, False)
        for generator in [torch.Generator().manual_seed(7)]
    ]
    assert texts[0].equal(texts[1])
    assert len(texts[0].unique()) > 3
    assert model.training


def test_top_p_draws_the_likeliest_that_reach_it_in_proportion():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64).log()
    generator = torch.Generator().manual_seed(0)
    how = Draw(temperature=1.0, top_p=0.7)
    drawn = [how.draw(logits, torch.tensor([0]), generator).item() for _ in range(600)]
    assert set(drawn) == {1, 3}  # 0.5 is not enough, 0.75 is
    assert drawn.count(1) / 600 == pytest.approx(2 / 3, abs=0.06)
    assert Draw(1.0, top_p=1e-9).draw(logits, torch.tensor([0]), generator).item() == 1


def test_a_repetition_penalty_makes_what_was_there_less_likely():
    logits = torch.tensor([2.0, -1.0, 1.5, -1.1], dtype=torch.float64)
    seen = torch.tensor([0, 1, 0])
    assert Draw(0).draw(logits, seen, None).item() == 0
    assert Draw(0, repetition_penalty=1.5).draw(logits, seen, None).item() == 2
    assert Draw(0, repetition_penalty=1.5).draw(logits[[1, 3]], torch.tensor([0]), None).item() == 1


def test_each_prompt_gives_the_same_text_alone_and_among_others(model):
    tokenizer = Characters("abcdefghij")
    prompts = ["abc", "a", "cde", "abc"]
    many = sample_many(model, tokenizer, prompts, 15, Draw(2.0), seed=3)
    alone = [sample(model, tokenizer, p, 15, 2.0, seed=3 + i) for i, p in enumerate(prompts)]
    assert many == alone
    assert many[0] != many[3] and [len(text) for text in many] == [18, 16, 18, 18]


@pytest.mark.parametrize(
    "tokenizer", [Characters("abcdefghij"), Bytes()], ids=["characters", "bytes"]
)
def test_a_stream_gives_the_text_in_pieces(tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTShape(tokenizer.vocabulary, 6, 1, 2, 8), choose_kernels("torch"))
    pieces = list(sample_stream(model, tokenizer, "a", 30, Draw(2.0), seed=3))
    assert "".join(pieces) == sample(model, tokenizer, "a", 30, 2.0, seed=3)
    assert len(pieces) > 10


def test_generate_refuses_an_empty_prompt_and_negative_numbers(model):
    with pytest.raises(ValueError, match="tokens must hold at least one"):
        generate(model, torch.tensor([], dtype=torch.long), 3)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        generate(model, torch.tensor([1]), 3, temperature=-1)
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got 0"):
        generate(model, torch.tensor([1]), 3, top_p=0)
    with pytest.raises(ValueError, match="repetition_penalty must be above 0, got nan"):
        generate(model, torch.tensor([1]), 3, repetition_penalty=float("nan"))
