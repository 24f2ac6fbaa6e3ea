"""Every piece of the kit fails when it should: each is shown a planted error."""

import json
import re

import pytest
import torch

import hetkern
from hetkern.testing import (
    IMPLEMENTATIONS,
    Case,
    Guarded,
    Implementation,
    assert_stays_inside,
    check_op,
    check_seed,
    layouts,
    repro,
)
from hetkern.testing.cases import inputs
from hetkern.testing.cases.mutants import planted, spoiled_value, zeros
from hetkern.testing.cases.random_cases import FAMILIES
from hetkern.testing.values.calls import same_bits


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", inputs.LOGITS)
@pytest.mark.parametrize("shape, dim", [((4, 9), 1), ((3, 5, 2), 1), ((6,), 0), ((0, 3), 1)])
def test_logits_have_the_shape_asked_for_and_repeat_by_seed(kind, shape, dim):
    a, b = (inputs.logits(kind, shape, dim, torch.Generator().manual_seed(3)) for _ in range(2))
    assert a.shape == shape and a.dtype == torch.float32 and same_bits(a, b)
    finite = a.softmax(dim).isfinite().all()
    assert finite or kind not in inputs.FINITE_LOGITS


def test_confident_logits_give_the_winner_p_of_999_in_1000():
    x = inputs.logits("confident", (5, 1000), 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.softmax(1).amax(1), torch.full((5,), 0.999), rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 1, 5), (0, 3)])
def test_layout_keeps_values_and_only_expanded_changes_them(layout, shape):
    x = normal(*shape)
    y = layouts.LAYOUTS[layout](x)
    assert y.shape == x.shape
    wanted = x[:1].expand(shape) if layout == "expanded" and shape else x
    assert torch.equal(y, wanted)


def test_layouts_are_what_their_names_say():
    x = normal(3, 1, 4)
    assert layouts.permuted(x).stride() == (1, 3, 3)
    assert layouts.sliced(x).storage_offset() == 1 and layouts.sliced(x).stride(0) == 7
    assert layouts.step2(x).stride(-1) == 2
    assert layouts.expanded(x).stride(0) == 0
    assert layouts.odd_strides(x).stride() == (4, 12345, 1)


def sums_past_the_end(x):
    """A planted error: the sum takes along the element after the last, if memory has one."""
    end = x.storage_offset() + x.numel()
    there = end < x.untyped_storage().nbytes() // x.element_size()
    past = x.detach().as_strided((1,), (1,), end).exp() if there else 0.0
    return x.exp() / (x.exp().sum() + past)


def writes_its_input(x):
    """A planted error: the result overwrites the input's first element."""
    y = x.softmax(-1)
    x.data.reshape(-1)[0] = 0
    return y


def writes_before_its_input(x):
    """A planted error: one element in front of the input is written."""
    if x.storage_offset():
        x.detach().as_strided((1,), (1,), x.storage_offset() - 1).fill_(1.0)
    return x.softmax(-1)


def test_guard_bands_pass_an_honest_op():
    assert_stays_inside(torch.softmax, normal(4, 33), -1)
    target = torch.tensor([0, 32, 5, 7])
    assert_stays_inside(torch.nn.functional.cross_entropy, normal(4, 33), target)


def test_guard_bands_catch_a_read_past_the_end():
    with pytest.raises(AssertionError, match="outside an input was read"):
        assert_stays_inside(sums_past_the_end, normal(4, 33))


def test_guard_bands_catch_a_write_before_the_input():
    with pytest.raises(AssertionError, match=r"written to, at flat elements \[-1\]"):
        assert_stays_inside(writes_before_its_input, normal(4, 33))


def test_guard_bands_catch_a_write_into_the_input():
    with pytest.raises(AssertionError, match=r"written to, at flat elements \[0\]"):
        assert_stays_inside(writes_its_input, normal(4, 33))


def test_guard_catches_a_version_counter_that_moved():
    guarded = Guarded(torch.zeros(3))
    guarded.tensor.zero_()
    with pytest.raises(AssertionError, match="version counter moved"):
        guarded.assert_intact("x")


