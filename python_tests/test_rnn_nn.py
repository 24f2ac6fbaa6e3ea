"""The RNN modules are torch's: construction, state, copies, errors, and what is done to them."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from test_rnn_packed import as_packed, judged, pair
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_leaves

import hetkern
from hetkern.testing.devices import here, normal

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.filterwarnings("ignore::hetkern.impl.Fallback"),
]
SEQUENCES, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")
T, B, COLUMNS, H = 4, 3, 2, 5


def both(name, *args, **options):
    """Ours and torch's of the same seed."""
    made = []
    for library in (hetkern.nn, nn):
        torch.manual_seed(0)
        made.append(here(getattr(library, name)(*args, **options)))
    return made


def an_input(name, **options):
    return normal(*((B,) if "Cell" in name else (T, B)), COLUMNS, **options)


# ---- Construction. -------------------------------------------------------------------------------


def parameters_of(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_a_constructor_begins_with_torchs_and_ours_follow_by_keyword(name):
    torchs = parameters_of((nn.RNNBase if name in SEQUENCES else getattr(nn, name)).__init__)
    ours = parameters_of(getattr(hetkern.nn, name).__init__)
    torchs = [p for p in torchs if p[0] != "mode"]
    if name == "RNN":  # torch takes it out of the way, by its place
        place = [p[0] for p in ours].index("nonlinearity")
        assert (place, ours.pop(place)[2]) == (4, "tanh")
    assert ours[: len(torchs)] == torchs
    more = ours[len(torchs) :]
    assert more and all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in more)


@pytest.mark.parametrize(
    "name, args",
    [
        ("RNN", (2, 5, 2, "relu", False, True, 0.3, True, 0, "cpu", torch.float64)),
        ("LSTM", (2, 5, 3, False, True, 0.3, True, 4, "cpu", torch.float64)),
        ("GRU", (2, 5, 2, True, True, 0.0, True, 0, "cpu", torch.bfloat16)),
        ("RNNCell", (2, 5, False, "relu", "cpu", torch.float64)),
        ("LSTMCell", (2, 5, False, "cpu", torch.float64)),
        ("GRUCell", (2, 5, True, "cpu", torch.float64)),
    ],
)
def test_every_argument_by_its_place_gives_the_module_of_torch_weight_by_weight(name, args):
    ours, torchs = both(name, *args)
    assert repr(ours) == repr(torchs)
    plain = {k: v for k, v in vars(torchs).items() if not k.startswith("_")}
    assert {k: v for k, v in vars(ours).items() if not k.startswith("_")} == plain
    assert list(ours.state_dict()) == list(torchs.state_dict())
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=0, atol=0)
    if name in SEQUENCES:
        assert [[w.shape for w in layer] for layer in ours.all_weights] == [
            [w.shape for w in layer] for layer in torchs.all_weights
        ]
        ours.flatten_parameters()
    torchs.load_state_dict(ours.state_dict())
    ours.load_state_dict(torchs.state_dict())


@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_whose_instance_a_module_is(name):
    ours, torchs = both(name, COLUMNS, H)
    if name in SEQUENCES:  # torch.compile refuses what is one of nn.RNN, nn.LSTM or nn.GRU
        assert isinstance(ours, nn.RNNBase) and not isinstance(ours, type(torchs))
    else:
        assert isinstance(ours, type(torchs))


def test_repr_is_torchs_and_then_the_options_that_were_chosen():
    made = hetkern.nn.GRU(2, 5, 2, dropout=0.1, recurrent_dropout=0.25, impl="reference")
    assert repr(made) == (
        "GRU(2, 5, num_layers=2, dropout=0.1, recurrent_dropout=0.25, impl='reference')"
    )
    assert repr(hetkern.nn.LSTMCell(2, 5, impl="cpu")) == "LSTMCell(2, 5, impl='cpu')"


@pytest.mark.parametrize("probability", [1.0, -0.1, float("nan")])
@pytest.mark.parametrize("name", ["variational_dropout", "recurrent_dropout"])
def test_a_probability_is_refused_where_it_is_given(name, probability):
    message = rf"hetkern.nn.GRU: {name}: wanted a probability in \[0, 1\), got {probability}"
    with pytest.raises(ValueError, match=message):
        hetkern.nn.GRU(2, 5, **{name: probability})


