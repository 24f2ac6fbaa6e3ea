"""What bad input to an RNN gets: an error that names op, argument, wanted and got."""

import pytest
import torch
from recurrent import CELLS, call, module, weights_of

import hetkern
from hetkern.ops.rnn import OPS

pytestmark = pytest.mark.any_level

T, B, COLUMNS, H = 3, 2, 4, 5
X = torch.zeros(T, B, COLUMNS)


def gru(x=X, h0=None, weights=None, **options):
    weights = (
        weights_of(module("gru", COLUMNS, H, dtype=torch.float32)) if weights is None else weights
    )
    return hetkern.gru(x, h0, weights, **options)


WRONG = {
    "lengths beyond T": (
        {"lengths": torch.tensor([1, 4])},
        r"lengths: wanted .*in \[0, 3\], got 4 for row 1",
    ),
    "negative lengths": (
        {"lengths": torch.tensor([-1, 1])},
        r"lengths: wanted .*in \[0, 3\], got -1 for row 0",
    ),
    "float lengths": (
        {"lengths": torch.tensor([1.0, 2.0])},
        r"lengths: wanted integers, got .*float32",
    ),
    "boolean lengths": (
        {"lengths": torch.tensor([True, True])},
        r"lengths: wanted integers, got .*bool",
    ),
    "lengths of another batch": (
        {"lengths": torch.tensor([1])},
        r"lengths: wanted shape \(2,\), got \(1,\)",
    ),
    "lengths beside batch sizes": (
        {"x": X[:, 0], "batch_sizes": torch.tensor([1, 1, 1]), "lengths": torch.tensor([1])},
        r"lengths: wanted none beside batch_sizes",
    ),
    "state of another size": (
        {"h0": torch.zeros(1, B, H + 1)},
        r"h0: wanted shape \(1, 2, 5\), got \(1, 2, 6\)",
    ),
    "state of another dtype": (
        {"h0": torch.zeros(1, B, H).double()},
        r"h0: wanted torch.float32, got torch.float64",
    ),
    "float reset": (
        {"reset": torch.zeros(B, T)},
        r"reset: wanted a boolean tensor, got torch.float32",
    ),
    "reset of another shape": (
        {"reset": torch.zeros(T, B) > 0},
        r"reset: wanted shape \(2, 3\), got \(3, 2\)",
    ),
    "dropout of 1": ({"dropout": 1.0}, r"dropout: wanted a probability in \[0, 1\), got 1.0"),
    "negative dropout": ({"recurrent_dropout": -0.5}, r"recurrent_dropout: wanted .*got -0.5"),
    "dropout that is no number": (
        {"variational_dropout": float("nan")},
        r"variational_dropout: wanted .*got nan",
    ),
    "integer x": ({"x": X.long()}, r"x: wanted a floating dtype, got torch.int64"),
    "x of four dimensions": (
        {"x": X[None]},
        r"x: wanted shape \(T, B, I\) or \(T, I\), got \(1, 3, 2, 4\)",
    ),
    "wide x": (
        {"x": torch.zeros(T, B, COLUMNS + 1)},
        r"weights\[0\]: w_ih: wanted shape \(15, 5\), got \(15, 4\)",
    ),
    "x of another dtype": (
        {"x": X.double()},
        r"weights\[0\]: w_ih: wanted torch.float64, got torch.float32",
    ),
    "no weights": (
        {"weights": []},
        r"weights: wanted one tuple for each layer and direction, got 0",
    ),
    "one direction of two": ({"bidirectional": True}, r"weights: wanted one tuple .*got 1"),
    "a projection": (
        {"weights": [(torch.zeros(15, 4), torch.zeros(15, 2), None, None, torch.zeros(2, 5))]},
        r"weights\[0\]: wanted \(w_ih, w_hh, b_ih, b_hh\), got 5",
    ),
}


@pytest.mark.parametrize("wrong, message", WRONG.values(), ids=WRONG)
def test_a_sequence_refuses_by_name(impl, wrong, message):
    if impl.name == "reference" and "lengths" in wrong and "wanted .*in" in message:
        pytest.skip("the reference looks at no value")
    with pytest.raises(
        ValueError, match=rf"(hetkern.gru|hetkern::rnn_(sequence|layer)): {message}"
    ):
        gru(**wrong)


@pytest.mark.parametrize("name", ["h0", "lengths", "reset", "batch_sizes"])
def test_a_sequence_refuses_what_is_no_tensor(name):
    with pytest.raises(TypeError, match=rf"hetkern\.gru: {name}: wanted a tensor, got list"):
        gru(**{name: [1, 2]})


def test_a_sequence_without_steps_is_refused_as_torch_does(impl):
    with pytest.raises(RuntimeError, match=r"gru: x: wanted a sequence of at least one step"):
        gru(torch.zeros(0, B, COLUMNS))
    with pytest.raises(RuntimeError):
        torch.nn.GRU(COLUMNS, H)(torch.zeros(0, B, COLUMNS))


def test_a_projection_is_narrower_than_the_state(impl):
    weights = (torch.zeros(20, 4), torch.zeros(20, 5), None, None, torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"lstm: weights: wanted w_hr \(P, H\) with P below H"):
        hetkern.lstm(X, None, [weights])


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match=r"rnn: nonlinearity: wanted 'tanh' or 'relu', got 'sin'"):
        hetkern.rnn(X, None, [], nonlinearity="sin")
    with pytest.raises(ValueError, match=r"rnn_cell: nonlinearity: wanted .*got 'sin'"):
        hetkern.rnn_cell(X[0], X[0], X[0], X[0], nonlinearity="sin")


