"""The error of a recurrent layer against its number of steps, beside that of torch.nn's layer.

Both get the same rounded numbers; the exact values are torch's in float64. An error is the largest
of the last state, or of W_hh's gradient from all states, relative to the largest exact value. The
proof holds ours to the error budget at each T (python_tests/test_rnn_error_by_length.py).
"""

from __future__ import annotations

from typing import Any

import torch
from harness import arguments, save
from torch import Tensor, nn

import hetkern

LENGTHS = (4, 16, 64, 256, 1024, 4096)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
B, WIDTH = 4, 32


def drawn(cell: str, T: int) -> tuple[nn.RNNBase, Tensor, Tensor]:
    """A module of torch, its input and the gradient of its output."""
    torch.manual_seed(0)
    kind = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]
    return kind(WIDTH, WIDTH), torch.randn(T, B, WIDTH), torch.randn(T, B, WIDTH)


def last_state_and_gradient(made: nn.RNNBase, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The state after the last step, and the gradient of all states by W_hh."""
    y, _ = made(x)
    (dw,) = torch.autograd.grad(y, [made.weight_hh_l0], dy)
    return y[-1].detach(), dw


def three(cell: str, T: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """What hetkern's module, torch's and torch's in float64 give for the same numbers."""
    made, x, dy = drawn(cell, T)
    made, x, dy = made.to(dtype), x.to(dtype), dy.to(dtype)
    ours = getattr(hetkern.nn, type(made).__name__)(WIDTH, WIDTH, dtype=dtype)
    ours.load_state_dict(made.state_dict())
    results = {
        name: last_state_and_gradient(module, x, dy)
        for name, module in (("hetkern", ours), ("torch", made))
    }
    return results | {"exact": last_state_and_gradient(made.double(), x.double(), dy.double())}


def main() -> None:
    """Measure, print, save."""
    options = arguments(__doc__ or "", threads=1)
    rows = []
    for cell in ("tanh", "lstm", "gru"):
        for dtype in DTYPES:
            for T in LENGTHS[:3] if options.quick else LENGTHS:
                results = three(cell, T, dtype)
                row: dict[str, Any] = {"cell": cell, "dtype": str(dtype)[6:], "T": T}
                for i, what in enumerate(("h", "dW_hh")):
                    exact = results["exact"][i]
                    for name in ("hetkern", "torch"):
                        error = (results[name][i].double() - exact).abs().max() / exact.abs().max()
                        row[f"{what}, {name}"] = f"{error:.1e}"
                rows.append(row)
                print(row, flush=True)
    save("rnn_error", rows, {"B": B, "I = H": WIDTH}, options)


if __name__ == "__main__":
    main()
