"""Memory traffic of the CUDA families at three sizes a path, against csrc/cuda/traffic.json.

``python python_tests/test_cuda_traffic.py`` writes the file anew, to be read before it is
committed. What must hold whatever the file says stands in the tests as equations. The emulation
counts (``hetkern.testing.traffic``); the counting library must be the only one of a process, so a
child counts for all tests.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attention_traffic
import pytest
import rnn_traffic

from hetkern.testing.traffic.counting import traffic_library

BUDGET = Path(__file__).parent.parent / "csrc" / "cuda" / "traffic.json"
# Capability, shared bytes a block. No GPU has clusters and so little memory: it makes rows that a
# cluster cannot keep short enough to be counted.
H100, SMALL, SMALL_CLUSTERS = (90, 232448), (80, 16384), (90, 16384)
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Way:
    """A way of sharing out rows, three sizes that take it, and what their plans say."""

    sizes: tuple[tuple[int, int], ...]  #: rows, columns
    gpu: tuple[int, int]
    says: dict[str, Any]

    @property
    def columns(self) -> bool:
        """Whether neighbouring rows, not neighbouring elements, lie side by side."""
        return self.says["path"] == "columns"


SHORT = ((64, 128), (33, 256), (16, 512))
LONGER = ((4, 1024), (3, 4096), (2, 16384))
CLUSTERED = ((1, 20480), (2, 32768), (1, 65536))
LONG = ((2, 32768), (1, 65536), (1, 131072))
SOFTMAX = {
    "short rows": Way(SHORT, H100, {"path": "whole_rows", "keep": True}),
    "kept row": Way(LONGER, H100, {"path": "whole_rows", "keep": True}),
    "cluster": Way(LONG, H100, {"path": "split_rows", "keep": True}),
    "cluster, two sweeps": Way(CLUSTERED, SMALL_CLUSTERS, {"path": "split_rows", "keep": False}),
    "two sweeps": Way(((3, 8192), *LONG[:2]), SMALL, {"path": "whole_rows", "keep": False}),
    "columns": Way(((64, 32), (64, 96), (32, 300)), H100, {"path": "columns", "keep": True}),
    "columns, two sweeps": Way(
        ((64, 300), (32, 512), (32, 4000)), SMALL, {"path": "columns", "keep": False}
    ),
}
CROSS_ENTROPY = {
    "short rows": Way(SHORT, H100, {"path": "whole_rows", "cluster": 1}),
    "one row a block": Way(LONGER, H100, {"path": "whole_rows", "cluster": 1}),
    "cluster": Way(LONG, H100, {"path": "split_rows"}),
    "no cluster": Way(LONG, SMALL, {"path": "whole_rows", "cluster": 1}),
    "columns": Way(((64, 32), (64, 96), (32, 300)), H100, {"path": "columns"}),
}
FAMILIES = {"softmax": SOFTMAX, "cross_entropy": CROSS_ENTROPY}
#: Directions, and the tensors of rows that softmax keeps in each.
DIRECTIONS = {
    "softmax": {"forward": 1, "backward": 2, "double backward": 3},
    "cross_entropy": {"forward": 1, "backward": 1},
}


def cases() -> Iterator[tuple[str, str, str, tuple[int, int], str, str]]:
    """Name, family, path, size, dtype, direction."""
    for family, paths in FAMILIES.items():
        for path, sizes in paths.items():
            for size in sizes.sizes:
                for dtype in BYTES:
                    for way in DIRECTIONS[family]:
                        name = f"{family}, {path}, {size[0]}x{size[1]}, {dtype}, {way}"
                        yield name, family, path, size, dtype, way


CASES = {case[0]: case[1:] for case in cases()}


# ---- The child: counts. --------------------------------------------------------------------------


def counted() -> dict[str, Any]:
    """Every case's traffic: bytes by tensor, widths, sectors, passes over banks, and remarks."""
    import torch

    import hetkern
    from hetkern import _C
    from hetkern.testing.traffic.counting import counting

    told: dict[str, Any] = {}
    with counting() as watch:
        for family, paths in FAMILIES.items():
            for path, p in paths.items():
                os.environ["HETKERN_EMULATED_CAPABILITY"] = str(p.gpu[0])
                os.environ["HETKERN_EMULATED_SHARED_BYTES"] = str(p.gpu[1])
                gpu = {"capability": p.gpu[0], "shared_bytes": p.gpu[1]}
                for M, N in p.sizes:
                    for dtype in BYTES:
                        plans = [
                            _C.softmax_plan_cuda(M, N, p.columns, dtype, dtype, reads, **gpu)
                            if family == "softmax"
                            else _C.cross_entropy_plan_cuda(M, N, p.columns, dtype, **gpu)
                            for reads in DIRECTIONS[family].values()
                        ]
                        shape = (N, M) if p.columns else (M, N)
                        x = torch.randn(shape).to(getattr(torch, dtype)).requires_grad_()
                        if family == "softmax":
                            dim = 0 if p.columns else 1
                            call = lambda x, dim=dim: hetkern.softmax(x, dim, impl="cuda")  # noqa: E731
                            rows = {}
                        else:
                            target = torch.arange(M) % N
                            rows = {"target": target}
                            if p.columns:
                                x = x.detach()[None].requires_grad_()
                                target = target[None]
                            call = lambda x, t=target: hetkern.cross_entropy(  # noqa: E731
                                x, t, reduction="none", impl="cuda"
                            )
                        watch.clear()
                        y = call(x)
                        watch.name(x=x.detach(), y=y.detach(), **rows)
                        forward = watch.traffic()
                        twice = family == "softmax"
                        dy = torch.randn(y.shape).to(y.dtype).requires_grad_(twice)
                        (dx,) = torch.autograd.grad(y, x, dy, create_graph=twice)
                        named = {"x": x, "y": y, "dy": dy, "dx": dx}
                        named = rows | {name: t.detach() for name, t in named.items()}
                        watch.name(**named)
                        ways = {"forward": forward, "backward": watch.traffic()}
                        if twice:
                            g = torch.randn(x.shape).to(x.dtype)
                            g_dy, g_y = torch.autograd.grad(dx, (dy, y), g)
                            watch.name(**named, g=g, g_dy=g_dy, g_y=g_y)
                            ways["double backward"] = watch.traffic()
                        for (way, traffic), plan in zip(ways.items(), plans, strict=True):
                            name = f"{family}, {path}, {M}x{N}, {dtype}, {way}"
                            told[name] = {"plan": plan} | _summary(traffic)
        told |= rnn_traffic.count(watch, _summary)
        told |= attention_traffic.count(watch, _summary)
    return told


