"""Who runs a call: impl=, use, HETKERN_IMPL, HETKERN_STRICT; and who tells: explain, record."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import hetkern
from hetkern import impl

ROOT = Path(__file__).parents[1]
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


def ran(function=hetkern.softmax, *args, **kwargs):
    """The implementation that a call ran."""
    with hetkern.record() as log:
        function(*(args or (X,)), **kwargs)
    (call,) = log
    return call.impl


def run_python(code, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, capture_output=True
    )


# ---- impl= ---------------------------------------------------------------------------------------


@needs_library
def test_a_call_runs_the_implementation_that_it_names():
    assert [ran(impl=name) for name in ("auto", "cpu", "reference")] == ["cpu", "cpu", "reference"]


def test_an_unknown_implementation_is_refused_with_the_known_ones():
    wanted = "hetkern.softmax: impl: wanted one of auto, cpu, cuda, triton, reference, got 'gpu'"
    with pytest.raises(ValueError, match=wanted):
        hetkern.softmax(X, impl="gpu")
    with pytest.raises(ValueError, match=r"hetkern.log_softmax: impl: .* got None"):
        hetkern.log_softmax(X, impl=None)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_named_implementation_that_is_not_built_raises_by_name(name):
    with pytest.raises(
        NotImplementedError, match=f"hetkern.softmax: impl: '{name}' cannot run here: "
    ):
        hetkern.softmax(X, impl=name)


def test_a_named_implementation_does_not_fall_back_where_the_library_is_missing(without_library):
    with pytest.raises(
        NotImplementedError, match="'cpu' cannot run here: the library is not built"
    ):
        hetkern.softmax(X, impl="cpu")


def test_each_implementation_says_which_devices_it_serves():
    assert impl.why_not("cpu", "mps") == "it serves tensors on the CPU, not on mps"
    assert impl.why_not("reference", "mps") is None


@needs_library
def test_shapes_alone_need_no_fallback():
    y = hetkern.softmax(torch.empty(1 << 40, 64, device="meta", dtype=torch.bfloat16))
    assert (y.shape, y.dtype, y.device.type) == ((1 << 40, 64), torch.bfloat16, "meta")
    assert ran(hetkern.softmax, torch.empty(2, 3, device="meta")) == "cpu"


@needs_library
def test_backward_runs_the_implementation_of_its_forward():
    def nodes(node):
        return {type(node).__name__}.union(*(nodes(n) for n, _ in node.next_functions if n))

    x = X.clone().requires_grad_()
    with hetkern.use("reference"):
        by_reference = hetkern.softmax(x)
    assert "SoftmaxBackward0" in nodes(by_reference.grad_fn)
    assert not any("hetkern" in name for name in nodes(by_reference.grad_fn))
    assert "hetkern::softmaxBackward" in nodes(hetkern.softmax(x).grad_fn)


# ---- use -----------------------------------------------------------------------------------------


@needs_library
def test_use_chooses_for_the_calls_inside_it():
    with hetkern.use("reference"):
        assert ran() == "reference"
    assert ran() == "cpu"


@needs_library
def test_uses_nest_and_auto_gives_the_choice_back():
    with hetkern.use("reference"):
        with hetkern.use("cpu"):
            assert ran() == "cpu"
            with hetkern.use("auto"):
                assert ran() == "cpu"
        assert ran() == "reference"


@needs_library
def test_impl_in_the_call_overrules_use():
    with hetkern.use("reference"):
        assert ran(impl="cpu") == "cpu"


def test_use_ends_with_an_exception():
    with pytest.raises(KeyError), hetkern.use("reference"):
        raise KeyError
    assert impl.thread.used == "auto"


def test_use_refuses_an_unknown_name_and_changes_nothing():
    with (
        pytest.raises(ValueError, match=r"hetkern.use: impl: wanted one of .* got 'fast'"),
        hetkern.use("fast"),
    ):
        pass
    assert impl.thread.used == "auto"


@needs_library
def test_use_is_of_its_thread_alone():
    inside, elsewhere = threading.Barrier(2, timeout=30), []

    def other():
        inside.wait()
        elsewhere.append(ran())
        inside.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with hetkern.use("reference"):
        inside.wait()  # the other thread runs while this one is inside
        inside.wait()
        assert ran() == "reference"
    thread.join()
    assert elsewhere == ["cpu"]


@needs_library
def test_use_decorates_a_function():
    @hetkern.use("reference")
    def softmax():
        return ran()

    assert [softmax(), ran(), softmax()] == ["reference", "cpu", "reference"]


@needs_library
def test_use_is_seen_by_a_compiled_function():
    graphs = []

    def keep(graph, inputs):
        graphs.append(str(graph.code))
        return graph.forward

    @torch.compile(backend=keep, fullgraph=True)
    def softmax(x):
        return hetkern.softmax(x)

    @torch.compile(backend=keep, fullgraph=True)
    def inside(x):
        with hetkern.use("reference"):
            return hetkern.softmax(x)

    torch.testing.assert_close(softmax(X), X.softmax(-1))
    with hetkern.use("reference"):
        torch.testing.assert_close(softmax(X), X.softmax(-1))
    torch.testing.assert_close(inside(X), X.softmax(-1))
    assert ["ops.hetkern.softmax" in code for code in graphs] == [True, False, False]


def test_use_inside_a_compiled_function_leaves_other_compiled_calls_right():
    # In a fresh thread-local: Dynamo's guards failed while the defaults stood in its class.
    code = """
