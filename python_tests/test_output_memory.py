"""Memory of large results on the CPU: kept between calls, never shared by two living tensors."""

import gc
import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch

import hetkern
from hetkern import impl

pytestmark = pytest.mark.skipif(impl.missing_library is not None, reason=str(impl.missing_library))

ROWS, COLUMNS = 2048, 1024  # 8 MiB of float32, above the 4 MiB from which memory is kept


def test_a_result_that_died_leaves_its_memory_to_the_next():
    x = torch.randn(ROWS, COLUMNS)
    first = hetkern.softmax(x)
    address = first.data_ptr()
    del first
    gc.collect()
    assert hetkern.softmax(x).data_ptr() == address


def test_two_living_results_never_share_memory():
    x = torch.randn(ROWS, COLUMNS)
    results = [hetkern.softmax(x * k) for k in range(1, 5)]
    view = results[0][3:7]  # keeps the first one's memory
    wanted = view.clone()
    del results[0]
    results.append(hetkern.softmax(x * 9))
    assert torch.equal(view, wanted)
    spans = sorted((y.data_ptr(), y.data_ptr() + y.nbytes) for y in results)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_memory_is_kept_right_under_threads():
    x = torch.randn(ROWS, COLUMNS)
    wanted = hetkern.softmax(x)
    wrong = []

    def work():
        for _ in range(20):
            if not torch.equal(hetkern.softmax(x), wanted):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


GROWTH = """
import torch, hetkern
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
x = torch.randn(2048, 8192)  # 64 MiB
hetkern.softmax(x[:8])
before = resident()
for rows in range(2048, 1024, -64):
    hetkern.softmax(x[:rows])
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("megabytes, least, most", [("0", -10, 40), ("100", 30, 140)])
def test_no_more_memory_is_kept_than_asked_for(megabytes, least, most):
    environment = {**os.environ, "HETKERN_KEEP_MB": megabytes}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], env=environment, capture_output=True, text=True, check=True
    )
    assert least <= float(done.stdout) <= most


def test_a_forked_child_goes_on_with_memory_of_its_own():
    x = torch.randn(ROWS, COLUMNS)
    kept = hetkern.softmax(x)
    wanted = kept.clone()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        kept.zero_()
        os._exit(0 if torch.equal(hetkern.softmax(x), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(kept, wanted)
