"""The command ``python -m hetkern.testing.traffic``: a table for a file or an operation."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from hetkern.testing import traffic
from hetkern.testing.emulation import EmulationError, emulate_cuda
from hetkern.testing.traffic.counting import counting
from hetkern.testing.traffic.resources import own_resources, resources

#: The .cu file of an operation's kernels.
OPERATIONS = {"softmax": "softmax", "log_softmax": "softmax", "cross_entropy": "cross_entropy"}
#: One layer in one direction without its input's product: the file, and the cell; shape TxBxH.
SEQUENCES = {"rnn": "tanh", "lstm": "lstm", "gru": "gru"}
OPERATIONS |= dict.fromkeys(SEQUENCES, "rnn_steps")
FLOATS = ("float32", "float64", "float16", "bfloat16")
DTYPES = (*FLOATS, "bool", "uint8", "int8", "int16", "int32", "int64")
_SHAPE = r"\d+(x\d+)*"

Refuse = Callable[[str], NoReturn]


def main(words: list[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m hetkern.testing.traffic",
        description=traffic.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", help=f"a .cu file, or {', '.join(OPERATIONS)}")
    parser.add_argument("arguments", nargs="*", help="NAME=DTYPE:SHAPE, numbers, null; or a shape")
    parser.add_argument("--launcher", help='the file\'s extern "C" function')
    parser.add_argument("--impl", default="cuda", choices=("cuda", "triton"))
    parser.add_argument("--dtype", default="float32", choices=FLOATS)
    parser.add_argument("--backward", action="store_true", help="and what its gradient moves")
    given = parser.parse_args(words)
    try:
        if given.what.endswith(".cu"):
            if given.impl == "triton" or given.backward:
                parser.error(f"--impl and --backward: wanted an operation, got {given.what}")
            _of_file(Path(given.what), given.launcher, given.arguments, parser.error)
        elif given.what in OPERATIONS:
            if len(given.arguments) != 1 or not re.fullmatch(_SHAPE, given.arguments[0]):
                got = " ".join(given.arguments) or "nothing"
                parser.error(f"{given.what}: wanted one shape, such as 64x1000, got {got}")
            shape = tuple(int(n) for n in given.arguments[0].split("x"))
            if given.what in SEQUENCES and len(shape) != 3:
                got = given.arguments[0]
                parser.error(f"{given.what}: wanted a shape TxBxH, such as 5x4x128, got {got}")
            of = _of_triton if given.impl == "triton" else _of_cuda
            of(given.what, shape, given.dtype, given.backward)
        else:
            wanted = ", ".join(OPERATIONS)
            parser.error(f"wanted a .cu file or one of {wanted}, got {given.what!r}")
    except (EmulationError, NotImplementedError, OSError, TypeError, ValueError) as error:
        parser.error(str(error))


# ---- A file. -------------------------------------------------------------------------------------


def _of_file(file: Path, launcher: str | None, words: list[str], refuse: Refuse) -> None:
    if not file.is_file():
        refuse(f"wanted a .cu file, got {file}, which is none")
    arguments = [_argument(word, refuse) for word in words]
    counted = emulate_cuda(file, launcher, traffic=True)(*arguments)
    assert counted is not None
    print(counted)
    print(*resources(file, counted.launches), sep="\n")


def _argument(word: str, refuse: Refuse) -> object:
    value = word.split("=", 1)[-1]
    if value == "null":
        return None
    if found := re.fullmatch(rf"({'|'.join(DTYPES)}):({_SHAPE})", value):
        kind: torch.dtype = getattr(torch, found[1])
        sizes = [int(n) for n in found[2].split("x")]
        return torch.randn(sizes).to(kind) if found[1] in FLOATS else torch.zeros(sizes, dtype=kind)
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            pass
    wanted = "DTYPE:SHAPE (such as float32:64x1000), a number or null"
    refuse(f"argument {word!r}: wanted {wanted}; DTYPE is one of {', '.join(DTYPES)}")


# ---- An operation. -------------------------------------------------------------------------------


def run(
    name: str, shape: tuple[int, ...], dtype: str, backward: bool, impl: str, device: str
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Call an operation, then its backward; yield the direction and its tensors after each."""
    import hetkern

    if name in SEQUENCES:
        yield from _sequence(SEQUENCES[name], shape, dtype, backward, impl, device)
        return
    drawn = torch.randn(shape, device=device).to(getattr(torch, dtype))
    x = drawn.requires_grad_(backward)
    rows: dict[str, Any] = {}
    if name == "cross_entropy":
        of_rows = shape[:1] + shape[2:] if len(shape) > 1 else ()  # a lone dimension is the classes
        rows["target"] = torch.zeros(of_rows, dtype=torch.int64, device=device)
    y: Tensor = getattr(hetkern, name)(x, *rows.values(), impl=impl)
    yield "forward", {"x": x.detach(), "y": y.detach(), **rows}
    if backward:
        dy = torch.ones_like(y).detach()
        (dx,) = torch.autograd.grad(y, x, dy)
        yield "backward", {"x": x.detach(), "y": y.detach(), "dy": dy, "dx": dx, **rows}


