"""Cross-entropy, values, statistics and gradients, within the error budget of the reference."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import hetkern
from hetkern.testing import Case, check_seed
from hetkern.testing.cases import inputs
from hetkern.testing.cases.families import check_cross_entropy, target_classes
from hetkern.testing.layouts import LAYOUTS
from hetkern.testing.values.check import DTYPES

SHORT = [n for n in inputs.LENGTHS if n <= 4097]
LONG = [n for n in inputs.LENGTHS if n > 4097]
FEATURES = {
    "scale": {"scale": 0.125},
    "negative scale": {"scale": -2.0},
    "softcap": {"softcap": 2.0},
    "weight": {"weight": torch.linspace(0.1, 2.0, 65)},
    "label smoothing": {"label_smoothing": 0.1},
    "z loss": {"z_loss": 1e-3},
    "ignore index": {"ignore_index": 3},
}
EVERYTHING = {name: value for options in FEATURES.values() for name, value in options.items()}
REDUCTIONS = ["none", "mean", "sum"]


def case(kind, shape, target="random", **options):
    generator = torch.Generator().manual_seed(0)
    dim = min(1, len(shape) - 1)
    x = inputs.logits(kind, shape, dim, generator)
    ignored = options.get("ignore_index", -100)
    t = (
        inputs.probabilities(target, x, dim, generator)
        if target in ("one_hot", "dense")
        else inputs.targets(target, x, dim, generator, ignored)
    )
    name = f"{kind} {shape} {target} {sorted(options)}"
    return Case(name, (x, t), options, dim, constant=("weight",), apart=target_classes)


@pytest.mark.sample(1, simulated=2)
@pytest.mark.parametrize("length", SHORT)
def test_cross_entropy_is_within_budget_at_every_length_and_dtype(impl, length):
    for target in ("random", "dense"):
        check_cross_entropy(
            impl.name,
            case("normal", (4, length), target, reduction="none", return_stats=True),
            case("normal", (2, length, 3), target),
        )


@pytest.mark.parametrize(
    "length, dtype",
    [(50257, torch.bfloat16), pytest.param(262145, torch.float32, marks=pytest.mark.large)],
)
def test_cross_entropy_is_within_budget_in_long_rows(impl, length, dtype):
    long = case("normal", (2, length), "confident", reduction="none", return_stats=True)
    check_cross_entropy(impl.name, long, dtypes=[dtype])


@pytest.mark.large
@pytest.mark.parametrize("target", ["edges", "dense"])
def test_cross_entropy_keeps_the_digits_of_a_long_descending_row(impl, target):
    """Each chunk adds a little to a sum that the first one has made large."""
    long = case("descending", (3, 262145), target, return_stats=True)
    check_cross_entropy(impl.name, long, dtypes=[torch.float32], layouts=["dense"])


@pytest.mark.proof
@pytest.mark.parametrize("target", ["edges", "dense"])
@pytest.mark.parametrize("length", LONG)
def test_cross_entropy_is_within_budget_in_long_rows_of_every_kind(impl, length, target):
    for kind in inputs.LOGITS if not impl.simulated else inputs.LOGITS_IN_SHORT:
        check_cross_entropy(impl.name, case(kind, (3, length), target, return_stats=True))


@pytest.mark.sample(1, simulated=6)
@pytest.mark.parametrize("target", ["random", "confident", "edges", "dense", "one_hot"])
@pytest.mark.parametrize("kind", inputs.LOGITS)
def test_cross_entropy_is_within_budget_on_adversarial_logits(impl, kind, target):
    check_cross_entropy(
        impl.name, case(kind, (6, 257), target, reduction="none", return_stats=True)
    )


@pytest.mark.sample(1, simulated=2)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", ["ignored", "dense"])
@pytest.mark.parametrize("feature", FEATURES)
def test_cross_entropy_is_within_budget_with_each_feature(impl, feature, target, reduction):
    if target == "dense" and feature == "ignore index":
        pytest.skip("class probabilities know no ignore_index")
    options = {"reduction": reduction, "return_stats": True} | FEATURES[feature]
    check_cross_entropy(impl.name, case("normal", (8, 65), target, **options))


@pytest.mark.sample(1, simulated=4)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", ["ignored", "edges", "dense"])
@pytest.mark.parametrize("left_out", [None, *EVERYTHING])
def test_cross_entropy_is_within_budget_with_all_features_and_with_all_but_one(
    impl, left_out, target, reduction
):
    options = {name: value for name, value in EVERYTHING.items() if name != left_out}
    if target == "dense":
        options.pop("ignore_index", None)
    plain = case("normal", (8, 65), target, reduction=reduction, **options)
    stats = case("normal", (8, 65), target, reduction=reduction, return_stats=True, **options)
    check_cross_entropy(impl.name, plain, stats, dtypes=[torch.float32, torch.bfloat16])


@pytest.mark.sample(1, simulated=3)
@pytest.mark.parametrize("shape", [(65,), (4, 65), (4, 65, 3), (2, 65, 3, 2), (1, 65, 1), (3, 1)])
@pytest.mark.parametrize("target", ["ignored", "dense"])
def test_cross_entropy_is_within_budget_in_every_shape_and_layout(impl, target, shape):
    cases = [case("normal", shape, target, reduction=r, z_loss=1e-3) for r in REDUCTIONS]
    check_cross_entropy(
        impl.name, *cases, dtypes=[torch.float32, torch.bfloat16], layouts=list(LAYOUTS)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", ["random", "ignored", "all_ignored", "dense", "one_hot"])
def test_cross_entropy_is_a_drop_in_for_torch(impl, target, weighted, smoothing, reduction):
    for shape in [(7,), (5, 7), (5, 7, 3), (0, 7)]:
        x, t = case("normal", shape, target).args
        x = x.double().requires_grad_()
        t = t.double().requires_grad_() if t.is_floating_point() else t
        w = torch.linspace(0.1, 2.0, 7, dtype=torch.float64) if weighted else None
        results = []
        for f in (hetkern.cross_entropy, F.cross_entropy):
            loss = f(x, t, w, reduction=reduction, label_smoothing=smoothing)
            leaves = (x, t) if t.is_floating_point() else (x,)
            results.append((loss, *torch.autograd.grad(loss.sum(), leaves)))
        for ours, torchs in zip(*results, strict=True):
            torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_loss_and_statistics_are_float32_or_float64(impl, dtype):
    x, t = case("normal", (5, 9)).args
    loss, stats = hetkern.cross_entropy(x.to(dtype), t, return_stats=True)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == wanted
    assert [s.dtype for s in stats] == [wanted] * 5 + [torch.bool]
    assert stats._fields == ("loss", "lse", "z_loss", "entropy", "log_prob", "correct")


def test_cross_entropy_statistics_do_not_change_the_loss(impl):
    x, t = case("normal", (50, 300), "ignored").args
    for reduction, z_loss in itertools.product(REDUCTIONS, [0.0, 0.1]):
        options = {"reduction": reduction, "z_loss": z_loss}
        loss, stats = hetkern.cross_entropy(x, t, return_stats=True, **options)
        assert torch.equal(loss, hetkern.cross_entropy(x, t, **options))
        assert all(s.shape == t.shape for s in stats)
    assert torch.equal(stats.loss, hetkern.cross_entropy(x, t, reduction="none", z_loss=0.1))


@pytest.mark.parametrize("kind", ["normal", "equal", "ascending"])
def test_cross_entropy_correct_counts_the_first_of_equals(impl, kind):
    x = inputs.logits(kind, (40, 33), 1, torch.Generator().manual_seed(0)).round()
    for target in (x.argmax(1), x.argmax(1) + 1):
        target = target % 33
        _, stats = hetkern.cross_entropy(x, target, return_stats=True)
        assert torch.equal(stats.correct, x.argmax(1) == target)


def test_cross_entropy_of_one_hot_probabilities_equals_that_of_indices(impl):
    x, t = case("normal", (20, 65)).args
    weight = torch.linspace(0.1, 2.0, 65)
    by_index = hetkern.cross_entropy(x, t, weight, reduction="none")
    by_probability = hetkern.cross_entropy(x, F.one_hot(t, 65).float(), weight, reduction="none")
    torch.testing.assert_close(by_index, by_probability)


#: Found in longer runs: a z-loss lost beside cancelling terms, gradients of row and z-loss that
#: cancel, the sum of 128257 equal targets, the mean of equal losses, smoothed probabilities, an
#: lse near 0, class probabilities that nearly equal the softmax.
FAILED_ONCE = (2824, 3221, 52988, 39255, 84232, 90458, 10884, 11780, 4514, 12028, 42567, 738, 38832)


@pytest.mark.sample(1, simulated=4)
@pytest.mark.parametrize("seed", (*range(150), *FAILED_ONCE))
def test_cross_entropy_is_within_budget_in_random_configurations(impl, seed):
    check_seed("cross_entropy", seed, impl.name)