def test_check_op_passes_torch_on_its_own_softmax_and_counts():
    case = Case("plain", (normal(4, 65), -1))
    summary = check_op(torch.softmax, torch.softmax, [case], layouts=list(layouts.LAYOUTS))
    assert summary.comparisons == 2 * 4 * len(layouts.LAYOUTS)
    assert 0 < summary.worst <= 0.5 and "plain" in summary.where


def test_check_op_catches_an_op_that_writes_its_input():
    with pytest.raises(AssertionError, match=r"argument 0 was written to\nrepro: check_op"):
        check_op(writes_its_input, lambda x: x.softmax(-1), [Case("plain", (normal(4, 65),))])


def test_check_op_catches_other_bits_on_a_second_run():
    calls = iter(range(100))
    with pytest.raises(AssertionError, match="output has other bits on a second run"):
        check_op(
            lambda x: x.softmax(-1) * (1 + 1e-7 * next(calls)),
            lambda x: x.softmax(-1),
            [Case("plain", (normal(4, 65),))],
            [torch.float64],
        )


def test_check_op_catches_a_result_on_another_device():
    with pytest.raises(AssertionError, match="output is on meta"):
        check_op(
            lambda x: x.detach().to("meta"), lambda x: x.detach(), [Case("plain", (normal(4),))]
        )


def test_check_op_moves_a_case_to_the_device_of_the_operation():
    seen = []

    def op(x):
        seen.append(x.device.type)
        return x.softmax(-1)

    with pytest.raises(NotImplementedError, match="Meta"):  # which computes nothing to compare
        check_op(op, op, [Case("plain", (normal(4),))], device="meta")
    assert seen == ["meta", "meta"]


def test_check_op_catches_a_missing_output():
    with pytest.raises(AssertionError, match=r"got .*wanted"):
        check_op(lambda x: (x, x), lambda x: x, [Case("plain", (normal(4),))])


@pytest.mark.parametrize("family", FAMILIES)
def test_random_configuration_is_the_same_for_the_same_seed(family):
    configure = FAMILIES[family].configure
    texts = [str(configure(seed)) for seed in range(30)]
    assert texts == [str(configure(seed)) for seed in range(30)]
    assert len(set(texts)) == 30


@pytest.mark.parametrize("family", FAMILIES)
def test_random_configurations_reach_every_dtype_layout_and_option(family):
    drawn = [FAMILIES[family].configure(seed) for seed in range(300)]
    options = set().union(*(d.case.kwargs for d in drawn))
    wanted = {
        "softmax": {"dim", "log", "scale", "softcap", "bias", "mask", "causal", "sink", "dtype"},
        "cross_entropy": {"reduction", "weight", "ignore_index", "label_smoothing"}
        | {"scale", "softcap", "z_loss", "return_stats"},
        "rnn": {"cell", "bias", "bidirectional", "lengths", "batch_sizes", "batch_first", "reset"},
        "attention": {
            "causal",
            "window",
            "scale",
            "softcap",
            "bias",
            "mask",
            "alibi_slopes",
            "sink",
        }
        | {"dropout_p", "return_lse", "cache_seqlens"}
        | {f"{name}_{of}" for name in ("cu_seqlens", "max_seqlen") for of in "qk"},
    }[family]
    assert options == wanted
    assert {d.layout for d in drawn} == set(layouts.LAYOUTS)
    assert len({d.dtype for d in drawn}) == 4


def test_repro_command_reruns_one_configuration(capsys):
    assert repro.main(["softmax", "--seed", "12", "--impl", "reference"]) == 0
    printed = capsys.readouterr().out
    assert str(FAMILIES["softmax"].configure(12)) in printed and "none failed" in printed


def test_repro_command_fails_and_names_the_seed_of_a_planted_error(capsys):
    with planted(hetkern, "softmax", lambda op: spoiled_value(op, zeros)):
        assert repro.main(["softmax", "--seed", "4", "--count", "6", "--impl", "reference"]) == 1
    said = capsys.readouterr()
    assert "FAILED seed" in said.err
    repeat = r"repro: python -m hetkern.testing.repro softmax --seed \d --impl reference\n"
    assert re.search(repeat, said.err)


