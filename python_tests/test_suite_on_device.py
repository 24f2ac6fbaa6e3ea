"""The suite with its tensors on a device: on one that stands in for a GPU, since there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hetkern.testing.emulation import why_no_emulation

HERE = Path(__file__).parent


def suite(*arguments):
    """What pytest prints of tests whose tensors are on the device."""
    if reason := why_no_emulation():
        pytest.skip(reason)
    words = ["-m", "pytest", "-q", "-p", "stand_in", "--no-header", "--impl", "cuda", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=HERE
    )
    return done.returncode, done.stdout + done.stderr


#: What the stand-in cannot show: derivatives taken below a tensor's class, and compiling.
UNSEEN = (
    "torch_func or through_vmap or another_device or batches or first_and_second or one_by_one "
    "or when_compiled"
)
#: Many of a kind, each of which treats a test's tensors as its neighbours do.
MANY = (
    "random or every_length or adversarial or features or each_feature or caught or layout "
    "or any_dimension"
)
FILES = [
    HERE / f"test_{family}_{part}.py"
    for family in ("softmax", "cross_entropy")
    for part in ("values", "edges", "errors", "derivatives", "bits", "mutations")
] + [HERE / "test_torch_samples.py"]


def assert_passes(least, unwanted):
    status, printed = suite("-m", "not proof and not large", "-k", f"not ({unwanted})", *FILES)
    assert status == 0, printed[-5000:]
    passed = re.search(r"(\d+) passed", printed)
    assert passed and int(passed[1]) >= least, printed[-1000:]


def test_no_tensor_of_the_suite_stays_behind():
    assert_passes(400, f"{UNSEEN} or {MANY}")


@pytest.mark.proof
def test_no_tensor_of_the_whole_suite_stays_behind():
    assert_passes(1100, UNSEEN)


LEFT_BEHIND = {
    "its input": (
        "hetkern.softmax(torch.zeros(2, 3, device='cpu'))",
        "NotImplementedError: hetkern.softmax: impl: 'cuda' .* a tensor was left behind on cpu",
    ),
    "another operand": (
        "hetkern.softmax(torch.zeros(2, 3), bias=torch.zeros(3, device='cpu'))",
        "RuntimeError: .*: tensors on meta and on the CPU",
    ),
    "an old constant": ("hetkern.cross_entropy(torch.zeros(2, 3), OLD)", "RuntimeError: .*on the"),
    "what it compares with": (
        "torch.testing.assert_close(hetkern.softmax(torch.zeros(2)), OLD / 2)",
        "(Runtime|Assertion)Error",
    ),
    "its generator": (
        "torch.randn(3, generator=torch.Generator())",
        "RuntimeError: expected a generator on meta",
    ),
}


def test_a_test_that_leaves_a_tensor_behind_fails(tmp_path):
    """One file with an honest test, a moved constant, and all that may be left behind."""
    planted = [
        f"def test_planted_{i}(impl):\n    {code}\n"
        for i, (code, _) in enumerate(LEFT_BEHIND.values())
    ]
    moved = "hetkern.cross_entropy(torch.zeros(2, 3), given)"
    file = tmp_path / "test_planted.py"
    file.write_text(
        "import hetkern, pytest, torch\n"
        "OLD = torch.ones(2, dtype=torch.long)\n"
        "def test_honest(impl):\n"
        "    assert hetkern.softmax(torch.zeros(2)).tolist() == [0.5, 0.5]\n"
        f"@pytest.mark.parametrize('given', [OLD])\ndef test_moved(impl, given):\n    {moved}\n"
        + "".join(planted)
    )
    status, printed = suite("-p", "hetkern.testing.pytest_plugin", "--rootdir", tmp_path, file)
    assert (status, f"{len(planted)} failed, 2 passed" in printed) == (1, True), printed
    reports = re.split(r"^_+ test_planted_\d.* _+$", printed, flags=re.MULTILINE)[1:]
    for name, report in zip(LEFT_BEHIND, reports, strict=True):
        assert re.search(f"E +{LEFT_BEHIND[name][1]}", report), f"{name}: {report}"
