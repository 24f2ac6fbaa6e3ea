"""One training step of a 3-2-2 network by hand: plain numbers, then autograd through our kernels.

    a = W1 x + b1       h = max(a, 0)      z = W2 h + b2      p = softmax(z)      loss = -ln p_t

    dz = p - onehot(t)       dW2 = dz h^T     db2 = dz
    dh = W2^T dz             da = dh where a > 0, else 0
    dW1 = da x^T             db1 = da         and each weight goes down its gradient times 0.5

With the numbers below: a = (0.5, -1), so the second hidden unit is off; h = (0.5, 0); z = (1, 0);
p = (1, 1/e) / (1 + 1/e) = (0.7311, 0.2689); t = 1, so loss = ln(1 + e) = 1.3133;
dz = (0.7311, -0.7311).
"""

import math

import pytest
import torch
import torch.nn.functional as F

import hetkern

X = [1.0, 2.0, -1.0]
W1, B1 = [[0.5, 0.25, 0.5], [-1.0, 0.5, 0.0]], [0.0, -1.0]
W2, B2 = [[2.0, 1.0], [-1.0, 0.5]], [0.0, 0.5]
TARGET = 1
RATE = 0.5


def step_by_hand():
    """The loss, p, and the four parameters after one step, in Python floats."""
    a = [sum(w * x for w, x in zip(row, X, strict=True)) + b for row, b in zip(W1, B1, strict=True)]
    h = [max(value, 0.0) for value in a]
    z = [sum(w * v for w, v in zip(row, h, strict=True)) + b for row, b in zip(W2, B2, strict=True)]
    total = sum(math.exp(value) for value in z)
    p = [math.exp(value) / total for value in z]
    loss = -math.log(p[TARGET])

    dz = [p[0] - (TARGET == 0), p[1] - (TARGET == 1)]
    dh = [W2[0][j] * dz[0] + W2[1][j] * dz[1] for j in range(2)]
    da = [dh[j] if a[j] > 0 else 0.0 for j in range(2)]

    w1 = [[W1[j][i] - RATE * da[j] * X[i] for i in range(3)] for j in range(2)]
    b1 = [B1[j] - RATE * da[j] for j in range(2)]
    w2 = [[W2[k][j] - RATE * dz[k] * h[j] for j in range(2)] for k in range(2)]
    b2 = [B2[k] - RATE * dz[k] for k in range(2)]
    return loss, p, [w1, b1, w2, b2]


def test_the_numbers_by_hand_are_those_of_the_text():
    loss, p, (w1, b1, w2, b2) = step_by_hand()
    s = 1 / (1 + math.exp(-1))  # 0.7311
    assert loss == pytest.approx(math.log(1 + math.e))
    assert p == pytest.approx([s, 1 - s])
    # dh_1 = 2 s + (-1)(-s) = 3 s; the unit that is off keeps its weights.
    assert w1[0] == pytest.approx([0.5 - 1.5 * s, 0.25 - 3 * s, 0.5 + 1.5 * s])
    assert b1 == pytest.approx([-1.5 * s, -1.0])
    assert w1[1] == W1[1]
    assert w2[0] == pytest.approx([2 - 0.25 * s, 1.0])
    assert w2[1] == pytest.approx([-1 + 0.25 * s, 0.5])
    assert b2 == pytest.approx([-0.5 * s, 0.5 + 0.5 * s])


@pytest.mark.parametrize("through", ["cross_entropy", "log_softmax", "softmax"])
@pytest.mark.parametrize("impl", ["torch", "auto", "reference"])
def test_autograd_through_the_kernels_makes_the_same_step(impl, through):
    loss_by_hand, p_by_hand, after_by_hand = step_by_hand()
    w1, b1, w2, b2 = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (W1, B1, W2, B2)
    )
    x, target = torch.tensor(X, dtype=torch.float64), torch.tensor(TARGET)
    z = F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)
    ops, options = _ops(impl)
    p = ops.softmax(z, dim=-1, **options)
    if through == "cross_entropy":
        loss = ops.cross_entropy(z, target, **options)
    elif through == "log_softmax":
        loss = -ops.log_softmax(z, dim=-1, **options)[TARGET]
    else:
        loss = -p[TARGET].log()
    loss.backward()
    after = [(v - RATE * v.grad).detach() for v in (w1, b1, w2, b2)]

    assert loss.item() == pytest.approx(loss_by_hand, rel=1e-12)
    assert p.tolist() == pytest.approx(p_by_hand, rel=1e-12)
    for got, wanted in zip(after, after_by_hand, strict=True):
        wanted = torch.tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


def _ops(impl):
    """torch's functions, or hetkern's and the implementation to ask them for."""
    if impl == "torch":
        return F, {}
    return hetkern, {"impl": impl}