@pytest.mark.parametrize(
    "name, options, error",
    [
        ("GRU", {"proj_size": 2}, ValueError),
        ("RNN", {"proj_size": 2}, ValueError),
        ("LSTM", {"proj_size": 5}, ValueError),
        ("RNN", {"nonlinearity": "sin"}, ValueError),
        ("LSTM", {"dropout": 1.5}, ValueError),
        ("LSTM", {"bidirectional": True, "num_layers": 0}, ValueError),
        ("GRU", {"batch_first": 1}, TypeError),
        ("GRU", {"nonlinearity": "relu"}, TypeError),
    ],
)
def test_a_constructor_refuses_what_torchs_does_with_its_class_of_error(name, options, error):
    for library in (hetkern.nn, nn):
        with pytest.raises(error):
            getattr(library, name)(2, 5, **options)


def test_dropout_with_one_layer_warns_as_torch():
    for library in (hetkern.nn, nn):
        with pytest.warns(UserWarning, match="num_layers greater than 1, but got dropout=0.5"):
            library.LSTM(2, 5, dropout=0.5)


# ---- Cells. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options", [*((name, {}) for name in CELLS), ("RNNCell", {"nonlinearity": "relu"})]
)
def test_a_cell_equals_torchs_with_its_gradients(name, options):
    for bias in (True, False):
        ours, torchs = both(name, COLUMNS, H, bias, dtype=torch.float64, **options)
        for rows in ((B,), (), (0,)):
            x = normal(*rows, COLUMNS).double()
            h, c = normal(*rows, H, seed=1).double(), normal(*rows, H, seed=2).double()
            for hx in (None, (h, c) if name == "LSTMCell" else h):
                got, wanted = (
                    judged(lambda x, hx, m=made: (m(x, hx), ()), made, x, hx)
                    if name != "LSTMCell"
                    else judged(lambda x, hx, m=made: m(x, hx), made, x, hx)
                    for made in (ours, torchs)
                )
                torch.testing.assert_close(got, wanted)


# ---- Dropouts. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "unsorted"])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_dropout_between_layers_draws_torchs_masks_and_none_in_eval(cell, kind):
    ours, torchs = pair(cell, COLUMNS, 16, 3, dropout=0.4, bidirectional=True)
    x = normal(T, B, COLUMNS).double()
    given = x if kind == "dense" else as_packed(ours, x, kind)
    results = []
    for made in (ours, torchs):
        torch.manual_seed(1)
        y, _ = made(given)
        results.append(getattr(y, "data", y) if kind != "dense" else y)
    torch.testing.assert_close(*results)
    ours.eval(), torchs.eval()
    torch.testing.assert_close(ours(x), torchs(x))
    assert not torch.equal(ours(x)[0], results[0]) or kind != "dense"


@pytest.mark.parametrize("kind", ["dense", "unsorted"])
def test_the_dropouts_of_a_sequence_are_those_of_the_function_and_none_in_eval(kind):
    options = {"variational_dropout": 0.3, "recurrent_dropout": 0.4}
    made, plain = (hetkern.nn.GRU(COLUMNS, 16, **o) for o in (options, {}))
    plain.load_state_dict(made.state_dict())
    x, weights = normal(T, B, COLUMNS), [tuple(made.parameters())]
    torch.manual_seed(1)
    if kind == "dense":
        y, _ = made(x)
        torch.manual_seed(1)
        wanted, _ = hetkern.gru(x, None, weights, **options)
    else:
        packed = as_packed(made, x, kind)
        y = made(packed)[0].data
        torch.manual_seed(1)
        sizes = {"batch_sizes": packed.batch_sizes}
        wanted, _ = hetkern.gru(packed.data, None, weights, **sizes, **options)
    assert torch.equal(y, wanted) and not torch.equal(made.eval()(x)[0], made.train()(x)[0])
    assert torch.equal(made.eval()(x)[0], plain(x)[0])


