"""The CUDA kernels, emulated, under ASan + UBSan and under TSan, and a planted bug for each."""

import pytest
from sanitizing import WORKLOAD, Sanitized, assert_clean, run


class Emulated(Sanitized):
    library = "hetkern_emulated"
    dtypes: str

    def test_the_cuda_kernels_are_clean(self, environment):
        done = run(environment, str(WORKLOAD), "cuda", self.dtypes)
        assert_clean(done)
        assert "calls of emulated CUDA kernels" in done.stdout


class TestAddress(Emulated):
    sanitizer = "address"
    dtypes = "all"

    @pytest.mark.parametrize(
        ("planted", "seen"),
        [("out_of_bounds", "heap-buffer-overflow"), ("misaligned", "misaligned address")],
    )
    def test_a_bug_planted_in_a_cuda_kernel_is_seen(self, environment, planted, seen):
        self.assert_seen(environment, planted, seen, str(WORKLOAD), "cuda")


class TestThread(Emulated):
    sanitizer = "thread"
    dtypes = "two"  # TSan takes some ten times as long

    def test_a_race_planted_in_a_cuda_kernel_is_seen(self, environment):
        self.assert_seen(environment, "race", "data race", str(WORKLOAD), "cuda")
