"""The CPU kernels under ASan + UBSan and under TSan, and a planted bug for each to see."""

import pytest
from sanitizing import assert_clean, built, run


@pytest.fixture(scope="module", params=["address", "thread"])
def sanitized(request) -> tuple[str, dict[str, str]]:
    """A build of the library under one sanitizer, and the environment that loads it."""
    return request.param, built(request.param, "hetkern_ops")


def test_the_kernels_are_clean(sanitized):
    _, environment = sanitized
    done = run(environment)
    assert_clean(done)
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
