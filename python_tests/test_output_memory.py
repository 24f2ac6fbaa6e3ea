"""Memory of large results on the CPU: torch's own, and resizable; kept between calls on request.

The tests of kept memory run in a process of their own, whose HETKERN_KEEP_MB asks for it.
"""

import os
import pickle
import subprocess
import sys

import pytest
import torch

import hetkern
from hetkern import impl

pytestmark = pytest.mark.skipif(impl.missing_library is not None, reason=str(impl.missing_library))

ROWS, COLUMNS = 2048, 1024  # 8 MiB of float32, above the 4 MiB from which memory is kept


def results():
    """One large result of each kind: forward, backward, with a sink, a loss's gradient."""
    rows = torch.randn(ROWS, COLUMNS, requires_grad=True)
    y = hetkern.softmax(rows)
    y.backward(torch.ones_like(y))
    logits = torch.randn(ROWS, COLUMNS, requires_grad=True)
    hetkern.cross_entropy(logits, torch.zeros(ROWS, dtype=torch.int64)).backward()
    return {
        "softmax": hetkern.softmax(rows.detach()),
        "log_softmax": hetkern.log_softmax(rows.detach(), 0),
        "softmax with a sink": hetkern.softmax(rows.detach(), sink=torch.zeros(ROWS)),
        "gradient of softmax": rows.grad,
        "gradient of cross_entropy": logits.grad,
    }


def test_a_results_storage_is_freed_and_fetched_again_by_hand():
    for name, y in results().items():
        storage = y.untyped_storage()
        assert storage.nbytes() == y.nbytes == ROWS * COLUMNS * 4, name
        assert storage.resizable(), name
        storage.resize_(0)
        assert storage.nbytes() == 0, name
        storage.resize_(ROWS * COLUMNS * 4)
        assert (y.fill_(3.0) == 3.0).all(), name


def test_a_result_grows_is_shared_and_pickles_as_torchs():
    for name, y in results().items():
        wanted = y.clone()
        again = pickle.loads(pickle.dumps(y))
        assert torch.equal(again, wanted), name
        y.share_memory_()
        assert y.is_shared() and torch.equal(y, wanted), name
    y = hetkern.softmax(torch.randn(ROWS, COLUMNS))
    wanted = y.clone()
    y.resize_(2 * ROWS, COLUMNS)
    assert torch.equal(y[:ROWS], wanted)


KEPT = """
import gc, itertools, os, threading
import torch, hetkern
ROWS, COLUMNS = 2048, 1024

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

for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
"""


def test_memory_that_is_kept_on_request_is_never_shared_by_two_living_results():
    environment = {**os.environ, "HETKERN_KEEP_MB": "200"}
    done = subprocess.run(
        [sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
