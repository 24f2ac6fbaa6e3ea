"""explain says what a call would run and why; record says what did."""

import threading
import warnings

import pytest
import torch

import hetkern
from hetkern import impl
from hetkern.testing import emulated_cuda, why_no_emulation

needs_library = pytest.mark.skipif(
    impl.missing_library is not None, reason=str(impl.missing_library)
)
X = torch.tensor([[0.5, -1.0, 2.0], [1.0, 1.5, 0.0]])


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    monkeypatch.setattr(impl.thread, "used", "auto")
    monkeypatch.delenv("HETKERN_STRICT", raising=False)


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(impl, "missing_library", "the library is not built")
    monkeypatch.setattr(impl, "_warned", set())


# ---- explain -------------------------------------------------------------------------------------


@needs_library
def test_explain_says_which_and_why_and_why_not_the_others():
    call = hetkern.explain(hetkern.softmax, X)
    assert (call.op, call.shape, call.dtype, call.impl) == (
        "hetkern.softmax",
        (2, 3),
        "float32",
        "cpu",
    )
    assert call.why == "the best that can run here"
    assert call.reasons == {
        "cuda": "it serves tensors on a CUDA GPU, not on cpu",
        "triton": "it serves tensors on a GPU; on the CPU only in its interpreter "
        "(hetkern.testing)",
        "reference": "a faster one serves this call",
    }
    named = hetkern.explain(hetkern.softmax, X, impl="reference")
    assert (named.impl, named.why, named.reasons["cpu"]) == (
        "reference",
        "named in the call",
        "another one is named",
    )
    with hetkern.use("reference"):
        assert hetkern.explain(hetkern.softmax, X).why == "named by hetkern.use or HETKERN_IMPL"


@pytest.mark.skipif(why_no_emulation() is not None, reason=str(why_no_emulation()))
def test_explain_shows_the_plan_of_an_emulated_gpu():
    with emulated_cuda():
        call = hetkern.explain(hetkern.softmax, torch.randn(2, 40001), impl="cuda")
        assert (call.impl, call.plan["path"], call.plan["cluster"]) == ("cuda", "split_rows", 4)
        loss = hetkern.explain(hetkern.cross_entropy, X, torch.tensor([0, 1]), impl="cuda")
        assert loss.plan["path"] == "whole_rows" and loss.plan["threads"] > 0
    with pytest.raises(NotImplementedError, match="it serves tensors on a CUDA GPU, not on cpu"):
        hetkern.explain(hetkern.softmax, X, impl="cuda")


@needs_library
@pytest.mark.skipif(impl.native is None, reason="hetkern._C is not built")
def test_explain_shows_the_plan_of_the_library():
    rows = hetkern.explain(hetkern.softmax, torch.empty(8, 64))
    assert rows.plan == {
        "isa": impl.native.isa(),
        **impl.native.softmax_plan(8, 64, False, "float32", "float32"),
    }
    columns = hetkern.explain(hetkern.log_softmax, torch.empty(8, 64, dtype=torch.float64), dim=0)
    assert columns.plan["path"] == "columns"


@needs_library
@pytest.mark.skipif(impl.native is None, reason="hetkern._C is not built")
def test_explain_shows_the_plan_of_attention():
    q, k = torch.empty(2, 4, 70, 16), torch.empty(2, 2, 300, 16)
    for dtype, product in ((torch.float32, "fma"), (torch.bfloat16, impl.native.bf16_product())):
        call = hetkern.explain(hetkern.attention, *(t.to(dtype) for t in (q, k, k)), causal=True)
        assert (call.op, call.impl, call.shape) == ("hetkern.attention", "cpu", (2, 4, 70, 16))
        plan = impl.native.attention_plan(2, 4, 2, 70, 300, 16, 16, call.dtype, True)
        assert call.plan == {"isa": impl.native.isa(), **plan}
        assert (plan["product"], plan["fold"]) == (product, False)
    step = hetkern.explain(hetkern.attention, q[:, :, :1], k, k)
    assert step.plan["fold"]  # one query: the heads of a group stand together


def test_explain_shows_where_triton_splits_the_keys():
    from hetkern.ops.attention import plan

    q, k = torch.empty(2, 4, 1, 16), torch.empty(2, 2, 2100, 16)
    one, short = plan("triton", q, k=k, v=k), plan("triton", q, k=k[:, :, :70], v=k[:, :, :70])
    assert (one["path"], one["parts"], one["fold"]) == ("split_keys", 3, True)
    assert (short["path"], short["parts"], short["fold"]) == ("split_queries", 1, True)
    many = plan("triton", q.expand(2, 4, 17, 16), k_cache=k, v_cache=k)
    assert (many["path"], many["parts"], many["fold"]) == ("split_queries", 3, False)


