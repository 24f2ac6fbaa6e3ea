"""The GPT: causal, any head size and length, and the same on our kernels and torch's."""

import pytest
import torch

from hetkern.models import GPT, GPTShape, choose_kernels
from hetkern.models.gpt import Rotary
from hetkern.testing import assert_close_to_exact


def make(kernels="torch", **changes):
    torch.manual_seed(0)
    shape = {"vocabulary": 11, "context": 9, "layers": 2, "heads": 2, "width": 12} | changes
    return GPT(GPTShape(**shape), choose_kernels(kernels))


@pytest.mark.parametrize(("heads", "width"), [(1, 1), (3, 3), (1, 7), (4, 20)])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_any_head_size_and_length_gives_logits(heads, width, length, positions):
    model = make(heads=heads, width=width, positions=positions)
    logits = model(torch.zeros(3, length, dtype=torch.long))
    assert logits.shape == (3, length, 11)
    assert logits.isfinite().all()


VARIANTS = [
    {}, {"positions": "learned"}, {"kv_heads": 1}, {"window": 3}, {"norm": "rms", "mlp": "swiglu"},
    {"tied": False}, {"kv_heads": 2, "window": 4, "heads": 4, "tied": False, "mlp": "swiglu"},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_no_logit_depends_on_a_later_token(changes):
    model = make(**changes)
    tokens = torch.randint(11, (1, 9))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()  # and each later one does


def test_a_window_hides_what_lies_before_it():
    model = make(layers=1, window=3)
    tokens = torch.randint(11, (1, 9))
    changed = tokens.clone()
    changed[0, 2] = (tokens[0, 2] + 1) % 11
    differs = (model(tokens) != model(changed)).any(-1)[0].tolist()
    assert differs == [False] * 2 + [True] * 3 + [False] * 4


@pytest.mark.parametrize("kernels", ["hetkern", "torch"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_sequence_in_pieces_gives_the_logits_of_the_whole(kernels, changes):
    model = make(kernels, **changes).double()
    tokens = torch.randint(11, (3, 9))
    whole = model(tokens)
    state, held = model.start(3), 0
    for end in (4, 5, 6, 8, 9):
        logits, state = model.extend(tokens[:, held:end], state)
        held = end
        assert_close_to_exact(logits, whole[:, end - 1], whole[:, end - 1])
    with pytest.raises(ValueError, match="at most 9 long, got 10"):
        model.extend(tokens[:, :1], state)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_recomputed_activations_give_the_same_gradients(changes):
    tokens = torch.randint(11, (4, 9))
    gradients = []
    for recompute in (False, True):
        model = make(**changes)
        model.recompute = recompute
        model.loss(tokens, tokens.roll(-1, 1)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_fresh_model_is_close_to_uniform():
    model = make(vocabulary=256, width=128, heads=4)
    tokens = torch.randint(256, (8, 9))
    assert model.loss(tokens, torch.randint(256, (8, 9))).item() == pytest.approx(5.545, abs=0.1)


def test_the_residual_projections_start_smaller():
    model = make(layers=8, width=64)
    block = model.blocks[0]
    assert block.mlp.widen.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.project.weight.std().item() == pytest.approx(0.005, rel=0.05)


def test_too_long_a_text_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match="GPT: tokens must be at most 9 long, got 10"):
        make()(torch.zeros(1, 10, dtype=torch.long))


def test_rotary_scores_depend_on_the_distance_alone():
    rotary = Rotary(context=16, D=7).double()
    q, k = torch.randn(2, 7, dtype=torch.float64)
    heads = torch.stack([q, k, q]).expand(1, 16, 3, 7)
    turned_q, turned_k, v = rotary(heads, 1, 1)
    assert v.equal(heads[:, None, :, 2])
    scores = turned_q[0, 0] @ turned_k[0, 0].T
    for distance in range(16):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[:1], atol=1e-6)  # the angles are float32
    assert torch.allclose(scores[0, 0], q @ k)
    assert (scores[0] - scores[0, 0]).abs().max() > 0.1


def test_rotary_has_the_gradients_of_its_equations():
    """Also twice, forward, and for each sample; behind some tokens; of an odd D."""
    rotary = Rotary(context=9, D=5).double()
    heads = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)

    def turn(heads):
        return rotary(heads, 2, 1, 3)

    def plain(heads):
        cos, sin = rotary.cos[3:7, :, :2].double(), rotary.sin[3:7].double()
        x, y, rest = heads[..., :3, :].tensor_split((2, 4), -1)
        turned = torch.cat([x * cos - y * sin, y * cos + x * sin, rest], -1).transpose(1, 2)
        return *turned.split([2, 1], 1), heads[..., 3:, :].transpose(1, 2)

    for got, wanted in zip(turn(heads), plain(heads), strict=True):
        assert torch.allclose(got, wanted)
    assert torch.autograd.gradcheck(turn, heads, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(turn, heads)

    def norm(heads, of):
        return sum((part**3).sum() for part in of(heads[None]))

    each = torch.func.vmap(torch.func.grad(norm), (0, None))
    assert torch.allclose(each(heads, turn), each(heads, plain))


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match="positions must be rotary or learned, got 'none'"):
        make(positions="none")
    with pytest.raises(ValueError, match="heads 2 is not a multiple of kv_heads 3"):
        make(kv_heads=3)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_order_of_tokens_matters(positions):
    model = make(positions=positions, layers=1)
    tokens = torch.tensor([[1, 2, 3], [2, 1, 3]])
    last = model(tokens)[:, -1]
    assert not torch.allclose(last[0], last[1])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_weight_gets_a_gradient(changes):
    model = make(**changes)
    tokens = torch.randint(11, (4, 9))
    model.loss(tokens, tokens.roll(-1, 1)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_acts_in_training_alone():
    model = make(dropout=0.5)
    tokens = torch.randint(11, (1, 9))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_hetkern_and_torch_kernels_agree_on_the_loss(changes):
    tokens = torch.randint(11, (4, 9))
    kinds = ("hetkern", "reference", "torch")
    losses = [make(kernels, **changes).loss(tokens, tokens) for kernels in kinds]
    assert losses[0].item() == pytest.approx(losses[2].item(), rel=1e-6)
    assert losses[1].item() == pytest.approx(losses[2].item(), rel=1e-6)