# ---- Copies and what is done to weights. ---------------------------------------------------------


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["copy", "deepcopy", "pickle", "save"],
)
@pytest.mark.parametrize("name", SEQUENCES + CELLS)
def test_a_copied_or_pickled_module_is_the_same_module(name, again):
    made = getattr(hetkern.nn, name)(COLUMNS, H, impl="reference").eval()
    x = an_input(name)
    tree_leaves(made(x))[0].sum().backward()  # a module that was in use
    other = again(made)
    assert type(other) is type(made) and repr(other) == repr(made) and not other.training
    torch.testing.assert_close(other(x), made(x), rtol=0, atol=0)
    with torch.no_grad():
        other.get_parameter("weight_ih" if "Cell" in name else "weight_ih_l0").zero_()
    assert torch.equal(other(x)[0], made(x)[0]) == (again is copy.copy)


@pytest.mark.parametrize("name", SEQUENCES)
def test_weights_are_read_where_they_stand_at_each_call(name):
    """Assigned anew, pruned, cast and tied ones."""
    ours, torchs = both(name, COLUMNS, H, 2)
    x = an_input(name)

    def check(change):
        for made in (ours, torchs):
            torch.manual_seed(5)
            change(made)
        x_now = x.to(ours.weight_ih_l0.dtype)
        torch.testing.assert_close(ours(x_now), torchs(x_now))

    def assign(made):
        made.weight_hh_l0 = nn.Parameter(torch.randn_like(made.weight_hh_l0))

    def tie(made):
        made.weight_hh_l1 = made.weight_hh_l0

    check(assign)
    check(tie)
    check(lambda made: prune.l1_unstructured(made, "weight_ih_l1", 0.5))
    check(lambda made: made.double())
    assert ours.weight_ih_l1.dtype == torch.float64 and (ours.weight_ih_l1 == 0).any()


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_recurrent_weight_takes_weight_norm(name):
    made = both(name, COLUMNS, H)
    x, results = an_input(name), []
    for module in made:
        parametrizations.weight_norm(module, "weight_hh_l0")
        y, _ = module(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(*results)
    ours = made[0]
    assert "parametrizations.weight_hh_l0.original1" in ours.state_dict()
    for again in (copy.deepcopy(ours), copy.deepcopy(ours.double()).float()):  # torch's cannot
        torch.testing.assert_close(again(x), made[1](x))
    parametrize.remove_parametrizations(ours, "weight_hh_l0")
    torch.testing.assert_close(ours.float()(x), made[1](x))


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_replica_of_data_parallel_computes_with_its_own_copies(name):
    """What ``torch.nn.parallel.replicate`` does to each, which needs GPUs."""
    made = getattr(hetkern.nn, name)(COLUMNS, H)
    replica = made._replicate_for_data_parallel()
    for key, parameter in made.named_parameters():
        replica._parameters.pop(key, None)
        setattr(replica, key, 2 * parameter)
    x = an_input(name)
    y, _ = replica(x)
    wanted, _ = torch.func.functional_call(
        made, {k: 2 * p.detach() for k, p in made.named_parameters()}, (x,)
    )
    assert torch.equal(y, wanted) and not torch.equal(y, made(x)[0])
    y.sum().backward()
    assert all(p.grad.abs().max() > 0 for p in made.parameters())


# ---- Bad input. ----------------------------------------------------------------------------------


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


@pytest.mark.parametrize(
    "name, args, error, message",
    [
        ("LSTM", (zeros(1, T, B, 2),), ValueError, r"input: wanted shape \(T, B, I\) or \(T, I\)"),
        ("GRU", (zeros(T, B, 3),), RuntimeError, r"input: wanted 2 numbers a step, got shape"),
        ("GRU", (zeros(T, B, 2).double(),), ValueError, r"input: wanted torch.float32, got"),
        ("GRU", (zeros(T, B, 2), zeros(1, B, 6)), RuntimeError, r"hx: wanted shape \(1, 3, 5\)"),
        ("GRU", (zeros(T, B, 2), zeros(1, 5)), RuntimeError, r"hx: wanted shape \(1, 3, 5\)"),
        ("GRU", (zeros(T, 2), zeros(1, 1, 5)), RuntimeError, r"hx: wanted shape \(1, 5\)"),
        ("GRU", (zeros(T, B, 2), zeros(1, B, 5).double()), RuntimeError, r"hx: wanted torch.flo"),
        (
            "LSTM",
            (zeros(T, B, 2), (zeros(1, B, 5), zeros(1, 4, 5))),
            RuntimeError,
            r"hx\[1\]: wanted shape \(1, 3, 5\), got \(1, 4, 5\)",
        ),
        ("RNN", (zeros(0, B, 2),), RuntimeError, r"x: wanted a sequence of at least one step"),
        ("RNNCell", (zeros(1, B, 2),), ValueError, r"input: wanted one or two dimensions"),
        ("GRUCell", (zeros(B, 3),), RuntimeError, r"input: wanted 2 numbers a row"),
        ("GRUCell", (zeros(B, 2).double(),), RuntimeError, r"input: wanted torch.float32"),
        ("GRUCell", (zeros(B, 2), zeros(1, B, 5)), ValueError, r"hx: wanted one or two dimens"),
        (
            "LSTMCell",
            (zeros(B, 2), (zeros(B, 5), zeros(B, 6))),
            RuntimeError,
            r"hx\[1\]: wanted shape \(3, 5\), got \(3, 6\)",
        ),
    ],
)
def test_bad_input_is_refused_by_name_with_torchs_class_of_error(name, args, error, message):
    ours, torchs = both(name, 2, 5)
    with pytest.raises(error, match=rf"hetkern\.(nn\.{name}|rnn): {message}"):
        ours(*here(args))
    with pytest.raises(error):
        torchs(*here(args))


def test_what_is_no_tensor_is_refused():
    for name, args, wanted in (
        ("LSTM", (an_input("LSTM"), an_input("LSTM")), r"LSTM: hx: wanted \(h, c\), two tensors"),
        ("LSTM", ([1.0],), "LSTM: input: wanted a tensor, got list"),
        ("GRU", (an_input("GRU"), (1, 2)), "GRU: hx: wanted a tensor, got tuple"),
        ("LSTMCell", (an_input("LSTMCell"), 3.0), r"LSTMCell: hx: wanted \(h, c\), two tensors"),
    ):
        with pytest.raises(TypeError, match=wanted):
            getattr(hetkern.nn, name)(2, 5)(*args)


def test_an_unknown_nonlinearity_of_a_cell_is_refused_at_the_call():
    for made in both("RNNCell", 2, 5, nonlinearity="sin"):
        with pytest.raises(RuntimeError, match="sin"):
            made(an_input("RNNCell"))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_packed_rows_without_data_have_the_shapes_of_torchs(name):
    rows = nn.utils.rnn.pack_sequence([normal(3, 4), normal(2, 4)]).to("meta")
    found = []
    for library in (nn, hetkern.nn):
        made = getattr(library, name)(4, 5, bidirectional=True, device="meta")
        y, ends = made(rows)
        sum(t.sum() for t in (y.data, ends[0])).backward()
        found.append((y.data.shape, ends[0].shape, made.weight_hh_l0.grad.shape))
    assert found[0] == found[1]


def test_no_row_and_no_data_give_shapes():
    for name in SEQUENCES:
        made = getattr(hetkern.nn, name)(COLUMNS, H, 2)
        assert made(zeros(T, 0, COLUMNS))[0].shape == (T, 0, H)
        y, ends = made.to("meta")(zeros(T, B, COLUMNS, device="meta"))
        assert y.is_meta and y.shape == (T, B, H) and tree_leaves(ends)[0].shape == (2, B, H)


def test_the_implementation_that_a_module_names_runs():
    for name in SEQUENCES + CELLS:
        made = getattr(hetkern.nn, name)(COLUMNS, H, impl="reference")
        with hetkern.record() as log:
            made(an_input(name))
        assert [(call.impl, call.why) for call in log] == [("reference", "named in the call")]