def _source(line: str) -> str:
    """What stands in a line of the kernels, which tells it apart from others wherever it moves."""
    name, number = line.split(":")
    (file,) = BUDGET.parent.rglob(name)
    return f"{name}: {file.read_text().splitlines()[int(number) - 1].strip()}"


def _summary(traffic: Any) -> dict[str, Any]:
    rows = [r for r in traffic.rows if not r.shared]
    told: dict[str, Any] = {
        "sectors": {},
        "passes": {},
        "remarks": sorted(
            {f"{r.memory}: {r.op}: {r.remark}: {_source(r.line)}" for r in traffic.rows if r.remark}
        ),
    }
    for r in traffic.rows:
        if r.shared:
            sums = told["passes"].setdefault(f"{r.memory} {r.op}", [0, 0])  # requests, passes
            sums[0], sums[1] = sums[0] + r.requests, sums[1] + r.cost
    for op, verb in (("load", "read"), ("store", "written")):
        names = sorted({r.memory for r in rows if r.op == op})
        widest = {n: max(r.width for r in rows if (r.memory, r.op) == (n, op)) for n in names}
        told[verb] = {  # bytes, of which in accesses of so many bytes a lane
            n: [
                sum(r.bytes for r in rows if (r.memory, r.op) == (n, op)),
                sum(r.bytes for r in rows if (r.memory, r.op, r.width) == (n, op, widest[n])),
                widest[n],
            ]
            for n in names
        }
        told["sectors"] |= {
            f"{n} {verb}": sum(r.cost for r in rows if (r.memory, r.op) == (n, op)) for n in names
        }
    return told


# ---- The tests. ----------------------------------------------------------------------------------

needs_counter = pytest.mark.skipif(
    traffic_library() is None, reason="libhetkern_traffic.so is not built"
)
#: A target's logit lies anywhere in its row: neighbouring lanes fetch those of neighbouring rows.
UNAVOIDABLE = {
    f"x: load: uncoalesced: cross_entropy.cu: {line}"
    for line in (
        "const A z = score(get<A>(row.x.at[t * row.x.step]));",
        "if (t >= 0 && (!columns || lane == 0)) logit = get<A>(x.at[t * x.step]);",
    )
}


