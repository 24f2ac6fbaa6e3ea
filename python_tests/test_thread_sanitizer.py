"""The kernels of both libraries under TSan, and a planted race for it to see in each."""

from sanitizing import WORKLOAD, EmulatedKernels, NativeKernels


class TestEmulated(EmulatedKernels):
    sanitizer = "thread"
    dtypes = "two"  # TSan takes some ten times as long

    def test_a_race_planted_in_a_cuda_kernel_is_seen(self, environment):
        self.assert_seen(environment, "race", "data race", str(WORKLOAD), "cuda")


class TestNative(NativeKernels):
    sanitizer = "thread"

    def test_a_planted_race_is_seen(self, environment):
        self.assert_seen(environment, "race", "data race")
