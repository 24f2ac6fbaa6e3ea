"""Denormal numbers: whoever has them taken as zeros has it so on every thread of ours.

``torch.set_flush_denormal`` reaches the calling thread and those started afterwards. torch's
own operations then give other bits in the rows of the others (findings/flush_denormal_threads.sh).
"""

import pytest
import torch

import hetkern
from hetkern import impl

pytestmark = pytest.mark.skipif(impl.missing_library is not None, reason=str(impl.missing_library))


def tiny(*shape):
    return torch.full(shape, 1e-39)


def softmax():
    scores = torch.zeros(4096, 500, requires_grad=True)
    return hetkern.softmax(scores, impl="cpu"), scores, tiny(4096, 500).cumsum(1)


def cross_entropy():
    logits = torch.zeros(4096, 500, requires_grad=True)
    target = torch.arange(4096) % 500
    return hetkern.cross_entropy(logits, target, reduction="none", impl="cpu"), logits, tiny(4096)


def rnn():
    layer = hetkern.nn.RNN(16, 128)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(2**-7 if weight.dim() == 2 else 0.0)  # a gradient as large at every step
    h = torch.zeros(1, 64, 128, requires_grad=True)
    with hetkern.use("cpu"):
        return layer(torch.zeros(20, 64, 16), h)[0][-1], h, tiny(64, 128)


def attention():
    q, k, v = (torch.full((4, 4, 256, 32), 0.5, requires_grad=True) for _ in range(3))
    return hetkern.attention(q, k, v, impl="cpu"), v, tiny(4, 4, 256, 32)


def gradient(y, x, grad, threads):
    torch.set_num_threads(threads)
    return torch.autograd.grad(y, x, grad, retain_graph=True)[0]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(1_000_000).mul(2.0)  # the second thread stands, with denormal numbers
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("work", [softmax, cross_entropy, rnn, attention])
def test_one_thread_and_two_give_the_same_bits(two_threads, work, flush):
    made = work()
    torch.set_flush_denormal(flush)
    two, one = gradient(*made, threads=2), gradient(*made, threads=1)
    torch.set_flush_denormal(False)
    assert torch.equal(two, one)
    assert bool(two.count_nonzero()) != flush


def test_the_other_threads_have_their_own_mode_back(two_threads):
    made, numbers = softmax(), tiny(1_000_000)
    torch.set_flush_denormal(True)
    gradient(*made, threads=2)
    torch.set_flush_denormal(False)
    assert (numbers * 1.0).count_nonzero() == len(numbers)
