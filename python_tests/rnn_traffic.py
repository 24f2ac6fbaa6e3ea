"""What the RNN's CUDA kernels move, counted and as equations; test_cuda_traffic.py runs it.

The products between a sequence's steps are torch's, so their traffic is not in here.
"""

from collections.abc import Callable
from typing import Any

CELLS = ("tanh", "lstm", "gru")
GATES = {"tanh": 1, "lstm": 4, "gru": 3}
SIZES = ((4, 64), (3, 128), (2, 512))
BYTES = {"float32": 4, "bfloat16": 2}
WAYS = ("gates", "gates backward", "gates double backward", "sequence", "sequence backward")
T = 3
CASES = {
    f"rnn, {cell}, {B}x{H}, {dtype}, {way}": (cell, B, H, dtype, way)
    for cell in CELLS
    for B, H in SIZES
    for dtype in BYTES
    for way in WAYS
}


def count(watch: Any, summary: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Every case's traffic."""
    return {case: summary(_counted(watch, *CASES[case])) for case in CASES}


def _counted(watch: Any, cell: str, B: int, H: int, dtype: str, way: str) -> Any:
    import torch

    from hetkern.reference.rnn import CELLS as NUMBERS

    ops, number = torch.ops.hetkern_emulated, NUMBERS.index(cell)
    kind, lstm, gru, G = getattr(torch, dtype), cell == "lstm", cell == "gru", GATES[cell]

    def draw(*shape: int, there: bool = True, kind: torch.dtype = kind) -> Any:
        return torch.randn(shape).to(kind) if there else None

    x, h_gates, h = draw(B, G * H), draw(B, G * H), draw(B, H)
    c = draw(B, H, there=lstm, kind=torch.float32)
    step = {"x_gates": x, "h_gates": h_gates, "h": h if gru else None, "c": c}
    up = {"dh_next": draw(B, H), "dc_next": draw(B, H, there=lstm, kind=torch.float32)}
    if way.startswith("gates"):
        given = dict(step)
        if way != "gates":
            given = up | given
        if way == "gates double backward":
            g = {
                "g_dx_gates": draw(B, G * H),
                "g_dh_gates": draw(B, G * H, there=gru),
                "g_dh": draw(B, H, there=gru),
                "g_dc": draw(B, H, there=lstm, kind=torch.float32),
            }
            given = g | given
        names = {
            "gates": ("h_next", "c_next"),
            "gates backward": ("dx_gates", "dh_gates", "dh", "dc"),
            "gates double backward": (
                *("by_dh_next", "by_dc_next", "by_x_gates", "by_h_gates", "by_h", "by_c"),
            ),
        }[way]
        op = {
            "gates": ops.rnn_gates,
            "gates backward": ops.rnn_gates_backward,
            "gates double backward": ops.rnn_gates_double_backward,
        }[way]
        watch.clear()
        results = op(number, *given.values())
        watch.name(**given, **dict(zip(names, results, strict=True)))
        return watch.traffic()

    given = {"x_gates": draw(T, B, G * H), "w_hh": draw(G * H, H), "b_hh": draw(G * H)}
    given |= {"h0": h, "c0": c}
    where = (None, None, None, None, False)
    watch.clear()
    results = ops.rnn_sequence(number, *given.values(), *where, True)
    forward = dict(zip(("y", "h_n", "c_n", "gates", "cells"), results, strict=True))
    watch.name(**given, **forward)
    if way == "sequence":
        return watch.traffic()
    watch.clear()
    up = {"dy": draw(T, B, H), "dh_n": draw(B, H)}
    up["dc_n"] = draw(B, H, there=lstm, kind=torch.float32)
    saved = {name: forward[name] for name in ("y", "gates", "cells")}
    results = ops.rnn_sequence_backward(
        number, *up.values(), *saved.values(), *given.values(), *where
    )
    watch.name(**given, **saved, **up, **dict(zip(("dgates", "dh0", "dc0"), results, strict=True)))
    return watch.traffic()


def _claims(cell: str, way: str) -> tuple[dict[str, int], dict[str, int]]:
    """Rows of H that a call reads and writes of each tensor."""
    lstm, gru, G = cell == "lstm", cell == "gru", GATES[cell]
    inputs = {"x_gates": G, "h_gates": G, "h": gru, "c": lstm}
    up = {"dh_next": 1, "dc_next": lstm}
    if way == "gates":
        return inputs, {"h_next": 1, "c_next": lstm}
    if way == "gates backward":
        return inputs | up, {"dx_gates": G, "dh_gates": G * gru, "dh": gru, "dc": lstm}
    if way == "gates double backward":
        g = {"g_dx_gates": G, "g_dh_gates": G * gru, "g_dh": gru, "g_dc": lstm}
        by = {"by_x_gates": G, "by_h_gates": G * gru, "by_h": gru, "by_c": lstm}
        return inputs | up | g, by | {"by_dh_next": 1, "by_dc_next": lstm}
    saved = 0 if cell == "tanh" else 4
    # The walk's begin copies the states; the first step of a GRU or LSTM reads them.
    if way == "sequence":
        read = {"x_gates": T * G, "unnamed": T * G, "b_hh": T * G, "h0": 1 + gru, "c0": 2 * lstm}
        read |= {"y": (T - 1) * gru, "cells": (T - 1) * lstm}
        return read, {
            **{"y": T, "gates": T * saved, "cells": T * lstm},
            **{"h_n": 2, "c_n": 2 * lstm},
        }
    read = {"dy": T, "dh_n": 2, "dc_n": lstm, "dc0": T * lstm, "gates": T * saved}
    read |= {"y": T if cell == "tanh" else (T - 1) * gru, "h0": gru, "c0": lstm}
    read |= {"cells": (2 * T - 1) * lstm}
    return read, {"dgates": T * max(saved, 1), "dh0": 2, "dc0": (1 + T) * lstm}


def check_claims(case: str, told: dict[str, Any]) -> None:
    """The equations of the kernels' headers, in bytes, by vectors of four, in whole sectors."""
    cell, B, H, dtype, way = CASES[case]
    element = BYTES[dtype]
    accumulated = {"c", "c_next", "dc_next", "dc", "g_dc", "by_c", "by_dc_next", "c0", "c_n"}
    accumulated |= {"dc_n", "dc0", "cells"}
    for verb, rows in zip(("read", "written"), _claims(cell, way), strict=True):
        wanted = {}
        for name, of_h in rows.items():
            size = 4 if name in accumulated else element
            moved = int(of_h) * B * H * size
            if moved:
                wanted[name] = [moved, moved, 4 * size]
        moved = dict(told[verb])
        if way == "sequence backward":  # the products, and what of a GRU's passes them
            size = {"read": T * element + T * 4 * (cell == "gru"), "written": T * 4}[verb]
            if verb == "read" or cell == "gru":
                assert moved.pop("unnamed")[0] == size * B * H
        assert moved == wanted, verb
        for name, (total, _, _) in told[verb].items():
            lanes = max(1, 128 // H) if name == "b_hh" else 1  # rows of a warp share a bias
            assert told["sectors"][f"{name} {verb}"] == total / 32 / lanes, name
    assert not told["remarks"] and not told["passes"]