@needs_library
@pytest.mark.parametrize(
    ("given", "dtype", "read", "written"),
    [
        (torch.int64, torch.float32, "float32", "float32"),
        (torch.float32, torch.bfloat16, "bfloat16", "bfloat16"),
        (torch.bfloat16, torch.float32, "bfloat16", "float32"),
    ],
)
def test_the_plan_is_of_what_the_kernel_reads_after_a_cast(
    given, dtype, read, written, monkeypatch
):
    asked = []
    fake = type(
        "native",
        (),
        {"isa": lambda: "base", "softmax_plan": lambda *plan: asked.append(plan) or {}},
    )
    monkeypatch.setattr(impl, "native", fake)
    x = torch.ones(4, 8, dtype=given)
    assert hetkern.explain(hetkern.softmax, x, dtype=dtype).dtype == str(given).removeprefix(
        "torch."
    )
    with hetkern.record():
        hetkern.softmax(x, dtype=dtype)
    assert asked == [(4, 8, False, read, written)] * 2


def test_explain_prints_a_line_for_each_implementation():
    text = str(hetkern.explain(hetkern.softmax, X, impl="reference")).splitlines()
    assert (
        text[0]
        == "hetkern.softmax (2, 3) float32: reference (named in the call) path=eager PyTorch"
    )
    assert [line.split(":")[0] for line in text[1:]] == ["  not cpu", "  not cuda", "  not triton"]


@needs_library
def test_explain_without_the_facts_of_the_library_says_that_it_has_no_plan(monkeypatch):
    monkeypatch.setattr(impl, "native", None)
    call = hetkern.explain(hetkern.softmax, X)
    assert (call.impl, call.plan) == ("cpu", {})
    assert "no plan: hetkern._C is missing" in str(call)


def test_explain_runs_nothing_and_warns_of_nothing(without_library):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call = hetkern.explain(hetkern.softmax, torch.empty(1 << 40, 64, device="meta"))
    assert (call.impl, call.shape) == ("reference", (1 << 40, 64))
    with pytest.warns(impl.Fallback):  # the warning is still to come
        hetkern.softmax(X)


def test_explain_raises_what_the_call_would(without_library, monkeypatch):
    with pytest.raises(ValueError, match="got 'gpu'"):
        hetkern.explain(hetkern.softmax, X, impl="gpu")
    with pytest.raises(NotImplementedError, match="'triton' cannot run here"):
        hetkern.explain(hetkern.softmax, X, impl="triton")
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        hetkern.explain(hetkern.softmax)
    monkeypatch.setenv("HETKERN_STRICT", "1")
    with pytest.raises(NotImplementedError, match="nothing but the plain PyTorch reference"):
        hetkern.explain(hetkern.softmax, X)


def test_explain_refuses_what_is_no_operation_of_hetkern():
    with pytest.raises(
        ValueError, match=r"wanted a public operation of hetkern, got <built-in .*softmax"
    ):
        hetkern.explain(torch.softmax, X)


# ---- record --------------------------------------------------------------------------------------


@needs_library
def test_record_lists_what_ran_in_order():
    with hetkern.record() as log:
        hetkern.softmax(X)
        hetkern.log_softmax(X.double(), 0, impl="reference")
    assert [(c.op, c.shape, c.dtype, c.impl) for c in log] == [
        ("hetkern.softmax", (2, 3), "float32", "cpu"),
        ("hetkern.log_softmax", (2, 3), "float64", "reference"),
    ]
    assert log[1].plan == {"path": "eager PyTorch"}
    if impl.native is not None:
        assert log[0].plan == hetkern.explain(hetkern.softmax, X).plan


def test_record_hears_the_fallback(without_library):
    with pytest.warns(impl.Fallback):
        with hetkern.record() as log:
            hetkern.softmax(X)
    assert [call.impl for call in log] == ["reference"]


def test_records_nest_and_end():
    with hetkern.record() as outer:
        hetkern.softmax(X)
        with hetkern.record() as inner:
            hetkern.log_softmax(X)
        hetkern.softmax(X)
    hetkern.softmax(X)
    assert [len(outer), len(inner)] == [3, 1]
    assert impl.thread.logs == ()


def test_record_ends_with_an_exception_and_keeps_what_it_heard():
    with pytest.raises(KeyError), hetkern.record() as log:
        hetkern.softmax(X)
        raise KeyError
    assert len(log) == 1 and impl.thread.logs == ()


def test_a_call_that_raises_is_not_recorded_and_raises_as_ever():
    def error(*args):
        with pytest.raises((ValueError, IndexError, RuntimeError)) as caught:
            hetkern.softmax(*args)
        return str(caught.value)

    for bad in ((X.long(),), (X, 2), (X, -1, torch.int32)):
        alone = error(*bad)
        with hetkern.record() as log:
            assert error(*bad) == alone
        assert log == []


def test_record_hears_its_own_thread_alone():
    logs = {}
    start = threading.Barrier(4, timeout=30)

    def work(number):
        with hetkern.record() as log:
            start.wait()
            for columns in range(1, 21):
                hetkern.softmax(torch.zeros(number, columns))
            start.wait()
        logs[number] = [call.shape for call in log]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    with hetkern.record() as mine:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert mine == []
    assert logs == {
        number: [(number, columns) for columns in range(1, 21)] for number in range(1, 5)
    }


def test_a_compiled_call_runs_inside_a_recording():
    compiled = torch.compile(hetkern.softmax, backend="eager", fullgraph=True)
    with hetkern.record() as log:
        torch.testing.assert_close(compiled(X), X.softmax(-1))
    assert log == []
