"""The kernels of both libraries under ASan + UBSan, and planted bugs for them to see."""

import pytest
from sanitizing import WORKLOAD, EmulatedKernels, NativeKernels, run

BUGS = [("out_of_bounds", "heap-buffer-overflow"), ("misaligned", "misaligned address")]


class TestEmulated(EmulatedKernels):
    sanitizer = "address"
    dtypes = "all"

    @pytest.mark.parametrize(("planted", "seen"), BUGS)
    def test_a_bug_planted_in_a_cuda_kernel_is_seen(self, environment, planted, seen):
        self.assert_seen(environment, planted, seen, str(WORKLOAD), "cuda")


class TestNative(NativeKernels):
    sanitizer = "address"

    @pytest.mark.parametrize(("planted", "seen"), BUGS)
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
