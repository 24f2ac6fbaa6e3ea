"""What `import hetkern` does and what it does not."""

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from hetkern import impl

ROOT = Path(__file__).parents[1]
needs_library = pytest.mark.skipif(
    impl.missing_library is not None, reason=str(impl.missing_library)
)


def run_python(code, folder=ROOT):
    """What the code prints, in a fresh interpreter that finds the package in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("HETKERN_LIBRARY", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd="/",
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@needs_library
def test_import_registers_the_ops():
    code = """
import hetkern, torch
x = torch.tensor([0.0, 0.0])
y = torch.ops.hetkern.softmax(x, -1, None, 1.0, 0.0, None, None, False, False)
print(y.tolist())
"""
    assert run_python(code) == ("[0.5, 0.5]\n", "")


def test_import_touches_no_gpu():
    code = """
import torch
def touched(*args, **kwargs):
    raise SystemExit("import hetkern asks for a GPU")
for name in ("_lazy_init", "init", "is_available", "device_count", "get_device_properties"):
    setattr(torch.cuda, name, touched)
torch.accelerator.is_available = torch.accelerator.current_accelerator = touched
import hetkern
hetkern.doctor()
hetkern.softmax(torch.ones(3), impl="reference")
print("done")
"""
    assert run_python(code)[0] == "done\n"


def test_import_costs_little_beside_torch():
    code = """
import time, torch
start = time.perf_counter()
import hetkern
print(time.perf_counter() - start)
"""
    seconds = min(float(run_python(code)[0]) for _ in range(3))
    assert seconds < 0.6, "0.3 s is wanted; twice that is allowed to a busy machine"


def test_import_brings_no_optional_library_and_no_compiler():
    code = """
import json, sys, torch
before = set(sys.modules)
import hetkern
new = set(sys.modules) - before
print(json.dumps(sorted({name.split(".")[0] for name in new})))
print(json.dumps(sorted(name for name in new if name.startswith("torch._inductor"))))
"""
    new, inductor = map(json.loads, run_python(code)[0].splitlines())
    assert "hetkern" in new
    assert not {"matplotlib", "tensorboard", "triton", "typer", "pytest"} & set(new)
    assert inductor == []


def test_without_the_library_the_reference_serves_with_one_warning(tmp_path):
    if len(importlib.import_module("hetkern").__path__) > 1:
        pytest.skip("an editable install's import hook finds the library wherever the copy lies")
    shutil.copytree(
        ROOT / "hetkern", tmp_path / "hetkern", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    code = """
import hetkern, torch
x = torch.randn(3, 4, requires_grad=True)
for _ in range(2):
    y = hetkern.softmax(x, causal=True)
y.sum().backward()
assert torch.equal(y.detach(), hetkern.reference.softmax(x, causal=True).detach())
assert x.grad.shape == (3, 4)
assert hetkern.explain(hetkern.softmax, x).impl == "reference"
import hetkern.nn
torch.testing.assert_close(hetkern.nn.Softmax(-1, impl="reference")(x), x.softmax(-1))
print(hetkern.__file__)
"""
    printed, told = run_python(code, tmp_path)
    assert printed == f"{tmp_path}/hetkern/__init__.py\n"
    assert (
        told.count(
            "Fallback: hetkern.softmax runs the plain PyTorch reference: libhetkern_ops.so is not"
        )
        == 1
    )
    assert f"not in {tmp_path}/hetkern: build it with `pip install .`" in told


@pytest.mark.parametrize(
    "module", ["hetkern", "hetkern.nn", "hetkern.nn.functional", "hetkern.ops", "hetkern.reference"]
)
def test_every_public_name_exists_and_has_a_docstring(module):
    module = importlib.import_module(module)
    assert module.__doc__
    assert module.__all__ == sorted(
        module.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    for name in module.__all__:
        thing = getattr(module, name)
        assert inspect.getdoc(thing) and thing.__doc__, f"{module.__name__}.{name} has no docstring"
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if isinstance(function, types.FunctionType) and not method.startswith("_"):
                    assert function.__doc__, f"{module.__name__}.{name}.{method} has no docstring"
