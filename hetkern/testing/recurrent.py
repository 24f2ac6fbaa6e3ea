"""The RNN family as ``check_op`` wants it: cells and sequences, and random configurations.

Tensors come flat: x, the states, then the weights of each layer and direction. The yardstick rounds
where torch's modules do: every product, gate and state, of which backward keeps the rounded values.
"""

import importlib
import random
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from hetkern.testing.budget import Dims
from hetkern.testing.calls import Op
from hetkern.testing.check import DTYPES, Case, Summary, check_op
from hetkern.testing.layouts import LAYOUTS

if TYPE_CHECKING:
    from hetkern.testing.random_cases import Configuration

CELLS = ("tanh", "relu", "lstm", "gru")
GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3}


def rnn_op(impl: str) -> Op:
    """The public sequences behind one signature; ``bias`` says how many weights a layer has."""
    import hetkern

    def op(x: Tensor, *flat: Tensor, cell: str, bias: bool = True, **options: Any) -> Any:
        states = 2 if cell == "lstm" else 1
        per = 4 if bias else 2
        layers = [flat[i : i + per] for i in range(states, len(flat), per)]
        weights = [(*layer, None, None)[:4] for layer in layers]
        if cell == "lstm":
            return hetkern.lstm(x, (flat[0], flat[1]), weights, impl=impl, **options)
        if cell == "gru":
            return hetkern.gru(x, flat[0], weights, impl=impl, **options)
        return hetkern.rnn(x, flat[0], weights, nonlinearity=cell, impl=impl, **options)

    return op


def cell_op(impl: str) -> Op:
    """The public cells behind one signature."""
    import hetkern

    def op(x: Tensor, *flat: Tensor, cell: str) -> Any:
        if cell == "lstm":
            h, c, *weights = flat
            return hetkern.lstm_cell(x, (h, c), *weights, impl=impl)
        if cell == "gru":
            return hetkern.gru_cell(x, *flat, impl=impl)
        h, *weights = flat
        step: Op = hetkern.rnn_cell
        return step(x, h, *weights, nonlinearity=cell, impl=impl)

    return op