def test_repro_command_resumes_from_its_state_file(tmp_path, capsys):
    state = tmp_path / "deep" / "softmax.json"
    command = ["softmax", "--count", "4", "--impl", "reference", "--state", str(state)]
    assert repro.main(command) == 0
    saved = json.loads(state.read_text())
    assert saved["done"] == 4 and saved["comparisons"] >= 4
    state.write_text(json.dumps(saved | {"done": 3, "comparisons": 1000}))
    assert repro.main(command) == 0
    resumed = json.loads(state.read_text())
    assert resumed["done"] == 4 and 1000 < resumed["comparisons"] < 1000 + saved["comparisons"]
    with pytest.raises(ValueError, match="count: wanted 5, got 4"):
        repro.main([*command[:2], "5", *command[3:]])
    assert "4 of 4 configurations" in capsys.readouterr().out


def test_a_state_file_of_another_library_is_refused(tmp_path):
    state = tmp_path / "softmax.json"
    command = ["softmax", "--count", "2", "--impl", "reference", "--state", str(state)]
    assert repro.main(command) == 0
    state.write_text(json.dumps(json.loads(state.read_text()) | {"library": "older"}))
    with pytest.raises(ValueError, match="library: wanted"):
        repro.main(command)


@pytest.mark.parametrize(("factor", "status"), [(0.99, 1), (1.01, 0)])
def test_a_seed_known_to_exceed_its_limit_may_do_so_by_its_factor(tmp_path, capsys, factor, status):
    command = ["softmax", "--seed", "12", "--impl", "reference"]
    with planted(hetkern, "softmax", lambda op: spoiled_value(op, lambda y: y * 1.5)):
        assert repro.main(command) == 1
        ratio = float(re.search(r"error ÷ limit is ([\d.e+]+)", capsys.readouterr().err)[1])
        known = tmp_path / "known.json"
        known.write_text(json.dumps({"softmax": {"12": ratio * factor}}))
        assert repro.main([*command, "--known", str(known)]) == status
    assert ("1 known to be over their limit" in capsys.readouterr().out) == (status == 0)


def test_check_seed_reports_what_it_compared():
    assert check_seed("softmax", 1, "reference").comparisons >= 1


def test_an_implementation_that_cannot_run_says_why(monkeypatch):
    import importlib

    monkeypatch.delenv("HETKERN_ISA", raising=False)

    assert Implementation("reference").why_absent() is None
    assert [str(i) for i in IMPLEMENTATIONS][:2] == ["reference", "cpu-base"]

    class Native:
        @staticmethod
        def isa_levels():
            return ["base", "avx2"]

    monkeypatch.setattr(importlib, "import_module", lambda name: Native)
    assert Implementation("cpu", "avx2").why_absent() is None
    assert "this machine has no avx512: it runs base, avx2" in (
        Implementation("cpu", "avx512").why_absent() or ""
    )
    monkeypatch.setenv("HETKERN_ISA", "base")
    assert Implementation("cpu", "avx2").why_absent() == "HETKERN_ISA asks for base"
    assert Implementation("cpu", "base").why_absent() is None

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert Implementation("cpu", "base").why_absent() == "hetkern._C is not built"


def test_a_finer_result_asks_for_the_baseline_that_rounds_as_the_operation_does():
    """Linear layer and loss, as Liger fuses them: logits of 16 bits, a loss of 32."""
    cases = [Case("linear", (normal(7, 16), normal(129, 16)))]

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits, torch.arange(7) * 17 % 129)

    def rounding_logits(x, w):
        return loss((x @ w.T).float())

    def reference(x, w):
        return loss(x @ w.T)

    with pytest.raises(AssertionError, match=r"float32, the arguments torch.bfloat16.*baseline="):
        check_op(rounding_logits, reference, cases, [torch.bfloat16])
    check_op(rounding_logits, reference, cases, [torch.bfloat16], baseline=rounding_logits)
    with pytest.raises(AssertionError) as same_dtype:
        check_op(lambda x, w: 2 * reference(x, w), reference, cases, [torch.float32])
    assert "baseline=" not in str(same_dtype.value)