def test_an_lstm_wants_two_states():
    with pytest.raises(ValueError, match=r"lstm: state: wanted \(h0, c0\), two tensors"):
        hetkern.lstm(X, torch.zeros(1, B, H), [])
    with pytest.raises(ValueError, match=r"lstm_cell: state: wanted \(h, c\), two tensors"):
        hetkern.lstm_cell(X[0], torch.zeros(B, H), X[0], X[0])


CELL_WRONG = {
    "state of another size": (
        {"h": torch.zeros(B, H + 1)},
        r"h: wanted shape \(2, 5\), got \(2, 6\)",
    ),
    "state of another batch": (
        {"h": torch.zeros(B + 1, H)},
        r"h: wanted shape \(2, 5\), got \(3, 5\)",
    ),
    "state of another dtype": (
        {"h": torch.zeros(B, H).double()},
        r"h: wanted torch.float32, got torch.float64",
    ),
    "narrow w_ih": ({"w_ih": torch.zeros(15, 3)}, r"w_ih: wanted shape \(15, 4\), got \(15, 3\)"),
    "short w_hh": ({"w_hh": torch.zeros(10, 5)}, r"w_hh: wanted shape \(15, 5\), got \(10, 5\)"),
    "x of three dimensions": ({"x": X}, r"x: wanted shape \(B, I\) or \(I,\), got \(3, 2, 4\)"),
}


@pytest.mark.parametrize("wrong, message", CELL_WRONG.values(), ids=CELL_WRONG)
def test_a_cell_refuses_by_name(impl, wrong, message):
    given = {
        "x": X[0],
        "h": torch.zeros(B, H),
        "w_ih": torch.zeros(15, 4),
        "w_hh": torch.zeros(15, 5),
    }
    with pytest.raises(ValueError, match=f"gru_cell: {message}"):
        hetkern.gru_cell(**(given | wrong))


@pytest.mark.parametrize("cell", CELLS)
def test_registered_ops_check_their_arguments_themselves(native, cell):
    """torch.ops can be called past Python: nothing is read out of bounds."""
    number, gates = CELLS.index(cell), {"lstm": 4, "gru": 3}.get(cell, 1) * H
    step, walk = torch.ops.hetkern.rnn_gates, torch.ops.hetkern.rnn_sequence
    x, state = torch.zeros(B, gates), torch.zeros(B, H)
    h, c = state if cell == "gru" else None, state if cell == "lstm" else None
    step(number, x, x, h, c)
    with pytest.raises(ValueError, match=r"rnn_gates: cell: wanted 0 .*got 4"):
        step(4, x, x, h, c)
    with pytest.raises(ValueError, match=r"rnn_gates: h_gates: wanted shape .*got"):
        step(number, x, torch.zeros(B + 1, gates), h, c)
    with pytest.raises(ValueError, match=r"rnn_gates: c: wanted"):
        step(number, x, x, h, None if cell == "lstm" else state)
    x, w = torch.zeros(T, B, gates), torch.zeros(gates, H)
    rest = None, None, None, None, False, False
    walk(number, x, w, None, state, c, *rest)
    with pytest.raises(ValueError, match=r"rnn_sequence: w_hh: wanted shape .*got"):
        walk(number, x, w[:-1], None, state, c, *rest)
    with pytest.raises(
        ValueError, match=r"rnn_sequence: lengths: wanted values in \[0, 3\], got 9"
    ):
        walk(number, x, w, None, state, c, torch.tensor([1, 9]), *rest[1:])
    for sizes, message in (
        ([2, 3, 1], "no more than the step before has"),
        ([3, 2, 1], "at most B"),
        ([2, 2, 1], "a sum of 6"),
        ([2, 1, -1], "no more than"),
    ):
        packed = None, torch.tensor(sizes), *rest[2:]
        with pytest.raises(ValueError, match=rf"rnn_sequence: batch_sizes: wanted .*{message}"):
            walk(number, x.reshape(6, gates), w, None, state, c, *packed)
    back = torch.ops.hetkern.rnn_sequence_backward
    with pytest.raises(ValueError, match=r"rnn_sequence_backward: y: wanted shape .*got"):
        back(number, None, None, None, torch.zeros(1), x, x, x, w, None, state, c, *rest[:-1])


def test_a_named_implementation_never_falls_back():
    with pytest.raises(NotImplementedError, match=r"gru: impl: 'cuda' cannot run here: \w+"):
        gru(impl="cuda")
    assert set(OPS) >= {"cpu", "cuda", "triton"}
    assert (
        len(call("gru", X, None, weights_of(module("gru", COLUMNS, H, dtype=torch.float32)))) == 2
    )


def test_a_tensor_on_another_device_is_refused(impl):
    away = torch.ones(B, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"gru: lengths: wanted a tensor on .*got one on meta"):
        gru(lengths=away)
    given = torch.zeros(15, 4), torch.zeros(15, 5)
    with pytest.raises(ValueError, match=r"gru_cell: h: wanted a tensor on .*got one on meta"):
        hetkern.gru_cell(X[0], torch.zeros(B, H, device="meta"), *given)