import torch, hetkern
compiled = torch.compile(hetkern.softmax, backend="eager", fullgraph=True)
@torch.compile(backend="eager", fullgraph=True)
def inside(x):
    with hetkern.use("reference"):
        return hetkern.softmax(x)
x = torch.ones(2, 2)
print([f(x).tolist()[0] for f in (compiled, inside, compiled)], hetkern.impl.thread.used)
"""
    done = run_python(code)
    assert done.stdout == "[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]] auto\n", done.stderr


# ---- The environment. ----------------------------------------------------------------------------

SAY = "import torch, hetkern; print(hetkern.explain(hetkern.softmax, torch.ones(2, 3)).impl)"


def test_hetkern_impl_chooses_from_outside():
    done = run_python(SAY, HETKERN_IMPL="reference")
    assert done.stdout == "reference\n", done.stderr


@needs_library
def test_use_overrules_hetkern_impl():
    code = SAY.replace("; print", "\nwith hetkern.use('auto'): print")
    done = run_python(code, HETKERN_IMPL="reference")
    assert done.stdout == "cpu\n", done.stderr


def test_hetkern_impl_reaches_every_thread():
    start = "import threading\nthread = threading.Thread(target=run); thread.start(); thread.join()"
    code = f"def run():\n    {SAY}\n{start}"
    done = run_python(code, HETKERN_IMPL="reference")
    assert done.stdout == "reference\n", done.stderr


def test_an_unknown_hetkern_impl_is_refused_at_import():
    done = run_python("import hetkern", HETKERN_IMPL="gpu")
    assert done.returncode == 1
    assert (
        "ValueError: HETKERN_IMPL: wanted one of auto, cpu, cuda, triton, reference, got 'gpu'"
        in done.stderr
    )


def test_a_hetkern_impl_that_cannot_run_raises_by_name():
    done = run_python(
        "import torch, hetkern; hetkern.softmax(torch.ones(2))", HETKERN_IMPL="triton"
    )
    assert "NotImplementedError: hetkern.softmax: impl: 'triton' cannot run here: " in done.stderr


def test_hetkern_strict_makes_the_fallback_an_error():
    code = "import torch, hetkern; print(hetkern.softmax(torch.ones(2), impl='auto'))"
    absent = {"HETKERN_LIBRARY": "/nowhere/libhetkern_ops.so"}
    relaxed = run_python(code, HETKERN_STRICT="0", **absent)
    assert relaxed.stdout == "tensor([0.5000, 0.5000])\n" and "Fallback" in relaxed.stderr
    strict = run_python(code, HETKERN_STRICT="1", **absent)
    assert (
        "NotImplementedError: hetkern.softmax: nothing but the reference can run here: "
        in strict.stderr
    )
    named = run_python(code.replace("auto", "reference"), HETKERN_STRICT="1", **absent)
    assert (named.stdout, named.stderr) == ("tensor([0.5000, 0.5000])\n", "")


# ---- The fallback. -------------------------------------------------------------------------------


def test_auto_falls_to_the_reference_with_a_warning_at_the_users_line(without_library):
    with pytest.warns(
        impl.Fallback, match="hetkern.softmax runs the plain PyTorch reference: the library"
    ) as seen:
        y = hetkern.softmax(X)
    assert seen[0].filename == __file__
    assert torch.equal(y, X.softmax(-1))


def test_the_warning_points_past_modules_and_functional(without_library):
    with pytest.warns(impl.Fallback) as seen:
        hetkern.nn.LogSoftmax(-1)(X)
    assert seen[0].filename == __file__


def test_auto_warns_once_for_each_op_and_reason(without_library, monkeypatch):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            hetkern.softmax(X)
        hetkern.log_softmax(X)
        monkeypatch.setattr(impl, "missing_library", "it was deleted")
        hetkern.softmax(X)
    told = [str(warning.message).split(" runs the plain PyTorch reference: ") for warning in seen]
    assert told == [
        ["hetkern.softmax", "the library is not built"],
        ["hetkern.log_softmax", "the library is not built"],
        ["hetkern.softmax", "it was deleted"],
    ]


def test_the_reference_by_name_warns_of_nothing(without_library):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hetkern.softmax(X, impl="reference")


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
        "cuda": "this version of hetkern has no such kernels yet",
        "triton": "this version of hetkern has no such kernels yet",
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
    with pytest.raises(NotImplementedError, match="nothing but the reference"):
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
        assert ran() == "reference"


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
