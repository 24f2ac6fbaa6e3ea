"""Sampling: greedy, top-k, temperature, and the context's edge."""

import pytest
import torch

from hetkern.models import GPT, GPTShape, choose_kernels
from hetkern.training import generate


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
    for _ in range(8):
        likeliest = model(tokens[None, -6:])[0, -1].argmax(keepdim=True)
        tokens = torch.cat([tokens, likeliest])
    assert generate(model, torch.tensor([4]), 8, **options).equal(tokens)


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


def test_generate_refuses_an_empty_prompt_and_negative_numbers(model):
    with pytest.raises(ValueError, match="tokens must hold at least one"):
        generate(model, torch.tensor([], dtype=torch.long), 3)
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        generate(model, torch.tensor([1]), 3, temperature=-1)
