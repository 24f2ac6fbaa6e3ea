"""hetkern.doctor says what is built and what can run here, with and without the native library."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hetkern
from hetkern import impl

ROOT = Path(__file__).parents[1]
FACTS = "compiler", "isa_levels", "isa", "threads", "bf16_product"
needs_facts = pytest.mark.skipif(impl.native is None, reason="hetkern._C is not built")


def test_the_report_holds_every_fact_and_every_implementation():
    assert list(hetkern.doctor())[:10] == [
        "hetkern",
        "python",
        "torch",
        "library",
        "compiler",
        "CUDA kernels",
        "instruction sets",
        "products of bfloat16",
        "threads",
        "triton",
    ]
    shown = [name for name in hetkern.doctor() if name.startswith("impl=")]
    assert shown == [f'impl="{name}"' for name in impl.IMPLEMENTATIONS if name != "auto"]


def test_the_report_prints_one_line_a_fact_in_two_columns():
    report = hetkern.doctor()
    lines = str(report).splitlines()
    assert len(lines) == len(report)
    (column,) = {line.index(value) for line, value in zip(lines, report.values(), strict=True)}
    assert column == max(map(len, report)) + 2
    assert repr(report) == str(report)


def test_a_torch_for_cuda_without_a_driver_is_not_asked_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(impl, "_DRIVERS", ())
    monkeypatch.setattr(impl, "_found", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("torch was asked"))
    assert hetkern.doctor()['impl="triton"'] == "cannot run: no NVIDIA driver is loaded"


def test_an_implementation_can_run_or_the_report_says_why_not():
    report = hetkern.doctor()
    assert report['impl="reference"'] == "can run"
    if torch.version.cuda is None:
        reasons = (
            "the native library was built without CUDA kernels",
            "this torch is a build without",
        )
        assert report['impl="cuda"'].startswith(tuple(f"cannot run: {r}" for r in reasons))
        assert report['impl="triton"'] == "cannot run: this torch is a build without CUDA"
    if impl.missing_library is None:
        assert report['impl="cpu"'] == "can run"


@needs_facts
def test_the_facts_are_those_of_the_library(monkeypatch):
    report = hetkern.doctor()
    assert Path(report["library"]).is_file()
    assert report["compiler"] == impl.native.compiler()
    reason = impl.native.why_no_cuda()
    assert report["CUDA kernels"] == (f"not built: {reason}" if reason else "built")
    best = impl.native.isa()
    try:
        assert impl.native.set_isa("base") == "base"
        assert hetkern.doctor()["instruction sets"].split(", ")[0] == "base (in force)"
    finally:
        impl.native.set_isa(best)
    assert f"{best} (in force)" in hetkern.doctor()["instruction sets"]


@needs_facts
def test_a_library_without_cuda_kernels_says_why(monkeypatch):
    facts = SimpleNamespace(**{name: getattr(impl.native, name) for name in FACTS})
    facts.why_no_cuda = lambda: "there is no nvcc"
    monkeypatch.setattr(impl, "native", facts)
    monkeypatch.setattr(impl, "_found", {})
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: False)
    report = hetkern.doctor()
    assert report["CUDA kernels"] == "not built: there is no nvcc"
    without = "the native library was built without CUDA kernels: there is no nvcc"
    assert report['impl="cuda"'] == f"cannot run: {without}"


@needs_facts
def test_the_threads_are_those_in_force():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert hetkern.doctor()["threads"].startswith("1 of ")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ("2.10.1", "too old: hetkern needs 2.11"),
        ("2.11.0+cu130", "supported"),
        ("3.0.0.dev20270101", "supported"),
        ("2.9", "too old: hetkern needs 2.11"),
    ],
)
def test_a_torch_that_is_too_old_is_called_so(version, verdict, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    assert hetkern.doctor()["torch"] == f"{version}, {verdict}"


def test_a_missing_triton_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert hetkern.doctor()["triton"] == "not installed"


def test_hetkern_variables_are_shown(monkeypatch):
    monkeypatch.setenv("HETKERN_STRICT", "1")
    assert hetkern.doctor()["HETKERN_STRICT"] == "1"
    monkeypatch.delenv("HETKERN_STRICT")
    assert "HETKERN_STRICT" not in hetkern.doctor()


def test_how_threads_wait_is_shown(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    assert hetkern.doctor()["waiting"].startswith("OpenMP's default")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert hetkern.doctor()["waiting"] == "OMP_WAIT_POLICY=passive"


def test_the_command_prints_the_report():
    done = subprocess.run(
        [sys.executable, "-P", ROOT / "hetkern" / "cli.py", "doctor"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()][:3] == [
        "hetkern",
        "python",
        "torch",
    ]


def test_the_report_without_the_library_says_what_is_missing():
    absent = {"HETKERN_LIBRARY": "/nowhere/libhetkern_ops.so", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "import hetkern; print(hetkern.doctor())"],
        env={**os.environ, **absent},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    reason = "libhetkern_ops.so is not in /nowhere: build it with `pip install .`"
    assert facts["library"].strip() == f"not loaded: {reason}"
    assert facts['impl="cpu"'].strip() == f"cannot run: {reason}"
    assert (
        facts["compiler"].strip() == "not known: hetkern._C is missing, which tells of the library"
    )
    assert facts['impl="reference"'].strip() == "can run"
    assert facts["HETKERN_LIBRARY"].strip() == "/nowhere/libhetkern_ops.so"