def torch_gates(
    cell: str, x_gates: Tensor, h_gates: Tensor, h: Tensor | None = None, c: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """A step by torch's operations in the dtype of its inputs."""
    if cell == "lstm":
        assert c is not None
        i, f, g, o = (x_gates + h_gates).chunk(4, -1)
        new = f.sigmoid() * c.to(x_gates.dtype) + i.sigmoid() * g.tanh()
        return o.sigmoid() * new.tanh(), new.to(c.dtype)
    if cell == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates.chunk(3, -1), h_gates.chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        assert h is not None
        return n + z * (h - n), None
    both = x_gates + h_gates
    return (both.tanh() if cell == "tanh" else both.relu()), None


def by_torch(op: Op) -> Op:
    """The reference with its steps made by :func:`torch_gates`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        equations = importlib.import_module("hetkern.reference.rnn")
        with mock.patch.object(equations, "rnn_gates", torch_gates):
            return op(*args, **kwargs)

    return run


def rows_of_units(name: str, value: Tensor) -> Dims:
    """What makes a row: the units of one state; of a weight's gradient, which is a sum, all."""
    if name.startswith("gradient") and name not in ("gradient of argument 0",):
        return tuple(range(value.dim()))
    return -1


def check_rnn(impl: str, *cases: Case, **options: Any) -> Summary:
    """``check_op`` for the public sequences."""
    return _check(rnn_op, impl, cases, options)


def check_cell(impl: str, *cases: Case, **options: Any) -> Summary:
    """``check_op`` for the public cells."""
    return _check(cell_op, impl, cases, options)


def _check(op: Any, impl: str, cases: Any, options: dict[str, Any]) -> Summary:
    dtypes = options.get("dtypes", DTYPES)
    options["dtypes"] = [t for t in dtypes if impl != "triton" or t != torch.float64] or dtypes
    options.setdefault("device", torch.get_default_device())
    reference = op("reference")
    return check_op(op(impl), reference, cases, baseline=by_torch(reference), **options)


def sequence_case(
    cell: str,
    T: int,
    B: int,
    columns: int,
    H: int,
    *,
    layers: int = 1,
    bias: bool = True,
    scale: float = 1.0,
    seed: int = 0,
    repro: str | None = None,
    **options: Any,
) -> Case:
    """A sequence with random inputs, states and weights of torch's size, times ``scale``."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    directions = 2 if options.get("bidirectional") else 1
    shape: tuple[int, ...] = (B, T, columns) if options.get("batch_first") else (T, B, columns)
    if "batch_sizes" in options:
        shape = (int(options["batch_sizes"].sum()), columns)
    states = [normal(layers * directions, B, H) for _ in range(2 if cell == "lstm" else 1)]
    weights: list[Tensor] = []
    for layer in range(layers):
        for _ in range(directions):
            wide = columns if layer == 0 else directions * H
            shapes = [(GATES[cell] * H, wide), (GATES[cell] * H, H)]
            shapes += [(GATES[cell] * H,)] * 2 if bias else []  # type: ignore[list-item]
            weights += [scale * normal(*s) / max(H, 1) ** 0.5 for s in shapes]
    name = f"{cell} T {T} B {B} I {columns} H {H} layers {layers} {_text(options)}"
    kwargs = {"cell": cell, "bias": bias, **options}
    return Case(name, (normal(*shape), *states, *weights), kwargs, rows=rows_of_units, repro=repro)


def cell_case(cell: str, B: int, columns: int, H: int, *, bias: bool = True, seed: int = 0) -> Case:
    """One step with random inputs, states and weights."""
    case = sequence_case(cell, 1, B, columns, H, bias=bias, seed=seed)
    x, *flat = case.args
    states = 2 if cell == "lstm" else 1
    flat[:states] = [s[0] for s in flat[:states]]
    return Case(case.name, (x[0], *flat), {"cell": cell}, rows=rows_of_units)


def rnn(seed: int) -> "Configuration":
    """A sequence of any cell with any features."""
    from hetkern.testing.random_cases import Configuration  # which lists this family

    draw = random.Random(seed)
    cell = draw.choice(CELLS)
    T, B = draw.choice([1, 2, 3, 5, 9, 17]), draw.choice([1, 2, 3, 5, 8, 13])
    columns, H = draw.choice([1, 3, 8]), draw.choice([1, 2, 5, 16, 17, 33, 48])
    options: dict[str, Any] = {"layers": draw.choice([1, 1, 1, 2]), "bias": draw.random() < 0.7}
    if draw.random() < 0.3:
        options["bidirectional"] = True
    kind = draw.choice(["dense", "dense", "lengths", "packed"])
    if kind == "packed":
        lengths = sorted((draw.randint(1, T) for _ in range(B)), reverse=True)
        lengths[0] = T
        steps = [sum(n > t for n in lengths) for t in range(T)]
        options["batch_sizes"] = torch.tensor(steps)
    else:
        if kind == "lengths":
            options["lengths"] = torch.tensor([draw.randint(0, T) for _ in range(B)])
        if draw.random() < 0.3:
            options["batch_first"] = True
    if draw.random() < 0.3:
        generator = torch.Generator().manual_seed(seed)
        options["reset"] = torch.rand(B, T, generator=generator) < 0.2
    repro = f"python -m hetkern.testing.repro rnn --seed {seed}"
    case = sequence_case(cell, T, B, columns, H, seed=seed, repro=repro, **options)
    # A relu has no slope at 0, and 16 bits put some sums on its other side.
    dtypes = DTYPES[:2] if cell == "relu" else DTYPES
    dtype, layout = draw.choice(dtypes), draw.choice(list(LAYOUTS))
    if kind == "packed" and layout == "expanded":  # the first batch size everywhere: too many rows
        layout = "dense"
    return Configuration(case, dtype, layout, seed)


def _text(options: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={tuple(value.shape) if isinstance(value, Tensor) else value}"
        for name, value in options.items()
    )
