"""The CUDA kernels, emulated, under ASan + UBSan and under TSan, and a planted bug for each."""

import pytest
from sanitizing import WORKLOAD, assert_clean, built, run


@pytest.fixture(scope="module", params=["address", "thread"])
def sanitized(request) -> tuple[str, dict[str, str]]:
    """An emulated library under one sanitizer, and the environment that loads it."""
    return request.param, built(request.param, "hetkern_emulated")


def test_the_cuda_kernels_are_clean(sanitized):
    sanitizer, environment = sanitized
    dtypes = "two" if sanitizer == "thread" else "all"  # TSan takes some ten times as long
    done = run(environment, str(WORKLOAD), "cuda", dtypes)
    assert_clean(done)
    assert "calls of emulated CUDA kernels" in done.stdout


@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        ("out_of_bounds", ("address", "heap-buffer-overflow")),
        ("misaligned", ("address", "misaligned address")),
        ("race", ("thread", "data race")),
    ],
)
def test_a_bug_planted_in_a_cuda_kernel_is_seen(sanitized, planted, seen):
    sanitizer, environment = sanitized
    if sanitizer != seen[0]:
        pytest.skip(f"the {seen[0]} sanitizer looks for this one")
    done = run(environment, str(WORKLOAD), "cuda", HETKERN_PLANT=planted)
    assert done.returncode != 0 and seen[1] in done.stderr, (
        f"{sanitizer} has gone blind:\n{done.stderr[-2000:]}"
    )
