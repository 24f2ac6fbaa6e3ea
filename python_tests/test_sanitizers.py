"""The CPU kernels under ASan + UBSan and under TSan, and a planted bug for each to see."""

import pytest
from sanitizing import Sanitized, assert_clean, run


class Native(Sanitized):
    library = "hetkern_ops"

    def test_the_kernels_are_clean(self, environment):
        done = run(environment)
        assert_clean(done)
        assert "calls on 4 threads" in done.stdout


class TestAddress(Native):
    sanitizer = "address"

    @pytest.mark.parametrize(
        ("planted", "seen"),
        [("out_of_bounds", "heap-buffer-overflow"), ("misaligned", "misaligned address")],
    )
    def test_a_planted_bug_is_seen(self, environment, planted, seen):
        self.assert_seen(environment, planted, seen)

    @pytest.mark.parametrize(
        ("family", "bugs"),
        [
            ("softmax", ["dropped_tail", "zero_output"]),
            ("cross_entropy", ["dropped_tail", "zero_output", "dropped_target"]),
        ],
    )
    def test_the_error_budget_sees_a_bug_planted_in_a_kernel(self, environment, family, bugs):
        command = "-m", "hetkern.testing.repro", family, "--count", "12"
        sound = run(environment, *command)
        assert sound.returncode == 0 and "none failed" in sound.stdout, sound.stderr[-2000:]
        for planted in bugs:
            done = run(environment, *command, HETKERN_PLANT=planted)
            assert done.returncode == 1 and "error ÷ limit is" in done.stderr, (
                f"the error budget has gone blind to {planted}:\n{done.stdout}{done.stderr[-2000:]}"
            )


class TestThread(Native):
    sanitizer = "thread"

    def test_a_planted_race_is_seen(self, environment):
        self.assert_seen(environment, "race", "data race")
