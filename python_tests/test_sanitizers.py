"""The CPU kernels under ASan + UBSan and under TSan, and a planted bug for each to see."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKLOAD = Path(__file__).with_name("sanitized_workload.py")


def preload(sanitizer: str) -> str:
    """The runtimes that must be in the process before Python."""
    names = {"address": ["libasan.so", "libstdc++.so"], "thread": ["libtsan.so"]}[sanitizer]
    found = [
        subprocess.run(["g++", f"-print-file-name={n}"], capture_output=True, text=True, check=True)
        for n in names
    ]
    paths = [f.stdout.strip() for f in found]
    if not all(Path(p).is_absolute() for p in paths):
        pytest.skip(f"g++ has no {names[0]} here")
    return " ".join(paths)


@pytest.fixture(scope="module", params=["address", "thread"])
def sanitized(request) -> tuple[str, dict[str, str]]:
    """A build of the library under one sanitizer, and the environment that loads it."""
    sanitizer = request.param
    if (
        shutil.which("g++") is None
        or shutil.which("cmake") is None
        or shutil.which("ninja") is None
    ):
        pytest.skip("g++, cmake and ninja are needed for a sanitizer build")
    level = "avx2" if " avx2 " in Path("/proc/cpuinfo").read_text() else "base"
    build = ROOT / "build" / sanitizer
    configure = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        build,
        "-G",
        "Ninja",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    subprocess.run(
        [*configure, f"-DHETKERN_SANITIZE={sanitizer}", f"-DHETKERN_LEVELS={level}"],
        check=True,
        capture_output=True,
    )
    made = subprocess.run(["ninja", "-C", build, "hetkern_ops"], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:]
    environment = {
        **os.environ,
        "HETKERN_LIBRARY": str(build / "libhetkern_ops.so"),
        "LD_PRELOAD": preload(sanitizer),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "exitcode=66",
        "OMP_NUM_THREADS": "1",  # torch's own pool: the kernels' threads are the build's
    }
    return sanitizer, environment


def run(
    environment: dict[str, str], *command: str, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(command or [str(WORKLOAD)])],
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_the_kernels_are_clean(sanitized):
    _, environment = sanitized
    done = run(environment)
    assert (
        done.returncode == 0 and "ERROR" not in done.stderr and "WARNING: Thread" not in done.stderr
    ), done.stderr[-4000:]
    assert "calls on 4 threads" in done.stdout


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        ("out_of_bounds", ("address", "heap-buffer-overflow")),
        ("misaligned", ("address", "misaligned address")),
        ("race", ("thread", "data race")),
    ],
)
def test_a_planted_bug_is_seen(sanitized, planted, seen):
    sanitizer, environment = sanitized
    if sanitizer != seen[0]:
        pytest.skip(f"the {seen[0]} sanitizer looks for this one")
    done = run(environment, HETKERN_PLANT=planted)
    assert done.returncode != 0 and seen[1] in done.stderr, (
        f"{sanitizer} has gone blind:\n{done.stderr[-2000:]}"
    )


@pytest.mark.parametrize(
    ("planted", "family"),
    [
        ("dropped_tail", "softmax"),
        ("dropped_tail", "cross_entropy"),
        ("zero_output", "softmax"),
        ("zero_output", "cross_entropy"),
        ("dropped_target", "cross_entropy"),
    ],
)
def test_the_error_budget_sees_a_bug_planted_in_a_kernel(sanitized, planted, family):
    sanitizer, environment = sanitized
    if sanitizer != "address":
        pytest.skip("one build with planted bugs is enough")
    command = "-m", "hetkern.testing.repro", family, "--count", "12"
    sound = run(environment, *command)
    assert sound.returncode == 0 and "none failed" in sound.stdout, sound.stderr[-2000:]
    done = run(environment, *command, HETKERN_PLANT=planted)
    assert done.returncode == 1 and "error ÷ limit is" in done.stderr, (
        f"the error budget has gone blind:\n{done.stdout}{done.stderr[-2000:]}"
    )
