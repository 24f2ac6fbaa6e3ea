"""Who runs a call: impl=, use, HETKERN_IMPL, HETKERN_STRICT, and the fallback to the reference."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

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
    assert impl.why_not("cuda", "mps") == "it serves tensors on a CUDA GPU, not on mps"
    assert impl.why_not("triton", "mps") == "it serves tensors on a CUDA GPU, not on mps"
    assert impl.why_not("triton", "cuda", torch.float64) == "its kernels have no float64"
    assert impl.why_not("reference", "mps") is None


# ---- "auto" on a GPU: the choice alone, which needs none -----------------------------------------


SERVED = {name: SimpleNamespace(name=name) for name in ("cpu", "cuda", "triton")}
H100, TURING = (9, 0), (7, 5)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend to have GPUs of these compute capabilities, and the software for them."""

    def have(*capabilities, kernels=True, triton=True):
        monkeypatch.setattr(impl, "missing_library", None)
        monkeypatch.setattr(impl, "_warned", set())
        found = {"cuda": None if kernels else "no CUDA kernels", "triton": None}
        found["triton"] = None if triton else "triton is not installed"
        monkeypatch.setattr(impl, "_found", found)
        monkeypatch.setattr(impl, "_no_gpu", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")

    return have


def chosen(index=0, dtype=torch.float32, name="auto"):
    device = torch.device("cuda", index)
    x = SimpleNamespace(is_cpu=False, is_meta=False, is_cuda=True, dtype=dtype, device=device)
    callables = impl.choose("hetkern.softmax", SERVED, x, name)
    return "reference" if callables is None else callables.name


def test_auto_on_a_gpu_takes_cuda_then_triton_then_the_reference(gpus):
    gpus(H100)
    assert chosen() == "cuda"
    gpus(H100, kernels=False)
    assert chosen() == "triton"
    with pytest.warns(impl.Fallback, match="runs the plain PyTorch reference: no CUDA kernels"):
        assert chosen(dtype=torch.float64) == "reference"
    gpus(H100, kernels=False, triton=False)
    with pytest.warns(impl.Fallback):
        assert chosen() == "reference"


def test_a_gpu_below_the_least_capability_goes_to_triton_and_the_other_one_to_cuda(gpus):
    gpus(TURING, H100)
    assert [chosen(0), chosen(1)] == ["triton", "cuda"]
    too_old = "GPU 0 has compute capability 7.5, the kernels need 8.0"
    with pytest.raises(NotImplementedError, match=f"'cuda' cannot run here: {too_old}"):
        chosen(0, name="cuda")
    assert impl.why_not("cuda", "cuda") is None  # one of them can
    gpus(TURING)
    assert impl.why_not("cuda", "cuda") == too_old


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
        "NotImplementedError: hetkern.softmax: nothing but the plain PyTorch "
        "reference can run here: " in strict.stderr
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