def _sequence(
    cell: str, shape: tuple[int, ...], dtype: str, backward: bool, impl: str, device: str
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same for a sequence; the products between its steps are torch's, and not counted."""
    from hetkern.ops.rnn import OPS
    from hetkern.reference.rnn import CELLS, GATES, accumulator_of

    ops, number, (T, B, H) = OPS["emulated" if impl == "cuda" else impl], CELLS.index(cell), shape
    kind: torch.dtype = getattr(torch, dtype)

    def draw(*sizes: int, kind: torch.dtype = kind) -> Tensor:
        return torch.randn(sizes, device=device).to(kind)

    columns, lstm = GATES[cell] * H, cell == "lstm"
    c = draw(B, H, kind=accumulator_of(kind)) if lstm else None
    given = {"x_gates": draw(T, B, columns), "w_hh": draw(columns, H), "b_hh": draw(columns)}
    given |= {"h0": draw(B, H)} | ({"c0": c} if c is not None else {})
    inputs = [*given.values(), *([] if lstm else [None]), None, None, None, None, False]
    names = ("y", "h_n", "c_n", "gates", "cells")
    results = dict(zip(names, ops.rnn_sequence(number, *inputs, True), strict=True))
    yield "forward", given | results
    if backward:
        upstream = {"dy": draw(T, B, H), "dh_n": draw(B, H)}
        saved = [results[name] for name in ("y", "gates", "cells")]
        found = ops.rnn_sequence_backward(number, *upstream.values(), None, *saved, *inputs)
        gradients = dict(zip(("dgates", "dh0", "dc0"), found, strict=True))
        yield "backward", given | results | upstream | gradients


def _of_cuda(name: str, shape: tuple[int, ...], dtype: str, backward: bool) -> None:
    with counting() as watch:
        for direction, tensors in run(name, shape, dtype, backward, "cuda", "cpu"):
            watch.name(**tensors)
            counted = watch.traffic()
            print(f"{name} {shape} {dtype}, {direction}\n{counted}")
            print(*own_resources(OPERATIONS[name], counted.launches), sep="\n", end="\n\n")


def _of_triton(name: str, shape: tuple[int, ...], dtype: str, backward: bool) -> None:
    if importlib.util.find_spec("triton") is None:
        raise NotImplementedError("--impl triton: triton is not installed: pip install triton")
    from hetkern.testing import triton_interpreter
    from hetkern.testing.traffic.triton import triton_resources

    # Before this process interprets, which a child would inherit.
    compiled = triton_resources(run, name, shape, dtype, backward, "triton")
    triton_interpreter.activate()
    steps = run(name, shape, dtype, backward, "triton", "cpu")
    for lines in compiled:
        with triton_interpreter.traffic() as counted:
            direction, _ = next(steps)
        print(f"{name} {shape} {dtype}, {direction}, in Triton\n{counted}")
        print(*lines, sep="\n", end="\n\n")