@pytest.fixture(scope="module")
def traffic(once_a_run: Any) -> dict[str, Any]:
    def count() -> str:
        words = [sys.executable, __file__, "--count"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    told = json.loads(once_a_run("traffic.json", count))
    assert told.keys() == CASES.keys() | rnn_traffic.CASES.keys() | attention_traffic.CASES.keys()
    return told


def check_claims(case: str, told: dict[str, Any], keep: bool) -> None:
    """The equations of the kernels' headers, in bytes."""
    family, path, (M, N), dtype, way = CASES[case]
    columns, element = FAMILIES[family][path].columns, BYTES[dtype]
    row, width = M * N * element, element if columns else 16
    whole = [row, row, width]
    if family == "softmax":
        read, written = {
            "forward": ("x", "y"),
            "backward": ("dy y", "dx"),
            "double backward": ("g dy y", "g_dy g_y"),
        }[way]
        sweeps = 1 if keep else 2
        assert told["read"] == {t: [sweeps * row, sweeps * row, width] for t in read.split()}
        assert told["written"] == dict.fromkeys(written.split(), whole)
    elif way == "forward":  # the logits once, and the target's own
        wide = row + M * element if columns else row
        assert told["read"]["x"] == [row + M * element, wide, width]
        assert told["read"]["target"][0] == 16 * M
        assert sum(told["written"][t][0] for t in ("y", "unnamed")) <= 16 * M + 8
        assert "x" not in told["written"]
    else:  # the logits once; a row's numbers by every thread, and those are one sector a warp
        assert told["written"] == {"dx": whole}
        wide = row if not columns else told["read"]["x"][0]
        assert told["read"]["x"][1:] == [wide, width]
        assert told["sectors"]["x read"] <= row / 32 * 1.08 + 2 * M
    if family == "softmax":
        for verb in ("read", "written"):
            for t, (moved, _, _) in told[verb].items():
                assert told["sectors"][f"{t} {verb}"] == moved / 32
    assert set(told["remarks"]) <= UNAVOIDABLE


@needs_counter
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_moves_what_its_equations_say(traffic, case):
    family, path, _, _, way = CASES[case]
    told = traffic[case]
    plan = told["plan"]
    if way == "forward":  # backward keeps two tensors, and may go over to the next path
        says = FAMILIES[family][path].says
        assert plan | says == plan, "the test does not reach the path that it claims to"
    check_claims(case, told, plan.get("keep", True))


@needs_counter
@pytest.mark.parametrize("case", rnn_traffic.CASES)
def test_a_kernel_of_the_rnn_moves_what_its_equations_say(traffic, case):
    rnn_traffic.check_claims(case, traffic[case])


@needs_counter
@pytest.mark.parametrize("case", attention_traffic.CASES)
def test_a_kernel_of_attention_moves_what_its_equations_say(traffic, case):
    attention_traffic.check_claims(case, traffic[case])


@needs_counter
@pytest.mark.parametrize("case", [*CASES, *rnn_traffic.CASES, *attention_traffic.CASES])
def test_a_kernel_keeps_its_traffic_budget(traffic, case):
    told = {what: value for what, value in traffic[case].items() if what != "plan"}
    assert told == json.loads(BUDGET.read_text())[case]


@needs_counter
def test_a_tensor_read_twice_is_seen(traffic):
    for way in ("forward", "backward"):
        case = f"softmax, two sweeps, 3x8192, float32, {way}"
        with pytest.raises(AssertionError):
            check_claims(case, traffic[case], keep=True)


@needs_counter
@pytest.mark.parametrize("memory", ["shared", "shared of a peer"])
def test_a_bank_conflict_is_excused_nowhere(traffic, memory):
    case = "softmax, kept row, 2x16384, float32, backward"  # a cluster, which keeps its rows
    told = traffic[case]
    assert not told["remarks"], "the counter takes its peers' banks for the block's own"
    for line in ("const Vector<A, kEach> part = from[h * static_cast<int>(blockDim.x)];", "return"):
        remark = f"{memory}: load: bank conflicts: team.cuh: {line}"
        with pytest.raises(AssertionError):
            check_claims(case, told | {"remarks": [remark]}, keep=True)


@needs_counter
@pytest.mark.parametrize("way", DIRECTIONS["softmax"])
def test_a_kept_element_passes_the_banks_once_each_way(traffic, way):
    case = f"softmax, short rows, 16x512, float32, {way}"  # a warp each: nothing else is shared
    planes, requests = DIRECTIONS["softmax"][way], 16 * 512 * 4 // (32 * 16)
    wanted = [planes * requests, 4 * planes * requests]  # of 16 bytes a lane
    assert traffic[case]["passes"] == {"shared load": wanted, "shared store": wanted}


if __name__ == "__main__":
    told = counted()
    if "--count" in sys.argv:
        print(json.dumps(told))
    else:
        for case in told.values():
            case.pop("plan", None)
        lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in told.items()]
        BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
